"""One page that shows everything `ckpt inspect` knows: self-contained, readable without JavaScript, in light and dark.

The page comes from `page.html`, `page.css` and `page.js` beside this file, and asks nothing of any network; its content
security policy lets the browser run that one script and nothing else, whatever a checkpoint's names may contain.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from string import Template

from ckpt_core import __version__
from ckpt_core.cli.survey import Survey
from ckpt_page.file import check_page_file, write_page_file
from ckpt_page.markup import element, escaped, join
from ckpt_page.overview import architecture, conversions, heading, warnings
from ckpt_page.parts import dtypes, parameters, sharding
from ckpt_page.tensors import tensors

__all__ = ["check_page_file", "page_of", "write_page_file"]


def page_of(survey: Survey) -> str:
    """The page as HTML: the same for the same checkpoint, read from the same path."""
    sections = [heading, warnings, architecture, parameters, dtypes, sharding, conversions, tensors]
    style, script = _file("page.css"), _file("page.js")
    return Template(_file("page.html")).substitute(
        title=escaped(f"{survey.src} – ckpt"),
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        body=join(section(survey) for section in sections),
        footer=element("footer", f"ckpt {__version__}"),
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
