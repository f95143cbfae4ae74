"""HTML and SVG, put together from elements. Text is escaped by being text; only an element is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

from ckpt_core.text import printable

_EMPTY = {"input", "rect"}


class Markup(str):
    """A string that is markup already."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """One element. Children that are no `Markup` are escaped, and so is every attribute.

    `class_` and `for_` lose their underscore, other underscores are hyphens; an attribute of None or False is left
    out, one of True has no value.

    >>> element("p", "a < b", element("b", "!"), class_="note")
    '<p class="note">a &lt; b<b>!</b></p>'
    """
    opening = "".join([name, *(_attribute(key, value) for key, value in attributes.items())])
    if name in _EMPTY and not children:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Parts in a row, escaped where they are not markup."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(str(part)) for part in parts))


def breakable(name: str) -> Markup:
    """A dotted name, or a path, that may be broken after its dots and slashes.

    >>> breakable("a.b/c")
    'a.<wbr>b/<wbr>c'
    """
    return Markup(escaped(name).replace(".", ".<wbr>").replace("/", "/<wbr>"))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'


def escaped(text: str) -> str:
    """Text as HTML shows it: as `printable` makes it.

    >>> escaped("<b>\\u202e")
    '&lt;b&gt;\\\\u202e'
    """
    return html.escape(printable(text))
