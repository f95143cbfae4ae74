"""DeepSpeed's files by torch alone: reading them to judge ckpt, and writing them as DeepSpeed does, to be read by it."""

from __future__ import annotations

import functools
import json
import math
import pickle
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ckpt_tests.goldens import Golden, goldens
from ckpt_tests.inert import pickle_module

SAFE = {"torch", "collections", "_codecs", "numpy", "argparse", "typing", "builtins", "__builtin__"}
FRAMEWORKS = (
    "megatron-deepspeed",
    'deepspeed universal checkpoint (BLOOM-era, "v0.1")',
    "deepspeed ZeRO",
    "deepspeed universal checkpoint",
)


class Inert:
    """A stand-in for an object of a class that is not installed: what it was made with, and its state."""

    def __new__(cls, *arguments: object) -> Inert:
        made = object.__new__(cls)
        made.__dict__["made_with"] = arguments
        return made

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def __reduce__(self) -> tuple:
        state = {key: value for key, value in self.__dict__.items() if key != "made_with"}
        return type(self), self.__dict__["made_with"], state or None


@functools.cache
def inert(module: str, name: str) -> type[Inert]:
    """The stand-in for a class; it is pickled under the name of what it stands for."""
    return type(name, (Inert,), {"__module__": module})


_inert = pickle_module(SAFE, inert)


def load(path: Path) -> object:
    """What `torch.save` wrote, with inert stand-ins for the frameworks' classes."""
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_inert)


def pipeline_goldens() -> list[Golden]:
    return [golden for framework in FRAMEWORKS[:2] for golden in goldens(framework)]


def model_goldens() -> list[Golden]:
    return [golden for framework in FRAMEWORKS[2:] for golden in goldens(framework)]


def config_of(golden: Golden, folder: Path) -> Path:
    """The `config.json` of the transformers model of a case, which DeepSpeed does not keep."""
    import transformers

    name = golden.case["hf_architecture"]
    config = transformers.AutoConfig.for_model(
        {"LlamaForCausalLM": "llama"}[name], **golden.case["model"], architectures=[name]
    )
    config.save_pretrained(folder)
    return folder / "config.json"


def tensors(root: Path) -> dict[str, torch.Tensor]:
    """The weights in all files of a step but the optimizer's and the model states: by file and name."""
    found = {}
    for path in sorted(root.rglob("*.pt")):
        if "optim" in path.name or "mp_rank" in path.name or path.name.startswith(("exp_avg", "step")):
            continue
        content = load(path)
        for name, value in content.items() if isinstance(content, dict) else [("", content)]:
            if isinstance(value, torch.Tensor):
                found[f"{'/'.join(path.relative_to(root).parts[1:])}:{name}"] = value
    return found


# --- ZeRO, as DeepSpeed cuts it -------------------------------------------------------------------------------------


def fragment_address(numel: int, start: int) -> Inert:
    """DeepSpeed's dataclass of this name."""
    made = inert("deepspeed.utils.tensor_fragment", "fragment_address")()
    made.__setstate__({"numel": numel, "start": start})
    return made


class _Pickler(pickle._Pickler):
    """Pickles inert classes by the name of what they stand for, without importing it."""

    def save_global(self, obj: object, name: str | None = None) -> None:
        if isinstance(obj, type) and issubclass(obj, Inert):
            self.write(f"c{obj.__module__}\n{obj.__name__}\n".encode())
            self.memoize(obj)
            return
        super().save_global(obj, name)


_by_name = types.ModuleType("by_name")
_by_name.Pickler = _Pickler


def save(value: object, path: Path) -> None:
    """`torch.save`, with DeepSpeed's classes under their own names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, pickle_module=_by_name, pickle_protocol=2)


@dataclass
class Zero:
    """A model under ZeRO: fp32 masters by name in parameter groups, and what does not train."""

    groups: Sequence[Mapping[str, torch.Tensor]]
    dtype: torch.dtype = torch.bfloat16
    frozen: Mapping[str, torch.Tensor] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def masters(self) -> dict[str, torch.Tensor]:
        return {name: tensor for group in self.groups for name, tensor in group.items()}

    def module(self, empty: bool = False) -> OrderedDict:
        """The module's state dict in the training dtype."""
        whole = {name: tensor.to(self.dtype) for name, tensor in {**self.masters, **self.frozen}.items()}
        whole |= {alias: whole[owner] for alias, owner in self.shared.items()}
        whole = {name: torch.empty(0, dtype=self.dtype) if empty else tensor for name, tensor in whole.items()}
        return OrderedDict(whole | dict(self.buffers))

    def states(self, dp: int, **changes: object) -> dict[str, object]:
        """The model states."""
        return {
            "module": self.module(),
            "buffer_names": list(self.buffers),
            "optimizer": None,
            "param_shapes": [
                OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in self.groups
            ],
            "frozen_param_shapes": OrderedDict((name, tensor.shape) for name, tensor in self.frozen.items()) or None,
            "shared_params": dict(self.shared),
            "frozen_param_fragments": OrderedDict((name, tensor.to(self.dtype)) for name, tensor in self.frozen.items())
            or None,
            "dp_world_size": dp,
            "mp_world_size": 1,
            "ds_version": "0.19.8",
            **changes,
        }


def write_partitioned_groups(folder: Path, zero: Zero, dp: int, *, shapes: bool = True, robin: bool = False) -> None:
    """ZeRO-1 and 2: every group flattened, padded to an even number of elements per rank, and cut.

    `shapes` False: without `param_shapes`, as bf16 with stage 0 is saved. `robin`: with slice mappings in another order than
    the tensors are in, as DeepSpeed 0.19.8 writes them with round_robin_gradients.
    """
    parts: list[dict] = [{"single_partition_of_fp32_groups": [], "param_slice_mappings": []} for _ in range(dp)]
    for group in zero.groups:
        flat = torch.cat([tensor.flatten() for tensor in group.values()])
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * dp)), value=7.0)
        size = len(flat) // dp
        order = list(group.items())[:: -1 if robin else 1]
        for rank, part in enumerate(parts):
            part["single_partition_of_fp32_groups"].append(flat[rank * size : (rank + 1) * size].clone())
            part["param_slice_mappings"].append(OrderedDict(_addresses(order, rank * size, size)))
    for rank, part in enumerate(parts):
        body = {**part, "partition_count": [dp] * len(zero.groups), "ds_version": "0.19.8"}
        body |= {"zero_stage": 2} if shapes else {}
        save({"optimizer_state_dict": body}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    changes = {} if shapes else {"param_shapes": None}
    save(zero.states(dp, **changes), folder / "mp_rank_00_model_states.pt")


def _addresses(order: Sequence[tuple[str, torch.Tensor]], start: int, size: int) -> Iterator[tuple[str, Inert]]:
    position = 0
    for name, tensor in order:
        low, high = max(position, start), min(position + tensor.numel(), start + size)
        if low < high:
            yield name, fragment_address(high - low, low - start)
        position += tensor.numel()


def write_partitioned_parameters(folder: Path, zero: Zero, dp: int, subgroup: int) -> None:
    """ZeRO-3: every parameter cut by itself, the parts collected in subgroups of at least `subgroup` elements."""
    shapes: list[OrderedDict] = []
    held: list[list[list[torch.Tensor]]] = [[] for _ in range(dp)]
    for group in zero.groups:
        count = subgroup
        for name, tensor in group.items():
            if count >= subgroup:
                shapes.append(OrderedDict())
                for rank in held:
                    rank.append([])
                count = 0
            shapes[-1][name] = tensor.shape
            for rank, share in enumerate(_shares(tensor, dp)):
                held[rank][-1].append(share)
            count += tensor.numel()
    for rank in range(dp):
        flat = [torch.cat(parts) for parts in held[rank]]
        body = {"zero_stage": 3, "partition_count": dp, "fp32_flat_groups": flat}
        save({"optimizer_state_dict": body}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        fragments = OrderedDict(
            (name, _shares(tensor.to(zero.dtype), dp)[rank]) for name, tensor in zero.frozen.items()
        )
        states = zero.states(dp, module=zero.module(empty=True), param_shapes=shapes, frozen_param_fragments=fragments)
        save(states, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")


def _shares(tensor: torch.Tensor, dp: int) -> list[torch.Tensor]:
    size = math.ceil(tensor.numel() / dp)
    flat = torch.nn.functional.pad(tensor.flatten(), (0, size * dp - tensor.numel()), value=9.0)
    return [flat[rank * size : (rank + 1) * size].clone() for rank in range(dp)]


def finish(root: Path, step: str, config: Mapping[str, object]) -> None:
    """`latest` and the model's config."""
    (root / "latest").write_text(step)
    (root / "config.json").write_text(json.dumps(config))
