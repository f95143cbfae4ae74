"""The conformance kit, run on both formats of DeepSpeed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ckpt_core.testing import Entry, Quirks, example
from ckpt_core.testing.examples import ABSENT
from ckpt_deepspeed.megatron.files import native_name
from ckpt_tests import deepspeed
from ckpt_tests.conformance import FirstParty
from ckpt_tests.damage import StateDicts

LAYERS = 6


class LayerFiles(StateDicts):
    """The tensors of layer files."""

    def find(self, folder: str) -> list[Entry]:
        found = []
        for path in sorted(Path(folder).rglob("layer_*.pt")):
            place = int(re.match(r"layer_(\d+)", path.name)[1])
            found += [Entry(str(path), key, native_name(place, key, LAYERS)) for key in self.tensors(path)]
        return found


class UniversalFiles:
    """The parameters of a universal checkpoint: a folder each, beside the model states with a rounded copy."""

    def find(self, folder: str) -> list[Entry]:
        return [Entry(str(path), path.parent.name, path.parent.name) for path in sorted(Path(folder).rglob("fp32.pt"))]

    def remove(self, entry: Entry) -> None:
        Path(entry.file).unlink()

    def add(self, entry: Entry) -> str:
        torch.save({"param": torch.zeros(3)}, _made(Path(entry.file).parents[1] / "surprise.weight") / "fp32.pt")
        return "surprise.weight"

    def _param(self, entry: Entry) -> torch.Tensor:
        return deepspeed.load(Path(entry.file))["param"]

    def reshape(self, entry: Entry) -> None:
        old = self._param(entry)
        torch.save({"param": torch.cat([old, old[:1]])}, entry.file)

    def retype(self, entry: Entry) -> None:
        torch.save({"param": self._param(entry).view(torch.int32)}, entry.file)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


GLU = {"mlp__gated": True, "mlp__activation": "silu"}
PIPELINE = {
    "bloom": example("bloom", hidden=144),
    "gpt2": example("gpt2", hidden=144),
    "rotary": example("gpt2", hidden=144, positions__count=ABSENT, attention__rotary__theta=10000.0),
    "gated": example("bloom", hidden=144, tokens__norm=ABSENT, **GLU),
}


class TestMegatronDeepSpeed(FirstParty):
    format = "megatron-deepspeed"
    quirks = Quirks(
        models=PIPELINE,
        tp=(1, 2),
        pp=(1, 3),
        write_options={"make_vocab_size_divisible_by": "1"},
        keeps_padding=True,
        expresses=("attention.head_dim", "residual_from_norm"),
        entries=LayerFiles(),
        frameworks=("deepspeed", "megatron"),
    )


class TestDeepSpeed(FirstParty):
    format = "deepspeed"
    quirks = Quirks(
        models={
            "llama": example("llama", layers=2),
            "bloom": example("bloom", layers=2, hidden=144, attention__head_dim=12, mlp__ffn=576),
        },
        dtypes=("fp32",),
        write_options={"moments": "false"},
        entries=UniversalFiles(),
        frameworks=("deepspeed",),
    )
    # What a transformers model expresses is the matter of format hf, and so are its configs.
    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None
