"""`ckpt diff`: two checkpoints of any formats, compared as models."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.names import PATH, FormatCommand, FormatName
from ckpt_core.cli.options import for_each_side, reading, training_state
from ckpt_core.cli.output import Page, emit_json, paint, say
from ckpt_core.cli.progress import progress, steadily_said
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint
    from ckpt_core.verify.difference import Difference


@click.command(cls=FormatCommand, short_help="Compare two checkpoints of any formats.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@reading
@training_state
@click.option(
    "--from-b", "format_b", type=FormatName(), metavar="FORMAT", help="The format of B, where it is not recognised."
)
def command(
    a: str,
    b: str,
    *,
    format: str | None,
    format_b: str | None,
    config: str | None,
    options: dict[str, str],
    weights: str,
    training: bool,
    as_json: bool,
) -> int:
    """Compare the checkpoints A and B as architectures and canonical tensors; exit 0 if equal, 3 if not.

    Formats, parallel layouts, storage dtypes and vocabulary padding don't matter. An option -o KEY=VALUE goes to
    each side that has it, -o a.KEY=VALUE and -o b.KEY=VALUE to one. With --training-state the moments of both optimizers, their steps and
    their hyper-parameters are compared too.

    \b
    ckpt diff model run/step-1000
    ckpt diff run-tp2 run-tp4 --training-state
    """
    from ckpt_core.api import read_checkpoint
    from ckpt_core.verify.difference import compare, compare_training

    formats = (format, format_b)
    left_options, right_options = options_of_two((a, b), formats, options, ("a", "b"))
    read = functools.partial(
        read_checkpoint, config=config, weights=weights, training_state="keep" if training else "drop"
    )

    def compared() -> tuple[Checkpoint, Checkpoint, list[Difference]]:
        left, right = read(a, format=format, options=left_options), read(b, format=format_b, options=right_options)
        with progress("comparing") as listener:
            differences = compare(left, right, listener=listener)
            if training:
                differences += compare_training(left, right, listener=listener)
        return left, right, differences

    left, right, differences = steadily_said(compared)
    if as_json:
        sides = {name: {"path": path, "format": side.format} for name, path, side in (("a", a, left), ("b", b, right))}
        emit_json(
            {"equal": not differences, **sides, "differences": [difference_json(one) for one in differences]}, "diff"
        )
    else:
        show_differences(differences, ("A", "B"))
        same = f"equal: architecture and {plural(len(left.tensors), 'tensor')}"
        if training and left.training is not None:
            same += f", and the state of the training with {plural(len(left.training.tensors), 'tensor')}"
        say(f"different: {plural(len(differences), 'difference')}" if differences else same)
    return 3 if differences else 0


def options_of_two(
    paths: tuple[str, str], formats: tuple[str | None, str | None], options: dict[str, str], names: tuple[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The read options of two checkpoints, each side getting those that its format declares."""
    if not options:
        return {}, {}
    from ckpt_core.api import find_format
    from ckpt_core.storage.bytes.remote import localised

    known = []
    for path, name in zip(paths, formats, strict=True):
        plugin, _ = find_format(localised(path), name)
        known.append({option.name for option in plugin.info.options if option.side != "write"})
    return for_each_side(options, names, (known[0], known[1]))


def difference_json(difference: Difference) -> dict[str, object]:
    """One difference as a JSON object."""
    body: dict[str, object] = {"subject": difference.subject, "left": difference.left, "right": difference.right}
    if difference.elements is not None:
        body |= {"elements": difference.elements, "largest": difference.largest}
    return body


def show_differences(differences: list[Difference], names: tuple[str, str]) -> None:
    """Each difference: its subject, then what either side has."""
    page = Page(max(map(len, names)) + 3)
    for one in differences:
        amount = "" if one.elements is None else f"  {plural(one.elements, 'element')}, by {one.largest:.3g} at most"
        say(paint(one.subject, "bold") + amount)
        page.say(f"  {names[0]}", one.left)
        page.say(f"  {names[1]}", one.right)
