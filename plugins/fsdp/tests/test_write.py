"""What is written, loaded by torch itself into models of transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example
from ckpt_core.testing.examples import calm_numbers, write_ir
from ckpt_tests import distributed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
LAYOUTS = ("nested", "flat", "accelerate")
ACCELERATE = "pytorch_model_fsdp_0"
TIED = {"head__tied": True}
# Every version of transformers scales what a tied head gets.
T5 = example("t5", **TIED)
T5 = dataclasses.replace(T5, head=dataclasses.replace(T5.head, scale=T5.hidden**-0.5))
MODELS = {
    "llama": example("llama", layers=2),
    "tied": example("llama", layers=1, **TIED),
    "mixtral": example("moe", layers=2),
    "gpt2": example("gpt2", layers=1, hidden=144, attention__head_dim=12, mlp__ffn=576),
    "t5": T5,
    "bloom": example("bloom", layers=1, hidden=144, attention__head_dim=12, mlp__ffn=576),
}


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return write_ir(folder / "ir", MODELS[request.param], values=calm_numbers)


def in_memory(folder: Path) -> transformers.PreTrainedModel:
    """The model of the config in a folder, with numbers of its own."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0])(config)


def held(layout: str, model: transformers.PreTrainedModel) -> dict[str, object]:
    """The state dict as scripts of this layout load it."""
    return model.state_dict() if layout == "flat" else {"model": model.state_dict()}


def place(layout: str, folder: Path) -> Path:
    return folder / ACCELERATE if layout == "accelerate" else folder


def test_torch_loads_it_into_the_model_of_transformers(source: Path, tmp_path: Path) -> None:
    """In every layout, every name that the module has in memory, and no other."""
    convert(source, tmp_path / "hf", to="hf")
    wanted = type(in_memory(tmp_path / "hf")).from_pretrained(tmp_path / "hf").state_dict()
    for layout in LAYOUTS:
        convert(source, tmp_path / layout, to="fsdp", options={"layout": layout})
        assert fingerprint(tmp_path / layout) == fingerprint(tmp_path / "hf")
        model = in_memory(tmp_path / layout)
        dcp.load(held(layout, model), checkpoint_id=str(place(layout, tmp_path / layout)))
        found = model.state_dict()
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (layout, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_and_accelerate_merge_it_again(layout: str, tmp_path: Path) -> None:
    """They make the nest of dicts anew, from what the metadata says of it."""
    source = write_ir(tmp_path / "ir", MODELS["llama"])
    convert(source, tmp_path / "run", to="fsdp", options={"layout": layout, "max_shard_size": "100KB"})
    assert len(list(place(layout, tmp_path / "run").glob("*.distcp"))) > 1
    dcp_to_torch_save(str(place(layout, tmp_path / "run")), str(tmp_path / "one.pt"))
    merged = torch.load(tmp_path / "one.pt", weights_only=True)
    wanted = in_memory(tmp_path / "run").state_dict().keys()
    assert (merged if layout == "flat" else merged["model"]).keys() == wanted


def test_names_of_files_can_be_asked_for(tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS["mixtral"])
    for names, fused in (("held", True), ("stored", False)):
        convert(source, tmp_path / names, to="fsdp", options={"names": names})
        assert fingerprint(tmp_path / names) == fingerprint(source)
        keys = dcp.FileSystemReader(tmp_path / names).read_metadata().state_dict_metadata
        assert any(key.endswith("experts.gate_up_proj") for key in keys) == fused


def test_a_head_of_t5_that_is_stored_twice_is_tied_where_it_is_the_embedding(tmp_path: Path) -> None:
    """Version 5 says of every T5 that it is tied, and a state dict in memory has the head whatever it is."""
    convert(write_ir(tmp_path / "ir", T5, values=calm_numbers), tmp_path / "run", to="fsdp")
    known = fingerprint(tmp_path / "run")
    state = distributed.tensors(tmp_path / "run")
    state["model.lm_head.weight"][5, 3] += 1
    dcp.save(state, checkpoint_id=str(tmp_path / "other"))
    for version in (None, "5.1.0"):
        config = {**json.loads((tmp_path / "run/config.json").read_text()), "transformers_version": version}
        for folder in ("run", "other"):
            (tmp_path / folder / "config.json").write_text(json.dumps(config))
        with open_checkpoint(tmp_path / "run") as opened:
            assert opened.checkpoint.architecture.head.tied
        assert fingerprint(tmp_path / "run") == known
    with open_checkpoint(tmp_path / "other") as opened:
        assert not opened.checkpoint.architecture.head.tied


def test_two_readings_that_are_both_whole_are_refused(tmp_path: Path) -> None:
    """A state dict that was saved twice, under two prefixes: which of them is the model, nothing says."""
    source = write_ir(tmp_path / "ir", MODELS["llama"])
    convert(source, tmp_path / "run", to="fsdp", options={"layout": "nested"})
    model = in_memory(tmp_path / "run")
    dcp.save({"model": model.state_dict(), "ema": model.state_dict()}, checkpoint_id=str(tmp_path / "both"))
    (tmp_path / "both/config.json").write_text((tmp_path / "run/config.json").read_text())
    with pytest.raises(CkptError, match=r"several models[^\0]*'ema\.'[^\0]*'model\.'[^\0]*-o prefix="):
        fingerprint(tmp_path / "both")


def test_empty_chunks_of_ranks_without_rows_are_nothing(tmp_path: Path) -> None:
    """Several ranks may say so at one place, which lies in one file, or in none."""
    convert(write_ir(tmp_path / "ir", MODELS["llama"]), tmp_path / "run", to="fsdp")
    known = fingerprint(tmp_path / "run")

    def change(metadata: Any) -> None:
        for number, (name, entry) in enumerate(list(metadata.state_dict_metadata.items())):
            end = torch.Size([entry.size[0], *([0] * (len(entry.size) - 1))])
            entry.chunks += [ChunkStorageMetadata(end, torch.Size([0, *entry.size[1:]]))] * 2
            if number % 2:
                somewhere = metadata.storage_data[MetadataIndex(name, torch.Size([0] * len(entry.size)))]
                info = dataclasses.replace(somewhere, offset=somewhere.offset + somewhere.length, length=0)
                metadata.storage_data[MetadataIndex(name, end)] = info

    distributed.changed(tmp_path / "run", change)
    assert fingerprint(tmp_path / "run") == known


def test_other_values_of_a_training_are_named(tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS["llama"])
    convert(source, tmp_path / "run", to="fsdp")
    model = in_memory(tmp_path / "run")
    optimizer = torch.optim.AdamW(model.parameters())
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": 3},
        "dataloader": {"position": torch.zeros(2)},
        "rng_state": torch.get_rng_state(),
        "step": 3,
        "surprise": {"a": 1},
    }
    dcp.save(state, checkpoint_id=str(tmp_path / "whole"))
    receipt = convert(tmp_path / "whole", tmp_path / "hf", to="hf", config=tmp_path / "run")
    left = {loss["subject"].partition(",")[0].partition(":")[0] for loss in receipt.body["losses"]}
    assert left >= {
        "optimizer state",
        "learning rate schedule",
        "state of the data loader",
        "states of random generators",
        "iteration and consumed samples",
        "entries that the reader does not know",
    }
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "llama"
