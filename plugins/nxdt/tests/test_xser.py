"""xser: a nest whose tensors lie in files of their own, judged by torch and a stand-in for torch_xla's class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes import read_range
from ckpt_core.storage.dtypes import BF16, FP32
from ckpt_core.storage.tensor import StoredTensor
from ckpt_nxdt.xser import AbsentTensor, plan_xser, read_xser
from ckpt_tests import nxdt


def saved(path: Path, nest: object, *tensors: torch.Tensor, info: bool = True) -> Path:
    """What NxD's `_xser_save_data` leaves."""
    with nxdt.torch_xla():
        torch.save(nest, path)
    Path(f"{path}.tensors").mkdir()
    for tid, tensor in enumerate(tensors):
        torch.save(tensor, f"{path}.tensors/tensor_{tid}.pt")
    if info:
        described = {
            tid: {"dtype": tensor.dtype, "shape": tensor.shape, "expert_model_parallel": bool(tid % 2)}
            for tid, tensor in enumerate(tensors)
        }
        torch.save(described, f"{path}.info.pt")
    return path


def values(tensor: StoredTensor) -> torch.Tensor:
    raw = read_range(tensor.file, tensor.offset, tensor.elements * tensor.dtype.size)
    return torch.frombuffer(bytearray(raw), dtype=getattr(torch, tensor.dtype.torch)).reshape(tensor.shape)


def reference(tid: object) -> nxdt.TensorReference:
    return nxdt.TensorReference(tid)


ONE, TWO = torch.randn(3, 4), torch.randn(5).bfloat16()


@pytest.mark.parametrize("info", [True, False])
def test_references_become_tensors(tmp_path: Path, info: bool) -> None:
    nest = {"a": reference(0), "deep": [{"b": (reference(1), 7)}], "inside": ONE + 1}
    found = read_xser(saved(tmp_path / "x.pt", nest, ONE, TWO, info=info))
    assert torch.equal(values(found["a"]), ONE)
    assert torch.equal(values(found["deep"][0]["b"][0]), TWO)
    assert found["deep"][0]["b"][1] == 7
    assert torch.equal(values(found["inside"]), ONE + 1)


@pytest.mark.parametrize(
    "name",
    [
        "neuronx_distributed.trainer.checkpoint._InternalTensorReference",
        "nemo.collections.nlp.parts.serialization.TensorReference",
    ],
)
def test_the_other_classes_of_references(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module, _, kind = name.rpartition(".")
    cls = type(kind, (), {"__module__": module})
    for part in [module[:at] for at, letter in enumerate(module) if letter == "."] + [module]:
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    setattr(sys.modules[module], kind, cls)
    one = cls()
    one.tid, one.shape, one.dtype = 0, ONE.shape, ONE.dtype
    assert torch.equal(values(read_xser(saved(tmp_path / "x.pt", [one], ONE))[0]), ONE)


def test_a_tensor_that_is_kept_elsewhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": reference(0), "b": reference(1)}, ONE, TWO)
    Path(f"{path}.tensors/tensor_1.pt").unlink()
    found = read_xser(path)["b"]
    assert found == AbsentTensor(f"{path}.tensors/tensor_1.pt", BF16, (5,), True)


def test_a_nest_that_holds_itself(tmp_path: Path) -> None:
    nest: dict = {"a": reference(0), "again": []}
    nest["again"].append(nest)
    path = saved(tmp_path / "x.pt", nest, ONE)
    with pytest.raises(FormatError, match="too many values"):
        read_xser(path)


def deep(levels: int) -> list:
    return [deep(levels - 1)] if levels else []


def rewrite(path: Path, value: object) -> None:
    torch.save(value, path)


DAMAGE: dict[str, tuple[object, Callable[[Path], object], str]] = {
    "a path for a number": ({"a": reference("../../secret")}, lambda path: None, "has no number"),
    "a negative number": ({"a": reference(-1)}, lambda path: None, "has no number"),
    "no number": ({"a": reference(None)}, lambda path: None, "has no number"),
    "far too deep": (deep(80), lambda path: None, "nests too deep"),
    "another shape": ({"a": reference(0)}, lambda path: rewrite(Path(f"{path}.tensors/tensor_0.pt"), ONE.T.clone()), "not what the info file says"),
    "another dtype": ({"a": reference(0)}, lambda path: rewrite(Path(f"{path}.tensors/tensor_0.pt"), ONE.double()), "not what the info file says"),
    "no tensor": ({"a": reference(0)}, lambda path: rewrite(Path(f"{path}.tensors/tensor_0.pt"), {"w": ONE}), "holds no tensor"),
    "a truncated tensor": ({"a": reference(0)}, lambda path: Path(f"{path}.tensors/tensor_0.pt").write_bytes(b"PK\3\4"), "tensor_0.pt"),
    "an info of other tensors": ({"a": reference(0)}, lambda path: rewrite(Path(f"{path}.info.pt"), {5: {}}), "does not describe tensor 0"),
    "an info of nothing": ({"a": reference(0)}, lambda path: rewrite(Path(f"{path}.info.pt"), [1]), "holds no dict"),
    "an info of texts": ({"a": reference(0)}, lambda path: rewrite(Path(f"{path}.info.pt"), {0: {"dtype": "x", "shape": "y"}}), "does not describe"),
}  # fmt: skip


@pytest.mark.parametrize(("nest", "damage", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused_by_name(nest: object, damage: Callable, problem: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", nest, ONE)
    damage(path)
    with pytest.raises(FormatError) as refused:
        read_xser(path)
    assert problem in str(refused.value)


def test_what_is_written_is_what_nxd_loads(tmp_path: Path) -> None:
    tensors = {"a": (FP32, (3, 4)), "kept elsewhere": (FP32, (2,)), "b": (BF16, (5,))}
    plan = plan_xser("model/x.pt", tensors, experts=["b"], absent=["kept elsewhere"])
    contents = {"a": ONE, "b": TWO}
    for file in plan.files:
        body = bytearray(file.size)
        for offset, data in file.literals:
            body[offset : offset + len(data)] = data
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.path).write_bytes(body)
    for (name,), (file, offset) in plan.places.items():
        with (tmp_path / file).open("r+b") as out:
            out.seek(offset)
            out.write(contents[name].contiguous().view(torch.uint8).numpy().tobytes())
    for path, data in plan.documents.items():
        (tmp_path / path).write_bytes(data)
    path = tmp_path / "model/x.pt"
    with nxdt.torch_xla():
        nest = torch.load(path, weights_only=False)
    assert [(type(value), value.__dict__) for value in nest.values()] == [
        (nxdt.TensorReference, {"tid": tid}) for tid in range(3)
    ]
    assert {
        name: torch.equal(torch.load(f"{path}.tensors/tensor_{nest[name].tid}.pt"), value)
        for name, value in contents.items()
    } == {"a": True, "b": True}
    assert not Path(f"{path}.tensors/tensor_1.pt").exists()
    assert torch.load(f"{path}.info.pt", weights_only=False) == {
        0: {"dtype": torch.float32, "shape": torch.Size([3, 4]), "expert_model_parallel": False},
        1: {"dtype": torch.float32, "shape": torch.Size([2]), "expert_model_parallel": False},
        2: {"dtype": torch.bfloat16, "shape": torch.Size([5]), "expert_model_parallel": True},
    }
    found = read_xser(path)
    assert torch.equal(values(found["b"]), TWO)
    assert isinstance(found["kept elsewhere"], AbsentTensor)
