"""The real Megatron-Bridge as a judge of folders in format megatron-bridge: what it loads, computes and exports.

    python bridge_judge.py load FOLDERS HF NAME ... --tp 2 [--export OUT]    FOLDERS/NAME by load_megatron_model, as its converter loads it
    python bridge_judge.py train FOLDERS HF NAME ...                         FOLDERS/NAME by load_checkpoint, as a training run loads it
    python bridge_judge.py import OUT HF NAME ...                            Bridge itself makes OUT/NAME of HF/NAME, for us to read
    python bridge_judge.py adapter FOLDERS HF NAME ... --export OUT          the adapter FOLDERS/NAME on HF/NAME, exported by Bridge to PEFT

HF/NAME is the model of transformers, with NAME.ids.safetensors and NAME.logits.safetensors beside it (tiny_models.py). Every result
is one JSON object on a line of standard output: `name`, and `logits` (the largest difference), `provider`, `exported`, or `error`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpu
import torch
from absent import absent
from safetensors.torch import load_file

ON_A_CPU = {  # kernels that need a GPU, and what they need
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "moe_token_dispatcher_type": "allgather",
    "moe_shared_expert_overlap": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
}


def sizes(asked: argparse.Namespace) -> dict[str, int]:
    """The ranks, as fields of a provider."""
    return {
        "tensor_model_parallel_size": asked.tp,
        "pipeline_model_parallel_size": asked.pp,
        "expert_model_parallel_size": asked.ep,
        "expert_tensor_parallel_size": 1,
    }


def iteration(root: Path) -> str:
    """The folder of the last iteration."""
    return str(sorted(root.glob("iter_*"))[-1])


def load(asked: argparse.Namespace, name: str) -> list[Any]:
    """The model as `load_megatron_model` gives it, which is what Bridge's converter calls."""
    from megatron.bridge.training.model_load_save import load_megatron_model

    models = load_megatron_model(
        iteration(Path(asked.folder, name)),
        use_cpu_init=True,
        skip_temp_dist_context=True,
        mp_overrides={**sizes(asked), **ON_A_CPU},
    )
    return models if isinstance(models, list) else [models]


def train(asked: argparse.Namespace, name: str) -> list[Any]:
    """The model as a training run loads it: built by the provider, and filled from `checkpoint.pretrained_checkpoint`."""
    from megatron.bridge.training import checkpointing, config
    from megatron.bridge.training.model_load_save import load_model_config
    from megatron.bridge.training.state import GlobalState

    root = Path(asked.folder, name)
    provider, _ = load_model_config(iteration(root))
    for key, value in {**sizes(asked), **ON_A_CPU}.items():
        setattr(provider, key, value)
    provider.finalize()
    models = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    with torch.no_grad():
        for parameter in (each for model in models for each in model.parameters()):
            parameter.fill_(float("nan"))
    state = GlobalState()
    state._cfg = argparse.Namespace(  # what load_checkpoint looks at of a ConfigContainer
        model=provider,
        checkpoint=config.CheckpointConfig(pretrained_checkpoint=str(root), load=None, ckpt_format="torch_dist"),
        optimizer=argparse.Namespace(use_distributed_optimizer=False),
        rng=config.RNGConfig(),
        ddp=None,
        peft=None,
        dist=config.DistributedInitConfig(),
        logger=config.LoggerConfig(),
        train=None,
    )
    checkpointing.load_checkpoint(state, models, None, None)
    return models


def difference(models: list[Any], hf: Path, asked: argparse.Namespace, rank: int, world: int) -> float | None:
    """The largest difference of the logits from those of transformers, known on the last rank."""
    from megatron.core import parallel_state

    model = models[0].eval()
    tokens = load_file(f"{hf}.ids.safetensors")["input_ids"]
    expected = load_file(f"{hf}.logits.safetensors")["logits"]
    stage = parallel_state.get_pipeline_model_parallel_rank()
    hidden = cpu.unwrapped(model).config.hidden_size
    with torch.no_grad():
        logits = cpu.forward(model, tokens, hidden, asked.pp, stage, world // asked.pp, rank)
    if stage == asked.pp - 1:
        logits = logits[0] if isinstance(logits, tuple) else logits  # Mistral 3 gives its mask of the loss, too
    logits = cpu.gathered(logits, parallel_state.get_tensor_model_parallel_group(), asked.tp).float()
    if rank != world - 1:
        return None
    return (logits[..., : expected.shape[-1]] - expected).abs().max().item()


def exported(models: list[Any], hf: Path, out: Path, rank: int, old: bool) -> dict[str, Any]:
    """How the tensors of an HF folder that Bridge exports compare with those of the source, bit for bit."""
    from megatron.bridge import AutoBridge

    out.mkdir(parents=True, exist_ok=True)
    bridge = AutoBridge.from_hf_pretrained(str(hf), **({"torch_dtype": torch.float32} if old else {}))
    bridge.save_hf_weights(models, str(out), show_progress=False)
    torch.distributed.barrier()
    found, expected = (
        {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
        for folder in (out, hf)
    )
    both = found.keys() & expected.keys()
    return {
        "equal": sum(torch.equal(found[key], expected[key]) for key in both),
        "different": sorted(key for key in both if not torch.equal(found[key], expected[key])),
        "alone": sorted(found.keys() ^ expected.keys()),
    }


def imported(asked: argparse.Namespace, name: str, old: bool) -> None:
    """Let Bridge make its own folder of an HF model."""
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(str(Path(asked.hf, name)), **({"torch_dtype": torch.float32} if old else {}))
    provider = bridge.to_megatron_provider(load_weights=True)
    for key, value in {**sizes(asked), **ON_A_CPU}.items():
        if hasattr(provider, key):
            setattr(provider, key, value)
    provider.pipeline_dtype = torch.float32
    provider.finalize()
    models = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    bridge.save_megatron_model(models, str(Path(asked.folder, name)))


def adapter(asked: argparse.Namespace, name: str) -> None:
    """Load an adapter into Bridge's own model of its base, as `export_adapter_ckpt` does for one class of adapters, and let it save a folder of PEFT."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.training import checkpointing
    from megatron.bridge.training.utils.checkpoint_utils import read_run_config
    from megatron.bridge.utils.instantiate_utils import instantiate
    from megatron.core import dist_checkpointing

    folder = iteration(Path(asked.folder, name))
    lora = instantiate(read_run_config(f"{folder}/run_config.yaml")["peft"])
    bridge = AutoBridge.from_hf_pretrained(str(Path(asked.hf, name)))
    provider = bridge.to_megatron_provider(load_weights=True)
    for key, value in {
        **sizes(asked),
        **ON_A_CPU,
        "pipeline_dtype": torch.float32,
        "params_dtype": torch.float32,
    }.items():
        if hasattr(provider, key):
            setattr(provider, key, value)
    provider.finalize()
    provider.register_pre_wrap_hook(lambda chunks: lora(chunks, training=False))
    models = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    wanted = checkpointing._generate_model_state_dict(models, {})
    held = dist_checkpointing.load(checkpointing.apply_peft_adapter_filter_to_state_dict(wanted, lora), folder)
    key = next(key for key in held if key.startswith("model"))
    unexpected = models[0].load_state_dict(held[key], strict=False).unexpected_keys
    assert not unexpected, unexpected
    out = Path(asked.export, name)
    bridge.save_hf_adapter(models, str(out), peft_config=lora, base_model_name_or_path="base", show_progress=False)


def judged(rank: int, world: int, asked: argparse.Namespace, name: str, old: bool) -> dict[str, Any]:
    """What one model comes to."""
    if asked.task == "import":
        imported(asked, name, old)
        return {"imported": True}
    if asked.task == "adapter":
        adapter(asked, name)
        return {"exported": True}
    models = {"load": load, "train": train}[asked.task](asked, name)
    hf = Path(asked.hf, name)
    result: dict[str, Any] = {
        "provider": type(cpu.unwrapped(models[0]).config).__name__,
        "logits": difference(models, hf, asked, rank, world),
    }
    if asked.export:
        result["exported"] = exported(models, hf, Path(asked.export, name), rank, old)
    return result


def one(rank: int, world: int, asked: argparse.Namespace) -> None:
    """All models in turn, on one rank."""
    import torch._dynamo  # noqa: F401  before a triton of nothing is there

    absent("triton megatron.energon")
    typing.override = getattr(typing, "override", _itself)  # type: ignore[attr-defined]  # Bridge 0.6 asks for Python 3.12
    import megatron.bridge
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random

    old = megatron.bridge.__version__.startswith("0.2")
    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    for name in asked.names:
        for variable in [key for key in os.environ if key.startswith("NVTE_")]:
            del os.environ[variable]  # which the model before has set for its kind of attention
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(asked.tp, asked.pp, expert_model_parallel_size=asked.ep)
        try:
            result = judged(rank, world, asked, name, old)
        except Exception as error:  # the other models are judged all the same
            result = {"error": f"{type(error).__name__}: {str(error)[:1000]}", "trace": traceback.format_exc()[-3000:]}
        if rank == world - 1 or "error" in result:
            print(json.dumps({"name": name, "version": megatron.bridge.__version__, **result}), flush=True)
        if "error" in result and world > 1:
            raise SystemExit(1)  # the other ranks wait for it


def _itself(function: Callable) -> Callable:
    return function


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["load", "train", "import", "adapter"])
    parser.add_argument("folder")
    parser.add_argument("hf")
    parser.add_argument("names", nargs="+")
    for size in ("tp", "pp", "ep"):
        parser.add_argument(f"--{size}", type=int, default=1)
    parser.add_argument("--export", help="a folder for what Bridge exports, compared with the source")
    arguments = parser.parse_args()
    cpu.ranks(one, arguments.tp * arguments.pp * arguments.ep, arguments)
