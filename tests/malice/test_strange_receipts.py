"""A receipt beside a source records by which layout choices it was once kept in other formats. It may be anyone's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_core.api import convert, plan_conversion
from ckpt_core.config import TableError
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import all_plugins, require
from ckpt_core.receipt.checksum import with_checksum
from ckpt_tests.goldens import goldens

STRANGE = ["nonsense", 5, {"nonsense": [{}]}]
CHOICES = """target interleaved model names container experts checkpoint_version spelling config tokenizer step
    arrangement model_type class classes iteration vocab_size make_vocab_size_divisible_by bridge_version pp tp qkv
    hw_backend model_style xser flat module universal layers""".split()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("receipts") / "hf"
    convert(goldens("nanotron")[0].checkpoint, out, to="hf")
    return out


def planned(source: Path, format: str, choices: dict[str, object]) -> str:
    """What a plan says that follows a receipt with these choices; nothing if it can."""
    path = source / "ckpt-receipt.json"
    good = path.read_text()
    body = {key: value for key, value in json.loads(good).items() if key != "seal"}
    body["target"]["hints"] = {format: choices, "nobody": 3}
    path.write_text(json.dumps(with_checksum(body)))
    try:
        plan_conversion(source, source.parent / "out", to=format)
    except CkptError as error:
        return str(error)
    finally:
        path.write_text(good)
    return ""


@pytest.mark.parametrize(
    "format", [plugin.name for plugin in all_plugins() if not plugin.broken and plugin.info.writes]
)
def test_strange_choices_are_no_bug(source: Path, format: str) -> None:
    for value in STRANGE:
        assert "bug" not in planned(source, format, dict.fromkeys(CHOICES, value))


def test_the_receipt_is_named(source: Path) -> None:
    said = planned(source, "nanotron", {"target": "nonsense"})
    assert "the receipt beside the source records layout choices of nanotron" in said
    assert str(source / "ckpt-receipt.json") in said and "remove the receipt" in said
    assert planned(source, "nanotron", {}) == ""


def test_a_mistake_in_a_table_is_not_laid_on_the_receipt(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(**_: object) -> None:
        raise TableError("the line of `a` writes the key 'b', which is not its own")

    monkeypatch.setattr(require("nanotron").hooks, "ckpt_write", mistaken)
    with pytest.raises(TableError, match="not its own"):
        planned(source, "nanotron", {})
