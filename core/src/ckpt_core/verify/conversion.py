"""Is DST the conversion of SRC?

Without a receipt the two must be equal. With one, the conversion that it records is planned again from SRC, so
that rewrites (a head untied, a scale folded in, zero biases) apply to both sides, and each tensor must be

    equal       the source's values, rewritten, are the values in DST
    recorded    they are the values that the receipt says were read, and DST holds those that it says were written
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any

from ckpt_core.api import digests, plan_conversion
from ckpt_core.architecture import differing, facts_of
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.run import Listener
from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass
from ckpt_core.receipt import Receipt
from ckpt_core.tensors.digest import VERSION, Digests
from ckpt_core.verify.difference import (
    Difference,
    architecture_differences,
    first_difference,
    stepping_differences,
    with_common_rows,
)
from ckpt_core.verify.files import check_files
from ckpt_core.verify.receipt import changed_tensors


@dataclass
class Verdict:
    """What verification found. `broken` is what the receipt contradicts, `differences` what SRC contradicts.

    `target` is DST as it was read; None where its files differ so that it can't be.
    """

    target: Checkpoint | None = None
    equal: int = 0
    recorded: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    explained: list[tuple[Difference, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.broken and not self.differences


def verify(
    source: Checkpoint,
    read: Callable[[], Checkpoint],
    recorded: Receipt | None,
    destination: str,
    reading: Mapping[str, Any],
    listener: Listener | None,
) -> Verdict:
    """Check what `read` gives of `destination` against `source` and the receipt.

    `reading` is how `source` was read: the `path`, `format`, `config`, `options` and `weights` of `read_checkpoint`.
    Files that differ are a verdict, even if what is left of them can't be read.
    """
    verdict = Verdict()
    if recorded is not None:
        files = check_files(recorded, destination, listener)
        verdict.broken += files.broken
        verdict.remarks += files.remarks
    try:
        target = read()
        _judge(source, target, recorded, destination, reading, listener, verdict)
        verdict.target = target
    except CkptError as problem:
        if not verdict.broken:
            raise
        verdict.remarks.append(f"the tensors could not be compared: {problem.problem}")
    return verdict


def _judge(
    source: Checkpoint,
    target: Checkpoint,
    recorded: Receipt | None,
    destination: str,
    reading: Mapping[str, Any],
    listener: Listener | None,
    verdict: Verdict,
) -> None:
    rewritten = source
    if recorded is not None:
        try:
            rewritten = _planned_again(recorded, destination, reading)
        except CkptError as problem:
            verdict.remarks.append(f"the recorded conversion can't be planned from this source: {problem.problem}")
    _judge_architectures(source, rewritten, target, recorded, verdict)
    left, right = with_common_rows(_with_state(rewritten), _with_state(target))
    version = VERSION if recorded is None else recorded.digest_version
    read = digests(left, version=version, listener=listener)
    written = digests(right, version=version, listener=listener)
    if recorded is not None:
        verdict.broken += changed_tensors(recorded, right, written)
    _judge_tensors(left, right, read, written, recorded, verdict)
    if rewritten.training is not None and target.training is not None:
        verdict.differences += stepping_differences(rewritten.training, target.training)


def _with_state(side: Checkpoint) -> Checkpoint:
    """A checkpoint with the tensors of its training among those of the model."""
    return side if side.training is None else replace(side, tensors={**side.tensors, **side.training.tensors})


def _planned_again(recorded: Receipt, destination: str, reading: Mapping[str, Any]) -> Checkpoint:
    """The source as the recorded conversion turned it before it was stored."""
    options = {**recorded.options, **{f"src.{key}": value for key, value in dict(reading["options"]).items()}}
    options = {key: value for key, value in options.items() if f"src.{key}" not in options}
    plan = plan_conversion(
        reading["path"],
        destination,
        to=recorded.format,
        format=reading["format"],
        config=reading["config"],
        weights=reading["weights"],
        training_state=recorded.training_state,
        options=options,
        **recorded.asked,
    )
    target = plan.target
    return replace(
        plan.source,
        architecture=target.architecture,
        tensors=dict(target.tensors),
        adapter=target.adapter,
        training=target.training,
    )


def _judge_architectures(
    source: Checkpoint, rewritten: Checkpoint, target: Checkpoint, recorded: Receipt | None, verdict: Verdict
) -> None:
    ours, theirs = ({} if one.adapter is None else one.adapter.settings for one in (rewritten, target))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            verdict.differences.append(Difference(key, str(ours.get(key)), str(theirs.get(key))))
    wrong = set(differing(facts_of(rewritten.architecture), facts_of(target.architecture)))
    for difference in architecture_differences(source.architecture, target.architecture):
        path = difference.subject
        if recorded is not None and recorded.rewrites and path not in wrong:
            verdict.explained.append((difference, "a recorded rewrite: " + "; ".join(recorded.rewrites)))
        elif recorded is not None and recorded.keeps_training and path not in wrong:
            verdict.explained.append((difference, "the state of the training, which is kept as its optimizer steps it"))
        elif recorded is not None and (loss := _loss_about(path, recorded)) is not None:
            verdict.explained.append((difference, f"a recorded loss: {loss}"))
        else:
            verdict.differences.append(difference)


def _loss_about(path: str, recorded: Receipt) -> str | None:
    """The recorded loss that names a fact which the target can't say, or says in fewer digits."""
    for loss in recorded.losses:
        # Several facts of one loss are listed with commas; `model_type = x` is one with its value.
        named = (one.split()[:1] for one in loss.get("subject", "").split(", "))
        if loss.get("kind") in ("unsaid", "rounded") and [path] in named:
            return loss.get("reason", "")
    return None


def _judge_tensors(
    left: Checkpoint,
    right: Checkpoint,
    read: Mapping[str, Digests],
    written: Mapping[str, Digests],
    recorded: Receipt | None,
    verdict: Verdict,
) -> None:
    for name in sorted(read.keys() | written.keys()):
        if _true_shape(left, name) != _true_shape(right, name):
            verdict.differences.append(Difference(name, _presence(left, name), _presence(right, name)))
        elif read[name].digest == written[name].digest:
            verdict.equal += 1
        elif recorded is not None and (read[name].digest, written[name].digest) == (
            recorded.source_digests.get(name),
            recorded.digests.get(name),
        ):
            verdict.recorded += 1
        else:
            verdict.differences.append(first_difference(left, right, name))


def _true_shape(side: Checkpoint, name: str) -> tuple[int, ...] | None:
    return side.tensors[name].parameter.true_shape if name in side.tensors else None


def _presence(side: Checkpoint, name: str) -> str:
    return str(side.tensors[name].parameter) if name in side.tensors else "absent"
