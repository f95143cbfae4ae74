"""Writing a checkpoint as an HF folder: the class is chosen by what it can hold exactly, never by a name."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    CkptError,
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
)
from ckpt_hf.common import Family, TableSet
from ckpt_hf.config import FAMILIES
from ckpt_hf.files import BIN, CONFIG, SAFETENSORS, add_weights


@dataclass(frozen=True)
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

    def builder(self, dtype: dtypes.DType | None = None) -> TargetBuilder:
        """A target of the model, whose tensors are all of `dtype`, or keep their own."""
        return TargetBuilder(self.model, self.tables, dtype)

    def natives(self, builder: TargetBuilder) -> list[layouts.Native]:
        """The tensors of its files, as its `builder` has them."""
        copies = self.family.loads_copies(self.model.architecture)
        return [native for native in builder.natives().values() if copies or not native.row.copy]


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The HF folder of `checkpoint`. Raises `Refusal` naming what no class, or the class asked for, can hold."""
    fit = choose(checkpoint, str(request.options.get("hf_class") or ""), list(_asked(request.options)))
    builder = fit.builder(request.dtype)
    kind = BIN if request.options.get("container") == "bin" else SAFETENSORS
    limit = disk.parse_size(str(request.options.get("max_shard_size") or "5GB"))
    add_weights(builder, fit.natives(builder), kind, limit)
    builder.documents[CONFIG] = config_text(fit, builder.commonest_dtype)
    builder.documents |= settings_beside(checkpoint, fit.model)
    return builder.target(
        "hf",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        decisions={"hf_class": fit.family.class_name, **({"tokens": fit.tokens} if fit.tokens else {})},
        losses=losses_of(checkpoint, fit),
        said=fit.said | settings_said(checkpoint),
        held={company.PROCESSOR} & builder.documents.keys(),
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
        yield rewrites.without_classes


def choose(
    checkpoint: Checkpoint, wanted: str = "", asked: Iterable[Callable[[rewrites.Rewritable], rewrites.Rewritable]] = ()
) -> Fit:
    """The class to write: `wanted`, else the one the source came from if it fits, else the first that fits.

    `asked` are changes of the model that the user asked for.
    """
    families = list(FAMILIES)
    if wanted:
        families = [family for family in FAMILIES if wanted in (family.class_name, family.model_type)]
        if not families:
            raise errors.UsageError(
                f"unknown hf_class {wanted!r}", expected=", ".join(family.class_name for family in FAMILIES)
            )
    hints = checkpoint.hints_for("hf")
    families.sort(key=lambda family: family.model_type != hints.get("model_type"))
    tokens = checkpoint.architecture.tokens
    model = rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors, files=checkpoint.files)
    if tokens is not None:
        model = rewrites.vocabulary_rows(model, tokens.vocabulary)
    for change in asked:
        model = change(model)
    ids, reasons = company.known_ids(checkpoint)
    notes = {**checkpoint.notes, **ids}
    refusals: list[tuple[int, Family, CkptError]] = []
    for family, variant in _candidates(model, families):
        try:
            config = _config(family, variant, notes)
        except (Refusal, errors.ProblemsFound) as problem:
            refusals.append((len(getattr(problem, "problems", [problem])), family, problem))
            continue
        arrangement = family.arranged_by(hints.get("arrangement") or {})
        null = [entry.name for entry in family.config.entries if isinstance(entry, configs.Note) and entry.null]
        unknown = [f"{role}: null, as nothing says it" for role in null if role not in notes]
        return Fit(family, variant, config | arrangement, family.spellings(arrangement)[0], [*reasons, *unknown])
    _, nearest, lack = min(refusals, key=lambda refusal: refusal[0])
    explained = checkpoint.explained(lack)
    if len(families) == 1 and not explained:
        raise lack
    if len(families) == 1:
        raise Refusal(
            f"{nearest.class_name} does not hold this model exactly",
            found=errors.Lines([*str(lack).split("\n"), *explained]),
        )
    raise Refusal(
        f"no transformers class holds this architecture exactly; the nearest is {nearest.class_name}",
        found=errors.Lines([*str(lack).split("\n"), *explained]),
        fix="convert to ir or to the source's own format, or ask for a class with -o hf_class=... to see what it lacks",
    )


def _candidates(model: rewrites.Rewritable, families: list[Family]) -> Iterator[tuple[Family, rewrites.Rewritable]]:
    """Every class with the model as it is; then with what each of them asks for first, which changes least; and so on."""
    for family in families:
        yield family, model
    for changes in itertools.zip_longest(*(family.rewrites for family in families)):
        for family, change in zip(families, changes, strict=True):
            if change is not None and (changed := change(model)) is not model:
                yield family, changed


def _config(family: Family, model: rewrites.Rewritable, notes: dict[str, object]) -> dict[str, object]:
    reason = family.constraint(model.architecture)
    if reason is not None:
        raise Refusal(f"{family.class_name}: {reason}")
    return family.config.write(facts_of(model.architecture), notes)


def config_text(fit: Fit, dtype: dtypes.DType) -> bytes:
    """`config.json` of a model most of whose tensors are of `dtype`."""
    config = {"architectures": [fit.family.class_name], "model_type": fit.family.model_type, **fit.config}
    # transformers 4 reads torch_dtype, transformers 5 dtype
    config |= {"torch_dtype": dtype.torch, "dtype": dtype.torch}
    return (json.dumps(config, indent=2) + "\n").encode()


def losses_of(checkpoint: Checkpoint, fit: Fit) -> Iterator[ledgers.Loss]:
    """What the source has and the HF model has not."""
    yield from fit.family.losses(fit.model.architecture)
    left_out = sorted(checkpoint.tensors.keys() & {"classifier.weight", "classifier.bias"} - fit.model.tensors.keys())
    if left_out:
        yield ledgers.Loss(
            "dropped", ", ".join(left_out), "the model is written without its classes, as -o headless=true asks"
        )
    if checkpoint.architecture.tokens is not None:
        tokens = checkpoint.architecture.tokens
        if tokens.padded_vocabulary > tokens.vocabulary:
            yield ledgers.Loss(
                "dropped",
                f"{tokens.padded_vocabulary - tokens.vocabulary} rows of the vocabulary",
                "padding beyond the true vocabulary",
            )
