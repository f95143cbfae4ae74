"""`ckpt formats`: what is installed, what it can do, and what is broken and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli.names import FormatName
from ckpt_core.cli.output import Page, emit_json, paint, say, table

if TYPE_CHECKING:
    from ckpt_core.plugins.discovery import Plugin


@click.command(short_help="List the installed formats, or the options of one.")
@click.argument("name", type=FormatName(), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(name: str | None, *, as_json: bool) -> None:
    """List the installed formats, or the families and options of one.

    \b
    ckpt formats
    ckpt formats nanotron
    """
    from ckpt_core.plugins.discovery import all_plugins, require

    if name is None:
        plugins = all_plugins()
        if as_json:
            emit_json({"formats": [plugin_json(plugin) for plugin in plugins]}, "formats")
        else:
            show_all(plugins)
        return
    if as_json:
        emit_json(plugin_json(require(name)), "format")
    else:
        show_one(require(name))


def plugin_json(plugin: Plugin) -> dict[str, object]:
    """Everything about a format as a JSON object."""
    body: dict[str, object] = {"name": plugin.name, "distribution": plugin.distribution, "broken": plugin.broken}
    if plugin.broken is not None:
        body["fix"] = plugin.fix
    if plugin.broken is None:
        info = plugin.info
        body |= {
            "summary": info.summary,
            "reads": info.reads,
            "writes": info.writes,
            "adapters": info.adapters,
            "families": list(info.families),
            "parallel": info.parallel,
            "before": info.before,
            "options": [
                {
                    "name": option.name,
                    "values": list(option.kind) if isinstance(option.kind, tuple) else option.kind.__name__,
                    "default": option.default,
                    "side": option.side,
                    "help": option.help,
                }
                for option in info.options
            ],
        }
    return body


def show_all(plugins: list[Plugin]) -> None:
    """One row per format."""
    if not plugins:
        say("no format is installed; pip install ckpt-hf, for example")
        return
    rows: list[tuple[str, ...]] = [("FORMAT", "FROM", "READS", "WRITES", "WHAT")]
    for plugin in plugins:
        if plugin.broken is not None:
            said = "; ".join(filter(None, (plugin.broken, plugin.fix)))
            rows.append((plugin.name, plugin.distribution, "", "", f"broken: {said}"))
        else:
            writes = "adapters" if plugin.info.adapters else "yes" if plugin.info.writes else "no"
            can = ["yes" if plugin.info.reads else "no", writes]
            rows.append((plugin.name, plugin.distribution, *can, plugin.info.summary))
    head, *body = table(rows)
    say(paint(head, "bold"))
    for line, plugin in zip(body, plugins, strict=True):
        say(paint(line, "red") if plugin.broken else line)


def show_one(plugin: Plugin) -> None:
    """A format's families, layout flags and options."""
    from ckpt_core.plugins.request import option_table

    info, page = plugin.info, Page()
    page.say("format", f"{info.name}: {info.summary}")
    page.say("from", plugin.distribution)
    able = {"read": info.reads, "write": info.writes, "write adapters": info.adapters}
    page.say("can", " and ".join(word for word, can in able.items() if can))
    page.say("families", *(info.families or ["any that its tables hold"]))
    page.say("parallel", " ".join(f"--{name} N" for name in info.parallel) or "none: one unsharded copy")
    if info.before:
        page.say("before", f"{', '.join(info.before)}: where both recognise a folder, this one is read")
    sides = {"read": "reading", "write": "writing", "both": "both"}
    rows = [
        (f"-o {name}=", values, f"[{default}]" if default else "", sides[option.side], text)
        for option, (name, values, default, text) in zip(info.options, option_table(info.options), strict=True)
    ]
    page.say("options", *(table(rows) or ["none"]))
