"""The conformance kit on Nanotron's folders."""

from __future__ import annotations

import os
import re
import shutil

from ckpt_core.testing import Entry, FormatConformance, Quirks, SafetensorsEntries, example
from ckpt_tests.conformance import FirstParty
from ckpt_tests.goldens import root


class OneFilePerShard(SafetensorsEntries):
    """Nanotron's weight files: each holds one shard of one parameter, named by its path."""

    def name_of(self, file: str, key: str, folder: str) -> str:
        below = os.path.relpath(os.path.dirname(file), os.path.join(folder, "0", "model")).replace(os.sep, ".")
        leaf = re.match(r"model_(\w+?)(_pp-rank.*)?\.safetensors", os.path.basename(file))[1]
        return f"{below}.{leaf}"

    def remove(self, entry: Entry) -> None:
        os.remove(entry.file)

    def add(self, entry: Entry) -> str:
        root = entry.file[: entry.file.index("/model/model/")]
        folder = os.path.join(root, "model", "model", "surprise")
        os.mkdir(folder)
        shutil.copy(os.path.join(root, "model/model/final_layer_norm/pp_block/model_weight.safetensors"), folder)
        return "model.surprise.weight"


class TestNanotron(FirstParty):
    format = "nanotron"
    test_every_row_and_key_is_reached = FormatConformance.test_every_row_and_key_is_reached
    # nanotron has no head_dim: hidden = heads * head_dim
    quirks = Quirks(
        models={
            name: example(name, hidden=216)
            for name in ("llama", "llama-padded", "llama-tied", "qwen", "moe", "smollm3", "starcoder2")
        },
        tp=(1, 2, 4),
        pp=(1, 3),
        configs=("0/model_config.json",),
        expresses=("head.tied", "attention.rotary.theta", "attention.qkv_bias", "attention.rotary? every third"),
        entries=OneFilePerShard(),
        frameworks=("nanotron", "dacite"),
        goldens=root() / "nanotron",
    )
