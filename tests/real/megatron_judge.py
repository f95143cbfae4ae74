"""The real Megatron-Core as a judge: it loads a checkpoint folder in any TP/PP/EP topology and computes logits.

    python megatron_judge.py ROOT IDS OUT --tp 2 --pp 2

IDS holds `input_ids`, OUT gets the `logits`. A key or shape that the model does not have, or misses, is an error, in
torch files as in torch_dist (at the strictness that is Megatron's default). CPU, gloo, local layer spec:
TransformerEngine needs a GPU. Patched are only calls of CUDA: the current device, moves to it, and its random states.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file

PLAIN = {
    "use_cpu_initialization": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "masked_softmax_fusion": False,
    "moe_token_dispatcher_type": "allgather",
}
SAME = (
    "num_layers hidden_size num_attention_heads ffn_hidden_size kv_channels normalization layernorm_epsilon "
    "layernorm_zero_centered_gamma add_bias_linear add_qkv_bias qk_layernorm moe_router_topk moe_ffn_hidden_size "
    "moe_router_pre_softmax rotary_interleaved window_size"
).split()


def model_of(args: argparse.Namespace, asked: argparse.Namespace, stage: int):
    """GPTModel as Megatron's own `core_transformer_config_from_args` and `model_provider` would build it."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        **PLAIN,
        **{name: getattr(args, name) for name in SAME},
        num_query_groups=args.num_query_groups if args.group_query_attention else args.num_attention_heads,
        gated_linear_unit=args.swiglu,
        activation_func=functional.silu if args.swiglu else functional.gelu,
        bias_activation_fusion=args.bias_gelu_fusion,
        num_moe_experts=args.num_experts,
        moe_grouped_gemm=args.moe_grouped_gemm,
        tensor_model_parallel_size=asked.tp,
        pipeline_model_parallel_size=asked.pp,
        expert_model_parallel_size=asked.ep,
        sequence_parallel=False,
        pipeline_dtype=torch.float32,
    )
    spec = get_gpt_layer_local_spec(
        num_experts=args.num_experts, qk_layernorm=args.qk_layernorm, normalization=args.normalization
    )
    return GPTModel(
        config,
        spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        pre_process=stage == 0,
        post_process=stage == asked.pp - 1,
        parallel_output=False,
    ).eval()


def loaded(folder: Path, asked: argparse.Namespace, tp: int, pp: int, ep: int):
    """The model of one rank, at (tp, pp, ep) in the topology, with the weights in `folder`."""
    from megatron.core import dist_checkpointing

    if (folder / ".metadata").exists():
        args = dist_checkpointing.load_common_state_dict(str(folder))["args"]
        model = model_of(args, asked, pp)
        strict = dist_checkpointing.validation.StrictHandling.ASSUME_OK_UNEXPECTED
        state = dist_checkpointing.load(model.sharded_state_dict(), str(folder), strict=strict)
        known = model.state_dict()
        state = {name: value for name, value in state.items() if name in known}
    else:
        stage, experts = f"_{pp:03d}" if asked.pp > 1 else "", f"_{ep:03d}" if asked.ep > 1 else ""
        content = torch.load(folder / f"mp_rank_{tp:02d}{stage}{experts}" / "model_optim_rng.pt", weights_only=True)
        model = model_of(content["args"], asked, pp)
        state = content["model"]
    model.load_state_dict(state, strict=True)
    return model


def forward(model, tokens: torch.Tensor, asked: argparse.Namespace, rank: int) -> torch.Tensor:
    """What the last stage computes; the others send their hidden states [sequence, batch, hidden] on to it."""
    batch, length = tokens.shape
    ranks = asked.tp * asked.ep  # of one stage
    if rank >= ranks:
        hidden = torch.empty(length, batch, model.config.hidden_size)
        torch.distributed.recv(hidden, rank - ranks)
        model.set_input_tensor(hidden)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    output = model(tokens, torch.arange(length)[None].expand_as(tokens), mask)
    if rank + ranks < ranks * asked.pp:
        torch.distributed.send(output.contiguous(), rank + ranks)
    return output


def judge(rank: int, asked: argparse.Namespace) -> None:
    """One rank."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=asked.tp * asked.pp * asked.ep)
    torch.cuda.current_device = lambda: "cpu"
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.serialization.add_safe_globals([argparse.Namespace])
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    moe_utils.te_general_gemm = None  # 0.16.1 asks for the name even without TransformerEngine
    parallel_state.initialize_model_parallel(asked.tp, asked.pp, expert_model_parallel_size=asked.ep)
    place = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
    )
    tracker = Path(asked.root, "latest_checkpointed_iteration.txt").read_text()
    folder = Path(asked.root, "release" if tracker == "release" else f"iter_{int(tracker):07d}")
    model = loaded(folder, asked, *place)
    with torch.no_grad():
        logits = forward(model, load_file(asked.ids)["input_ids"], asked, rank)
    if place == (0, asked.pp - 1, 0):
        save_file({"logits": logits.float().contiguous()}, asked.out)
    torch.distributed.barrier()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("root", "ids", "out"):
        parser.add_argument(name)
    for name in ("tp", "pp", "ep"):
        parser.add_argument(f"--{name}", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    world = arguments.tp * arguments.pp * arguments.ep
    torch.multiprocessing.spawn(judge, (arguments,), nprocs=world)
