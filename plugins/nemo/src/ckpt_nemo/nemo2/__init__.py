"""NeMo 2 checkpoints: a folder of weights, and a context that says what they are."""

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
    versions = ("v2.0.0", "v2.1.0", "v2.2.0", "v2.3.0", "v2.4.0")
    return FormatInfo(
        name="nemo2",
        trains=True,
        summary="NeMo 2: context/io.json and model.yaml, weights/ in torch_dist",
        keeps=("megatron",),
        families=(
            "GPTModel",
            "LlamaModel",
            "MistralModel",
            "MixtralModel",
            "Qwen2Model",
            "Qwen3Model",
            "GemmaModel",
            "NemotronModel",
            "Starcoder2Model",
            "DeepSeekModel",
        ),
        options=(
            Option(
                "nemo_version", "the NeMo that wrote the checkpoint, where defaults differ", versions, None, side="read"
            ),
            Option("believe", "which file counts where the two disagree", ("io.json", "model.yaml"), None, side="read"),
            Option("vocab", "the true vocabulary, where no tokenizer says it", int, None, side="read"),
            reading.IGNORE_KEYS,
            reading.PREDICTORS,
            reading.LATENT_NORM_EPS,
            Option(
                "names", "names of TransformerEngine's modules, or of local ones", ("te", "local"), None, side="write"
            ),
            Option(
                "make_vocab_size_divisible_by",
                "pad the vocabulary to a multiple of this, times tp",
                int,
                None,
                side="write",
            ),
        ),
        parallel=("tp", "pp", "ep"),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_nemo.nemo2.files import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_nemo.nemo2.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_nemo.nemo2.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_nemo.nemo2.config import GEMMA, GPT, MLA

    return [FamilyTables(config.name, config) for config in (GPT, MLA, GEMMA)]


@hookimpl
def ckpt_logits():
    from ckpt_nemo.own import judged

    return judged("nemo.collections.llm")


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_nemo.nemo2.launch import launch

    return launch(target, request, resumed)
