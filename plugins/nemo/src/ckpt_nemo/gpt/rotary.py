"""`rotary_pos_emb.inv_freq`: the frequencies that the code before Megatron-Core stores on every stage.

With megatron_amp_O2 they were rounded to the model's dtype, and used so. No other format holds such frequencies:
the exact ones are taken instead, which differ by up to one part in 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckpt_core.sdk import Architecture, FormatError, StoredTensor, disk, dtypes, lazy, ledgers
from ckpt_megatron.sdk import inverse_frequencies
from ckpt_nemo.container.saved import values_of

_TOLERANCES = {"fp32": 1e-5, "fp16": 2.0**-10, "bf16": 2.0**-7, "fp64": 1e-5}
_SMALLEST_FP16 = 2.0**-24


def frequencies(architecture: Architecture) -> np.ndarray | None:
    """Those of a model, in float32; None without rotary positions."""
    attention = architecture.decoder.layers[0].attention if architecture.decoder else None
    return None if attention is None else inverse_frequencies(attention)


def stored_bytes(architecture: Architecture, dtype: dtypes.DType) -> tuple[dtypes.DType, int, bytes]:
    """The dtype, the number and the bytes of the frequencies of a model whose tensors are of `dtype`."""
    values = frequencies(architecture)
    assert values is not None
    return dtype, len(values), dtypes.encode(values, dtype).tobytes()


def check_frequencies(
    stored: Sequence[StoredTensor], architecture: Architecture, states: Sequence[disk.FileState]
) -> list[ledgers.Loss]:
    """Compare every stored copy with the base of the config; a rounded one is a loss."""
    expected = frequencies(architecture)
    rounded: set[str] = set()
    source = lazy.SourceFiles(states)
    try:
        for tensor in stored:
            if expected is None or tensor.shape != expected.shape or not tensor.dtype.floating:
                found = f"shape {tensor.shape} of {tensor.dtype}"
                raise FormatError(
                    "rotary frequencies do not fit the config",
                    file=tensor.file,
                    found=found,
                    expected="none without rotary positions"
                    if expected is None
                    else f"shape {expected.shape}, by the width of a head (kv_channels) and rotary_percentage",
                )
            values = values_of(tensor, "rotary_pos_emb.inv_freq", source)
            tolerance = _TOLERANCES.get(tensor.dtype.name, 1e-5) * expected + (
                _SMALLEST_FP16 if tensor.dtype.name == "fp16" else 0
            )
            if not (np.abs(values - expected) <= tolerance).all():
                raise FormatError(
                    "the stored rotary frequencies are not those of the config's rotary_base",
                    file=tensor.file,
                    found=", ".join(f"{value:.6g}" for value in values[:4]),
                    expected=", ".join(f"{value:.6g}" for value in expected[:4]),
                )
            if tensor.dtype != dtypes.FP32 and tensor.dtype.name != "fp64":
                rounded.add(tensor.dtype.name)
    finally:
        source.close()
    why = "the model was trained with frequencies rounded to {}; the exact ones are taken, as everywhere else"
    return [ledgers.Loss("assumed", "rotary_pos_emb.inv_freq", why.format(name)) for name in sorted(rounded)]
