"""The conformance kit, run on both containers of the megatron format."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckpt_core.architecture import Architecture, Facts, architecture_of, facts_of
from ckpt_core.testing import Entry, FormatConformance, Quirks, example
from ckpt_megatron.names import plain


def latent() -> Architecture:
    """Latent attention, with the one epsilon that Megatron has for all norms."""
    return example("latent", **{f"latent_attention__{norm}__eps": 1e-5 for norm in ("norm", "q_norm", "kv_norm")})


def latent_with_experts() -> Architecture:
    """Latent attention over dense layers and layers with experts, as DeepSeek's models are."""
    facts, attention = facts_of(example("moe-mixed")), facts_of(latent())
    kept = {path: value for path, value in facts.items() if not path.startswith("attention.")}
    added = {path: value for path, value in attention.items() if path.startswith("latent_attention.")}
    return architecture_of(Facts({**kept, **added}), "latent with experts")


class RankFiles:
    """The tensors of rank files."""

    def find(self, folder: str) -> list[Entry]:
        found = []
        stages = sorted({path.parent.name.split("_")[3] for path in Path(folder).rglob("mp_rank_*_*/*.pt")})
        for path in sorted(Path(folder).rglob("*.pt")):
            stage = stages.index(path.parent.name.split("_")[3]) if stages else 0
            for key in _loaded(path)["model"]:
                if not key.endswith("_extra_state"):
                    name = re.sub(
                        r"^(decoder\.layers\.)(\d+)",
                        lambda match, first=stage: f"{match[1]}{int(match[2]) + first}",
                        plain(key),
                    )
                    found.append(Entry(str(path), key, name))
        return found

    def _change(self, entry: Entry, key: str, tensor: torch.Tensor | None) -> None:
        content = _loaded(Path(entry.file))
        content["model"].pop(key, None)
        if tensor is not None:
            content["model"][key] = tensor
        torch.save(content, entry.file)

    def remove(self, entry: Entry) -> None:
        self._change(entry, entry.key, None)

    def add(self, entry: Entry) -> str:
        self._change(entry, "surprise.weight", torch.zeros(3))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = _loaded(Path(entry.file))["model"][entry.key]
        self._change(entry, entry.key, torch.cat([old, old[:1]]))

    def retype(self, entry: Entry) -> None:
        self._change(entry, entry.key, _loaded(Path(entry.file))["model"][entry.key].view(torch.int32))


def _loaded(path: Path) -> dict:
    return torch.load(path, weights_only=False)


class DistributedFiles:
    """The tensors of a torch_dist folder. What is changed is appended to a data file."""

    def find(self, folder: str) -> list[Entry]:
        (path,) = Path(folder).rglob(".metadata")
        metadata = pickle.loads(path.read_bytes())
        found = []
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                name = plain(re.sub(r"^decoder\.layers\.(?!\d)", "decoder.layers.0.", key))
                file = next(info.relative_path for index, info in metadata.storage_data.items() if index.fqn == key)
                found.append(
                    Entry(str(path.parent / file), key, name.replace(".experts.experts.", ".experts.local_experts.0."))
                )
        return found

    def _change(self, entry: Entry, key: str, tensor: torch.Tensor | None) -> None:
        path = Path(entry.file).parent / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        metadata.state_dict_metadata.pop(key, None)
        old = {index: info for index, info in metadata.storage_data.items() if index.fqn == key}
        for index in old:
            del metadata.storage_data[index]
        if tensor is not None:
            data = io.BytesIO()
            torch.save(tensor, data)
            info = dataclasses.replace(
                next(iter(metadata.storage_data.values())),
                relative_path=os.path.basename(entry.file),
                offset=os.path.getsize(entry.file),
                length=len(data.getvalue()),
            )
            with open(entry.file, "ab") as file:
                file.write(data.getvalue())
            origin = torch.Size([0] * tensor.dim())
            metadata.state_dict_metadata[key] = TensorStorageMetadata(
                TensorProperties(dtype=tensor.dtype), tensor.shape, [ChunkStorageMetadata(origin, tensor.shape)]
            )
            metadata.storage_data[MetadataIndex(key, origin)] = info
        path.write_bytes(pickle.dumps(metadata))

    def _tensor(self, entry: Entry) -> torch.Tensor:
        import megatron_files

        return megatron_files.dist_tensors(Path(entry.file).parent, entry.key)[""]

    def remove(self, entry: Entry) -> None:
        self._change(entry, entry.key, None)

    def add(self, entry: Entry) -> str:
        self._change(entry, "surprise.weight", torch.zeros(3))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = self._tensor(entry)
        self._change(entry, entry.key, torch.cat([old, old[..., :1]], -1))

    def retype(self, entry: Entry) -> None:
        self._change(entry, entry.key, self._tensor(entry).view(torch.int32))


DENSE = {
    name: example(name) for name in ("llama", "llama-padded", "llama-tied", "qwen", "gpt2", "starcoder2", "smollm3")
} | {"latent": latent()}
EXPRESSES = (
    "head.tied", "attention.head_dim", "attention.rotary.theta", "attention.rotary.fraction", "attention.rotary.scaling=linear",
    "attention.rotary?", "attention.window", "attention.window?", "attention.sinks", "attention.qkv_bias", "attention.scale",
    "mlp.moe.router.normalise", "mlp.moe.router.scale",
)  # fmt: skip
FRAMEWORKS = ("megatron", "transformer_engine", "apex")
TORCH = {"container": "torch", "make_vocab_size_divisible_by": "1"}
DIST = {"container": "torch_dist", "make_vocab_size_divisible_by": "1"}


class Megatron(FormatConformance):
    """The kit with what is particular to Megatron."""

    __test__ = False

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop, variation) -> None:
        if (
            variation.fact.endswith("bias")
            and variation.fact.startswith(("attention.", "mlp."))
            and "relative" not in variation.fact
        ):
            pytest.skip("biases that others go with are written as zeros: see test_biases_are_all_or_none")
        super().test_a_fact_is_expressed_or_refused_by_name(workshop, variation)


class TestTorch(Megatron):
    __test__ = True
    format = "megatron"
    quirks = Quirks(
        models=DENSE,
        tp=(1, 2),
        pp=(1, 3),
        write_options={**TORCH, "names": "local"},
        expresses=EXPRESSES,
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )
    test_it_loads_and_describes_itself = None  # it asks for expert ranks, which only models with experts have


class TestTorchExperts(Megatron):
    __test__ = True
    format = "megatron"
    quirks = Quirks(
        models={"moe": example("moe"), "latent-moe": latent_with_experts()},
        tp=(1, 2),
        pp=(1, 3),
        ep=(1, 2),
        write_options={**TORCH, "names": "te"},
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop, variation) -> None:
        if not variation.fact.startswith("mlp.moe"):
            pytest.skip("it has nothing to do with experts: see TestTorch")
        super().test_a_fact_is_expressed_or_refused_by_name(workshop, variation)


class Layouts(Megatron):
    """What differs between containers and kinds of names; args, and so facts, are the same in all of them."""

    test_it_loads_and_describes_itself = None
    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None
    test_every_choice_of_an_option = None


class TestTorchGroupedExperts(Layouts):
    __test__ = True
    format = "megatron"
    quirks = Quirks(
        models={"moe": example("moe")},
        tp=(1, 2),
        ep=(1, 2),
        write_options={**TORCH, "names": "local", "experts": "grouped"},
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestTorchDist(Layouts):
    __test__ = True
    format = "megatron"
    quirks = Quirks(
        models={name: DENSE[name] for name in ("llama-tied", "qwen", "gpt2", "latent")},
        tp=(1, 2),
        write_options={**DIST, "names": "te"},
        entries=DistributedFiles(),
        frameworks=FRAMEWORKS,
    )


class TestTorchDistExperts(Layouts):
    __test__ = True
    format = "megatron"
    quirks = Quirks(
        models={"moe": example("moe"), "latent-moe": latent_with_experts()},
        ep=(1, 2),
        write_options={**DIST, "names": "local"},
        entries=DistributedFiles(),
        frameworks=FRAMEWORKS,
    )
