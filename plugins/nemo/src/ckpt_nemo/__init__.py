"""NeMo 1 checkpoints: `.nemo` archives and Lightning's `.ckpt` files, any parallel layout written."""

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
        name="nemo",
        called=("nemo1", "nemo-1", "nemo-megatron"),
        ending=".nemo",
        trains=True,
        summary="NeMo 1: .nemo archives (tar, tar.gz or unpacked) and .ckpt files of Lightning, per rank or distributed",
        families=(
            "MegatronGPTModel",
            "MegatronGPTModel with mcore_gpt",
            "MegatronT5Model",
            "MegatronVitClassificationModel",
        ),
        options=(
            Option(
                "container",
                "an archive, the same as a folder, or a .ckpt without optimizer",
                ("nemo", "folder", "ckpt"),
                None,
                side="write",
            ),
            Option(
                "names",
                "tensor names: of Megatron-Core (mcore), or of the code before it",
                ("mcore", "legacy"),
                None,
                side="write",
            ),
            Option(
                "backend",
                "weights by rank, or distributed for any number of ranks",
                ("ranks", "zarr", "torch_dist"),
                None,
                side="write",
            ),
            Option(
                "layout",
                "q, k, v of a T5 head by head (native), or in blocks as NVIDIA's script has them",
                ("native", "script"),
                None,
                side="write",
            ),
            Option(
                "patch_layer",
                "how a ViT cuts images: a linear layer (NeMo 1.23), or a convolution without bias (NeMo 2)",
                ("linear_encoder", "conv1"),
                None,
                side="write",
            ),
            Option(
                "image_size",
                "write a ViT for images of another size (224, 224x192), its positions interpolated",
                str,
                None,
                side="write",
            ),
            Option("split", "the first pipeline stage of a T5's decoder", int, None, side="write"),
            Option("vpp", "virtual pipeline stages per pipeline rank", int, None, side="write"),
            Option(
                "make_vocab_size_divisible_by",
                "pad the vocabulary to a multiple of this, times tp",
                int,
                None,
                side="write",
            ),
            Option(
                "tokenizer_name",
                "a Hugging Face tokenizer for the config to name: repository or folder",
                str,
                None,
                side="write",
            ),
            Option(
                "hparams",
                "a hparams.yaml or model_config.yaml, where the checkpoint holds no config",
                str,
                None,
                side="read",
            ),
            Option(
                "tokenizer",
                "the tokenizer's file, where the config names one of another machine",
                str,
                None,
                side="read",
            ),
            Option("vocab", "the true vocabulary, where no tokenizer says it", int, None, side="read"),
            Option(
                "nemo_version",
                "the NeMo that trained the model, where the config does not say it",
                str,
                None,
                side="read",
            ),
            Option("megatron_legacy", "the order of q, k and v, where no config says it", bool, None, side="read"),
            reading.IGNORE_KEYS,
        ),
        parallel=("tp", "pp", "ep"),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_nemo.container.detection import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_nemo.container.opening import open_saved
    from ckpt_nemo.kinds import kind_of

    saved = open_saved(path, request.options.get("hparams"))
    return kind_of(saved).code.read(saved, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_nemo.kinds import kind_for

    return kind_for(checkpoint, request.options).code.write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_nemo.gpt import weights as gpt
    from ckpt_nemo.gpt.config import LEGACY, MCORE
    from ckpt_nemo.t5 import weights as t5
    from ckpt_nemo.t5.config import T5
    from ckpt_nemo.vit import weights as vit
    from ckpt_nemo.vit.config import VIT

    families = ((MCORE, gpt.TABLES), (LEGACY, gpt.TABLES), (T5, t5.TABLES), (VIT, vit.TABLES))
    return [FamilyTables(config.name, config, tables) for config, tables in families]


@hookimpl
def ckpt_logits():
    from ckpt_nemo.own import judged

    return judged("nemo.collections.nlp")


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_nemo.launch import launch

    return launch(target, request, resumed)
