"""The conformance kit, run on models of images: in transformers' files, and in rank files of NeMo."""

from __future__ import annotations

from pathlib import Path

from ckpt_core.testing import Entry, Quirks, example
from ckpt_tests.conformance import Ranks
from ckpt_tests.damage import StateDicts


class RankFiles(StateDicts):
    """The tensors of rank files in an unpacked archive."""

    def __init__(self) -> None:
        super().__init__(prefix="model.")

    def find(self, folder: str) -> list[Entry]:
        paths = sorted(Path(folder).rglob("*.ckpt"))
        return [Entry(str(path), key, key.removeprefix("model.")) for path in paths for key in self.tensors(path)]


# A head of hidden / heads elements, one linear layer as head; 3 x 4 patches.
IN_TRANSFORMERS = example("vit", hidden=216, classifier__hidden=False)
# Two class tokens; 3 x 3 patches, as NeMo loads square numbers of them alone.
IN_NEMO = example("vit", patches__width=24, patches__class_tokens=2, positions__count=11, layer_scale=True)


class TestTransformers(Ranks):
    format = "hf"
    quirks = Quirks(
        models={"vit": IN_TRANSFORMERS},
        dtypes=("fp32",),
        configs=("config.json",),
        expresses=("mlp.activation=gelu_erf", "mlp.ffn", "eps", "layers"),
        # the class reads it nowhere (modeling_biogpt.py), nor does ModernBERT's
        misnamed={"layer_norm_eps": "BioGPT's norms have the epsilon of nn.LayerNorm, whatever the key says"},
    )


class TestNemo(Ranks):
    format = "nemo"
    quirks = Quirks(
        models={"vit": IN_NEMO},
        tp=(1, 2),
        pp=(1, 3),
        dtypes=("bf16",),
        write_options={"container": "folder"},
        expresses=(
            "mlp.activation=gelu_erf",
            "mlp.ffn",
            "eps",
            "layers",
            "attention.head_dim",
            "classifier.hidden",
            "patches.class_tokens",
        ),
        entries=RankFiles(),
        frameworks=("nemo", "megatron", "apex", "omegaconf", "pytorch_lightning"),
    )
