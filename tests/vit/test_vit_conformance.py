"""The conformance kit, run on models of images: in transformers' files, and in rank files of NeMo."""

from __future__ import annotations

from pathlib import Path

import torch

from ckpt_core.testing import Entry, FormatConformance, Quirks, example


class RankFiles:
    """The tensors of rank files in an unpacked archive."""

    def find(self, folder: str) -> list[Entry]:
        paths = sorted(Path(folder).rglob("*.ckpt"))
        return [Entry(str(path), key, key.removeprefix("model.")) for path in paths for key in torch.load(path)]

    def _change(self, entry: Entry, key: str, tensor: torch.Tensor | None) -> None:
        content = torch.load(entry.file)
        content.pop(key, None)
        if tensor is not None:
            content[key] = tensor
        torch.save(content, entry.file)

    def remove(self, entry: Entry) -> None:
        self._change(entry, entry.key, None)

    def add(self, entry: Entry) -> str:
        self._change(entry, "model.surprise.weight", torch.zeros(3))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = torch.load(entry.file)[entry.key]
        self._change(entry, entry.key, torch.cat([old, old[:1]]))

    def retype(self, entry: Entry) -> None:
        self._change(entry, entry.key, torch.load(entry.file)[entry.key].view(torch.int32))


# A head of hidden / heads elements, one linear layer as head; 3 x 4 patches.
IN_TRANSFORMERS = example("vit", hidden=216, classifier__hidden=False)
# Two class tokens; 3 x 3 patches, as NeMo loads square numbers of them alone.
IN_NEMO = example("vit", patches__width=24, patches__class_tokens=2, positions__count=11, layer_scale=True)


class Images(FormatConformance):
    """The kit with what is particular to models in which every projection has a bias."""

    __test__ = False

    test_it_loads_and_describes_itself = None  # it asks for every kind of rank that some model of the format has

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop, variation) -> None:
        if variation.fact.endswith("bias") and "relative" not in variation.fact:
            return  # biases that others go with are written as zeros, or added to the positions
        super().test_a_fact_is_expressed_or_refused_by_name(workshop, variation)


class TestTransformers(Images):
    __test__ = True
    format = "hf"
    quirks = Quirks(
        models={"vit": IN_TRANSFORMERS},
        dtypes=("fp32",),
        configs=("config.json",),
        expresses=("mlp.activation=gelu_erf", "mlp.ffn", "eps", "layers"),
    )


class TestNemo(Images):
    __test__ = True
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
        sidecars=False,
        frameworks=("nemo", "megatron", "apex", "omegaconf", "pytorch_lightning"),
    )
