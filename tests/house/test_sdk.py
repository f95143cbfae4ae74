"""What an author imports, `ckpt_core.sdk` and the plugins' public modules: every name is documented, and listed in docs/reference/sdk.md."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import sdk_names

from ckpt_core import sdk

ROOT = Path(__file__).parents[2]
PUBLIC = {f"{file.parent.name}.sdk": file for file in (ROOT / "plugins").glob("*/src/*/sdk.py")}


@pytest.mark.parametrize("name", ["ckpt_core.sdk", *PUBLIC])
def test_every_name_is_documented(name: str) -> None:
    public = pytest.importorskip(name)
    for module in (public, *sdk_names.namespaces(public).values()):
        assert len(set(module.__all__)) == len(module.__all__) and all(hasattr(module, one) for one in module.__all__)
        assert not [one for one in module.__all__ if not sdk_names.sentence(module, one)]


def test_the_page_counts_what_it_lists() -> None:
    page = sdk_names.page()
    assert page.startswith(f"{len(sdk.__all__)} names, {len(sdk_names.namespaces())} of them namespaces")
    names = [name for name in sdk.__all__ if name not in sdk_names.namespaces()]
    assert all(f"| `{name}" in page for name in names)


def test_the_page_lists_the_public_modules() -> None:
    page = (ROOT / "docs/reference/sdk.md").read_text()
    assert PUBLIC
    assert all(f"<!-- generated: plugin-sdk {name} -->" in page for name in PUBLIC)


class Undocumented:
    pass


def said_of_a_function() -> None:
    """One sentence
    on two lines.

    And more.
    """


def test_a_sentence_is_the_first_paragraph() -> None:
    here = ModuleType(__name__)
    vars(here).update(globals())
    assert sdk_names.sentence(here, "said_of_a_function") == "One sentence on two lines."
    assert sdk_names.sentence(here, "Undocumented") == ""
