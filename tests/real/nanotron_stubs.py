"""CPU stand-ins that let the released nanotron 0.4 run without a GPU.

Written against ``nanotron==0.4`` (PyPI) and the flash-attn 2.5 interface which that release calls. Nothing of
nanotron's own sharding, loading or forward code is replaced: only flash-attn's kernels, which exist for CUDA alone, and
the three places where nanotron pins a CUDA device. Call :func:`install` once per process, before anything imports
nanotron.
"""

import importlib
import math
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

NANOTRON_VERSION = "0.4"


def install() -> None:
    """Put the flash-attn stand-ins in place, then import nanotron 0.4 and lift its CUDA-only assumptions."""
    _install_flash_attn()
    _import_nanotron_config()
    _run_nanotron_on_cpu()


# --------------------------------------------------------------------------------------------------- flash-attn kernels


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    return_attn_probs: bool = False,
) -> Tensor:
    """Softmax attention over packed sequences ``[total, heads, d]``, one sequence per ``cu_seqlens`` segment.

    As in flash-attn, query head ``i`` reads key/value head ``i // (q_heads / kv_heads)``, and both the causal mask and
    the window are aligned to the *end* of the keys. ``window_size`` has to be a named parameter: nanotron's Starcoder2
    looks for it in the signature before it accepts a sliding window.
    """
    if dropout_p or return_attn_probs:
        raise NotImplementedError("dropout_p and return_attn_probs: only the inference forward is modelled")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    groups = q.shape[1] // k.shape[1]
    left, right = window_size[0], 0 if causal else window_size[1]
    segments_q, segments_k = pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist())
    outputs = []
    for (start_q, end_q), (start_k, end_k) in zip(segments_q, segments_k, strict=True):
        queries = q[start_q:end_q]
        keys = k[start_k:end_k].repeat_interleave(groups, dim=1)
        values = v[start_k:end_k].repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) * scale
        # How far each key lies after the position of each query; negative is the past.
        ahead = torch.arange(end_k - start_k) - torch.arange(end_q - start_q)[:, None]
        ahead = ahead - ((end_k - start_k) - (end_q - start_q))
        if right >= 0:
            scores = scores.masked_fill(ahead > right, -math.inf)
        if left >= 0:
            scores = scores.masked_fill(ahead < -left, -math.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values.float()).to(q.dtype))
    return torch.cat(outputs)


def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> NoReturn:
    """Present because nanotron's model files import it by name; only token-by-token generation would call it."""
    raise NotImplementedError("generation with a KV cache is not modelled on CPU")


class RotaryEmbedding(nn.Module):
    """Rotary embedding with flash-attn's two pairings: ``(2j, 2j+1)`` if ``interleaved``, else ``(j, j + dim/2)``.

    The angles are recomputed in fp32 on each call instead of being kept in a buffer, so that building the model in
    another dtype cannot round them (flash-attn guards against the same thing with its ``pos_idx_in_fp32``).
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self.interleaved = interleaved

    def forward(self, q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate ``q`` [batch, seq, heads, d] and the keys in ``kv`` [batch, seq, 2, heads, d]; values stay as is."""
        inv_freq = 1.0 / self.base ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        angles = torch.outer(torch.arange(q.shape[1], dtype=torch.float32), inv_freq)[:, None, :]
        cos, sin = angles.cos(), angles.sin()
        keys, values = kv.unbind(dim=2)
        return self._rotate(q, cos, sin), torch.stack((self._rotate(keys, cos, sin), values), dim=2)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotated, rest = x[..., : self.dim].float(), x[..., self.dim :]
        if self.interleaved:
            first, second = rotated[..., ::2], rotated[..., 1::2]
        else:
            first, second = rotated.chunk(2, dim=-1)
        halves = (first * cos - second * sin, first * sin + second * cos)
        joined = torch.stack(halves, dim=-1).flatten(-2) if self.interleaved else torch.cat(halves, dim=-1)
        return torch.cat((joined.to(x.dtype), rest), dim=-1)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor:
    """RMSNorm or LayerNorm over the last dimension, computed in fp32 as the Triton kernel does."""
    if residual is not None or dropout_p or prenorm or residual_in_fp32 or return_dropout_mask:
        raise NotImplementedError("nanotron 0.4's models only call the plain norm")
    hidden = x.float()
    if not is_rms_norm:
        hidden = hidden - hidden.mean(dim=-1, keepdim=True)
    hidden = hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + eps) * weight.float()
    if bias is not None:
        hidden = hidden + bias.float()
    return hidden.to(x.dtype)


def _install_flash_attn() -> None:
    """Register the stand-ins under flash-attn's module names, and in the same nesting."""
    contents: dict[str, dict[str, Any]] = {
        "flash_attn": {},
        # Imported by name, used only by the prefill step of generation.
        "flash_attn.bert_padding": {},
        "flash_attn.flash_attn_interface": {
            "flash_attn_varlen_func": flash_attn_varlen_func,
            "flash_attn_with_kvcache": flash_attn_with_kvcache,
        },
        "flash_attn.layers": {},
        "flash_attn.layers.rotary": {"RotaryEmbedding": RotaryEmbedding},
        "flash_attn.ops": {},
        "flash_attn.ops.triton": {},
        "flash_attn.ops.triton.layer_norm": {"layer_norm_fn": layer_norm_fn},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


# ------------------------------------------------------------------------------------------------------------- nanotron


def _import_nanotron_config() -> None:
    """Break the import cycle that makes nanotron 0.4 unimportable as released.

    ``nanotron.logging`` imports ``nanotron.config.config``, whose pipeline-engine import needs ``nanotron.logging``.
    The logging module only wants the name ``LoggingArgs`` for an annotation, so it is imported against a placeholder,
    and the real config package is imported afterwards.
    """
    nanotron = importlib.import_module("nanotron")
    placeholders = {"nanotron.config": ModuleType("nanotron.config")}
    placeholders["nanotron.config.config"] = ModuleType("nanotron.config.config")
    vars(placeholders["nanotron.config.config"])["LoggingArgs"] = object
    sys.modules.update(placeholders)
    importlib.import_module("nanotron.logging")
    for name in placeholders:
        del sys.modules[name]
    # The import system may have bound the placeholder on the package, which would hide the real one.
    vars(nanotron).pop("config", None)
    importlib.import_module("nanotron.config")


def _run_nanotron_on_cpu() -> None:
    """Replace the spots where nanotron 0.4 asks for a CUDA device although the computation needs none."""
    from nanotron.models.starcoder2 import StarcoderRotaryEmbedding
    from nanotron.parallel.context import ParallelContext
    from nanotron.parallel.pipeline_parallel.p2p import P2P

    # Binds the process to a GPU, nothing else.
    ParallelContext.set_device = lambda self: None

    # Both model classes construct P2P(device="cuda") for the buffers of the pipeline's messages.
    construct_p2p = P2P.__init__
    P2P.__init__ = lambda self, pg, device: construct_p2p(self, pg, torch.device("cpu"))

    # Allocates the frequencies on "cuda" and asserts so; the formula below is the one it uses.
    def init_rotary_embeddings(self: Any) -> None:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float) / self.head_dim
        self.inv_freq = 1.0 / (self.base**exponents)
        self._initialized_buffer = True

    StarcoderRotaryEmbedding.init_rotary_embeddings = init_rotary_embeddings
