"""Writes the generated sections of the documentation: `python docs/generate.py`.

`--check` only compares. What the commands in console blocks print is written by `python docs/console.py --write`.
A section stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a function of `SECTIONS`, with an
argument after a space (`file plugins/hf/README.md`).
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import os
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import floors
import measured
import plots
import sdk_names
from cells import code, codes, matrix, table
from format_pages import format_page, format_top, hf_families, hf_heads, hf_index, hf_keys, stem

from ckpt_core import architecture as schema
from ckpt_core.architecture import Architecture, parameters
from ckpt_core.architecture.schema import Pooling
from ckpt_core.architecture.serial import field_types
from ckpt_core.cli.main import cli
from ckpt_core.cli.schemas import SCHEMAS, Schema
from ckpt_core.explain import NativeName, declared_families, names_everywhere
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.installed import format_names
from ckpt_core.template import project
from ckpt_core.testing import example, example_architectures, variations
from ckpt_core.verify.declared import Sentences

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"
# The formats of the repository's plugins, with the modules of their hooks.
IN_REPOSITORY: dict[str, str] = {
    name: module
    for file in sorted((ROOT / "plugins").glob("*/pyproject.toml"))
    for name, module in tomllib.loads(file.read_text())["project"]["entry-points"]["ckpt.formats"].items()
}
FIRST_PARTY = [name for name in IN_REPOSITORY if name in format_names()]
MISSING = sorted({*IN_REPOSITORY} - {*FIRST_PARTY})
_SECTION = re.compile(r"(<!-- generated: (?P<name>[\w-]+)(?: (?P<argument>[^>]*?))? -->\n).*?(<!-- end -->)", re.DOTALL)
_LANGUAGES = {".py": "python", ".toml": "toml", ".md": "markdown", ".txt": "text"}


def rendered(text: str) -> str:
    """A page with its generated sections as they should be."""

    def fill(match: re.Match[str]) -> str:
        arguments = [match["argument"]] if match["argument"] else []
        return f"{match[1]}\n{SECTIONS[match['name']](*arguments).strip()}\n\n{match[4]}"

    return _SECTION.sub(fill, text)


# Formats


def formats() -> str:
    """One line per format."""
    rows = []
    for name in ["ir", *FIRST_PARTY]:
        info, distribution = require(name).info, require(name).distribution.partition(" ")[0]
        parallel = " ".join(f"`--{size}`" for size in info.parallel)
        able = {"read": info.reads, "write": info.writes, "write adapters": info.adapters}
        directions = ", ".join(word for word, can in able.items() if can)
        rows.append(
            (
                f"[{code(name)}](formats/{name}{'/index' * (PAGES / 'formats' / name).is_dir()}.md)",
                code(distribution),
                directions,
                parallel,
                info.summary.replace("*", "\\*"),
            )
        )
    return table(("format", "distribution", "can", "layouts", "what it is"), rows)


# The parameters by the page of `docs/reference/names`: what their names begin with. All others are on the first page.
_NAME_PAGES = {
    "attention": ("attention.", "cross_attention."),
    "mlp": ("mlp.",),
    "delta-mamba": ("delta.", "mamba."),
    "vision": ("vision.",),
}


def names(page: str = "") -> str:
    """What every format calls each canonical parameter of a page. Formats that call it the same stand in one row."""
    parts = []
    for canonical, by_format in names_everywhere().items():
        home = next((name for name, begins in _NAME_PAGES.items() if canonical.startswith(begins)), "")
        formats: dict[tuple[str, str], dict[str, list[str]]] = {}
        for format, found in by_format.items() if home == page else ():
            for (native, sentence), whens in _whens(found).items() if format in FIRST_PARTY else ():
                for when in whens:
                    formats.setdefault((native, sentence), {}).setdefault(when, []).append(format)
        if formats:
            rows = [
                (
                    code(native),
                    code(sentence),
                    "; ".join(f"{codes(dict.fromkeys(those))}{when}" for when, those in by.items()),
                )
                for (native, sentence), by in formats.items()
            ]
            parts += [f"## `{canonical}`", table(("name", "layout of one rank", "formats"), rows)]
    return "\n\n".join(parts)


def _whens(names: Iterable[NativeName]) -> dict[tuple[str, str], Iterable[str]]:
    """By name and layout: which ranks have it, and under what conditions it is called so, in words.

    The choices of a format are left out where other choices say the same.
    """
    conditions: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for name in names:
        said = (
            *filter(None, [code(name.ranks)]),
            *(re.sub(r"^(under|when) (.*)", r"\1 `\2`", one) for one in name.conditions),
        )
        conditions.setdefault((name.native, name.sentence), []).append(said)
    found = {}
    for place, several in conditions.items():
        if len(several) > 1:
            several = [tuple(one for one in said if not one.startswith("under ")) for said in several]
        found[place] = [""] if () in several else dict.fromkeys(f" ({', '.join(said)})" for said in several)
    return found


def families() -> str:
    """How many families each format holds, by `docs/families.txt`, and why it does not hold the others."""
    recorded = _recorded()
    formats = [name for name in ["ir", *FIRST_PARTY] if any(name in found for found in recorded.values())]
    counts = [
        (word, *(sum(found.get(format, ("",))[0] == word for found in recorded.values()) for format in formats))
        for word in ("exact", "rewritten", "refused")
    ]
    whys: dict[tuple[str, str], list[str]] = {}
    for name, found in recorded.items():
        for format, (word, why) in found.items():
            if word != "exact":
                whys.setdefault((format, f"{word}: {why}"), []).append(name)
    said = sorted(whys.items(), key=lambda item: (formats.index(item[0][0]), -len(item[1])))
    known = {name.partition(" ")[0] for name in recorded}
    new = [one.name for one in declared_families(require("hf")) if not one.like and one.name not in known]
    parts = [
        f"{len(recorded)} families:",
        matrix(table(("", *map(code, formats)), counts)),
    ]
    parts += [f"Not recorded yet: {', '.join(map(code, new))}."] if new else []
    reasons = [
        (code(format), why, ", ".join(code(name.partition(" ")[0]) for name in names)) for (format, why), names in said
    ]
    return "\n\n".join([*parts, "### Why", table(("format", "what", "families"), reasons)])


def features() -> str:
    """What each format can do, of what plugins say of themselves and of what bears their sentences out."""
    rows = []
    for name in ["ir", *FIRST_PARTY]:
        plugin = require(name)
        info = plugin.info
        shown = {one for line in Sentences.beside(plugin.module) for one in line.shown_by}
        rows.append((
            code(name),
            "yes" if info.reads else "no",
            "adapters" if info.adapters else "yes" if info.writes else "no",
            " ".join(info.parallel) or "-",
            "yes" if info.trains else "-",
            "yes" if plugin.hooks.ckpt_logits.get_hookimpls() else "-",
            len(shown) or (f"as {', '.join(info.keeps)}" if info.keeps else "-"),
        ))  # fmt: skip
    titles = ("format", "reads", "writes", "ranks", "training state", "own framework", "shown by")
    return table(titles, rows)


def family_matrix() -> str:
    """`docs/families.txt` at a glance: a row for each family, a mark for each format."""
    recorded = _recorded()
    formats = [name for name in ["ir", *FIRST_PARTY] if any(name in found for found in recorded.values())]
    marks = {"exact": "●", "rewritten": "◐", "refused": "·"}
    classes = [name.partition(" ")[0] for name in recorded]
    rows = [
        (
            code(name if classes.count(own) > 1 else own),
            *(marks[found[format][0]] if format in found else "?" for format in formats),
        )
        for own, (name, found) in zip(classes, recorded.items(), strict=True)
    ]
    return matrix(table(("family", *map(code, formats)), rows))


def _recorded() -> dict[str, dict[str, tuple[str, str]]]:
    """By family and format: what a writer makes of it, and why not, from `docs/families.txt`."""
    recorded: dict[str, dict[str, tuple[str, str]]] = {}
    for line in (PAGES / "families.txt").read_text().splitlines()[1:]:
        name, format, word, why = [part.strip() for part in f"{line} ".split(" | ", 3)]
        recorded.setdefault(name, {})[format] = word, why
    return recorded


def heads() -> str:
    """The families whose decoder transformers has with other heads, by what comes after their names."""
    kinds: dict[str, list[str]] = {}
    for family in declared_families(require("hf")):
        if family.like:
            kinds.setdefault(family.name.removeprefix(stem(family)).removeprefix("Text"), []).append(stem(family))
    return table(
        ("class", "of", "families"), [(code(f"...{end}"), len(names), ", ".join(names)) for end, names in kinds.items()]
    )


def proven() -> str:
    """What is proven, in four numbers."""
    infos = [require(name).info for name in ["ir", *FIRST_PARTY]]
    shown = {one for name in FIRST_PARTY for line in Sentences.beside(require(name).module) for one in line.shown_by}
    entries = tomllib.loads((ROOT / "tests/real/judged.toml").read_text())["judged"]
    took = {
        entry["framework"].partition(",")[0]
        for entry in entries
        if any(row[2].startswith("yes") for row in entry["rows"])
    }
    cards = [
        (len(infos), f"formats are read, {sum(info.writes or info.adapters for info in infos)} of them written", "support.md"),
        (len(_recorded()), "families of models, each tried in every format", "families.md"),
        (len(shown), "checkpoints that the frameworks themselves wrote are read, and give the logits that they gave there", "proof.md"),
        (len(took), "frameworks loaded what ckpt wrote, and computed the same", "proof.md#what-was-judged-by-the-frameworks-themselves"),
    ]  # fmt: skip
    lines = [f"- **{number}**\n\n    [{words}]({page})" for number, words, page in cards]
    return '<div class="cards numbers" markdown>\n\n' + "\n\n".join(lines) + "\n\n</div>"


def declared() -> str:
    """How many layout sentences of each format are borne out, and by how many checkpoints."""
    rows = []
    for name in FIRST_PARTY:
        lines = list(Sentences.beside(require(name).module))
        if not lines:  # it reads what other formats declare
            continue
        shown = [line for line in lines if line.shown_by]
        rows.append((code(name), len(lines), len(shown), len({one for line in shown for one in line.shown_by})))
    return table(("format", "declared sentences", "borne out", "by checkpoints"), rows)


def judged() -> str:
    """What the real frameworks made of what we write, from `tests/real/judged.toml`."""
    rows = []
    for entry in tomllib.loads((ROOT / "tests/real/judged.toml").read_text())["judged"]:
        framework, session = f"{entry['framework']} {entry['version']}", code(entry["session"]) or "by hand"
        rows += [(framework, *row, session, entry["date"]) for row in entry["rows"]]
    titles = ("framework", "family", "layout", "loaded", "logits", "exported again", "by session", "when")
    return table(titles, rows)


# The intermediate representation


def canonical_parameters() -> str:
    """Every canonical parameter that any architecture can have, in the order of the forward pass."""
    axes: dict[tuple[str, str], dict[str, None]] = {}
    before: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    for architecture in _many_architectures():
        previous = None
        for name, parameter in parameters(architecture).items():
            key = (
                _group(name, architecture),
                re.sub(r"^(?:encoder|decoder)\.|(?<=layers\.)\d+|(?<=predictors\.)\d+", _placeholder, name),
            )
            axes.setdefault(key, {})[" ".join(axis.name for axis in parameter.axes)] = None
            if previous is not None and previous != key and previous[0] == key[0]:
                before.setdefault(key, {})[previous] = None
            previous = key
    order = {key: place for place, key in enumerate(_ordered(axes, before))}
    parts = []
    for group in _GROUPS:
        rows = [
            (code(key[1]), " or ".join(map(code, axes[key])))
            for key in sorted(axes, key=order.__getitem__)
            if key[0] == group
        ]
        parts += [f"{group}:", table(("parameter", "axes"), rows)]
    return "\n\n".join(parts)


_FURTHER = "Layers that predict further tokens, besides the parameters of a layer below `predictors.{l}.layer`"
_GROUPS = (
    "Before the layers",
    "Attention",
    "Latent attention",
    "Delta net",
    "Mamba-2",
    "MLP",
    "After the layers",
    _FURTHER,
)


def _placeholder(match: re.Match[str]) -> str:
    return "{l}" if match[0].isdigit() else ""


def _group(name: str, architecture: Architecture) -> str:
    if "predictors." in name:
        return "" if ".layer." in name else _FURTHER
    latent = any(layer.latent_attention for stack in architecture.stacks.values() for layer in stack.layers)
    for part, group in (
        (".cross_attention.", ""),
        (".attention.", "Attention"),
        (".delta.", "Delta net"),
        (".mamba.", "Mamba-2"),
        (".mlp.", "MLP"),
    ):
        if part in name:
            return "Latent attention" if latent and group == "Attention" else group
    return (
        "After the layers"
        if re.match(r"(encoder\.|decoder\.)?(final_norm|head|classifier)", name)
        else "Before the layers"
    )


def _ordered(keys: Iterable[tuple[str, str]], before: dict) -> list[tuple[str, str]]:
    """Keys so that each comes after all that precede it in some model, and right after one of those if it can."""
    left, done = list(keys), []
    while left:
        ready = [key for key in left if all(other in done for other in before.get(key, ()))] or left
        next_one = next((key for key in ready if done and done[-1] in before.get(key, ())), ready[0])
        left.remove(next_one)
        done.append(next_one)
    return done


def _many_architectures() -> Iterator[Architecture]:
    examples = example_architectures()
    for base in ("gpt2", "llama", "moe", "t5", "vit", "predicting"):
        yield examples[base]
    norms = {f"latent_attention__{name}__bias": True for name in ("norm", "q_norm", "kv_norm")}
    yield example(
        "latent",
        **norms,
        latent_attention__out_norm__kind="rms",
        latent_attention__out_norm__eps=1e-6,
        latent_attention__bias=True,
    )
    yield from examples.values()
    for base in ("llama", "gpt2"):
        yield from (variation.architecture for variation in variations(examples[base]).values())


def architecture_fields() -> str:
    """Every class of the schema with its fields."""
    parts = []
    classes = [
        value
        for value in (getattr(schema, name) for name in schema.__all__)
        if dataclasses.is_dataclass(value) and value.__module__.endswith(".schema")
    ]
    for cls in sorted(classes, key=lambda cls: -inspect.getsourcelines(cls)[1]):
        rows = []
        for field in dataclasses.fields(cls):
            default = "required" if field.default is dataclasses.MISSING else code(_value(field.default))
            rows.append((code(field.name), code(_type_name(field_types(cls)[field.name])), default))
        parts += [f"### {cls.__name__}", inspect.getdoc(cls), table(("field", "type", "default"), rows)]
    for cls in (schema.Activation, schema.RotaryKind, Pooling):
        parts += [
            f"### {cls.__name__}",
            inspect.getdoc(cls),
            "Values: " + ", ".join(code(member.value) for member in cls) + ".",
        ]
    return "\n\n".join(parts)


def _value(value: object) -> str:
    return repr(value.value if isinstance(value, enum.Enum) else value)


def _type_name(annotation: object) -> str:
    text = str(annotation) if not isinstance(annotation, type) or typing.get_args(annotation) else annotation.__name__
    return re.sub(r"ckpt_core\.architecture\.schema\.", "", text)


# The command line, and included files


def command_line() -> str:
    """The help texts of the program and its commands."""
    parts = []
    group = click.Context(
        cli, info_name="ckpt", terminal_width=100, help_option_names=cli.context_settings["help_option_names"]
    )
    for context in [
        group,
        *(
            click.Context(cli.get_command(group, name), group, name, terminal_width=100)
            for name in cli.list_commands(group)
        ),
    ]:
        parts += [f"## {context.command_path}", f"```text\n{context.get_help()}\n```"]
    return "\n\n".join(parts)


def file(path: str) -> str:
    """A file of the repository as a code block."""
    text = (ROOT / path).read_text().rstrip()
    fence = "`" * (4 if "```" in text else 3)
    return f"`{path}`\n\n{fence}{_LANGUAGES.get(os.path.splitext(path)[1], 'text')}\n{text}\n{fence}"


def template(path: str) -> str:
    """A file of the project that `ckpt plugin new example` writes, as a code block."""
    text = project("example")[path].rstrip()
    return f"`{path}`\n\n```{_LANGUAGES.get(os.path.splitext(path)[1], 'text')}\n{text}\n```"


def wholes() -> str:
    """The classes of transformers whose language model can be taken out, and the classes that it is by itself."""
    from ckpt_hf.config import BY_TYPE
    from ckpt_hf.wholes import LANGUAGES, WHOLES

    rows = []
    for kind, one in WHOLES.items():
        families = dict.fromkeys(LANGUAGES[name].family for name in one.language)
        alone = [BY_TYPE[family].class_name for family in families if family in BY_TYPE]
        if alone:
            rows.append((code(kind), code(one.class_name), ", ".join(map(code, alone))))
    return table(("model_type", "class", "its language model"), rows)


# Python and JSON


def python_api() -> str:
    """The public names of `ckpt_core`, and `load_model`, with their signatures and docstrings."""
    import ckpt_core
    from ckpt_hf import load_model

    public = [(f"ckpt_core.{name}", getattr(ckpt_core, name)) for name in ckpt_core.__all__ if not name.startswith("_")]
    functions = [
        (name, value) for name, value in [*public, ("ckpt_hf.load_model", load_model)] if inspect.isfunction(value)
    ]
    classes = [(name, value) for name, value in public if isinstance(value, type)]
    parts = ["## Functions"]
    for name, value in functions:
        parts += [
            f"### {name.rpartition('.')[2]}",
            f"from `{name.rpartition('.')[0]}`\n\n```python\n{_signature(value.__name__, value)}\n```",
            inspect.getdoc(value) or "",
        ]
    errors = [(name, value) for name, value in classes if issubclass(value, Exception)]
    parts += ["## Classes"]
    for name, value in classes:
        if (name, value) not in errors and value is not Architecture:
            parts += [f"### {name.rpartition('.')[2]}", _prose(value), _members(value)]
    parts += [
        "### Architecture",
        "Its fields are a page of their own: [architecture fields](architecture.md).",
        "## Errors",
    ]
    rows = [
        (
            code(value.__name__),
            code(value.__base__.__name__),
            _first_line(value),
            f"[what to do](../troubleshooting.md#{value.section()})",
        )
        for _, value in errors
    ]
    return "\n\n".join([*parts, table(("error", "is a", "what", "see"), rows)])


def _signature(name: str, value: Callable[..., object]) -> str:
    """A call as it is written, one parameter a line where there are many."""
    signature = inspect.signature(value)
    arguments, seen = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not seen:
            arguments, seen = [*arguments, "*"], True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        arguments.append(f"{parameter.name}: {parameter.annotation}{default}")
    returned = signature.return_annotation
    return f"def {name}(\n    " + ",\n    ".join(arguments) + f",\n) -> {returned}: ..."


def _prose(value: type) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def _first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def _members(value: type) -> str:
    """The public methods and properties of a class, and the fields of a dataclass."""
    fields = {one.name: str(one.type) for one in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else {}
    rows = [(code(name), kind) for name, kind in fields.items() if not name.startswith("_")]
    for name, member in vars(value).items():
        if (name.startswith("_") and name not in ("__getitem__", "__array__")) or name in fields:
            continue
        read = getattr(member, "fget", None) or getattr(member, "func", None)
        if read is not None or inspect.isfunction(member):
            called = f"{name}{'' if read else '()'}"
            rows.append((code(called), _first_line(read or member)))
    return table(("member", ""), [(name, text.replace("\n", " ")) for name, text in rows])


def json_documents() -> str:
    """Every document of `--json`, key by key."""
    parts = [
        table(("document", "what"), ((f"[{code(name)}](#{name})", one["description"]) for name, one in SCHEMAS.items()))
    ]
    for name, one in SCHEMAS.items():
        rows = [(code(key), kind, words) for key, kind, words in _keys(one)]
        parts += [f"## {name}", one["description"], table(("key", "type", "what"), rows)]
    return "\n\n".join(parts)


def _keys(schema: Schema, at: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key below a schema: its path, its type, and what it says."""
    required = schema.get("required", ())
    for key, inner in schema.get("properties", {}).items():
        path = f"{at}{key}"
        rest = "" if key in required else " (may be absent)"
        yield path, _kind(inner) + rest, str(inner.get("const", inner.get("description", "")))
        yield from _below(inner, path)


def _below(schema: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    for one in schema.get("anyOf", ()):
        yield from _below(one, path)
    if "items" in schema:
        yield from _below(schema["items"], f"{path}[]")
    elif isinstance(schema.get("additionalProperties"), dict):
        yield from _below(schema["additionalProperties"], f"{path}.NAME")
    else:
        yield from _keys(schema, f"{path}.")


def _kind(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if schema == {**schema, "type": ["number", "string"]}:
        return "number"
    kind = schema.get("type", "string" if "const" in schema else "anything")
    if kind == "array":
        return f"list of {_kind(schema['items'])}"
    return "object by name" if isinstance(schema.get("additionalProperties"), dict) else str(kind)


def notebook() -> str:
    """The cells of the notebook, with their output."""
    parts = []
    for cell in json.loads((ROOT / "examples/first-checkpoint.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"^#", "##", source, flags=re.MULTILINE))
            continue
        parts.append(f"```python\n{source}\n```")
        if cell["outputs"]:
            said = ["".join(one.get("text") or one["data"]["text/plain"]).rstrip() for one in cell["outputs"]]
            parts.append("```text\n" + "\n".join(said) + "\n```")
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[..., str]] = {
    "formats": formats,
    "format-page": format_page,
    "format-top": format_top,
    "hf-index": hf_index,
    "hf-families": hf_families,
    "hf-heads": hf_heads,
    "hf-keys": hf_keys,
    "declared": declared,
    "proven": proven,
    "names": names,
    "families": families,
    "features": features,
    "family-matrix": family_matrix,
    "python-api": python_api,
    "json-documents": json_documents,
    "notebook": notebook,
    "heads": heads,
    "wholes": wholes,
    "judged": judged,
    "canonical-parameters": canonical_parameters,
    "architecture-fields": architecture_fields,
    "command-line": command_line,
    "file": file,
    "template": template,
    "measured": measured.measured,
    "floors": floors.drawing,
    "rooms": floors.rooms,
    "sdk": sdk_names.page,
    "plugin-sdk": sdk_names.of_plugin,
}


def main(arguments: list[str]) -> int:
    stale = []
    for page in sorted(PAGES.rglob("*.md")):
        text = page.read_text()
        new = rendered(text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in arguments:
                page.write_text(new)
    for path, palette in plots.PLOTS.items():
        if not path.is_file() or path.read_text() != plots.compared(palette):
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in arguments:
                path.write_text(plots.compared(palette))
    if MISSING:
        print(f"left out, since they are not installed: {', '.join(MISSING)}", file=sys.stderr)
    print("\n".join(stale) or "every generated section is fresh")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
