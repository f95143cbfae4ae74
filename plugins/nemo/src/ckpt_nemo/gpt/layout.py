"""What was decided about the files of a GPT checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpt_core.architecture import Architecture
from ckpt_core.errors import Problems, Refusal
from ckpt_core.plugins import WriteRequest
from ckpt_nemo.container.tokenizer import DIVISIBLE, multiple_in

# The version that each backend is the default of: what loads it must be as new.
_VERSIONS = {"ranks": "1.23.0", "zarr": "1.23.0", "torch_dist": "2.0.0"}
# What MCoreGPTModel does not read from the config before NeMo 2.0.
_SINCE_2 = ("qkv_bias", "openai_gelu", "scale_positional_embedding", "rotary_interleaved", "layernorm_zero_centered_gamma",
            "apply_embedding_scaling", "qk_layernorm", "moe_router_pre_softmax")  # fmt: skip


@dataclass(frozen=True)
class FileLayout:
    """Names, backend and ranks. The flags `blocks` and `separate` are those of `weights.tables`."""

    names: str
    backend: str
    tp: int
    pp: int
    ep: int
    vpp: int
    multiple: int
    version: str
    blocks: bool = False
    separate: bool = False
    fused: bool = True

    @classmethod
    def of(cls, names: str, request: WriteRequest, hints: Mapping[str, Any]) -> FileLayout:
        """What the options ask for, else what a source of this format had (`hints`), else what NeMo 1.23 writes."""
        options = request.options
        own = hints if hints.get("names") == names else {}
        usual = "ranks" if names == "legacy" else "zarr"
        backend = str(options.get("backend") or own.get("backend") or usual)
        if names == "legacy" and backend != "ranks":
            raise Refusal(
                "models before Megatron-Core have no distributed checkpoints",
                found=f"-o backend={backend}",
                fix="use -o names=mcore",
            )
        stored = hints.get("config") or {}
        version = str(stored.get("nemo_version") or _VERSIONS[backend])
        if backend == "torch_dist" and not newer(version, (2, 0)):
            version = _VERSIONS[backend]
        return cls(
            names,
            backend,
            request.tp or 1,
            request.pp or 1,
            request.ep or 1,
            int(options.get("vpp") or 1),
            int(options.get(DIVISIBLE) or multiple_in(stored)),
            version,
            blocks=names == "legacy" and bool(own.get("megatron_legacy")),
            separate=names == "legacy" and bool(own.get("separate_gate")),
            fused=not own.get("local_names"),
        )

    def loading(self, config: Mapping[str, Any]) -> FileLayout:
        """The layout for a version of NeMo that reads all keys of `config`."""
        if self.names == "mcore" and any(config.get(key) for key in _SINCE_2) and not newer(self.version, (2, 0)):
            return replace(self, version=_VERSIONS["torch_dist"])
        return self

    @property
    def parallel(self) -> dict[str, int]:
        more = {"ep": self.ep} if self.ep > 1 else {}
        return {"tp": self.tp, "pp": self.pp, **more, **({"vpp": self.vpp} if self.vpp > 1 else {})}

    @property
    def joined_bias(self) -> bool:
        """Whether a rank's [gate; up] bias stays together: Megatron-Core 0.8 came with NeMo 2.0."""
        return not newer(self.version, (2, 0))

    def stages(self, layers: int) -> dict[tuple[int, int], range]:
        """The layers of every (pipeline rank, virtual stage): virtual stages are counted through all ranks before the next."""
        count = self.pp * self.vpp
        if layers % count:
            expected = ", ".join(str(size) for size in range(1, layers + 1) if layers % (size * self.vpp) == 0)
            raise Refusal(
                f"pp={self.pp}"
                + (f" vpp={self.vpp}" if self.vpp > 1 else "")
                + f" does not divide the {layers} layers",
                expected=f"pp among {expected}: NeMo has stages of equal size",
            )
        if self.vpp > 1 and self.pp == 1:
            raise Refusal("virtual stages need more than one pipeline stage", found=f"vpp={self.vpp} pp=1")
        size = layers // count
        return {
            (rank, chunk): range((chunk * self.pp + rank) * size, (chunk * self.pp + rank + 1) * size)
            for chunk in range(self.vpp)
            for rank in range(self.pp)
        }

    def check(self, architecture: Architecture) -> None:
        """Raise `Refusal`s for ranks that the model or the backend cannot have."""
        problems = Problems(" ".join(f"{name}={size}" for name, size in self.parallel.items()))
        layers = architecture.decoder.layers if architecture.decoder else ()
        moe = any(layer.mlp.moe for layer in layers)
        if self.ep > 1 and not moe:
            problems.add(Refusal("expert parallel ranks need experts", found=f"ep={self.ep}"))
        elif self.ep > 1 and self.backend == "ranks":
            problems.add(
                Refusal("rank files have no expert parallel ranks", found=f"ep={self.ep}", fix="use -o backend=zarr")
            )
        if self.ep > 1 and any(layer.mlp.moe and layer.mlp.moe.experts % self.ep for layer in layers):
            problems.add(Refusal(f"ep={self.ep} does not divide the experts"))
        problems.raise_any()


def newer(version: str, than: tuple[int, int]) -> bool:
    """Whether a version of NeMo is at least the given one.

    >>> newer("1.23.0", (2, 0)), newer("2.0.0rc1", (2, 0))
    (False, True)
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= than
