"""The conformance kit, run on both containers of the megatron format."""

from __future__ import annotations

import re
from pathlib import Path

from ckpt_core.architecture import Architecture, Facts, architecture_of, facts_of
from ckpt_core.testing import Entry, Quirks, example
from ckpt_megatron.names import plain
from ckpt_tests.conformance import Containers, FirstParty, Ranks
from ckpt_tests.damage import StateDicts
from ckpt_tests.distributed import DistributedEntries


def latent() -> Architecture:
    """Latent attention, with the one epsilon that Megatron has for all norms."""
    return example("latent", **{f"latent_attention__{norm}__eps": 1e-5 for norm in ("norm", "q_norm", "kv_norm")})


def latent_with_experts() -> Architecture:
    """Latent attention over dense layers and layers with experts, as DeepSeek's models are."""
    facts, attention = facts_of(example("moe-mixed")), facts_of(latent())
    kept = {path: value for path, value in facts.items() if not path.startswith("attention.")}
    added = {path: value for path, value in attention.items() if path.startswith("latent_attention.")}
    return architecture_of(Facts({**kept, **added}), "latent with experts")


class RankFiles(StateDicts):
    """The tensors of rank files; each counts the layers of its own stage."""

    def __init__(self) -> None:
        super().__init__(section="model")

    def find(self, folder: str) -> list[Entry]:
        found = []
        stages = sorted({path.parent.name.split("_")[3] for path in Path(folder).rglob("mp_rank_*_*/*.pt")})
        for path in sorted(Path(folder).rglob("*.pt")):
            stage = stages.index(path.parent.name.split("_")[3]) if stages else 0
            for key in self.tensors(path):
                if not key.endswith("_extra_state"):
                    name = re.sub(
                        r"^(decoder\.layers\.)(\d+)",
                        lambda match, first=stage: f"{match[1]}{int(match[2]) + first}",
                        plain(key),
                    )
                    found.append(Entry(str(path), key, name))
        return found


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


class TestTorch(Ranks):
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


class TestTorchExperts(FirstParty):
    format = "megatron"
    quirks = Quirks(
        models={"moe": example("moe"), "latent-moe": latent_with_experts()},
        tp=(1, 2),
        pp=(1, 3),
        ep=(1, 2),
        write_options={**TORCH, "names": "te"},
        varied=("mlp.moe",),
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestTorchGroupedExperts(Containers):
    format = "megatron"
    quirks = Quirks(
        models={"moe": example("moe")},
        tp=(1, 2),
        ep=(1, 2),
        write_options={**TORCH, "names": "local", "experts": "grouped"},
        entries=RankFiles(),
        frameworks=FRAMEWORKS,
    )


class TestTorchDist(Containers):
    format = "megatron"
    quirks = Quirks(
        models={name: DENSE[name] for name in ("llama-tied", "qwen", "gpt2", "latent")},
        tp=(1, 2),
        write_options={**DIST, "names": "te"},
        entries=DistributedEntries(),
        frameworks=FRAMEWORKS,
    )


class TestTorchDistExperts(Containers):
    format = "megatron"
    quirks = Quirks(
        models={"moe": example("moe"), "latent-moe": latent_with_experts()},
        ep=(1, 2),
        write_options={**DIST, "names": "local"},
        entries=DistributedEntries(),
        frameworks=FRAMEWORKS,
    )
