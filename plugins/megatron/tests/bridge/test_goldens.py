"""Megatron-Bridge's own checkpoints: read to its own logits, written back to its own tensors and its own words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import distributed
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, each
from ckpt_tests.models import load, logits_of

TOLERANCE = 1e-4  # of fp32 logits; the two frameworks' own forwards differ by up to 5e-6
STEP = "iter_0000000"


def own_layout(golden: Golden) -> dict[str, int]:
    return {name: golden.case[name] for name in ("tp", "pp", "ep")}


def tensors(root: Path) -> dict[str, torch.Tensor]:
    return distributed.tensors(root / STEP)


def run_config(root: Path) -> dict:
    return yaml.safe_load((root / STEP / "run_config.yaml").read_text())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory):
    """Each case in its own layout, and as HF; made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def make(golden: Golden, to: str) -> Path:
        if (str(golden), to) not in made:
            folder = tmp_path_factory.mktemp(str(golden)) / to
            convert(golden.checkpoint, folder, to=to, **(own_layout(golden) if to != "hf" else {}))
            made[str(golden), to] = folder
        return made[str(golden), to]

    return make


@each("megatron-bridge")
def test_transformers_computes_the_recorded_logits(golden: Golden, workshop) -> None:
    folder = workshop(golden, "hf")
    assert golden.off_by(logits_of(load(folder), golden.input_ids)) <= TOLERANCE
    assert fingerprint(folder) == fingerprint(golden.checkpoint)


@each("megatron-bridge")
def test_the_facts_of_the_case_are_found(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint) as source:
        found = source.checkpoint
        assert {name: found.parallel.get(name, 1) for name in ("tp", "pp", "ep")} == own_layout(golden)
        assert found.architecture.tokens.vocabulary == golden.case["explicit_config"]["vocab_size"]
        assert not found.provenance.masters and not found.provenance.losses
    assert fingerprint(golden.checkpoint / STEP) == fingerprint(golden.checkpoint)


@each("megatron-bridge")
def test_back_in_its_own_layout_every_tensor_is_the_original(golden: Golden, workshop) -> None:
    assert_same_bits(tensors(workshop(golden, "megatron-bridge")), tensors(golden.checkpoint))


@each("megatron-bridge")
def test_through_hf_every_tensor_but_the_padding_is_the_original(golden: Golden, workshop, tmp_path: Path) -> None:
    convert(workshop(golden, "hf"), tmp_path / "back", to="megatron-bridge", **own_layout(golden))
    one, two = tensors(tmp_path / "back"), tensors(golden.checkpoint)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    rows = dict.fromkeys(
        ("embedding.word_embeddings.weight", "output_layer.weight"), golden.case["explicit_config"]["vocab_size"]
    )
    assert_same_bits(*({name: tensor[: rows.get(name)] for name, tensor in side.items()} for side in (one, two)))


@each("megatron-bridge")
def test_the_run_config_says_what_the_original_says(golden: Golden, workshop) -> None:
    found, expected = (run_config(root) for root in (workshop(golden, "megatron-bridge"), golden.checkpoint))
    assert found.keys() <= expected.keys()
    assert found["checkpoint"].items() <= expected["checkpoint"].items()
    model, original = found["model"], expected["model"]
    assert model.keys() <= original.keys()
    exempt = {"activation_func", "autocast_dtype"}  # torch._C._nn.gelu has a public name; how it is run
    assert {key: value for key, value in model.items() if key not in exempt} == {
        key: original[key] for key in model if key not in exempt
    }


@each("megatron-bridge")
def test_the_files_beside_the_weights(golden: Golden, workshop) -> None:
    """The iteration, as tensors and as text, and the tokenizer."""
    written, original = workshop(golden, "megatron-bridge"), golden.checkpoint
    for name in ("latest_train_state.pt", f"{STEP}/train_state.pt"):
        one, two = (torch.load(root / name, weights_only=True) for root in (written, original))
        assert one == two and all(one[key].dtype == two[key].dtype for key in two)
    assert (written / "latest_checkpointed_iteration.txt").read_text() == (
        original / "latest_checkpointed_iteration.txt"
    ).read_text()
    kept = {path.name: path.read_bytes() for path in (original / STEP / "tokenizer").iterdir()}
    assert {path.name: path.read_bytes() for path in (written / STEP / "tokenizer").iterdir()} == kept
    assert {name: (workshop(golden, "hf") / name).read_bytes() for name in kept} == kept


@each("megatron-bridge")
def test_torch_and_a_loader_of_default_strictness_find_all(golden: Golden, workshop) -> None:
    folder, expected = workshop(golden, "megatron-bridge") / STEP, tensors(golden.checkpoint)
    state = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert_same_bits(state, expected)
    common, original = (
        torch.load(root / "common.pt", weights_only=True) for root in (folder, golden.checkpoint / STEP)
    )
    assert common == original
    one, two = (distributed.metadata_of(root) for root in (folder, golden.checkpoint / STEP))
    asked = {name for name in two.state_dict_metadata if "_extra_state/" in name}
    assert asked and asked <= one.state_dict_metadata.keys()


@each("megatron-bridge", lambda golden: golden.case["family"] == "llama")
def test_nemo2_and_bridge_hold_the_same(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "nemo2", to="nemo2", tp=2)
    convert(tmp_path / "nemo2", tmp_path / "bridge", to="megatron-bridge", tp=2)
    convert(tmp_path / "bridge", tmp_path / "megatron", to="megatron", tp=2)
    assert fingerprint(tmp_path / "megatron") == fingerprint(tmp_path / "nemo2") == fingerprint(golden.checkpoint)
    assert_same_bits(tensors(tmp_path / "bridge"), tensors(golden.checkpoint))


@each("megatron-bridge")
def test_masters_that_are_not_there_are_refused(golden: Golden) -> None:
    with pytest.raises(CkptError, match="no fp32 masters"):
        fingerprint(golden.checkpoint, weights="master")
