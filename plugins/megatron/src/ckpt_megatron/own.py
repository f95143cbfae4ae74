"""Megatron-Core itself, where it is installed, on a checkpoint of Megatron: its own loader, its own model, on a CPU.

It runs in a process of its own for every rank (`ckpt_core.plugins.judging`). Torch files are loaded by as many ranks as
wrote them, `torch_dist` by one. Megatron asks for a GPU where it needs none, so a few calls of CUDA are made harmless;
nothing of its model, its sharding or its loading is replaced. Written for megatron-core 0.16.1 (PyPI).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_core.sdk import Checkpoint, judgement
from ckpt_megatron.files import find_folder

PACKAGE = "megatron.core"
# What DCP's `.metadata` is made of, and what its one rank sends to itself while it plans.
CLASSES = frozenset(
    {("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )}
    | {("torch.distributed.checkpoint.planner", name) for name in ("LoadItemType", "LoadPlan", "ReadItem")}
    | {("megatron.core.dist_checkpointing.mapping", name) for name in ("ShardedObject", "ShardedTensor")}
    | {("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
    | {("torch", name) for name in ("Size", "device", "float32", "float16", "bfloat16", "uint8", "int64")}
    | {("collections", "OrderedDict"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}  # the last: Python 3.13
)  # fmt: skip

# Whatever trains, draws or overlaps is off, and so are kernels that need a GPU; none of it changes the function.
PLAIN = {
    "use_cpu_initialization": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "apply_rope_fusion": False,
    "bias_dropout_fusion": False,
    "persist_layer_norm": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
    "moe_token_dispatcher_type": "allgather",
    "moe_permute_fusion": False,
    "sequence_parallel": False,
    "tp_comm_overlap": False,
    "recompute_granularity": None,
    "fp16": False,
    "bf16": False,
}


def judged(checkpoint: Checkpoint, inputs: Mapping[str, np.ndarray]) -> judgement.Judgement | None:
    """The hook `ckpt_logits`."""
    whole = checkpoint.provenance.hints.get("container") != "torch"
    ranks = {} if whole else {name: checkpoint.parallel.get(name, 1) for name in ("tp", "pp", "ep")}
    return judgement.judged_apart("ckpt_megatron.own", PACKAGE, checkpoint, inputs, ranks)


def framework() -> str:
    return judgement.named("megatron-core")


def logits(case: judgement.Case) -> np.ndarray | None:
    """Logits [batch, position, vocabulary] on the first rank of the last stage."""
    import torch

    sizes = {name: case.ranks.get(name, 1) for name in ("tp", "pp", "ep")}
    tokens = torch.from_numpy(case.tokens())
    case.joined()
    on_cpu()
    place = start(sizes)
    model = loaded(find_folder(case.path), sizes, place)
    with torch.no_grad():
        output = forward(model, tokens, sizes, case.rank)
    if (place["tp"], place["pp"], place["ep"]) == (0, sizes["pp"] - 1, 0):
        return output.float().numpy()
    return None


def on_cpu() -> None:
    """Make the calls of CUDA harmless that Megatron makes without asking for a GPU."""
    import torch

    torch.set_num_threads(1)
    harmless = {(torch.cuda, "current_device"): lambda: "cpu", (torch.Tensor, "cuda"): lambda self, *_, **__: self}
    for (owner, name), function in harmless.items():
        setattr(owner, name, function)
    from megatron.core import enums
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import enums as transformer_enums
    from megatron.core.transformer.moe import moe_utils

    said_by_args = (enums.ModelType, transformer_enums.AttnBackend, transformer_enums.AttnMaskType)
    torch.serialization.add_safe_globals([argparse.Namespace, *said_by_args])

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # 0.16.1 asks for the name even without TransformerEngine


def start(sizes: Mapping[str, int]) -> dict[str, int]:
    """Megatron's process groups, and the place of this rank in them."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(sizes["tp"], sizes["pp"], expert_model_parallel_size=sizes["ep"])
    return {
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
        "ep": parallel_state.get_expert_model_parallel_rank(),
    }


def loaded(folder: str, sizes: Mapping[str, int], place: Mapping[str, int]):
    """The model of one rank with its weights: torch files strictly, `torch_dist` at the strictness that is Megatron's default."""
    import torch
    from megatron.core import dist_checkpointing

    if os.path.isfile(os.path.join(folder, ".metadata")):
        with judgement.loading():
            args = dist_checkpointing.load_common_state_dict(folder)["args"]
        model = model_of(args, sizes, place["pp"], whole=True)
        strict = dist_checkpointing.validation.StrictHandling.ASSUME_OK_UNEXPECTED
        with judgement.loading():
            state = dist_checkpointing.load(model.sharded_state_dict(), folder, strict=strict)
            known = model.state_dict()
            model.load_state_dict({name: value for name, value in state.items() if name in known}, strict=True)
        return model
    stage = f"_{place['pp']:03d}" if sizes["pp"] > 1 else ""
    experts = f"_{place['ep']:03d}" if sizes["ep"] > 1 else ""
    with judgement.loading():
        file = os.path.join(folder, f"mp_rank_{place['tp']:02d}{stage}{experts}", "model_optim_rng.pt")
        content = torch.load(file, map_location="cpu", weights_only=True)
    model = model_of(content["args"], sizes, place["pp"], whole=False)
    with judgement.loading():
        model.load_state_dict(content["model"], strict=True)
    return model


def model_of(args: argparse.Namespace, sizes: Mapping[str, int], stage: int, whole: bool):
    """GPTModel as Megatron's own `model_provider` would build it from the args in a checkpoint."""
    fields = {**vars(args), **fields_of(args)}
    if fields.get("multi_latent_attention"):
        raise judgement.CannotRun(
            "its local attention has no head sizes of latent attention, and TransformerEngine needs a GPU"
        )
    fused = fields.get("transformer_impl") != "local"
    # Dense local layers map their names to those of TransformerEngine in torch_dist (`sharded_state_dict_keys_map`).
    if fused and (not whole or args.num_experts) and not judgement.installed("transformer_engine"):
        raise judgement.CannotRun("the files have the names of TransformerEngine's modules, which is not installed")
    return gpt_model(
        fields,
        sizes,
        stage,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        rope_scaling=args.use_rope_scaling,
        **{name: getattr(args, name) for name in SAME},
    )


SAME = ("position_embedding_type", "rotary_percent", "rotary_base", "rope_scaling_factor")


def fields_of(args: argparse.Namespace) -> dict[str, object]:
    """What Megatron-LM's `core_transformer_config_from_args` calls otherwise than the args."""
    import torch.nn.functional as functional
    from megatron.core.activations import quick_gelu, squared_relu

    gated = {"swiglu": functional.silu, "quick_geglu": quick_gelu}
    plain = {"squared_relu": squared_relu}
    activation = next((of for name, of in {**gated, **plain}.items() if getattr(args, name, False)), functional.gelu)
    return {
        "activation_func": activation,
        "gated_linear_unit": any(getattr(args, name, False) for name in gated),
        # Where it is set, the fused function is another: GELU by tanh instead of by erf.
        "bias_activation_fusion": args.bias_gelu_fusion if activation is functional.gelu else False,
        "num_query_groups": args.num_query_groups if args.group_query_attention else None,
        "num_moe_experts": args.num_experts,
        "num_layers_in_first_pipeline_stage": getattr(args, "decoder_first_pipeline_num_layers", None),
        "num_layers_in_last_pipeline_stage": getattr(args, "decoder_last_pipeline_num_layers", None),
    }


def gpt_model(fields: Mapping[str, Any], sizes: Mapping[str, int], stage: int, **model: Any):
    """GPTModel of one stage, from fields by the names of TransformerConfig."""
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer import TransformerConfig

    known = {field.name for field in dataclasses.fields(TransformerConfig) if field.init}
    te = fields.get("transformer_impl") != "local" and judgement.installed("transformer_engine")
    config = TransformerConfig(
        **{name: value for name, value in fields.items() if name in known and value is not None}
        | {name: value for name, value in PLAIN.items() if name in known}
        | {
            "moe_grouped_gemm": te
            and bool(fields.get("moe_grouped_gemm")),  # one by one they have the same names in DCP
            "tensor_model_parallel_size": sizes["tp"],
            "pipeline_model_parallel_size": sizes["pp"],
            "expert_model_parallel_size": sizes["ep"],
            "expert_tensor_parallel_size": None if sizes["ep"] == 1 else sizes["tp"],
            "context_parallel_size": 1,
            "virtual_pipeline_model_parallel_size": None,
            "params_dtype": torch.float32,
            "pipeline_dtype": torch.float32,
        }
    )
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=te, normalization=config.normalization)
    made = GPTModel(
        config, spec, pre_process=stage == 0, post_process=stage == sizes["pp"] - 1, parallel_output=False, **model
    )
    return made.eval()


def forward(model, tokens, sizes: Mapping[str, int], rank: int):
    """What the last stage computes; the others send their hidden states [position, batch, hidden] on to it."""
    import torch

    batch, length = tokens.shape
    ranks = sizes["tp"] * sizes["ep"]  # of one stage
    if rank >= ranks:
        hidden = torch.empty(length, batch, model.config.hidden_size)
        torch.distributed.recv(hidden, rank - ranks)
        model.set_input_tensor(hidden)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    output = model(tokens, torch.arange(length)[None].expand_as(tokens), mask)
    if rank + ranks < ranks * sizes["pp"]:
        torch.distributed.send(output.contiguous(), rank + ranks)
    return output
