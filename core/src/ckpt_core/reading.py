"""The one reader: from what a plugin describes to a checkpoint.

It is the same for every format: agreement with `--config`, `-o ignore_keys`, tables bound to the architecture, every
tensor of every rank accounted for, replicas compared, a fitting receipt believed, the true vocabulary settled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_core.architecture import Architecture, differing, facts_of
from ckpt_core.checkpoint import Checkpoint, Provenance
from ckpt_core.company.vocabulary import settled, with_vocabulary
from ckpt_core.description import Averaged, Description, Fragment, RankTensors, Vocabulary
from ckpt_core.errors import CkptError, Problems, UsageError
from ckpt_core.layout import BoundTables, Native, account
from ckpt_core.ledger import Ledger, Loss
from ckpt_core.plugins.discovery import Plugin, check_returned
from ckpt_core.plugins.request import Option, ReadRequest
from ckpt_core.receipt import Receipt, original_of, receipt_of
from ckpt_core.rewrite import Rewritable, latent_norms, without_predictors
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.tensors.assembly import LazyParameter, ParameterBuilder, Shard, whole

__all__ = [
    "IGNORE_KEYS",
    "LATENT_NORM_EPS",
    "PREDICTORS",
    "Averaged",
    "Fragment",
    "Provenance",
    "Receipt",
    "Vocabulary",
    "checkpoint_of",
    "drops_predictors",
    "given",
    "receipt_of",
    "without_ignored",
]

IGNORE_KEYS = Option("ignore_keys", "config keys to leave out, separated by commas", str, "", side="read")
"""The option of every reader of a config that may have keys of no meaning."""

PREDICTORS = Option(
    "predictors",
    "the layers that predict further tokens (multi-token prediction): keep them, or drop them, for a target that has none",
    ("keep", "drop"),
    "keep",
    side="read",
)
"""The option of every reader of a format whose models may have such layers."""

LATENT_NORM_EPS = Option(
    "latent_norm_eps",
    "the epsilon of the norms on the latents of MLA: transformers has 1e-6 in its code, and Megatron takes that of the other norms",
    float,
    None,
    side="read",
)
"""The option of every reader of a format whose models may have latent attention."""


def checkpoint_at(plugin: Plugin, path: str, request: ReadRequest) -> Checkpoint:
    """The checkpoint that a plugin describes, or that it made of another one, which an option of its names, or of an adapter alone."""
    described = plugin.hooks.ckpt_read(path=path, request=request)
    if isinstance(described, Checkpoint) and any(option.kind is Checkpoint for option in plugin.info.options):
        return described
    check_returned(plugin, "ckpt_read", described, Description)
    return checkpoint_of(described, plugin.name, path, request)


def checkpoint_of(description: Description, format: str, path: str, request: ReadRequest) -> Checkpoint:
    """The checkpoint at `path` as it is described. Raises every problem of its tensors at once."""
    if request.architecture is not None and description.config is not None:
        check_agreement(request.architecture, description.said or description.architecture, description.config)
    checkpoint = Checkpoint(
        format,
        path,
        description.architecture,
        parameters_of(description),
        description.files,
        description.notes,
        description.sidecars,
        description.parallel,
        description.ledger,
        Provenance(
            description.hints,
            description.origins,
            description.evidence,
            description.losses,
            description.explanations,
            description.masters,
        ),
    )
    checkpoint = original_of(checkpoint, description.root or description.where)
    checkpoint = _with_settled_vocabulary(checkpoint, request, description.vocabulary)
    eps = request.options.get(LATENT_NORM_EPS.name)
    checkpoint = checkpoint if eps is None else _with_latent_norms(checkpoint, float(eps))
    return _without_predictors(checkpoint) if drops_predictors(request) else checkpoint


def drops_predictors(request: ReadRequest) -> bool:
    """Whether the user wants the layers that predict further tokens left out."""
    return request.options.get(PREDICTORS.name) == "drop"


def _without_predictors(checkpoint: Checkpoint) -> Checkpoint:
    model = without_predictors(Rewritable(checkpoint.architecture, checkpoint.tensors))
    if model.architecture == checkpoint.architecture:
        return checkpoint
    count = len(checkpoint.tensors) - len(model.tensors)
    loss = Loss("dropped", f"predictors: {count} tensors", "as -o predictors=drop asks")
    return replace(checkpoint, architecture=model.architecture, tensors=model.tensors).because(losses=[loss])


def _with_latent_norms(checkpoint: Checkpoint, eps: float) -> Checkpoint:
    if not 0 < eps < 1:
        raise UsageError(f"option {LATENT_NORM_EPS.name} is not the epsilon of a norm", expected="such as 1e-5")
    model = latent_norms(Rewritable(checkpoint.architecture, checkpoint.tensors), eps)
    if model.architecture == checkpoint.architecture:
        return checkpoint
    loss = Loss(
        "assumed", f"{eps:g} as the epsilon of norms on latents", "as -o latent_norm_eps asks: another function"
    )
    return replace(checkpoint, architecture=model.architecture).because(losses=[loss])


def _with_settled_vocabulary(checkpoint: Checkpoint, request: ReadRequest, known: Vocabulary | None) -> Checkpoint:
    asked = request.options.get("vocab") if known is None else known.asked
    if asked is not None:
        return with_vocabulary(checkpoint, int(asked))
    if known is None:
        return checkpoint
    return settled(checkpoint, request, padded=known.rows, said=known.said, tokenizer=known.tokenizer)


# --- config ------------------------------------------------------------------------------------------------------------


def given(
    request: ReadRequest, file: str, *, rows: int | None = None, problem: str, expected: str = ""
) -> Architecture:
    """The architecture that `--config` gives, for files that hold no config; with `rows`, its vocabulary is padded to them.

    `problem` says what the files lack, and `expected` what they could have held. `CkptError` if nothing is given.
    """
    architecture = request.architecture
    if architecture is None or (rows is not None and architecture.tokens is None):
        raise CkptError(problem, file=file, expected=expected or None, fix="give a config with --config")
    if rows is None or architecture.tokens is None:
        return architecture
    return replace(architecture, tokens=replace(architecture.tokens, vocabulary=rows, padded_vocabulary=rows))


def without_ignored(
    config: Mapping[str, Any], request: ReadRequest, ledger: Ledger, file: str, section: str = ""
) -> dict[str, Any]:
    """A config without the keys of `-o ignore_keys`; `a.b` is key `b` of the object `a`. `ledger` learns which were there.

    `section` is where in `file` the config stands.
    """
    kept, found = dict(config), []
    for name in ignored_keys(request):
        outer, dot, inner = name.partition(".")
        if name in kept:
            del kept[name]
        elif dot and isinstance(kept.get(outer), Mapping) and inner in kept[outer]:
            kept[outer] = {key: value for key, value in kept[outer].items() if key != inner}
        else:
            continue
        found.append(f"{section}.{name}" if section else name)
    ledger.asked(file, found)
    return kept


def ignored_keys(request: ReadRequest) -> list[str]:
    """The keys of `-o ignore_keys`, separated by commas, without blanks around them."""
    return [key for part in str(request.options.get(IGNORE_KEYS.name) or "").split(",") if (key := part.strip())]


def check_agreement(given: Architecture, found: Architecture, file: str) -> None:
    """Raise every fact in which `--config` (`given`) and a checkpoint that describes itself (`found`) differ.

    The true vocabulary may be smaller in `given`: many formats can only say the padded one. Layers that predict further tokens may be
    missing there: a config of transformers does not tell whether the files have those that it counts.
    """
    one, two = facts_of(given), facts_of(found)
    problems = Problems("--config and the checkpoint describe different models")
    for path in differing(one, two):
        if path.startswith("predictors.") and not one.present("predictors"):
            continue
        if not (path.startswith("tokens.") and path.endswith("vocabulary") and one[path] <= two[path]):
            problems.add(
                CkptError(f"{path} is {two.get(path)} in the checkpoint, {one.get(path)} in --config", file=file)
            )
    problems.raise_any()


# --- tensors -----------------------------------------------------------------------------------------------------------


def parameters_of(description: Description) -> dict[str, LazyParameter]:
    """The canonical tensors, put together from those of all ranks; what several ranks hold is compared when it is read.

    Raises at once: every tensor that is missing on its rank, is not part of the model or has another shape, and every
    parameter that the ranks together do not hold once.
    """
    bound = BoundTables(description.tables, description.architecture, description.choices)
    builder = ParameterBuilder(bound.parameters, description.where)
    for rank in _by_rank(description.ranks):
        natives = _bound(bound, rank)
        for problem in account(
            {name: native for name, native in natives.items() if rank.needs(native)},
            bound.tables,
            {name for name in rank.found if name not in natives or rank.needs(natives[name])},
            rank.where,
            rank.found,
        ):
            builder.problems.add(problem)
        for name, native in natives.items():
            for held in rank.files:
                _enter(builder, native, held, name)
    return builder.finish()


@dataclass
class _Rank:
    """All files of one rank, which are accounted for together."""

    files: list[RankTensors] = field(default_factory=list)

    @property
    def found(self) -> dict[str, str]:
        """Every tensor found, with the file or folder it lies in."""
        return {name: held.where for held in reversed(self.files) for name in held.tensors}

    @property
    def where(self) -> str:
        """What errors about a tensor that no file of the rank has name."""
        first = self.files[0]
        if all(held.where == first.where for held in self.files):
            return first.where
        ranks = " ".join(f"{name}={rank}" for name, (rank, count) in first.ranks.items() if count > 1)
        return os.path.commonpath([held.where for held in self.files]) + (f" ({ranks})" if ranks else "")

    def needs(self, native: Native) -> bool:
        needed = self.files[0].needed
        return needed is None or needed(native)


def _by_rank(found: Iterable[RankTensors]) -> list[_Rank]:
    """What was found, the files of one rank together, in the order of their first."""
    ranks: dict[tuple[object, ...], _Rank] = {}
    for held in found:
        place = tuple(sorted(held.ranks.items())), held.called, held.needed
        ranks.setdefault(place, _Rank()).files.append(held)
    return list(ranks.values())


def _bound(bound: BoundTables, rank: _Rank) -> dict[str, Native]:
    """The tensors that the tables have on a rank, by what they are called in its files."""
    first = rank.files[0]
    try:
        natives = bound.natives(first.ranks)
    except CkptError as error:  # a number of ranks that the model can't have
        error.file = error.file or rank.where
        raise
    if first.called is None:
        return natives
    named = ((first.called(native), native) for native in natives.values())
    return {name: replace(native, name=name) for name, native in named if name is not None}


def _enter(builder: ParameterBuilder, native: Native, rank: RankTensors, name: str) -> None:
    held = rank.tensors.get(name)
    if isinstance(held, Averaged):
        builder.add_averaged(native, held.ranks)
    elif held is not None:
        builder.add(native, _shards(held))
    if (rounded := rank.rounded.get(name)) is not None:
        builder.add_rounded(native, _shards(rounded))


def _shards(held: StoredTensor | Sequence[Shard]) -> Sequence[Shard]:
    return whole(held) if isinstance(held, StoredTensor) else held
