"""The checksums of torch's records: a record of a source that is read whole is checked on the way, wherever its bytes go."""

from __future__ import annotations

import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ckpt_core import convert, fingerprint
from ckpt_core.api import plan_conversion, read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.storage.tensor import Record
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_tests import tiny
from ckpt_tests.goldens import goldens

LLAMA, BLOOM = ("nanotron", "main_llama_tp2_pp1_bf16"), ("megatron-deepspeed", "bloom-tp2-dp2-bf16-ds070")
TORCH_FILES: dict[str, tuple[tuple[str, str], str, dict[str, object]]] = {
    "hf": (LLAMA, "model", {"to": "hf", "options": {"container": "bin"}}),
    "megatron, torch": (LLAMA, "model", {"to": "megatron", "tp": 2, "options": {"container": "torch"}}),
    "megatron, torch_dist": (LLAMA, "model", {"to": "megatron", "tp": 2}),
    "nemo": (LLAMA, "model.nemo", {"to": "nemo", "tp": 2, "options": {"backend": "ranks"}}),
    "nxdt, xser": (LLAMA, "model", {"to": "nxdt", "tp": 2, "options": {"hw_backend": "trn1", "xser": "true"}}),
    "deepspeed": (LLAMA, "model", {"to": "deepspeed"}),
    "fsdp": (LLAMA, "model", {"to": "fsdp"}),
    "torchtitan": (LLAMA, "model", {"to": "torchtitan"}),
    "megatron-deepspeed": (BLOOM, "model", {"to": "megatron-deepspeed", "tp": 2}),
}


@pytest.fixture(scope="module", params=[*TORCH_FILES, "gpt2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    if request.param == "gpt2":  # fused and transposed: rows of the model are columns of the file
        gpt2(folder / "hf")
        convert(folder / "hf", folder / "model", to="hf", options={"container": "bin"})
        return folder / "model"
    (framework, case), name, how = TORCH_FILES[request.param]
    golden = next(one for one in goldens(framework) if one.folder.name == case)
    convert(golden.checkpoint, folder / name, **how)
    return folder / name


def gpt2(folder: Path) -> None:
    config = GPT2Config(vocab_size=151, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)


def records(assemblies: Iterable[LazyParameter]) -> set[Record]:
    return {block.record for one in assemblies for block in one.all_blocks if block.record is not None}


def flip(record: Record, chance: random.Random) -> tuple[int, int]:
    place, bit = record.offset + chance.randrange(record.size), chance.randrange(8)
    unflip(record.file, place, bit)
    return place, bit


def unflip(file: str, place: int, bit: int) -> None:
    with open(file, "r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))


def test_a_damaged_record_is_refused(source: Path, tmp_path: Path) -> None:
    """All records but those of which rows are left out are checked; whichever of them is damaged is named."""
    read = records(read_checkpoint(source).tensors.values())
    plan = plan_conversion(source, tmp_path / "out", to="ir")
    checked = records(tensor.assembly for tensor in plan.tensors)
    assert checked == read and read
    chance = random.Random(str(source.name))
    for record in chance.sample(sorted(read, key=lambda one: one.key), min(6, len(read))):
        place = flip(record, chance)
        with pytest.raises(CkptError) as caught:
            convert(source, tmp_path / "out", to="ir")
        assert record.file in str(caught.value) and record.name in str(caught.value)
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.ckpt-partial").exists()
        with pytest.raises(CkptError, match="damaged"):
            fingerprint(source)
        unflip(record.file, *place)
    convert(source, tmp_path / "out", to="ir")


def test_other_processes_count_too(tmp_path: Path) -> None:
    """Each reads a part of a fused record, and none of them knows it is damaged."""
    gpt2(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "bin", to="hf", options={"container": "bin"})
    read = sorted(records(read_checkpoint(tmp_path / "bin").tensors.values()), key=lambda record: record.size)
    flip(next(record for record in read if record.size), random.Random(3))
    with (
        ProcessPoolExecutor(2, get_context("spawn")) as processes,
        pytest.raises(CkptError, match="its checksum is wrong"),
    ):
        convert(tmp_path / "bin", tmp_path / "out", to="ir", executor=processes)


def test_a_record_that_is_read_in_part_or_twice_is_not_mistaken_for_damaged(tmp_path: Path) -> None:
    """A tied head that is written out reads the embedding twice; rows of padding that are left out are not read."""
    tiny.build(tmp_path / "hf", "llama", tie_word_embeddings=True)
    convert(tmp_path / "hf", tmp_path / "bin", to="hf", options={"container": "bin"})
    for number, how in enumerate(({"to": "nxdt", "options": {"hw_backend": "trn1"}}, {"to": "megatron", "tp": 2})):
        receipt = convert(tmp_path / "bin", tmp_path / f"out{number}", **how)
        assert receipt.fingerprint == fingerprint(tmp_path / f"out{number}")
        convert(tmp_path / f"out{number}", tmp_path / f"back{number}", to="hf")
