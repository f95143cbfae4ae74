"""AWS Neuron checkpoints (NxD, NxD Training): what jobs and AWS's converter write, any parallel layout written."""

from __future__ import annotations

from ckpt_core.sdk import (
    Checkpoint,
    Description,
    FamilyTables,
    FormatInfo,
    Option,
    ReadRequest,
    Target,
    WriteRequest,
    hookimpl,
    launches,
    reading,
)


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="nxdt",
        called=("neuron", "neuronx", "nxd", "neuronx-distributed", "trainium", "trn1", "trn2", "aws"),
        trains=True,
        summary="AWS NeuronX Distributed Training: dp_rank_00_tp_rank_*_pp_rank_*.pt files, plain or xser",
        families=("Llama (model_source hf)", "Mixtral (model_source hf)", "Llama and Mixtral (model_source megatron)"),
        options=(
            reading.IGNORE_KEYS,
            Option("model_style", "the job's model_source", ("hf", "megatron")),
            Option("hw_backend", "order of heads where kv_size_multiplier is above 1: trn1 or trn2", ("trn1", "trn2")),
            Option("kv_size_multiplier", "copies of every key-value head (the job's kv_replicator)", int),
            Option(
                "qkv",
                "attention inputs of the hf style: q_proj, k_proj, v_proj; weight_q, _k, _v; weight_qkv; or qkv_proj",
                ("split", "linear", "fused", "coalesced"),
            ),
            Option(
                "layout",
                "order of elements: as NxDT computes (native), or as AWS's converter writes",
                ("native", "aws-converter"),
            ),
            Option(
                "kv_replicas",
                "what to do with copies of a key-value head that differ: refuse, or keep each as a head of its own",
                ("equal", "separate"),
                "equal",
                side="read",
            ),
            Option("vocab", "the true vocabulary, where rows of the embedding are padding", int, side="read"),
            Option("xser", "one file per tensor, as training jobs save", bool, side="write"),
            Option(
                "dp",
                "data parallel ranks of the job, over which zero-1 cuts an optimizer; 1 unless it is given",
                int,
                side="write",
            ),
            Option(
                "undecayed",
                "what the optimizer does not decay: biases (the job's default), or norms too",
                ("biases", "norms"),
                "biases",
                side="write",
            ),
            Option("virtual_pp", "virtual pipeline stages per pipeline rank", int, side="write"),
            Option(
                "pipeline_cuts",
                "the last layer of every stage but the last, separated by commas (the job's pipeline_cuts)",
                str,
                side="write",
            ),
            Option(
                "make_vocab_size_divisible_by",
                "pad the vocabulary to a multiple of this, times tp",
                int,
                side="write",
            ),
        ),
        parallel=("tp", "pp", "ep"),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_nxdt.places import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_nxdt.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_nxdt.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_nxdt.config import LLAMA, MIXTRAL
    from ckpt_nxdt.weights import TABLES

    return [FamilyTables(config.name, config, TABLES) for config in (LLAMA, MIXTRAL)]


@hookimpl
def ckpt_logits(checkpoint: Checkpoint, inputs):
    from ckpt_nxdt.own import judged

    return judged(checkpoint, inputs)


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_nxdt.launch import launch

    return launch(target, request, resumed)
