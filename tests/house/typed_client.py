"""What a user writes, as a type checker sees it: `nox -s lint` runs mypy --strict on this file, which nothing imports."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np

import ckpt_core
from ckpt_core import CkptError, LazyTensor, OpenCheckpoint, Plan, Progress, Receipt, Refusal, UsageError
from ckpt_core import __version__ as version


def heard(event: Progress) -> None:
    assert_type(event.done, int)


def look(path: Path) -> np.ndarray:
    with ckpt_core.open_checkpoint(path, format="hf", options={"read_as": "LlamaForCausalLM"}) as checkpoint:
        assert_type(checkpoint, OpenCheckpoint)
        assert_type(checkpoint.architecture.hidden, int)
        tensor = checkpoint["layers.0.attention.q.weight"]
        assert_type(tensor, LazyTensor)
        assert_type(tensor.shape, tuple[int, ...])
        assert_type(tensor.dtype.name, str)
        return tensor[0, 1:3, ...]


def change(source: Path, destination: str) -> str:
    plan = ckpt_core.plan_conversion(source, destination, to="nanotron", tp=2, max_memory=1 << 30)
    assert_type(plan, Plan)
    assert_type(plan.bytes_written, int)
    try:
        receipt = ckpt_core.convert(source, destination, to="nanotron", tp=2, overwrite=True, listener=heard)
    except Refusal as refusal:
        assert_type(refusal.fix, str | None)
        raise
    except (UsageError, CkptError) as error:
        assert_type(error.problem, str)
        return ""
    assert_type(receipt, Receipt)
    assert_type(receipt.digests["embedding.tokens.weight"], str)
    assert_type(ckpt_core.launch_of(destination).framework, str)
    assert_type(version, str)
    return receipt.fingerprint if receipt.fingerprint == ckpt_core.fingerprint(destination) else ""


ckpt_core.convert("a", "b", to=3)  # type: ignore[arg-type]
ckpt_core.convert("a", "b", to="hf", tensor_parallel=2)  # type: ignore[call-arg]
ckpt_core.open_checkpiont("a")  # type: ignore[attr-defined]
