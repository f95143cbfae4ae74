"""The conformance kit, run on the styles and containers of the nxdt format."""

from __future__ import annotations

from pathlib import Path

import torch

from ckpt_core.testing import Entry, Quirks, example
from ckpt_core.testing.examples import ABSENT
from ckpt_tests import nxdt
from ckpt_tests.conformance import FirstParty, Ranks
from ckpt_tests.damage import StateDicts

# hidden = heads x head_dim, as it must be.
LLAMA = {"layers": 2, "hidden": 216, "attention__head_dim": 18}
MIXTRAL = {
    **LLAMA,
    "mlp__moe__shared": ABSENT,
    "mlp__moe__router__normalise": True,
}


class RankFiles(StateDicts):
    """The tensors of plain rank files."""

    def find(self, folder: str) -> list[Entry]:
        return [Entry(str(path), name, name) for path in nxdt.rank_files(Path(folder)) for name in self.tensors(path)]


class TensorFiles:
    """The tensors of xser, each in a file of its own."""

    def find(self, folder: str) -> list[Entry]:
        found = []
        for path in nxdt.rank_files(Path(folder)):
            with nxdt.torch_xla():
                nest = torch.load(path, weights_only=False)
            found += [Entry(f"{path}.tensors/tensor_{value.tid}.pt", name, name) for name, value in nest.items()]
        return found

    def remove(self, entry: Entry) -> None:
        Path(entry.file).unlink()

    def add(self, entry: Entry) -> str:
        path = Path(entry.file).parent.with_suffix("")
        with nxdt.torch_xla():
            nest = torch.load(path, weights_only=False)
            torch.save({**nest, "surprise.weight": torch.zeros(3)}, path)
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = torch.load(entry.file)
        torch.save(torch.cat([old, old[:1]]), entry.file)

    def retype(self, entry: Entry) -> None:
        torch.save(torch.load(entry.file).view(torch.int32), entry.file)


FRAMEWORKS = ("torch_xla", "neuronx_distributed", "neuronx_distributed_training")
EXPRESSES = (
    "attention.rotary.theta",
    "attention.rotary.scaling=linear",
    "attention.scale",
)


class TestHf(Ranks):
    format = "nxdt"
    quirks = Quirks(
        models={"llama": example("llama", **LLAMA)},
        tp=(1, 4),
        pp=(1, 2),
        configs=("config.json",),
        expresses=EXPRESSES,
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestMegatron(Ranks):
    format = "nxdt"
    quirks = Quirks(
        models={"llama": example("llama", **LLAMA)},
        tp=(1, 2),
        pp=(2,),
        write_options={"model_style": "megatron"},
        configs=("config.json",),
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestExperts(FirstParty):
    format = "nxdt"
    quirks = Quirks(
        models={"mixtral": example("moe", **MIXTRAL)},
        tp=(1, 2),
        pp=(1, 2),
        ep=(1, 2),
        write_options={"xser": "true"},
        configs=("config.json",),
        entries=TensorFiles(),
        frameworks=FRAMEWORKS,
    )
