"""Files of `torch.save`: the zip container, the legacy one, and nested objects in them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.storage.pickle.limits import Limits
    from ckpt_core.storage.pickle.opaque import Opaque, brief
    from ckpt_core.storage.tensor import StateDict
    from ckpt_core.storage.torch.nest import plan_nest, torch_bytes
    from ckpt_core.storage.torch.reading import may_be_torch_file, read_torch_file, read_torch_member
    from ckpt_core.storage.torch.state_dict import plan_state_dict, read_state_dict
    from ckpt_core.storage.torch.writing import TensorSpec
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            "..pickle.limits": "Limits",
            "..pickle.opaque": "Opaque brief",
            "..tensor": "StateDict",
            ".nest": "plan_nest torch_bytes",
            ".reading": "may_be_torch_file read_torch_file read_torch_member",
            ".state_dict": "plan_state_dict read_state_dict",
            ".writing": "TensorSpec",
        },
    )

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
