"""The conformance kit, run on the styles and containers of the nxdt format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import nxdt

from ckpt_core.testing import Entry, FormatConformance, Quirks, example
from ckpt_core.testing.examples import ABSENT

# hidden = heads x head_dim, as it must be.
LLAMA = {"layers": 2, "hidden": 216, "attention__head_dim": 18}
MIXTRAL = {
    **LLAMA,
    "mlp__moe__shared": ABSENT,
    "mlp__moe__router__normalise": True,
}


class RankFiles:
    """The tensors of plain rank files."""

    def find(self, folder: str) -> list[Entry]:
        return [Entry(str(path), name, name) for path in nxdt.rank_files(Path(folder)) for name in torch.load(path)]

    def _change(self, entry: Entry, key: str, tensor: torch.Tensor | None) -> None:
        content = torch.load(entry.file)
        content.pop(key, None)
        if tensor is not None:
            content[key] = tensor
        torch.save(content, entry.file)

    def remove(self, entry: Entry) -> None:
        self._change(entry, entry.key, None)

    def add(self, entry: Entry) -> str:
        self._change(entry, "surprise.weight", torch.zeros(3))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = torch.load(entry.file)[entry.key]
        self._change(entry, entry.key, torch.cat([old, old[:1]]))

    def retype(self, entry: Entry) -> None:
        self._change(entry, entry.key, torch.load(entry.file)[entry.key].view(torch.int32))


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


class Nxdt(FormatConformance):
    """The kit with what is particular to NxDT."""

    __test__ = False
    format = "nxdt"

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop, variation) -> None:
        if variation.fact == "head.tied":
            pytest.skip("a job never ties, and so no config may say it: see test_a_tied_head_is_stored_twice")
        super().test_a_fact_is_expressed_or_refused_by_name(workshop, variation)


FRAMEWORKS = ("torch_xla", "neuronx_distributed", "neuronx_distributed_training")
EXPRESSES = (
    "attention.rotary.theta",
    "attention.rotary.scaling=linear",
    "attention.scale",
)


class TestHf(Nxdt):
    __test__ = True
    quirks = Quirks(
        models={"llama": example("llama", **LLAMA)},
        tp=(1, 4),
        pp=(1, 2),
        configs=("config.json",),
        expresses=EXPRESSES,
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )
    test_it_loads_and_describes_itself = None  # it asks for expert ranks, which only models with experts have


class TestMegatron(Nxdt):
    __test__ = True
    quirks = Quirks(
        models={"llama": example("llama", **LLAMA)},
        tp=(1, 2),
        pp=(2,),
        write_options={"model_style": "megatron"},
        configs=("config.json",),
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )
    test_it_loads_and_describes_itself = None


class TestExperts(Nxdt):
    __test__ = True
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
