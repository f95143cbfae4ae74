"""NxD Training itself, where it is installed: its model classes, and `nxd.load_checkpoint`, on a CPU.

It runs in a process of its own for every rank (`ckpt_core.plugins.judging`). What a job of HF style must be told is taken from
`config.json` and `nxdt.yaml` beside the weights, so that these are judged too. Written for neuronx-distributed fbac349 and
neuronx-distributed-training 9169aa0; both import XLA and Neuron, so elsewhere than on a machine of AWS's they say only why
not. A running pipeline needs XLA, so the stages are loaded one after the other into the whole model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_core.sdk import Checkpoint, documents, judgement, schema
from ckpt_nxdt.job import FRAGMENT
from ckpt_nxdt.places import find_folder, root_of

PACKAGE = "neuronx_distributed_training"
_FORK = "fork"
CLASSES: frozenset[tuple[str, str]] = frozenset()


@schema.dataclass(frozen=True, slots=True)
class Job:
    """What the job is told: where `config.json` is, how it arranges query, key and value, and its pipeline."""

    root: str
    fused: bool
    linear: bool
    copies: int
    pp: int
    vpp: int

    @classmethod
    def beside(cls, root: str) -> Job:
        """As `nxdt.yaml` says it."""
        if not os.path.isfile(file := os.path.join(root, FRAGMENT)):
            raise judgement.CannotRun(
                f"no {FRAGMENT} beside the weights says how the job arranges query, key and value"
            )
        said = documents.read_yaml_object(file)
        if said["model_source"] != "hf":
            raise judgement.CannotRun(
                "its models of the megatron style import NeMo and Apex, and give no logits but a loss"
            )
        if said["model"].get("pipeline_cuts"):
            raise judgement.CannotRun("pipeline_cuts are followed by a running pipeline alone, which needs XLA")
        strategy = said["distributed_strategy"]
        return cls(
            root,
            fused=said["model"]["fuse_qkv"],
            linear=said["model"]["qkv_linear"],
            copies=strategy.get("kv_replicator", 1),
            pp=strategy["pipeline_model_parallel_size"],
            vpp=strategy["virtual_pipeline_model_parallel_size"],
        )


def judged(checkpoint: Checkpoint, inputs: Mapping[str, np.ndarray]) -> judgement.Judgement | None:
    """The hook `ckpt_logits`."""
    ranks = {name: checkpoint.parallel.get(name, 1) for name in ("tp", "ep")}
    return judgement.judged_apart("ckpt_nxdt.own", PACKAGE, checkpoint, inputs, ranks)


def framework() -> str:
    return judgement.named("neuronx-distributed-training")


def logits(case: judgement.Case) -> np.ndarray | None:
    """Logits [batch, position, vocabulary] on the first rank."""
    import torch

    root = root_of(find_folder(case.path)[0])
    job = Job.beside(root)
    tokens = torch.from_numpy(case.tokens())
    os.environ["NXD_CPU_MODE"] = "1"
    case.joined()
    start(case.ranks["tp"], case.ranks["ep"])
    computed = computed_by(job, tokens)
    return computed.numpy() if case.rank == 0 else None


def start(tp: int, ep: int) -> None:
    """The framework's process groups; its random states, which are a device's, are left alone."""
    import torch
    from neuronx_distributed.parallel_layers import parallel_state, random
    from torch_xla.utils.serialization import TensorReference

    torch.serialization.add_safe_globals([TensorReference])  # in xser, a number that stands for a tensor

    for kind in vars(random).values():
        if isinstance(kind, type) and hasattr(kind, _FORK):
            setattr(kind, _FORK, lambda self, name=None: contextlib.nullcontext())
    parallel_state.initialize_model_parallel(tp, expert_model_parallel_size=ep)


def computed_by(job: Job, tokens: Any) -> Any:
    """Float32 logits [batch, position, vocabulary], on every rank."""
    import torch
    from neuronx_distributed.parallel_layers import parallel_state

    model = model_of(job)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # what is not loaded shows
        load(model, job)
        output = model(input_ids=tokens, use_cache=False, return_dict=True).logits
        output = (output if output.shape[:2] == tokens.shape else output.transpose(0, 1)).float().contiguous()
        parts = [torch.empty_like(output) for _ in range(parallel_state.get_tensor_model_parallel_size())]
        torch.distributed.all_gather(parts, output, group=parallel_state.get_tensor_model_parallel_group())
        return torch.cat(parts, -1)


def model_of(job: Job) -> Any:
    """The model as the job builds it: what its `hf_models` modules add to the config of transformers."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(job.root)
    if config.model_type == "mixtral":
        from neuronx_distributed_training.models.hf_models.modeling_mixtral import MixtralForCausalLM as Kind

        config.moe_frequency, config.normalize_top_k_affinities, config.selective_checkpoint_enabled = 1, True, False
        config.capacity_factor = config.num_local_experts / config.num_experts_per_tok  # no token is dropped
        config.output_router_logits, config.pretraining_tp = False, 1
    elif config.model_type == "llama":
        from neuronx_distributed_training.models.hf_models.modeling_llama import LlamaForCausalLM as Kind
    else:
        raise judgement.CannotRun(f"it is asked for Llama and Mixtral alone, not for {config.model_type}")
    config.use_flash_attention = config.use_ring_attention = config.sequence_parallel_enabled = False
    config.lnc, config.reduce_dtype, config.use_cache, config.transpose_nki_inputs = 1, torch.float32, False, False
    config.fuse_qkv, config.qkv_linear, config.kv_shared_group_size = job.fused, job.linear, job.copies
    config.head_dim = config.hidden_size // config.num_attention_heads
    config.torch_dtype, config.fused_mlp = torch.float32, False
    return Kind(config).float().eval()


def load(model: Any, job: Job) -> None:
    """Every stage by `nxd.load_checkpoint`; each must hold what the framework's own partition gives it, and no more.

    The job loads loosely too, and refuses what is missing.
    """
    import neuronx_distributed as nxd
    from neuronx_distributed.pipeline.partition import create_partitions, stage_to_pipeline_parallel_rank
    from neuronx_distributed.trainer import checkpoint as loader

    wanted = {name for name in model.state_dict() if not name.endswith("rotary_emb.inv_freq")}
    layers = [f"model.layers.{number}" for number in range(model.config.num_hidden_layers)]
    stages = job.pp * job.vpp
    cuts = [layers.index(cut) for cut in create_partitions(stages, layers)]

    def rank_of(name: str) -> int:
        layer = ".".join(name.split(".")[:3])
        stage = 0 if name.startswith("model.embed_tokens") else stages - 1
        if layer in layers:
            stage = sum(cut < layers.index(layer) for cut in cuts)
        return stage_to_pipeline_parallel_rank(stage, job.pp)

    own_load = model.load_state_dict
    for rank in range(job.pp):
        found: set[str] = set()

        def keep(state, strict=True, found=found):
            found.update(state)
            return own_load(state, strict=False)

        # the loader asks for its own stage by this name, and for nothing else of the pipeline
        loader.get_pipeline_model_parallel_rank = lambda rank=rank: rank
        model.load_state_dict = keep
        root, tag = os.path.split(os.path.abspath(job.root))
        with judgement.loading():
            nxd.load_checkpoint(root, tag=tag, model=model, strict=False)
        expected = {name for name in wanted if rank_of(name) == rank}
        if found != expected:
            missing, unknown = sorted(expected - found), sorted(found - expected)
            raise judgement.FilesRefused(
                f"stage {rank}: missing {', '.join(missing)}; not of this stage {', '.join(unknown)}"
            )
