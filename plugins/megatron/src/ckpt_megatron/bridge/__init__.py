"""Megatron-Bridge checkpoints: torch_dist folders with a `run_config.yaml` that says what the model is."""

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
        name="megatron-bridge",
        called=("bridge", "mbridge", "nemo-bridge", "nemo-rl"),
        summary="Megatron-Bridge: iter_* folders of torch_dist with run_config.yaml",
        families=(
            "GPTModelProvider",
            "Llama31ModelProvider",
            "GemmaModelProvider",
            "MLAModelProvider",
            "Qwen3VLModelProvider",
            "Qwen3VLMoEModelProvider",
            "Qwen35VLModelProvider",
            "Qwen35VLMoEModelProvider",
            "Qwen25VLModelProvider",
            "Gemma3VLModelProvider",
            "Exaone45ModelProvider",
            "Ministral3ModelProvider",
            "GLM45VModelProvider",
            "Gemma2ModelProvider",
            "Gemma3ModelProvider",
            "LLaDA15ModelProvider",
            "LlamaNemotronHeterogeneousProvider",
        ),
        options=(
            reading.IGNORE_KEYS,
            reading.PREDICTORS,
            reading.LATENT_NORM_EPS,
            Option(
                "bridge_version",
                "the Bridge to write for, where classes differ: 0.2 (to 0.3.0), 0.4 (from 0.3.1) or 0.6, the default",
                ("0.2", "0.4", "0.6"),
                None,
                side="write",
            ),
            Option(
                "container",
                "how the tensors are kept: fsdp_dtensor is Megatron-FSDP's",
                ("torch_dist", "fsdp_dtensor"),
                None,
                side="write",
            ),
            Option(
                "names", "names of TransformerEngine's modules, or of local ones", ("te", "local"), None, side="write"
            ),
            Option(
                "should_pad_vocab",
                "pad the vocabulary to a multiple of make_vocab_size_divisible_by times tp",
                bool,
                None,
                side="write",
            ),
            Option("make_vocab_size_divisible_by", "see should_pad_vocab", int, None, side="write"),
            Option(
                "post_norm_eps",
                "write a model whose norms on the outputs of blocks have another epsilon than 1e-5, which is what Bridge computes them with",
                ("1e-5",),
                None,
                side="write",
            ),
            Option("iteration", "write iter_NNNNNNN for this iteration", int, None, side="write"),
            *OPTIONS_OF_STATE,
        ),
        parallel=("tp", "pp", "ep"),
        trains=True,
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_megatron.bridge.files import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_megatron.bridge.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_megatron.bridge.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_megatron.bridge.classes import EXAONE4, GEMMA2, GEMMA3, LLADA, UNEVEN, WHOLE
    from ckpt_megatron.bridge.config import GEMMA, GPT, MLA, SEEING

    tables = (GPT, MLA, GEMMA, GEMMA2, GEMMA3, EXAONE4, WHOLE, LLADA, UNEVEN)
    seeing = [FamilyTables(one.config.name, one.config, one.tables) for one in SEEING.values()]
    return [*(FamilyTables(config.name, config) for config in tables), *seeing]


@hookimpl
def ckpt_logits():
    from ckpt_megatron.bridge.own import judged

    return judged()


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_megatron.bridge.launch import launch

    return launch(target, request, resumed)
