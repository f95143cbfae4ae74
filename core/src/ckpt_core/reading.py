"""The one reader: from what a plugin describes to a checkpoint.

It is the same for every format: agreement with `--config`, `-o ignore_keys`, tables bound to the architecture, every
tensor of every rank accounted for, replicas compared, a fitting receipt believed, the true vocabulary settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckpt_core.architecture import Architecture, differing, facts_of
from ckpt_core.checkpoint import Checkpoint, Provenance
from ckpt_core.company.companions import without_training_files
from ckpt_core.company.vocabulary import settled, with_vocabulary
from ckpt_core.description import Averaged, Description, Fragment, SavedTraining, Vocabulary
from ckpt_core.errors import CkptError, NotCarried, Problems, ProblemsFound, UsageError
from ckpt_core.gathering import parameters_of, training_of
from ckpt_core.ledger import OPTIMIZER, Ledger, Loss
from ckpt_core.plugins.discovery import Plugin, check_returned
from ckpt_core.plugins.request import Option, ReadRequest
from ckpt_core.receipt import original_of, receipt_of
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.receipt import Receipt
    from ckpt_core.training import (
        ADAM,
        ADAMW,
        EXP_AVG,
        EXP_AVG_SQ,
        KINDS,
        MASTER,
        MOMENTS,
        Group,
        Kind,
        Schedule,
        Training,
        adam,
        assumed_of,
        named,
        named_groups,
        regrouped,
    )
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            "ckpt_core.receipt": "Receipt",
            "ckpt_core.training": (
                "ADAM ADAMW EXP_AVG EXP_AVG_SQ KINDS MASTER MOMENTS Group Kind Schedule Training adam assumed_of named named_groups regrouped"
            ),
        },
    )

__all__ = [
    "ADAM",
    "ADAMW",
    "EXP_AVG",
    "EXP_AVG_SQ",
    "IGNORE_KEYS",
    "KINDS",
    "LATENT_NORM_EPS",
    "MASTER",
    "MOMENTS",
    "PREDICTORS",
    "Averaged",
    "Fragment",
    "Group",
    "Kind",
    "Provenance",
    "Receipt",
    "SavedTraining",
    "Schedule",
    "Training",
    "Vocabulary",
    "adam",
    "assumed_of",
    "checkpoint_of",
    "drops_predictors",
    "given",
    "named",
    "named_groups",
    "receipt_of",
    "regrouped",
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
        if request.training_state == "keep" and described.training is None:
            raise _no_training(described)
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
    checkpoint = _without_predictors(checkpoint) if drops_predictors(request) else checkpoint
    drops = request.training_state == "drop"
    checkpoint = without_training_files(checkpoint, but_account=not drops)
    return checkpoint if drops else _with_training(checkpoint, description, request)


def _with_training(checkpoint: Checkpoint, description: Description, request: ReadRequest) -> Checkpoint:
    """`checkpoint` with the state of its training. One that can't be carried, or is damaged, is a loss, or an error where it was asked for."""
    try:
        saved = description.training() if description.training is not None else None
        if saved is None:
            if request.training_state == "keep":
                raise _no_training(checkpoint)
            return checkpoint
        state = training_of(description, saved, checkpoint)
    except CkptError as error:
        if request.training_state != "keep":
            return without_training_files(checkpoint.not_continued(error), but_account=False)
        for problem in error.problems if isinstance(error, ProblemsFound) else [error]:
            problem.fix = problem.fix or "the weights alone are converted with --training-state drop"
        raise
    ledger = checkpoint.ledger.with_training(saved.ledger, state.own_masters)
    known = {file.path for file in checkpoint.files}
    files = [*checkpoint.files, *(file for file in saved.files if file.path not in known)]
    return replace(checkpoint, training=state, ledger=ledger, files=files).because(*saved.evidence, losses=saved.losses)


def _no_training(checkpoint: Checkpoint) -> NotCarried:
    """That a state of a training was asked for, and there is none that can be read."""
    left = [entry for entry in checkpoint.ledger if entry.fate == "left" and entry.what == OPTIMIZER.what]
    if left:
        return NotCarried(
            f"format {checkpoint.format} does not carry this state of a training yet",
            file=left[0].file,
            fix="convert the weights alone, with --training-state drop",
        )
    return NotCarried(
        "the checkpoint has no state of a training", file=checkpoint.path, fix="convert without --training-state keep"
    )


def drops_predictors(request: ReadRequest) -> bool:
    """Whether the user wants the layers that predict further tokens left out."""
    return request.options.get(PREDICTORS.name) == "drop"


def _without_predictors(checkpoint: Checkpoint) -> Checkpoint:
    from ckpt_core.rewrite import Rewritable, without_predictors

    model = without_predictors(Rewritable(checkpoint.architecture, checkpoint.tensors))
    if model.architecture == checkpoint.architecture:
        return checkpoint
    count = len(checkpoint.tensors) - len(model.tensors)
    loss = Loss("dropped", f"predictors: {plural(count, 'tensor')}", "as -o predictors=drop asks")
    return replace(checkpoint, architecture=model.architecture, tensors=model.tensors).because(losses=[loss])


def _with_latent_norms(checkpoint: Checkpoint, eps: float) -> Checkpoint:
    if not 0 < eps < 1:
        raise UsageError(f"option {LATENT_NORM_EPS.name} is not the epsilon of a norm", expected="such as 1e-5")
    from ckpt_core.rewrite import Rewritable, latent_norms

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
        fix = "give the config of the model with --config: an HF config.json or our architecture.json, or a folder with one"
        raise CkptError(problem, file=file, expected=expected or None, fix=fix)
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
