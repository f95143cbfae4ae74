"""What a receipt says of files: a bit flipped anywhere in an output of any format is found, a file added or removed is named."""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.receipt.places import RECEIPT, receipt_path
from ckpt_tests.formats import written
from ckpt_tests.goldens import goldens
from ckpt_tests.program import ckpt

LLAMA, BLOOM = ("nanotron", "main_llama_tp2_pp1_bf16"), ("megatron-deepspeed", "bloom-tp2-dp2-bf16-ds070")
# Every format, and every container that a format has: the source, where it goes, and how.
OUTPUTS: dict[str, tuple[tuple[str, str], str, dict[str, object]]] = {
    "hf": (LLAMA, "model", {"to": "hf"}),
    "hf in shards": (LLAMA, "model", {"to": "hf", "options": {"max_shard_size": "60KB"}}),
    "hf in torch files": (LLAMA, "model", {"to": "hf", "options": {"container": "bin"}}),
    "ir": (LLAMA, "model", {"to": "ir"}),
    "nanotron": (LLAMA, "model", {"to": "nanotron", "tp": 2, "pp": 2}),
    "megatron, torch": (LLAMA, "model", {"to": "megatron", "tp": 2, "options": {"container": "torch"}}),
    "megatron, torch_dist": (LLAMA, "model", {"to": "megatron"}),
    "megatron-bridge": (LLAMA, "model", {"to": "megatron-bridge"}),
    "nemo, one file": (LLAMA, "model.nemo", {"to": "nemo", "tp": 2}),
    "nemo, a folder": (LLAMA, "model", {"to": "nemo", "options": {"container": "folder"}}),
    "nemo, zarr": (LLAMA, "model.nemo", {"to": "nemo", "options": {"backend": "zarr"}}),
    "nemo, .ckpt": (LLAMA, "model.ckpt", {"to": "nemo", "options": {"container": "ckpt"}}),
    "nemo2": (LLAMA, "model", {"to": "nemo2"}),
    "nxdt": (LLAMA, "model", {"to": "nxdt", "tp": 2, "pp": 2, "options": {"hw_backend": "trn1"}}),
    "nxdt, xser": (LLAMA, "model", {"to": "nxdt", "tp": 2, "options": {"hw_backend": "trn1", "xser": "true"}}),
    "deepspeed": (LLAMA, "model", {"to": "deepspeed"}),
    "fsdp": (LLAMA, "model", {"to": "fsdp"}),
    "torchtitan": (LLAMA, "model", {"to": "torchtitan"}),
    "gguf": (LLAMA, "model.gguf", {"to": "gguf", "options": {"tokenizer": "none"}}),
    "megatron-deepspeed": (BLOOM, "model", {"to": "megatron-deepspeed", "tp": 2}),
    "megatron-deepspeed, universal": (BLOOM, "model", {"to": "megatron-deepspeed", "options": {"universal": "true"}}),
}  # fmt: skip
_AT_RANDOM = 3


def source_of(golden: tuple[str, str]) -> Path:
    framework, case = golden
    return next(one for one in goldens(framework) if one.folder.name == case).checkpoint


@pytest.fixture(scope="module", params=OUTPUTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source and the output that was made of it, in a folder of its own."""
    golden, name, how = OUTPUTS[request.param]
    output = tmp_path_factory.mktemp("made") / name
    convert(source_of(golden), output, **how)
    return source_of(golden), output


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    source, output = made
    shutil.copytree(output.parent, tmp_path / "copied")
    return source, tmp_path / "copied" / output.name


def recorded(output: Path) -> dict[str, Path]:
    """Every file of an output, but for the receipt, as the receipt calls it."""
    if output.is_file():
        return {output.name: output}
    return {
        str(path.relative_to(output)): path for path in output.rglob("*") if path.is_file() and path.name != RECEIPT
    }


def verified(source: Path, output: Path) -> tuple[int, dict[str, str]]:
    """The exit code, and what changed since the conversion, by subject."""
    code, text = ckpt("verify", source, output, "--json")
    return code, {one["subject"]: one["problem"] for one in json.loads(text)["changed_since_conversion"]}


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def crcs(output: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The CRC-32 of data files: as the receipt says, and as zlib does."""
    said = json.loads(Path(receipt_path(str(output))).read_text())["target"]["crc32"]
    files = recorded(output)
    return said, {name: f"{zlib.crc32(files[name].read_bytes()):08x}" for name in said}


def test_every_format_that_is_written_is_here() -> None:
    assert set(written()) == {how["to"] for _, _, how in OUTPUTS.values()}


def test_the_crc_of_every_data_file_adds_up(made: tuple[Path, Path]) -> None:
    """So no bit can be flipped, nor any 32 in a row changed, without another CRC: it is the CRC of all that is there."""
    said, found = crcs(made[1])
    assert said == found and said


def test_a_flipped_bit_is_found(copied: tuple[Path, Path]) -> None:
    """In every file at once: at its first byte, at its last, and wherever chance says. Every one is named."""
    source, output = copied
    assert verified(source, output) == (0, {})
    files, chance = recorded(output), random.Random(str(output.name))
    places = [lambda size: 0, lambda size: size - 1, *[lambda size: chance.randrange(size)] * _AT_RANDOM]
    before = {name: path.read_bytes() for name, path in files.items()}
    for place in places:
        for path in files.values():
            if size := path.stat().st_size:
                flip(path, place(size), chance.randrange(8))
        code, changed = verified(source, output)
        assert code == 3
        assert {name for name in files if before[name]} <= changed.keys()
        for name, path in files.items():
            path.write_bytes(before[name])


def test_one_flipped_bit_is_found_alone(copied: tuple[Path, Path]) -> None:
    source, output = copied
    files, chance = recorded(output), random.Random(1)
    name = chance.choice(sorted(name for name, path in files.items() if path.stat().st_size))
    flip(files[name], chance.randrange(files[name].stat().st_size), chance.randrange(8))
    code, changed = verified(source, output)
    assert code == 3 and name in changed


def test_a_file_that_was_added_or_removed_is_named(copied: tuple[Path, Path]) -> None:
    source, output = copied
    if output.is_file():
        return
    removed = sorted(recorded(output))[-1]
    (output / removed).unlink()
    (output / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (output / "deep" / "er").mkdir(parents=True)
    (output / "deep" / "er" / ".hidden").write_text("")
    os.symlink("/", output / "elsewhere")
    (output / ".cache").mkdir()
    (output / ".cache" / "lock").write_text("")
    code, changed = verified(source, output)
    added = dict.fromkeys(("adapter_config.json", "deep/er/.hidden", "elsewhere"), "added: it is not in the receipt")
    assert code == 3
    assert {name: problem for name, problem in changed.items() if name in added or name == removed} == {
        **added,
        removed: "missing",
    }
    assert not any(name.startswith((".cache", "elsewhere/")) for name in changed)
