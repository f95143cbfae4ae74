"""`ckpt selftest`: does a format find every element where it put it, for these sizes and this layout?"""

from __future__ import annotations

from dataclasses import asdict

import click

from ckpt_core.cli.names import PATH, FormatCommand, FormatName, OptionOfFormat
from ckpt_core.cli.options import pairs
from ckpt_core.cli.output import Page, emit_json, paint, say, shortened
from ckpt_core.errors import UsageError
from ckpt_core.text import plural


@click.command(cls=FormatCommand, short_help="Trace every element through a format, for your own sizes and layout.")
@click.argument("format", type=FormatName())
@click.option("--config", type=PATH, metavar="FILE", help="The model: an HF config.json or our architecture.json.")
@click.option("--like", type=PATH, metavar="SRC", help="The model: that of a checkpoint.")
@click.option("--tp", type=click.IntRange(min=1), metavar="N", help="Tensor parallel ranks.")
@click.option("--pp", type=click.IntRange(min=1), metavar="N", help="Pipeline parallel stages.")
@click.option("--ep", type=click.IntRange(min=1), metavar="N", help="Expert parallel ranks.")
@click.option(
    "--dtype",
    metavar="DTYPE",
    default="bf16",
    show_default=True,
    help="The dtype of the model's tensors, as bf16 or fp32.",
)
@click.option(
    "-o",
    "options",
    type=OptionOfFormat(),
    metavar="KEY=VALUE",
    multiple=True,
    callback=pairs,
    help="An option of the format.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    format: str,
    *,
    config: str | None,
    like: str | None,
    tp: int | None,
    pp: int | None,
    ep: int | None,
    dtype: str,
    options: dict[str, str],
    as_json: bool,
) -> int:
    """Write a model of these sizes in FORMAT, without data, read it back, and compare where every element lies.

    What is written is also compared with the sentences that FORMAT declares. Of some it says that checkpoints of the
    framework itself bear them out: the tests of the plugin have those checkpoints, this command has its word. Takes seconds whatever the size: files are made of headers and holes. Exit 0 if every element lies where it is
    declared and is found where it was put, 3 if not, with the first one that is not by tensor, axis and index.

    \b
    ckpt selftest megatron --like model --tp 8 --pp 4
    ckpt selftest nxdt --config config.json --tp 32
    """
    from ckpt_core.api import config_architecture, config_file, read_checkpoint
    from ckpt_core.plugins.discovery import require
    from ckpt_core.storage.dtypes import dtype_named
    from ckpt_core.verify.tracer import sizes, trace

    if (config is None) == (like is None):
        raise UsageError("which model?", expected="--config FILE or --like SRC")
    architecture = (
        read_checkpoint(like).architecture if like is not None else config_architecture(config_file(config or ""))
    )
    assert architecture is not None  # a config that says nothing raises
    seen = trace(format, architecture, dtype_named(dtype), options=options, tp=tp, pp=pp, ep=ep)
    if as_json:
        emit_json(
            {
                "passed": seen.passed,
                "tensors": seen.tensors,
                "elements": seen.elements,
                "files": seen.files,
                "compared": seen.compared,
                "misplaced": [asdict(one) for one in seen.misplaced],
                "departed": [asdict(one) for one in seen.departed],
                "sentences": [asdict(one) for one in seen.sentences],
                "undeclared": seen.undeclared,
            },
            "selftest",
        )
        return 0 if seen.passed else 3
    page = Page()
    page.say("model", ", ".join(sizes(architecture)))
    page.say("files", f"{seen.files:,}, of headers and holes")
    page.say("compared", f"{seen.compared:,} places in {plural(seen.tensors, 'tensor')}")
    shown = [line for line in seen.sentences if line.shown_by]
    page.say(
        "sentences",
        f"{len(seen.sentences)} declared by {require(format).distribution}, which names checkpoints of the framework itself for "
        f"{len(shown)} (its tests read them, this command does not)",
        *(
            f"no checkpoint is named for: {line.native} as {line.sentence}"
            for line in seen.sentences
            if not line.shown_by
        ),
    )
    page.say("undeclared", *shortened(seen.undeclared))
    page.say("departed", *(str(one) for one in seen.departed[:20]))
    page.say("misplaced", *(str(one) for one in seen.misplaced[:20]))
    good = "every element lies where it is declared and is found where it was put"
    if seen.undeclared:
        good = f"every element is found where it was put; of {plural(len(seen.undeclared), 'tensor')} nothing declares where that is"
    say(paint(good, "green") if seen.passed else paint("not as it should be", "red"))
    return 0 if seen.passed else 3
