"""Writing a checkpoint as an HF folder: the class is chosen by what it can hold exactly, never by a name."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    Facts,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    company,
    configs,
    disk,
    dtypes,
    errors,
    facts_of,
    layouts,
    ledgers,
    rewrites,
    schema,
)
from ckpt_hf.common import Family, Rewrite, TableSet
from ckpt_hf.config import CLASS_NAMES, FAMILIES, classes_with_head_of
from ckpt_hf.files import BIN, CONFIG, SAFETENSORS, add_weights
from ckpt_hf.quantised.writing import coded
from ckpt_hf.trainer import SAID_BESIDE, STATE, add_training


@schema.dataclass(frozen=True)
class Fit:
    """A family that holds a model exactly: the model as it is written there, the config that says so, and its tensors.

    `tokens` says which ids of special tokens come from companions, and which is null for want of any.
    """

    family: Family
    model: rewrites.Rewritable
    config: dict[str, object]
    tables: TableSet
    tokens: list[str]

    @property
    def said(self) -> dict[str, Any]:
        """The notes that its config says."""
        return self.family.config.said(self.config)

    def builder(self, dtype: dtypes.DType | None = None, trained: Checkpoint | None = None) -> TargetBuilder:
        """A target of the model, whose tensors are all of `dtype`, or keep their own; `trained` is that of a `TargetBuilder`."""
        return TargetBuilder(self.model, self.tables, dtype, trained=trained)

    def natives(self, builder: TargetBuilder) -> list[layouts.Native]:
        """The tensors of its files, as its `builder` has them. Layers that predict further tokens have their copies of the embedding and
        the head: the programs that load these layers expect them."""
        copies = self.family.loads_copies(self.model.architecture)
        return [
            native
            for native in builder.natives().values()
            if copies or not native.row.copy or native.predictor is not None
        ]


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The HF folder of `checkpoint`. Raises `Refusal` naming what no class, or the class asked for, can hold.

    With the state of a training its weights are what the optimizer steps: see `TargetBuilder.stepped`.
    """
    checkpoint = TargetBuilder.stepped(checkpoint, request)
    fit = choose(checkpoint, str(request.options.get("hf_class") or ""), list(_asked(request.options)))
    builder = fit.builder(request.dtype, checkpoint)
    kind = BIN if request.options.get("container") == "bin" else SAFETENSORS
    limit = disk.parse_size(str(request.options.get("max_shard_size") or "5GB"))
    natives = fit.natives(builder)
    codes = coded(checkpoint, request, builder, natives)
    add_weights(builder, natives, kind, limit, codes.tensors, codes.kept)
    builder.documents[CONFIG] = config_text(fit, builder.commonest_dtype, codes.config)
    builder.documents |= {**settings_beside(checkpoint, fit.model), **codes.documents}
    regrouped = add_training(builder, fit.family, fit.family.arranged_by(fit.config), checkpoint.sidecars)
    return builder.target(
        "hf",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        decisions={"hf_class": fit.family.class_name, **({"tokens": fit.tokens} if fit.tokens else {})},
        losses=[*losses_of(checkpoint, fit), *codes.losses, *regrouped],
        said=fit.said | settings_said(checkpoint),
        held={company.PROCESSOR, STATE} & builder.documents.keys(),
        carried=codes.carried,
        says=SAID_BESIDE,
    )


def settings_beside(checkpoint: Checkpoint, model: rewrites.Rewritable) -> dict[str, bytes]:
    """The files that transformers keeps beside a config for what others keep in theirs: how images are prepared, and
    the defaults of `generate`."""
    found = {}
    processor = company.processor_file(checkpoint, model.architecture)
    if processor is not None:
        found[company.PROCESSOR] = processor
    generation = checkpoint.notes.get("generation")
    if isinstance(generation, dict) and company.GENERATION not in checkpoint.sidecars:
        found[company.GENERATION] = (json.dumps(generation, indent=2) + "\n").encode()
    return found


def settings_said(checkpoint: Checkpoint) -> dict[str, Any]:
    """The notes that `settings_beside` says."""
    return {name: checkpoint.notes[name] for name in ("image_processor", "generation") if name in checkpoint.notes}


def _asked(options: Mapping[str, Any]) -> Iterator[Callable[[rewrites.Rewritable], rewrites.Rewritable]]:
    """The changes of the model that options ask for."""
    size = options.get("image_size")
    if size is not None:
        yield lambda model: rewrites.resized_images(model, size)
    if options.get("fold_layer_scale"):
        yield rewrites.folded_layer_scale
    if options.get("headless"):
        yield rewrites.without_head


def choose(
    checkpoint: Checkpoint,
    wanted: str = "",
    asked: Iterable[Callable[[rewrites.Rewritable], rewrites.Rewritable]] = (),
    among: Collection[str] = (),
) -> Fit:
    """The class to write: `wanted`, else the one the source came from if it fits, else the first that fits.

    `asked` are changes of the model that the user asked for. `among` are the only classes that may be chosen, if there are any.
    """
    hints = checkpoint.hints_for("hf")
    tokens = checkpoint.architecture.tokens
    model = rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors, files=checkpoint.files)
    if tokens is not None:
        model = rewrites.vocabulary_rows(model, tokens.vocabulary)
    for change in asked:
        model = change(model)
    families = _families(model.architecture, wanted, among, str(hints.get("model_type")))
    ids, reasons = company.known_ids(checkpoint)
    notes = {**hints.get("noted", {}), **checkpoint.notes, **ids}
    refused: list[_Candidate] = []
    for candidate in _candidates(model, families):
        if candidate.lacks:
            refused.append(candidate)
            continue
        try:
            config = candidate.config(notes)
        except (Refusal, errors.ProblemsFound):
            refused.append(candidate)
            continue
        family = candidate.family
        arrangement = family.arranged_by(hints.get("arrangement") or {})
        null = [entry.name for entry in family.config.entries if isinstance(entry, configs.Note) and entry.null]
        unknown = [f"{role}: null, as nothing says it" for role in null if role not in notes]
        as_found = (hints.get("choices") or {}) if family.model_type == hints.get("model_type") else {}
        spelling = family.spellings({**as_found, **arrangement})[0]
        return Fit(family, candidate.model, config | arrangement, spelling, [*reasons, *unknown])
    nearest, lack = _nearest(refused, notes)
    explained = checkpoint.explained(lack)
    alone = len({id(candidate.family) for candidate in refused}) == 1
    if alone and not explained:
        raise lack
    if alone:
        raise Refusal(
            f"{nearest.class_name} does not hold this model exactly",
            found=errors.Lines([*str(lack).split("\n"), *explained]),
        )
    which = f"none of {', '.join(sorted(among))}" if among else "no transformers class"
    ask = "" if among else ", or ask for a class with --to hf -o hf_class=... to see what it lacks"
    raise Refusal(
        f"{which} holds this architecture exactly; the nearest is {nearest.class_name}",
        found=errors.Lines([*str(lack).split("\n"), *explained]),
        fix=f"convert to ir or to the source's own format{ask}",
    )


@schema.dataclass(frozen=True)
class _Candidate:
    """A class, and the model as it would be written there. `lacks`: how many facts its config has no line for, and 1 more where
    the class holds no such model for another reason."""

    family: Family
    model: rewrites.Rewritable
    facts: Facts
    lacks: int

    @classmethod
    def of(cls, family: Family, model: rewrites.Rewritable, facts: Facts) -> _Candidate:
        constrained = family.constraint(model.architecture) is not None
        return cls(family, model, facts, constrained + sum(1 for _ in family.config.unsaid(facts)))

    def config(self, notes: dict[str, object]) -> dict[str, object]:
        """Its config. Raises `Refusal` or `ProblemsFound` for what the class cannot hold."""
        reason = self.family.constraint(self.model.architecture)
        if reason is not None:
            raise Refusal(f"{self.family.class_name}: {reason}")
        return self.family.config.write(self.facts, notes)


def _families(architecture: Architecture, wanted: str, among: Collection[str], first: str) -> Iterator[Family]:
    """The classes that may be chosen, those of the type `first` first: of those that the user or the caller names, the ones for
    this kind of head, if there are any."""

    def is_named(family: Family) -> bool:
        if wanted:
            return wanted in (family.class_name, family.model_type)
        return not among or family.class_name in among

    found = False
    for family in filter(is_named, classes_with_head_of(architecture, first)):
        found = True
        yield family
    if not found:
        others = sorted(filter(is_named, FAMILIES), key=lambda family: family.model_type != first)
        if not others and wanted:
            raise errors.UsageError(
                f"unknown hf_class {wanted!r}",
                expected=", ".join(CLASS_NAMES),
                fix=errors.did_you_mean(wanted, CLASS_NAMES, "docs/families.md lists them by family"),
            )
        yield from others


def _candidates(model: rewrites.Rewritable, families: Iterable[Family]) -> Iterator[_Candidate]:
    """Every class with the model as it is; then with what each of them asks for first, which changes least; and so on."""
    facts, asked = facts_of(model.architecture), []
    for family in families:
        asked.append(family)
        yield _Candidate.of(family, model, facts)

    @functools.cache
    def after(change: Rewrite) -> tuple[rewrites.Rewritable, Facts]:
        changed = change(model)
        return changed, facts_of(changed.architecture)

    for changes in itertools.zip_longest(*(family.rewrites for family in asked)):
        for family, change in zip(asked, changes, strict=True):
            if change is not None and after(change)[0] is not model:
                yield _Candidate.of(family, *after(change))


def _nearest(refused: Iterable[_Candidate], notes: dict[str, object]) -> tuple[Family, CkptError]:
    """The class with the fewest problems, and those: the first of several. Only classes that may be it write a config."""
    fewest: tuple[int, int, Family, CkptError] | None = None
    for order, candidate in sorted(enumerate(refused), key=lambda one: (one[1].lacks, one[0])):
        if fewest is not None and candidate.lacks > fewest[0]:
            break
        try:
            candidate.config(notes)
        except (Refusal, errors.ProblemsFound) as problem:
            count = len(getattr(problem, "problems", [problem]))
            if fewest is None or (count, order) < fewest[:2]:
                fewest = count, order, candidate.family, problem
    assert fewest is not None, "a class that was refused holds the model"
    return fewest[2:]


def config_text(fit: Fit, dtype: dtypes.DType, further: Mapping[str, Any] | None = None) -> bytes:
    """`config.json` of a model most of whose tensors are of `dtype`, with `further` keys of the file that the model does not need."""
    config = {"architectures": [fit.family.class_name], "model_type": fit.family.model_type, **fit.config}
    # transformers 4 reads torch_dtype, transformers 5 dtype
    config |= {"torch_dtype": dtype.torch, "dtype": dtype.torch} | dict(further or {})
    return (json.dumps(config, indent=2) + "\n").encode()


def losses_of(checkpoint: Checkpoint, fit: Fit) -> Iterator[ledgers.Loss]:
    """What the source has and the HF model has not."""
    yield from fit.family.losses(fit.model.architecture)
    yield from _left_out(checkpoint, fit.model)
    if checkpoint.architecture.tokens is not None:
        tokens = checkpoint.architecture.tokens
        if tokens.padded_vocabulary > tokens.vocabulary:
            yield ledgers.Loss(
                "dropped",
                f"{tokens.padded_vocabulary - tokens.vocabulary} rows of the vocabulary",
                "padding beyond the true vocabulary",
            )


def _left_out(checkpoint: Checkpoint, written: rewrites.Rewritable) -> Iterator[ledgers.Loss]:
    """The head of the source, where the model is written without one."""
    gone = checkpoint.tensors.keys() - written.tensors.keys()
    left_out = sorted(name for name in gone if name.startswith(("head.", "classifier.")))
    before, after = checkpoint.architecture, written.architecture
    if before.head is not None and after.head is None:
        what = ", ".join(left_out) or "the head, which is the embedding"
        yield ledgers.Loss("dropped", what, "the model is written without its head, as -o headless=true asks")
    elif before.classifier != after.classifier:
        why = "the model is written without its classes, as -o headless=true asks"
        yield ledgers.Loss("dropped", ", ".join(left_out), why)
