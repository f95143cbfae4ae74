"""Linear modules: alone, behind a norm, and one for each expert."""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch.nn import Module, Parameter

from .norms import norm
from .stateful import Stateful


def marked(parameter, dim):
    parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dim, 1
    return parameter


class Linear(Stateful):
    def __init__(
        self,
        in_features,
        out_features,
        sequence_parallel=False,
        fuse_wgrad_accumulation=False,
        tp_group=None,
        tp_size=1,
        get_rng_state_tracker=None,
        init_method=None,
        bias=True,
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        device=None,
        **_,
    ):
        super().__init__()
        if sequence_parallel and tp_size > 1:
            raise NotImplementedError("sequence parallel in the stand-in")
        if parallel_mode == "column":
            out_features //= tp_size
        if parallel_mode == "row":
            in_features //= tp_size
        self.in_features, self.out_features, self.tp_size, self.tp_group = in_features, out_features, tp_size, tp_group
        self.use_bias, self.return_bias, self.parallel_mode = bias, return_bias, parallel_mode
        self.sequence_parallel = sequence_parallel
        self.apply_bias = bias and not return_bias
        self._make(params_dtype, init_method)

    def _make(self, dtype, init_method):
        weight = Parameter(torch.zeros(self.out_features, self.in_features, dtype=dtype))
        if self.parallel_mode:
            marked(weight, 1 if self.parallel_mode == "row" else 0)
        if init_method:
            init_method(weight.data)
        self.weight = weight
        if self.use_bias:
            self.bias = Parameter(torch.zeros(self.out_features, dtype=dtype))
            if self.parallel_mode == "column":
                marked(self.bias, 0)
        else:
            self.bias = torch.empty(0)

    def _linear(self, x, weight, bias):
        y = F.linear(x, weight)
        if self.parallel_mode == "row" and self.tp_size > 1:
            y = y.contiguous()
            torch.distributed.all_reduce(y, group=self.tp_group)
        if self.return_bias:
            return y, bias
        return y + bias if self.use_bias else y

    def forward(self, x, is_first_microbatch=None, **_):
        return self._linear(x, self.weight, self.bias)


class LayerNormLinear(Linear):
    def __init__(
        self,
        in_features,
        out_features,
        eps=1e-5,
        normalization="LayerNorm",
        zero_centered_gamma=False,
        return_layernorm_output=False,
        params_dtype=None,
        **kwargs,
    ):
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        super().__init__(in_features, out_features, params_dtype=params_dtype, **kwargs)
        make = torch.zeros if zero_centered_gamma else torch.ones
        self.layer_norm_weight = Parameter(make(in_features, dtype=params_dtype))
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            self.layer_norm_bias = Parameter(torch.zeros(in_features, dtype=params_dtype))

    def __setattr__(self, name, value):
        if "_parameters" not in self.__dict__ and not isinstance(value, (Parameter, Module)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x, is_first_microbatch=None, **_):
        x = norm(
            x,
            self.layer_norm_weight,
            self.layer_norm_bias,
            self.eps,
            self.zero_centered_gamma,
            self.normalization == "RMSNorm",
        )
        return self._linear(x, self.weight, self.bias)


class GroupedLinear(Stateful):
    def __init__(
        self,
        num_gemms,
        in_features,
        out_features,
        bias=True,
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        init_method=None,
        tp_size=1,
        **_,
    ):
        super().__init__()
        if tp_size > 1:
            raise NotImplementedError("tensor parallel experts in the stand-in")
        self.num_gemms, self.use_bias, self.return_bias = num_gemms, bias, return_bias
        self.in_features, self.out_features = in_features, out_features
        self.fp8_meta = {"recipe": None, "fp8_checkpoint": False}
        self.fp8 = self.fp8_calibration = False
        for i in range(num_gemms):
            weight = Parameter(torch.zeros(out_features, in_features, dtype=params_dtype))
            if parallel_mode:
                marked(weight, 1 if parallel_mode == "row" else 0)
            self.register_parameter(f"weight{i}", weight)
            if bias:
                self.register_parameter(f"bias{i}", Parameter(torch.zeros(out_features, dtype=params_dtype)))

    def init_fp8_metadata(self, num_gemms=1):
        pass

    def forward(self, x, m_splits, is_first_microbatch=None, **_):
        parts = []
        for i, part in enumerate(torch.split(x, list(map(int, m_splits)))):
            y = F.linear(part, getattr(self, f"weight{i}"))
            if self.use_bias and not self.return_bias:
                y = y + getattr(self, f"bias{i}")
            parts.append(y)
        out = torch.cat(parts)
        if self.return_bias:
            return out, [getattr(self, f"bias{i}") for i in range(self.num_gemms)]
        return out
