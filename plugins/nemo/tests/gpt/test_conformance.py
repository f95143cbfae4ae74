"""The conformance kit, run on rank files and on distributed checkpoints of the nemo format."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch

from ckpt_core.testing import Entry, Quirks, example
from ckpt_nemo.container.saved import unwrapped
from ckpt_nemo.gpt.weights import legacy, plain
from ckpt_tests.conformance import Containers, Ranks
from ckpt_tests.damage import StateDicts


class RankFiles(StateDicts):
    """The tensors of rank files in an unpacked archive; each counts the layers of its own stage."""

    def __init__(self) -> None:
        super().__init__(prefix="model.")

    def find(self, folder: str) -> list[Entry]:
        found = []
        stages = sorted(
            {stage for path in Path(folder).rglob("*.ckpt") if (stage := path.parent.name.partition("_pp_")[2])}
        )
        for path in sorted(Path(folder).rglob("*.ckpt")):
            stage = path.parent.name.partition("_pp_")[2]
            first = stages.index(stage) if stage else 0
            for key in self.tensors(path):
                if not key.endswith(("inv_freq", "_extra_state")):
                    name = re.sub(
                        r"(\.layers\.)(\d+)", lambda match, start=first: f"{match[1]}{int(match[2]) + start}", key
                    )
                    table = plain(unwrapped(key))
                    # What a missing one is called: ranks that have it know it under the name of the tables.
                    found.append(
                        Entry(str(path), key, name if "word_embeddings.weight" not in key else "word_embeddings.weight")
                    )
                    assert "language_model" not in key or legacy(table, False)
        return found


class ZarrArrays:
    """The arrays of a distributed checkpoint in an unpacked archive."""

    def find(self, folder: str) -> list[Entry]:
        return [
            Entry(
                str(path),
                path.parent.name,
                path.parent.name.replace(".layers.", ".layers.0.").replace(
                    ".experts.experts.", ".experts.local_experts.0."
                ),
            )
            for path in sorted(Path(folder).rglob(".zarray"))
        ]

    def remove(self, entry: Entry) -> None:
        for path in Path(entry.file).parent.iterdir():
            path.unlink()
        Path(entry.file).parent.rmdir()

    def add(self, entry: Entry) -> str:
        folder = Path(entry.file).parent.parent / "model.surprise.weight"
        folder.mkdir()
        array = json.loads(Path(entry.file).read_text()) | {"shape": [3], "chunks": [3]}
        (folder / ".zarray").write_text(json.dumps(array))
        (folder / "0").write_bytes(bytes(3 * self._size(array)))
        return "surprise.weight"

    def _size(self, array: dict) -> int:
        return {"<f4": 4, "<f2": 2, "bfloat16": 2}[array["dtype"]]

    def reshape(self, entry: Entry) -> None:
        """One more column of chunks."""
        path = Path(entry.file)
        array = json.loads(path.read_text())
        array["shape"][-1] += array["chunks"][-1]
        path.write_text(json.dumps(array))
        grid = [math.ceil(size / chunk) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
        for index in torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist():
            chunk = path.parent / ".".join(map(str, index))
            if not chunk.exists():
                chunk.write_bytes(bytes(math.prod(array["chunks"]) * self._size(array)))

    def retype(self, entry: Entry) -> None:
        path = Path(entry.file)
        array = json.loads(path.read_text())
        path.write_text(json.dumps(array | {"dtype": {4: "<i4", 2: "<i2"}[self._size(array)]}))


PLAIN = {"gpt2": example("gpt2")}
DENSE = {name: example(name) for name in ("llama-padded", "starcoder2")}
EXPRESSES = (
    "head.tied", "attention.head_dim", "attention.rotary.theta", "attention.rotary.fraction", "attention.rotary.scaling=linear",
    "attention.window", "attention.scale",
)  # fmt: skip
COMMON = {"container": "folder", "make_vocab_size_divisible_by": "1"}
FRAMEWORKS = ("nemo", "megatron", "transformer_engine", "apex", "omegaconf", "pytorch_lightning", "zarr")


class TestLegacyRanks(Ranks):
    format = "nemo"
    quirks = Quirks(
        models=PLAIN,
        tp=(1, 2),
        pp=(1, 3),
        write_options={**COMMON, "names": "legacy"},
        expresses=("attention.scale",),
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestCoreRanks(Ranks):
    format = "nemo"
    quirks = Quirks(
        models=DENSE,
        tp=(1, 2),
        pp=(1, 3),
        write_options={**COMMON, "names": "mcore", "backend": "ranks"},
        expresses=EXPRESSES,
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestZarr(Containers):
    format = "nemo"
    quirks = Quirks(
        models={"llama-padded": example("llama-padded")},
        tp=(1, 2),
        pp=(1,),
        write_options={**COMMON, "names": "mcore", "backend": "zarr"},
        entries=ZarrArrays(),
        frameworks=FRAMEWORKS,
    )
