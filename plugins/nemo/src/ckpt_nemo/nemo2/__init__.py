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
        called=("nemo-2", "nemo-2.0"),
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
            "Gemma2Model",
            "Gemma3Model",
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
                "gemma2_windows",
                "of a Gemma 2, whose windows NeMo applies or not: every second layer has one, the first or the second among them, or none has",
                ("first", "second", "none"),
                None,
            ),
            Option(
                "post_norm_eps",
                "write a model whose norms on the outputs of blocks have another epsilon than 1e-5, which is what NeMo computes them with",
                ("1e-5",),
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
    from ckpt_nemo.nemo2.config import GEMMA, GEMMA2, GEMMA3, GPT, MLA

    return [FamilyTables(config.name, config) for config in (GPT, MLA, GEMMA, GEMMA2, GEMMA3)]


@hookimpl
def ckpt_logits():
    from ckpt_nemo.own import judged

    return judged("nemo.collections.llm")


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_nemo.nemo2.launch import launch

    return launch(target, request, resumed)
