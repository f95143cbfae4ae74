"""Files of `torch.save`: the zip container, the legacy one, and nested objects in them."""

from ckpt_core.storage.pickle.limits import Limits
from ckpt_core.storage.pickle.opaque import Opaque, brief
from ckpt_core.storage.torch.nest import plan_nest, torch_bytes
from ckpt_core.storage.torch.reading import may_be_torch_file, read_torch_file, read_torch_member
from ckpt_core.storage.torch.state_dict import StateDict, plan_state_dict, read_state_dict
from ckpt_core.storage.torch.writing import TensorSpec

__all__ = [
    "Limits",
    "Opaque",
    "StateDict",
    "TensorSpec",
    "brief",
    "may_be_torch_file",
    "plan_nest",
    "plan_state_dict",
    "read_state_dict",
    "read_torch_file",
    "read_torch_member",
    "torch_bytes",
]
