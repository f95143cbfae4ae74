"""NeMo 2's own checkpoints: read to its own logits, written back to its own tensors and its own words."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_megatron.fiddle import Call, read_graph
from ckpt_tests import distributed
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, each
from ckpt_tests.models import load, logits_of

TOLERANCE = 1e-4  # of fp32 logits; the two frameworks' own forwards differ by up to 7e-6
PADDED = ("module.embedding.word_embeddings.weight", "module.output_layer.weight")


def own_layout(golden: Golden) -> dict[str, int]:
    return {name: golden.case[name] for name in ("tp", "pp", "ep")}


def tensors(root: Path) -> dict[str, torch.Tensor]:
    return distributed.tensors(root / "weights")


def model_of(root: Path) -> Call:
    file = root / "context/io.json"
    return read_graph(json.loads(file.read_text()), str(file)).arguments["model"]


def dump_of(root: Path) -> dict:
    return yaml.safe_load((root / "context/model.yaml").read_text())


def has_optimizer(golden: Golden) -> bool:
    return golden.case["has_optimizer_state"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory):
    """Each case in its own layout, and as HF; made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def make(golden: Golden, to: str) -> Path:
        if (str(golden), to) not in made:
            folder = tmp_path_factory.mktemp(str(golden)) / to
            convert(golden.checkpoint, folder, to=to, **(own_layout(golden) if to == "nemo2" else {}))
            made[str(golden), to] = folder
        return made[str(golden), to]

    return make


# --- to HF and to ir ---------------------------------------------------------------------------------------------------


@each("nemo2")
def test_transformers_computes_the_recorded_logits(golden: Golden, workshop) -> None:
    folder = workshop(golden, "hf")
    assert golden.off_by(logits_of(load(folder), golden.input_ids)) <= TOLERANCE
    assert fingerprint(folder) == fingerprint(golden.checkpoint)


@each("nemo2")
def test_without_model_yaml_the_classes_say_the_same(golden: Golden, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(golden.checkpoint, copy)
    (copy / "context/model.yaml").unlink()
    with open_checkpoint(golden.checkpoint) as whole, open_checkpoint(copy) as bare:
        assert bare.architecture == whole.architecture
        # which only tells how to begin a training, and is not in the table of classes
        expected = {name: value for name, value in whole.checkpoint.notes.items() if name != "initializer_range"}
        assert bare.checkpoint.notes == expected


@each("nemo2")
def test_the_facts_of_the_case_are_found(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint) as source:
        found = source.checkpoint
        assert {name: found.parallel.get(name, 1) for name in ("tp", "pp", "ep")} == own_layout(golden)
        assert found.provenance.masters == has_optimizer(golden)
        assert found.architecture.tokens.vocabulary >= golden.logits.shape[-1]
        # this one says vocab_size itself, and has a row more than its tokenizer has tokens
        assert [loss.subject for loss in found.provenance.losses] == (
            ["a vocabulary of 132"] if str(golden) == "qwen3_tied_pp2" else []
        )


@each("nemo2")
def test_any_folder_of_the_checkpoint_leads_to_it(golden: Golden) -> None:
    expected = fingerprint(golden.checkpoint)
    for folder in (golden.folder, golden.checkpoint / "context", golden.checkpoint / "weights"):
        assert fingerprint(folder) == expected


# --- and back ------------------------------------------------------------------------------------------------------


@each("nemo2")
def test_back_in_its_own_layout_every_tensor_is_the_original(golden: Golden, workshop) -> None:
    assert_same_bits(tensors(workshop(golden, "nemo2")), tensors(golden.checkpoint))


@each("nemo2")
def test_through_hf_every_tensor_but_the_padding_is_the_original(golden: Golden, workshop, tmp_path: Path) -> None:
    convert(workshop(golden, "hf"), tmp_path / "back", to="nemo2", **own_layout(golden))
    assert fingerprint(tmp_path / "back") == fingerprint(golden.checkpoint)
    one, two = tensors(tmp_path / "back"), tensors(golden.checkpoint)
    assert one.keys() == two.keys()
    rows = {name: min(len(one[name]), golden.logits.shape[-1]) for name in PADDED if name in one}
    cut = [{name: tensor[: rows.get(name)] for name, tensor in side.items()} for side in (one, two)]
    assert_same_bits(*cut)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}


@each("nemo2")
def test_the_context_says_what_the_original_says(golden: Golden, workshop) -> None:
    """Classes, tokenizer, and every field that is written; what the original leaves null is worked out."""
    written, original = workshop(golden, "nemo2"), golden.checkpoint
    one, two = model_of(written), model_of(original)
    assert (one.target, one.arguments["config"].target) == (two.target, two.arguments["config"].target)
    assert one.arguments["tokenizer"] == two.arguments["tokenizer"]
    config = dump_of(original)["config"]
    derived = {
        "kv_channels": config["hidden_size"] // config["num_attention_heads"],
        "num_query_groups": config["num_attention_heads"],
        "moe_ffn_hidden_size": config["ffn_hidden_size"],
    }
    expected = {key: derived.get(key) if value is None else value for key, value in config.items()}
    found = dump_of(written)["config"]
    assert found.keys() <= expected.keys()
    exempt = {"moe_ffn_hidden_size", "bf16", "fp16", "params_dtype", "pipeline_dtype", "moe_router_pre_softmax"}
    same = {key: value for key, value in found.items() if key not in exempt and key != "activation_func"}
    assert same == {key: expected[key] for key in same}


@each("nemo2")
def test_the_tokenizer_travels(golden: Golden, workshop) -> None:
    kept = {
        str(path.relative_to(golden.checkpoint)): path.read_bytes()
        for path in (golden.checkpoint / "context").rglob("*")
        if path.is_file() and path.name not in ("io.json", "model.yaml")
    }
    written = workshop(golden, "nemo2")
    assert kept
    assert {name: (written / name).read_bytes() for name in kept} == kept
    for name, data in kept.items():
        held = "tokenizer.model" if name.endswith(".model") else Path(name).name
        assert (workshop(golden, "hf") / held).read_bytes() == data


@each("nemo2")
def test_torch_itself_loads_what_is_written(golden: Golden, workshop) -> None:
    folder = workshop(golden, "nemo2") / "weights"
    expected = tensors(golden.checkpoint)
    state = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert_same_bits(state, expected)
    said = torch.load(folder / "common.pt", weights_only=True)  # of a training: its counters
    assert said.get("global_step") == (2 if has_optimizer(golden) else None) and bool(said) == has_optimizer(golden)


@each("nemo2")
def test_a_loader_of_default_strictness_finds_every_object_it_asks_for(golden: Golden, workshop) -> None:
    """Megatron-Core asks for what the model would save: one _extra_state for each module and layer."""
    one, two = (distributed.metadata_of(root / "weights") for root in (workshop(golden, "nemo2"), golden.checkpoint))
    asked = {name for name in two.state_dict_metadata if "_extra_state/" in name}
    assert asked and asked <= one.state_dict_metadata.keys()


@each("nemo2", lambda golden: golden.case["family"] == "llama31")
def test_every_layout_has_the_same_fingerprint(golden: Golden, tmp_path: Path) -> None:
    expected = fingerprint(golden.checkpoint)
    for number, layout in enumerate(({"tp": 1}, {"tp": 2, "pp": 3}, {"pp": 3})):
        convert(golden.checkpoint, tmp_path / str(number), to="nemo2", **layout)
        assert fingerprint(tmp_path / str(number)) == expected, layout


# --- masters -------------------------------------------------------------------------------------------------------


@each("nemo2", has_optimizer)
def test_masters_are_those_of_the_optimizer(golden: Golden, tmp_path: Path) -> None:
    """The weights are spoiled in a copy; the masters, flat and in shards, still are what they were."""
    copy = tmp_path / "copy"
    shutil.copytree(golden.checkpoint, copy)
    metadata = distributed.metadata_of(copy / "weights")
    for index, info in metadata.storage_data.items():
        if not index.fqn.startswith("optimizer.") and index.offset is not None:
            _spoil(copy / "weights" / info.relative_path, info.offset, info.length)
    convert(copy, tmp_path / "masters", to="nemo2", weights="master", **own_layout(golden))
    assert_same_bits(tensors(tmp_path / "masters"), tensors(golden.checkpoint))
    assert fingerprint(copy) != fingerprint(golden.checkpoint)


def _spoil(path: Path, offset: int, length: int) -> None:
    data = path.read_bytes()
    tensor = torch.load(io.BytesIO(data[offset : offset + length]), weights_only=True)
    changed = io.BytesIO()
    torch.save(tensor + 1, changed)
    assert len(changed.getvalue()) == length
    path.write_bytes(data[:offset] + changed.getvalue() + data[offset + length :])


@each("nemo2", lambda golden: not has_optimizer(golden))
def test_masters_that_are_not_there_are_refused(golden: Golden) -> None:
    with pytest.raises(CkptError, match="no fp32 masters"):
        fingerprint(golden.checkpoint, weights="master")
