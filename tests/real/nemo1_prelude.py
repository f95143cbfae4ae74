"""NeMo 1 (2023 and 2024) on a torch of today and a CPU: names that were removed since, and what GPUs alone have.

apex is the real one, whose own torch code runs on a CPU; its kernel modules are empty but for a layer norm. Import this
before NeMo.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import sys
import types
from typing import Any

import cpu
import torch
from absent import absent

if os.environ.get("PYTORCH_JIT") != "0":  # torch reads it when it is imported
    sys.exit("set PYTORCH_JIT=0: torch 2.13 cannot compile the functions of NeMo, which run as well without that")
cpu.without_cuda()
torch.cuda.is_available = lambda: False


def _loads_any_class(load: Any) -> Any:
    """`torch.load` with the default of 2024: a `.ckpt` holds the config as an object of OmegaConf."""
    return lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False})


def _of_integers(histc: Any) -> Any:
    """`torch.histc`, which counts integers on a GPU alone: NeMo's router counts the tokens of an expert."""
    return lambda values, *args, **kwargs: histc(values.float(), *args, **kwargs).to(values.dtype)


def _version_of(version: Any) -> Any:
    """The version of a distribution, with one for the stand-in of TransformerEngine."""
    standin = os.environ.get("TE_STANDIN_VERSION", "1.2.0")
    return lambda name: standin if name == "transformer-engine" else version(name)


def _hashable(dataclass: Any) -> Any:
    """`dataclasses.dataclass` as until Python 3.10: NeMo before 1.21 has objects as defaults, which 3.11 wants hashable."""

    def made(kind: Any = None, /, **how: Any) -> Any:
        if kind is None:
            return lambda kind: made(kind, **how)
        of_nemo = kind.__module__.startswith("nemo.") and "__hash__" not in vars(kind)
        return dataclass(kind, **({"unsafe_hash": True} if of_nemo else {}) | how)

    return made


def _layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, epsilon), torch.zeros(1), torch.zeros(1)


dataclasses.dataclass = _hashable(dataclasses.dataclass)
torch.load = _loads_any_class(torch.load)
torch.histc = _of_integers(torch.histc)
importlib.metadata.version = _version_of(importlib.metadata.version)

_MULTI_TENSOR = ("multi_tensor_l2norm", "multi_tensor_scale", "multi_tensor_adam", "multi_tensor_axpby")
_KERNELS: dict[str, dict[str, Any]] = {
    "amp_C": dict.fromkeys(_MULTI_TENSOR),
    "apex_C": {"flatten": None, "unflatten": None},
    "distributed_adam_cuda": {},
    "fast_layer_norm": {"ln_fwd": _layer_norm},
    "fused_adam_cuda": {},
    "fused_layer_norm_cuda": {},
    "fused_weight_gradient_mlp_cuda": {},
    "syncbn": {},
}
for _name, _names in _KERNELS.items():
    _module = types.ModuleType(_name)
    _module.__dict__.update(_names)
    sys.modules[_name] = _module

absent(
    "youtokentome pangu opencc pesq pystoi kaldi_io texterrors sox pyannote lhotse nemo_text_processing mauve jieba "
    "fasttext faiss onnx"
)
