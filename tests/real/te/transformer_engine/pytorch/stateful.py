"""The extra state that a checkpoint holds for a module of TransformerEngine."""

from __future__ import annotations

import torch
from torch.nn import Module


class Stateful(Module):
    """Extra state of a module that does not run in fp8: an empty byte tensor."""

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        pass

    def set_tensor_parallel_group(self, group):
        self.tp_group = group
