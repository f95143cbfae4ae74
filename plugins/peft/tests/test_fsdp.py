"""What verl saves of a LoRA training: rank files of base and adapter in one, made by torch's own DTensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.tensor import Replicate, Shard

from ckpt_core import convert, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError
from ckpt_tests import adapters, fsdp
from ckpt_tests.adapters import ALPHA, PREFIX, RANK, pair
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import weights

Tensors = dict[str, torch.Tensor]
ADAPTED = ("q_proj", "down_proj")
META = {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors, Tensors]:
    """A base, its tensors, and an adapter on it under PEFT's names."""
    folder = tmp_path_factory.mktemp("verl")
    before = adapters.base(folder / "base")
    modules = [name.removesuffix(".weight") for name in before if name.removesuffix(".weight").endswith(ADAPTED)]
    tensors = {key: one for name in modules for key, one in pair(name, before[f"{name}.weight"]).items()}
    adapters.save(folder / "adapter", tensors, target_modules=list(ADAPTED))
    convert(folder / "adapter", folder / "hf", to="hf", options={"base": str(folder / "base")})
    return folder, before, tensors


def state_dict(before: Tensors, tensors: Tensors) -> Tensors:
    """The names that they have in the memory of a PeftModel."""
    adapted = {f"{key.removeprefix(PREFIX).rpartition('.lora_')[0]}.weight" for key in tensors}
    inner = {
        name.replace(".weight", ".base_layer.weight") if name in adapted else name: one for name, one in before.items()
    }
    pairs = {key.replace(".weight", ".default.weight"): one for key, one in tensors.items()}
    return {f"{PREFIX}{name}": one for name, one in inner.items()} | pairs


def saved(
    folder: Path,
    base: tuple[Path, Tensors, Tensors],
    meta: dict[str, Any] | None = META,
    change: fsdp.Change = lambda rank, state: None,
) -> Path:
    """A step of verl, HSDP on four ranks."""
    place, before, tensors = base
    actor = folder / "global_step_7/actor"
    fsdp.write_ranks(actor, state_dict(before, tensors), (2, 2), lambda name: [Replicate(), Shard(0)], change=change)
    fsdp.with_config(actor, json.loads((place / "base/config.json").read_text()))
    if meta is not None:
        (actor / "lora_train_meta.json").write_text(json.dumps(meta))
    return folder / "global_step_7"


def test_base_and_adapter_are_merged_as_peft_does(base: tuple[Path, Tensors, Tensors], tmp_path: Path) -> None:
    step = saved(tmp_path, base)
    convert(step, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), weights(base[0] / "hf"))
    assert (tmp_path / "hf/tokenizer.json").is_file()
    assert main(["verify", str(step), str(tmp_path / "hf")]) == 0
    with open_checkpoint(step) as opened:
        losses = [str(loss) for loss in opened.checkpoint.all_losses]
        assert opened.format == "fsdp-lora" and not any(
            "is the base" in loss or "does not know" in loss for loss in losses
        )


def test_the_adapter_by_itself(base: tuple[Path, Tensors, Tensors], tmp_path: Path) -> None:
    step = saved(tmp_path, base)
    convert(step, tmp_path / "adapter", to="peft")
    assert_same_bits(load_file(tmp_path / "adapter/adapter_model.safetensors"), base[2])
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (RANK, ALPHA, sorted(ADAPTED))
    assert main(["verify", str(step), str(tmp_path / "adapter")]) == 0
    convert(step, tmp_path / "run", to="megatron-lora")
    convert(tmp_path / "run", tmp_path / "hf", to="hf", options={"base": str(base[0] / "base")})
    assert_same_bits(weights(tmp_path / "hf"), weights(base[0] / "hf"))


def test_without_the_file_alpha_is_asked_for(base: tuple[Path, Tensors, Tensors], tmp_path: Path) -> None:
    step = saved(tmp_path, base, None)
    with pytest.raises(CkptError, match="--from fsdp-lora"):
        open_checkpoint(step)
    with pytest.raises(CkptError, match="lora_alpha=NUMBER"):
        open_checkpoint(step, format="fsdp-lora")
    convert(step, tmp_path / "hf", to="hf", format="fsdp-lora", options={"lora_alpha": str(ALPHA)})
    assert_same_bits(weights(tmp_path / "hf"), weights(base[0] / "hf"))


@pytest.mark.parametrize("layout", ["nested", "accelerate"])
def test_a_distributed_checkpoint_of_a_model_of_peft(
    layout: str, base: tuple[Path, Tensors, Tensors], tmp_path: Path
) -> None:
    """As the Trainer and a plain script save it: below the name of the model, with the state of the optimizer beside it."""
    place, before, tensors = base
    held = {"model": state_dict(before, tensors), "optimizer": {"state": {"x.exp_avg": torch.zeros(2)}}}
    folder = tmp_path / "run/pytorch_model_fsdp_0" if layout == "accelerate" else tmp_path / "run"
    dcp.save(held, checkpoint_id=str(folder), no_dist=True)
    config = str(place / "base/config.json")
    with pytest.raises(CkptError, match="--from fsdp-lora"):
        open_checkpoint(tmp_path / "run", config=config)
    asked = {"config": config, "format": "fsdp-lora", "options": {"lora_alpha": str(ALPHA)}}
    convert(tmp_path / "run", tmp_path / "hf", to="hf", **asked)
    assert_same_bits(weights(tmp_path / "hf"), weights(place / "hf"))
    convert(tmp_path / "run", tmp_path / "adapter", to="peft", **asked)
    assert_same_bits(load_file(tmp_path / "adapter/adapter_model.safetensors"), tensors)


def changed(name: str, how: Callable[[Tensors], object]) -> fsdp.Change:
    return lambda rank, state: how(state) if name == "every rank" or rank == 3 else None


REFUSED: dict[str, tuple[dict[str, Any], fsdp.Change, tuple[str, ...]]] = {
    "another rank": (META | {"r": 9}, changed("none", lambda s: None), ("the rank", "9", "4")),
    "no alpha": ({"r": RANK}, changed("none", lambda s: None), ("by how much", "lora_alpha")),
    "an alpha of zero": (META | {"lora_alpha": 0}, changed("none", lambda s: None), ("above zero",)),
    "replicas that differ": (
        META, changed("the last", lambda s: s[f"{PREFIX}{Q}.lora_A.default.weight"].to_local().add_(1)), ("two copies of", "lora_A"),
    ),
    "a matrix that is missing": (META, changed("every rank", lambda s: s.pop(f"{PREFIX}{Q}.lora_B.default.weight")), ("the matrix B", Q)),
    "a module that is saved whole": (
        META, changed("every rank", lambda s: s.update({f"{PREFIX}lm_head.modules_to_save.default.weight": torch.ones(2)})), ("modules_to_save",),
    ),
    "a base that is there twice": (
        META, changed("every rank", lambda s: s.update({f"{PREFIX}{Q}.weight": torch.ones(2)})), ("is there twice", "base_layer"),
    ),
    "a base without a tensor": (META, changed("every rank", lambda s: s.pop(f"{PREFIX}{Q}.base_layer.weight")), (f"{Q}.weight",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, base: tuple[Path, Tensors, Tensors], tmp_path: Path) -> None:
    meta, change, words = REFUSED[name]
    step = saved(tmp_path, base, meta, change)
    with pytest.raises(CkptError) as refusal:
        convert(step, tmp_path / "out", to="hf")
    for word in words:
        assert word in str(refusal.value)
    assert_nothing_at(tmp_path / "out")
