"""llama.cpp itself, on a CPU: the C API that the extension of xllamacpp exports, called with ctypes.

Parameters are structs that functions return and take by value. They are handled as so many bytes, and of these only the few are
set whose places llama.h fixes at the front of the struct; what lies there by default is checked first.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xllamacpp

_ANY = 2048  # more than any of these structs has; what a callee does not look at lies behind them on the stack


class _Parameters(ctypes.Structure):
    _fields_ = [("data", ctypes.c_ubyte * _ANY)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


# places in llama_context_params (llama.h of b10605 and of 2026.10): (byte, default, wanted)
_CONTEXT, _BATCH, _MICRO_BATCH = 0, 4, 8
_FLASH_ATTENTION = (52, -1, 0)  # auto -> off, which computes in fp32
_TYPE_K, _TYPE_V = (104, 1, 0), (108, 1, 0)  # F16 -> F32


def _library() -> ctypes.CDLL:
    (file,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    library = ctypes.CDLL(str(file))
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(library, name).restype = _Parameters
    for name in (
        "llama_model_load_from_file",
        "llama_init_from_model",
        "llama_model_get_vocab",
        "llama_get_memory",
    ):
        getattr(library, name).restype = ctypes.c_void_p
    library.llama_batch_init.restype = _Batch
    library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    return library


_said: list[str] = []


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _log(level: int, text: bytes, _: object) -> None:
    if level >= 3:  # warnings and errors
        _said.append(text.decode("utf-8", "replace").strip())


_LLAMA = _library()
_LLAMA.llama_log_set(_log, None)
_LLAMA.llama_backend_init()


class Refused(Exception):
    """llama.cpp does not load a file; what it says of it."""


class Model:
    """A model that llama.cpp has loaded from a GGUF file."""

    def __init__(self, path: str | Path, positions: int = 512) -> None:
        _said.clear()
        loaded = _LLAMA.llama_model_load_from_file(str(path).encode(), _LLAMA.llama_model_default_params())
        if not loaded:
            raise Refused("; ".join(_said))
        self.warnings = list(_said)
        self._model = ctypes.c_void_p(loaded)
        self._vocabulary = ctypes.c_void_p(_LLAMA.llama_model_get_vocab(self._model))
        self.tokens = _LLAMA.llama_vocab_n_tokens(self._vocabulary)
        self._positions = positions
        parameters = _LLAMA.llama_context_default_params()
        for place, size in ((_CONTEXT, positions), (_BATCH, positions), (_MICRO_BATCH, positions)):
            struct.pack_into("<I", parameters.data, place, size)
        for place, usual, wanted in (_FLASH_ATTENTION, _TYPE_K, _TYPE_V):
            assert struct.unpack_from("<i", parameters.data, place)[0] == usual, (
                "llama_context_params has another layout"
            )
            struct.pack_into("<i", parameters.data, place, wanted)
        context = _LLAMA.llama_init_from_model(self._model, parameters)
        if not context:
            raise Refused("; ".join(_said))
        self._context = ctypes.c_void_p(context)

    def close(self) -> None:
        _LLAMA.llama_free(self._context)
        _LLAMA.llama_model_free(self._model)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 logits [position, token] of a sequence of ids."""
        _LLAMA.llama_memory_clear(ctypes.c_void_p(_LLAMA.llama_get_memory(self._context)), True)
        batch = _LLAMA.llama_batch_init(len(ids), 0, 1)
        batch.count = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = int(token), place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        if _LLAMA.llama_decode(self._context, batch):
            raise Refused("llama_decode failed: " + "; ".join(_said))
        rows = [
            np.ctypeslib.as_array(_LLAMA.llama_get_logits_ith(self._context, place), (self.tokens,)).copy()
            for place in range(len(ids))
        ]
        _LLAMA.llama_batch_free(batch)
        return np.stack(rows)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The tokens that follow, each the most likely one."""
        found = list(ids)
        for _ in range(count):
            found.append(int(self.logits(found)[-1].argmax()))
        return found[len(ids) :]

    def tokenized(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text; `special`: as a sequence begins, and with special tokens in it known."""
        data, room = text.encode(), (ctypes.c_int32 * (len(text.encode()) + 16))()
        count = _LLAMA.llama_tokenize(self._vocabulary, data, len(data), room, len(room), special, special)
        assert count >= 0
        return list(room[:count])


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Of two arrays of logits, over all of them."""
    return float(np.corrcoef(one.astype(np.float64).ravel(), two.astype(np.float64).ravel())[0, 1])
