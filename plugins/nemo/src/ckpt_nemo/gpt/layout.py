"""What was decided about the files of a GPT checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import Architecture, Refusal, WriteRequest, errors, layouts, schema
from ckpt_megatron.sdk import DIVISIBLE, layers_of_stages
from ckpt_nemo.container.tokenizer import multiple_in
from ckpt_nemo.gpt.versions import BACKENDS, Since, Version, newer

# The last NeMo 1, which most runs have: what is written is for it unless it takes a newer one.
_USUAL = "1.23.0"


@schema.dataclass(frozen=True)
class FileLayout:
    """Names, backend and ranks. `megatron_legacy`, `rotary_interleaved` and `separate_gate` are choices of the tables."""

    names: str
    backend: str
    tp: int
    pp: int
    ep: int
    vpp: int
    multiple: int
    version: str
    megatron_legacy: bool = False
    rotary_interleaved: bool = False
    separate_gate: bool = False
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
        return cls(
            names,
            backend,
            request.tp or 1,
            request.pp or 1,
            request.ep or 1,
            int(options.get("vpp") or 1),
            int(options.get(DIVISIBLE) or multiple_in(stored)),
            _at_least(str(stored.get("nemo_version") or _USUAL), BACKENDS[backend]),
            megatron_legacy=names == "legacy" and bool(own.get("megatron_legacy")),
            rotary_interleaved=names == "mcore" and bool(stored.get("rotary_interleaved")),
            separate_gate=names == "legacy" and bool(own.get("separate_gate")),
            fused=not own.get("local_names"),
        )

    @property
    def choices(self) -> dict[str, layouts.Value]:
        """Those of the tables."""
        names = ("megatron_legacy", "rotary_interleaved", "separate_gate")
        return {name: getattr(self, name) for name in names}

    def loading(self, needed: Iterable[Since]) -> FileLayout:
        """The layout for a version of NeMo that reads all that is `needed`."""
        return replace(self, version=_at_least(self.version, max((line.version for line in needed), default=(1, 0))))

    @property
    def parallel(self) -> dict[str, int]:
        more = {"ep": self.ep} if self.ep > 1 else {}
        return {"tp": self.tp, "pp": self.pp, **more, **({"vpp": self.vpp} if self.vpp > 1 else {})}

    @property
    def old_core(self) -> bool:
        """Whether the Megatron-Core of this version is older than 0.8, which came with NeMo 2.0.

        It keeps a rank's [gate; up] bias together, and calls extra states of two axes by the first size alone.
        """
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
        return layers_of_stages([layers // self.pp] * self.pp, self.vpp)

    def check(self, architecture: Architecture) -> None:
        """Raise `Refusal`s for ranks that the model or the backend cannot have."""
        problems = errors.Problems(" ".join(f"{name}={size}" for name, size in self.parallel.items()))
        layers = architecture.decoder.layers if architecture.decoder else ()
        moe = any(layer.moe for layer in layers)
        if self.ep > 1 and not moe:
            problems.add(Refusal("expert parallel ranks need experts", found=f"ep={self.ep}", fix="leave --ep out"))
        elif self.ep > 1 and self.backend == "ranks":
            problems.add(
                Refusal("rank files have no expert parallel ranks", found=f"ep={self.ep}", fix="use -o backend=zarr")
            )
        if self.ep > 1 and any(layer.moe and layer.moe.experts % self.ep for layer in layers):
            problems.add(Refusal(f"ep={self.ep} does not divide the experts"))
        problems.raise_any()


def _at_least(version: str, least: Version) -> str:
    """The version itself, or the first release of `least` where that is newer."""
    return version if newer(version, least) else f"{least[0]}.{least[1]}.0"
