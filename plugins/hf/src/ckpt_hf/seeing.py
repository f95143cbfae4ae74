"""Classes that see: a language model, a vision tower and a projector, each with a section of its own in the config.

Such a class is that of its language model with other names for its tensors, and lines and rows for what is before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Config,
    Facts,
    Table,
    configs,
    decided,
    ignore,
    key,
    key_is,
    layouts,
    nested,
)
from ckpt_hf import heads
from ckpt_hf.common import GENERIC, Family, Same
from ckpt_hf.files import SECTION
from ckpt_hf.language import in_sections, tied_as_stored
from ckpt_hf.wholes import WHOLES

# fmt: off
_PLACES: dict[layouts.Value, str] = {
    "stored": "as they are on the Hub",
    "saved": "as newer versions save them",
    "held": "as transformers 5 holds them in memory",
}
# fmt: on

_NOTES = [entry for entry in Config("", GENERIC).entries if isinstance(entry, configs.Note)]
# What every section of a config may have, and says of no model.
_SECTION_GENERIC = Config("", GENERIC).replace(
    "",
    ignore("architectures", "auto_map", why="they choose the class, and a section is not one"),
    *(ignore(entry.key, why="of the language model alone, or of training") for entry in _NOTES),
    without=["model_type"],
)


def width(name: str) -> configs.Entry:
    """The key `name` says the width of the language model once more."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if config.get(name, facts["hidden"]) != facts["hidden"]:
            raise CkptError(
                f"key {name!r} is not the width of the language model",
                found=f"{name} = {config[name]!r}, hidden_size = {facts['hidden']}",
            )

    return decided(
        [name],
        [],
        read=read,
        values={name: [configs.value_of("hidden")]},
        uses=["hidden"],
        why="the width of the language model, said once more",
    )


def tower(kind: str, *lines: Any) -> configs.Entry:
    """The section of a vision tower whose config has the type `kind`."""
    said = Config("", _SECTION_GENERIC.entries).replace(
        "vision_config", key_is("model_type", kind, kind.removesuffix("_vision"), or_absent=True), *lines
    )
    return nested("vision_config", said.entries)


def sees(
    kind: str,
    language: Family,
    text: Config,
    tower: Sequence[Any],
    *lines: Any,
    tables: Iterable[Table],
    places: Mapping[layouts.Value, Callable[[str], str]],
    rewrites: Sequence[Any] = (),
    called: configs.Entry | None = None,
    tied: bool = False,
    leftovers: Iterable[Any] = (),
) -> Family:
    """The class of type `kind` that has the decoder of `language` in it, whose config is `text` there.

    `tower` are the lines for what it sees with, `lines` those beside the sections, and `tables` the rows of all but the language model. `places`
    are the names that its tensors have, by what those of the language model's class are called; the first is written. `called` says which type the
    language model is, where the class has several. `tied`: the
    class has no matrix of its own for the head where a config says nothing. `leftovers` drop what may lie beside the tower.
    """
    whole = WHOLES[kind]
    section = text.replace(
        SECTION,
        called or key_is("model_type", *whole.language, or_absent=True),
        ignore("architectures", "auto_map", why="they choose the class, and a section is not one"),
        without=["tie_word_embeddings", "model_type"],
    )
    config = Config(whole.class_name, _SECTION_GENERIC.entries).replace(
        whole.class_name,
        ignore("architectures", "model_type", "auto_map", why="they choose the class before this table is read (ckpt_hf.classes)"),
        nested(SECTION, section.entries),
        *tower,
        key("tie_word_embeddings", "head.tied", default=tied),
        *lines,
    )  # fmt: skip

    def blind(architecture: Architecture) -> str | None:
        if architecture.vision is None:
            return "it sees, and this model has no vision tower"
        return language.constraint(architecture)

    def as_stored(said: Mapping[str, Any], names: Collection[str], same: Same) -> Mapping[str, Any]:
        return tied_as_stored({**said, SECTION: language.as_stored(said[SECTION], names, same)}, names)

    names = list(places.values())
    spelt = language.tables.spelt(_choice(places), places) if names[1:] else language.tables.renamed(names[0])
    return Family(
        kind,
        config,
        spelt.beside(*tables),
        constraint=blind,
        leftovers=language.leftovers.extend(*leftovers),
        rewrites=rewrites,
        as_stored=as_stored,
        heads=(),
        head=heads.SEES,
        plain=lambda said, file: in_sections(section, said, file),
    )


def _choice(places: Iterable[layouts.Value]) -> layouts.Choice:
    said = ", ".join(f"{place}: {_PLACES[place]}" for place in places)
    return layouts.Choice("places", tuple(places), default="stored", help=f"names of the parts ({said})")
