"""The Python API as its users meet it: its names, its arguments, its tensors as arrays, and what its values say of themselves."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ckpt_core
from ckpt_core import UsageError, convert, fingerprint, launch_of, open_checkpoint, plan_conversion
from ckpt_core.testing import example, write_ir

TENSOR = "layers.0.attention.q.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_ir(str(tmp_path_factory.mktemp("public") / "ir"), example("llama", hidden=48)))


def test_every_name_is_there_and_documented() -> None:
    homes = {name for names in ckpt_core._HOMES.values() for name in names}
    assert homes | {"__version__"} == set(ckpt_core.__all__) and homes <= set(dir(ckpt_core))
    assert all(inspect.getdoc(getattr(ckpt_core, name)) for name in homes)
    with pytest.raises(AttributeError, match="open_checkpiont"):
        _ = ckpt_core.open_checkpiont


def test_a_shell_completes_names_that_were_not_looked_at() -> None:
    for module in ("", ".sdk", ".tensors", ".storage.torch", ".storage.chunks"):
        code = f"import ckpt_core{module} as one; print(set(one.__all__) - set(dir(one)), len(one.__dir__()) - len(set(one.__dir__())))"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said.strip() == "set() 0", module


def test_importing_loads_nothing() -> None:
    code = "import ckpt_core, sys; print([n for n in sys.modules if n.startswith(('ckpt_core.', 'numpy'))])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize("function", [convert, fingerprint, launch_of, open_checkpoint, plan_conversion])
def test_arguments_are_spelled_out(function) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert not [one for one in parameters if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    assert all(one.annotation is not one.empty for one in parameters)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"src": None}, "src must be a path"),
        ({"src": b"bytes"}, "src must be a path"),
        ({"dst": 3}, "dst must be a path"),
        ({"to": None}, "to must be the name of a format"),
        ({"to": "hgf"}, "hgf"),
        ({"format": 5}, "format must be the name of a format"),
        ({"format": "hgf"}, "hgf"),
        ({"config": 1.5}, "config must be a path"),
        ({"weights": "masters"}, "auto, model, master"),
        ({"dtype": 16}, "dtype is given by its name"),
        ({"dtype": "float17"}, "float17"),
        ({"tp": "2"}, "--tp must be a whole number"),
        ({"tp": True}, "--tp must be a whole number"),
        ({"pp": 0}, "--pp must be at least 1"),
        ({"workers": 1.0}, "workers must be a whole number"),
        ({"max_memory": "much"}, "max_memory must be a size"),
        ({"max_memory": 0}, "max_memory must be at least 1"),
        ({"dtype": "bfloat61"}, "did you mean 'bf16'"),
        ({"dtype": "int8"}, "weights can't be written"),
        ({"executor": "dask"}, "executor must be a concurrent.futures.Executor"),
        ({"options": "max_shard_size=5"}, "options must be a mapping"),
        ({"options": {"max_shard_size": None}}, "option max_shard_size must be given as text"),
        ({"options": {"max_shard": "5"}}, "no write option 'max_shard'"),
    ],
)
def test_a_wrong_argument_is_named(source: Path, tmp_path: Path, changes: dict, words: str) -> None:
    arguments = {"src": source, "dst": tmp_path / "out", "to": "ir", **changes}
    with pytest.raises(UsageError) as refused:
        convert(arguments.pop("src"), arguments.pop("dst"), **arguments)
    assert words in str(refused.value) and not (tmp_path / "out").exists()


def test_an_option_may_be_a_plain_value(source: Path, tmp_path: Path) -> None:
    one = convert(source, tmp_path / "one", to="ir", options={"max_shard_size": 5000})
    two = convert(source, tmp_path / "two", to="ir", options={"max_shard_size": "5000"})
    assert one.options == two.options == {"max_shard_size": "5000"} and len(one.files) > 2


def assert_same_bits(one: np.ndarray, two: np.ndarray) -> None:
    """Equal float32 arrays; NaNs are equal too."""
    assert one.dtype == two.dtype == np.float32 and np.array_equal(one.view(np.uint32), two.view(np.uint32))


def test_tensors_are_arrays(source: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        tensor = checkpoint[TENSOR]
        values = tensor.numpy()
        assert_same_bits(np.asarray(tensor), values)
        assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
        assert_same_bits(torch.as_tensor(tensor).numpy(), values)
        assert tensor.ndim == len(tensor.shape) == values.ndim
        with pytest.raises(ValueError, match="copy=False"):
            tensor.__array__(copy=False)
        for index in ("a", 1.5, [0], None, np.array([True])):
            with pytest.raises(IndexError, match="not an index"):
                tensor[index]  # type: ignore[index]
        with pytest.raises(KeyError, match=r"did you mean 'layers\.0\.attention\.q\.weight'"):
            checkpoint["layers.0.attention.q.weigth"]
        assert "layers.9.nothing" not in checkpoint and 3 not in checkpoint


def test_values_say_what_they_are(source: Path, tmp_path: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        assert repr(checkpoint[TENSOR]).startswith(f"<{TENSOR}: ") and repr(checkpoint[TENSOR]).endswith(" fp32>")
        layers = len(checkpoint.architecture.decoder.layers)
        assert repr(checkpoint) == (
            f"<OpenCheckpoint ir {source}: {layers} layers, hidden 48, {len(checkpoint)} tensors>"
        )
        plan = plan_conversion(source, tmp_path / "out", to="ir", dtype="bf16")
        assert repr(plan).startswith(f"<Plan ir {source} to ir: {len(checkpoint)} tensors to ")
        receipt = convert(source, tmp_path / "out", to="ir")
        assert f"ir, {len(checkpoint)} tensors in " in repr(receipt) and receipt.fingerprint[:15] in repr(receipt)
        assert repr(receipt).startswith(f"<Receipt {tmp_path / 'out' / 'ckpt-receipt.json'}: ")
        found = convert(source, tmp_path / "out", to="ir")
        assert found.found and repr(found).endswith(", found>") and found.digests == receipt.digests
