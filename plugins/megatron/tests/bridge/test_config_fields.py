"""The table of fields of Megatron's config classes: every field has a meaning, and the reader of run configs follows it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_megatron.bridge.config import GPT, GPT_CLASS, MLA, version_of
from ckpt_megatron.transformer_config.config_fields import ConfigField, listed
from ckpt_tests.families import CASES, build

ROWS, LEGEND = listed()
STEP = "iter_0000000"
# `transformer` holds the other fields, in the configs of Bridge that have a builder
READ_ELSEWHERE = {"transformer"}


def with_effect(*effects: str) -> list[ConfigField]:
    return [row for row in ROWS if row.effect in effects]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    build(CASES["qwen3_moe"], folder / "hf")
    convert(folder / "hf", folder / "run", to="megatron-bridge")
    (folder / "run/ckpt-receipt.json").unlink()
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def with_fields(run: Path, **fields: object) -> None:
    path = run / STEP / "run_config.yaml"
    body = yaml.safe_load(path.read_text())
    body["model"] |= fields
    path.write_text(yaml.safe_dump(body))


def test_every_field_has_a_meaning() -> None:
    assert {row.effect for row in ROWS} == LEGEND.keys()
    handled = {*GPT.keys, *MLA.keys}
    assert {row.name for row in ROWS} <= handled | READ_ELSEWHERE
    named = [row.name for row in ROWS]
    assert named == sorted(set(named))


def test_what_a_default_is_can_be_said(run: Path) -> None:
    """The defaults of the sources, all at once: Bridge writes every field."""
    with_fields(run, **{row.name: default(row) for row in with_effect("default")})
    open_checkpoint(run)


def default(row: ConfigField) -> object:
    return None if row.default == "none" else yaml.safe_load(row.default) if row.default != "None" else None


@pytest.mark.parametrize("row", with_effect("default"), ids=lambda row: row.name)
def test_another_value_of_a_field_that_changes_the_function_is_refused_by_name(
    original: Path, row: ConfigField
) -> None:
    fields = yaml.safe_load((original / STEP / "run_config.yaml").read_text())["model"]
    fields = {
        key: value for key, value in fields.items() if key in ("hidden_size", "num_layers", "num_attention_heads")
    }
    with pytest.raises(CkptError) as error:
        GPT.read({**fields, "seq_length": 8, row.name: "another"}, "run_config.yaml")
    assert f"key '{row.name}'" in str(error.value) and f"-o ignore_keys={row.name}" in str(error.value)


def test_no_value_of_any_other_field_changes_the_model(run: Path) -> None:
    """All fields that are said to change nothing, of the newest version too, at values that are not defaults."""
    with open_checkpoint(run) as one:
        expected = one.architecture
    fields = with_effect(*(LEGEND.keys() - {"read", "default"}))
    assert {"moe_ncclep_use_symm_mem", "flash_attention_version", "mtp_hsm"} <= {row.name for row in fields}
    unlike = {row.name: 3 for row in fields if row.name not in ("params_dtype", "pipeline_dtype", "autocast_dtype")}
    with_fields(run, **unlike)
    with open_checkpoint(run) as two:
        assert two.architecture == expected


def test_a_field_of_no_version_is_refused_with_the_way_on(run: Path) -> None:
    with_fields(run, moe_field_of_tomorrow=1)
    with pytest.raises(CkptError, match=r"moe_field_of_tomorrow(.|\n)*-o ignore_keys="):
        open_checkpoint(run)
    with open_checkpoint(run, options={"ignore_keys": "moe_field_of_tomorrow"}) as source:
        (loss,) = [loss for loss in source.checkpoint.all_losses if "moe_field_of_tomorrow" in loss.subject]
        assert loss.kind == "dropped" and "ignore_keys" in loss.reason
        assert not source.checkpoint.provenance.losses


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ((), "0.2"),
        (("flash_attention_version",), "0.2"),  # of Megatron-Core, which may be newer than Bridge
        (("rope_scaling",), "0.4"),
        (("rope_scaling", "yarn_mscale"), "0.4"),
        (("rope_scaling", "hf_model_revision"), "0.6"),
        (("rope_scaling", "logit_dtype"), "0.6"),
    ],
)
def test_the_version_by_its_fields(fields: tuple[str, ...], version: str) -> None:
    assert version_of(GPT_CLASS, dict.fromkeys(fields)) == version


# --- the program that makes the table --------------------------------------------------------------------------------

SOURCE = '''
from dataclasses import dataclass, field

@dataclass
class TransformerConfig(ModelParallelConfig):
    num_layers: int = 0
    """Layers."""
    offload_modules: list[str] = field(default_factory=list)
    kernel: str = field(default="native", metadata={"argparse_meta": {}})
    given: int
    kind: ClassVar[int] = 3

    def method(self): pass

class Other:
    x: int = 1
'''


@pytest.fixture(scope="module")
def program() -> ModuleType:
    path = Path(__file__).parents[4] / "tools/config_fields.py"
    spec = importlib.util.spec_from_file_location("config_fields_program", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_fields_are_read_from_a_source(program: ModuleType) -> None:
    (node,) = program.classes(SOURCE)
    assert dict(program.fields(node)) == {
        "num_layers": "0", "offload_modules": "made by list", "kernel": "'native'", "given": "none",
    }  # fmt: skip


def test_an_update_keeps_meanings_and_marks_what_is_new(program: ModuleType) -> None:
    text = "# head\na | 1 | 0.9- | 0.2- | kernel\nz | 2 |  |  | other\n"
    seen = {
        "a": program.Seen("3", ["0.9", "0.10"], ["0.2"]),
        "b": program.Seen("'x'", [*program.CORE][-2:], [*program.BRIDGE][-1:]),
    }
    old, new = [*program.CORE][-2], [*program.BRIDGE][-1]
    assert program.updated(text, seen) == (
        f"# head\na | 3 | 0.9-0.10 | 0.2 | kernel\nb | 'x' | {old}- | {new}- | ?\nz | 2 |  |  | other\n"
    )
