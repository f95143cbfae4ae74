"""`ckpt schema`: the JSON Schemas of what `--json` prints."""

from __future__ import annotations

import click

from ckpt_core.cli.output import SCHEMA_VERSION, emit_json, say
from ckpt_core.errors import UsageError, did_you_mean


def _names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from ckpt_core.cli.schemas import SCHEMAS

    return [name for name in SCHEMAS if name.startswith(incomplete)]


@click.command(short_help="Print the JSON Schema of what --json prints.")
@click.argument("name", required=False, shell_complete=_names)
def command(name: str | None) -> None:
    """Print the JSON Schema (draft 2020-12) of a document, or the names of all.

    A document names its schema in its key `schema` (`inspect/1`). The number changes where a key goes or means something else; new keys may come
    with any version.
    """
    from ckpt_core.cli.schemas import SCHEMAS

    if name is None:
        for one in SCHEMAS:
            say(f"{one}/{SCHEMA_VERSION}")
        return
    asked = name.removesuffix(f"/{SCHEMA_VERSION}")
    if asked not in SCHEMAS:
        raise UsageError(
            f"no document has the schema {name!r}", expected=", ".join(SCHEMAS), fix=did_you_mean(name, SCHEMAS)
        )
    emit_json(SCHEMAS[asked])
