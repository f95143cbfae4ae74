"""Megatron-LM and Megatron-Core checkpoints: every version read, any parallel layout written."""

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
from ckpt_megatron.options import OPTIONS_OF_STATE


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="megatron",
        called=("megatron-lm", "megatron-core", "mcore", "torch-dist"),
        before=("fsdp",),
        summary="Megatron-LM and Megatron-Core: iter_* or release folders of mp_rank files (torch) or DCP (torch_dist, fsdp_dtensor)",
        families=("GPTModel", "GPTModel with latent attention (MLA)", "GPTModel with experts (MoE)"),
        options=(
            Option(
                "container",
                "how the tensors are kept: fsdp_dtensor is Megatron-FSDP's",
                ("torch_dist", "torch", "fsdp_dtensor"),
                None,
                side="write",
            ),
            Option(
                "names",
                "tensor names: of TransformerEngine modules, of local ones, or of the models before Core",
                ("te", "local", "legacy"),
                None,
                side="write",
            ),
            Option(
                "experts",
                "expert modules in torch files and fsdp_dtensor: one by one, or grouped",
                ("sequential", "grouped"),
                None,
                side="write",
            ),
            Option("vpp", "virtual pipeline stages per pipeline rank", int, None, side="write"),
            Option(
                "decoder_first_pipeline_num_layers",
                "layers of the first pipeline stage, where it differs",
                int,
                None,
                side="write",
            ),
            Option(
                "decoder_last_pipeline_num_layers",
                "layers of the last pipeline stage, where it differs",
                int,
                None,
                side="write",
            ),
            Option(
                "make_vocab_size_divisible_by",
                "pad the vocabulary to a multiple of this, times tp",
                int,
                None,
                side="write",
            ),
            Option(
                "iteration",
                "write iter_NNNNNNN for this iteration; without it, a release folder",
                int,
                None,
                side="write",
            ),
            Option(
                "optimizer",
                "which optimizer the state of a training is for: Megatron's distributed one (--use-distributed-optimizer), or the plain one",
                ("distributed", "plain"),
                None,
                side="write",
            ),
            *OPTIONS_OF_STATE,
            Option(
                "megatron_version",
                "the Megatron-LM that is to be started with it, by the version of its core",
                ("0.13", "0.14", "0.15", "0.16", "0.17", "0.18", "0.19"),
                None,
                side="write",
            ),
            Option("vocab", "the true vocabulary, where the args do not say it", int, None, side="read"),
            reading.PREDICTORS,
            reading.LATENT_NORM_EPS,
        ),
        parallel=("tp", "pp", "ep"),
        trains=True,
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_megatron.files import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_megatron.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_megatron.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_megatron.config import GPT, MLA
    from ckpt_megatron.weights import TABLES

    return [FamilyTables(config.name, config, TABLES) for config in (GPT, MLA)]


@hookimpl
def ckpt_logits(checkpoint: Checkpoint, inputs):
    from ckpt_megatron.own import judged

    return judged(checkpoint, inputs)


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_megatron.launch import launch

    return launch(target, request, resumed)
