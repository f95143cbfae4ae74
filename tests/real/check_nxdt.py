"""What we write in xser, judged by torch_xla's own reader, and what we write for a job, judged by AWS's own converter.

    pip download --no-deps torch_xla==2.9.0
    git clone https://github.com/aws-neuron/neuronx-distributed
    TORCH_XLA_WHEEL=torch_xla-2.9.0-*.whl NXD_SOURCE=neuronx-distributed pytest --noconftest tests/real/check_nxdt.py

Neither is installed: their Python sources run as they are, without the device libraries behind them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import os
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ckpt_core import convert
from ckpt_core.errors import CkptError

LAYERS = 5


def hf(folder: Path, heads: int, groups: int) -> Path:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=64, hidden_size=heads * 6, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=heads,
        num_key_value_heads=groups, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def stub(modules: pytest.MonkeyPatch, name: str, source: str = "", **members: object) -> types.ModuleType:
    """A module with these members, and then this source."""
    for at in [at for at, letter in enumerate(name) if letter == "."]:
        if name[:at] not in sys.modules:
            modules.setitem(sys.modules, name[:at], types.ModuleType(name[:at]))
    module = types.ModuleType(name)
    modules.setitem(sys.modules, name, module)
    module.__dict__.update(members)
    exec(compile(source, name, "exec"), module.__dict__)
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)
    return module


def without_imports(source: str, *wanted: str) -> str:
    """These functions and classes of a source alone."""
    nodes = [node for node in ast.parse(source).body if getattr(node, "name", None) in wanted]
    return ast.unparse(ast.Module(nodes, []))


@pytest.fixture
def xser(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """torch_xla.utils.serialization."""
    wheel = os.environ.get("TORCH_XLA_WHEEL")
    if not wheel:
        pytest.skip("TORCH_XLA_WHEEL names no wheel")
    read = zipfile.ZipFile(wheel).read
    stub(monkeypatch, "torch_xla")
    stub(monkeypatch, "torch_xla.utils.utils", read("torch_xla/utils/utils.py").decode())
    arena = without_imports(read("torch_xla/core/xla_model.py").decode(), "ToXlaTensorArena")
    header = "from typing import *\nimport torch\nimport torch_xla.utils.utils as xu\n"
    stub(monkeypatch, "torch_xla.core.xla_model", header + arena)
    return stub(monkeypatch, "torch_xla.utils.serialization", read("torch_xla/utils/serialization.py").decode())


def test_torch_xla_loads_what_we_write(xser: types.ModuleType, tmp_path: Path) -> None:
    source = hf(tmp_path / "hf", 8, 2)
    for kind in ("true", "false"):
        convert(source, tmp_path / kind, to="nxdt", tp=2, pp=2, options={"xser": kind})
    files = sorted(path for path in (tmp_path / "true/model").glob("*.pt") if not path.name.endswith(".info.pt"))
    assert len(files) == 4
    for path in files:
        loaded, plain = xser.load(str(path)), torch.load(tmp_path / "false/model" / path.name)
        assert loaded.keys() == plain.keys()
        assert all(torch.equal(loaded[name], plain[name]) for name in plain)


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """AWS's checkpoint_converter."""
    clone = os.environ.get("NXD_SOURCE")
    if not clone:
        pytest.skip("NXD_SOURCE names no clone of neuronx-distributed")
    package = Path(clone) / "src/neuronx_distributed"
    stub(monkeypatch, "torch_xla.utils.serialization", save=lambda data, path: torch.save(data, path))
    partition = without_imports(
        (package / "pipeline/partition.py").read_text(), "create_partitions", "stage_to_pipeline_parallel_rank"
    )
    stub(monkeypatch, "neuronx_distributed.pipeline.partition", partition)
    stub(monkeypatch, "neuronx_distributed.trainer.checkpoint", _xser_load_data=None)
    storage = {"BaseCheckpointStorage": object, "create_checkpoint_storage": None}
    stub(monkeypatch, "neuronx_distributed.trainer.checkpoint_storage", **storage)
    stub(monkeypatch, "neuronx_distributed.scripts.yaml_converter", convert_yaml_to_json=None)
    text = (package / "scripts/checkpoint_converter.py").read_text()
    return stub(monkeypatch, "neuronx_distributed.scripts.checkpoint_converter", text)


def configurations(heads: int, groups: int) -> Iterator[dict]:
    every = itertools.product(("hf", "megatron"), ("trn1", "trn2"), (1, 2, 4, 8), ((1, 1), (2, 1), (2, 2)), (1, 2, 4))
    for style, hardware, tp, (pp, vpp), copies in every:
        kinds = (
            ("split", "linear", "fused", "coalesced") if style == "hf" else ("split" if heads == groups else "linear",)
        )
        for qkv in kinds:
            yield {"style": style, "hardware": hardware, "tp": tp, "pp": pp, "vpp": vpp, "copies": copies, "qkv": qkv}


def theirs(converter: types.ModuleType, full: Path, config: Path, out: Path, case: dict) -> bool:
    """Run AWS's converter; False if it fails."""
    flags = {
        "input_dir": full, "output_dir": out, "hw_backend": case["hardware"], "config": config, "tp_size": case["tp"],
        "pp_size": case["pp"], "virtual_pp_size": case["vpp"], "n_layers": LAYERS, "kv_size_multiplier": case["copies"],
        "model_style": case["style"],
    }  # fmt: skip
    flags |= {"qkv_linear": "True"} if case["qkv"] in ("linear", "fused") else {}
    flags |= {"fuse_qkv": "True"} if case["qkv"] == "fused" else {}
    flags |= {"coalesce_qkv": "True"} if case["qkv"] == "coalesced" else {}
    job = converter.CheckpointConverterBase()
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            job.run(job.get_arg_parser().parse_args([*words, "--convert_from_full_state"]))
    except Exception:
        return False
    return True


@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (8, 4), (12, 4), (8, 1), (4, 4), (8, 8)])
def test_aws_converter_writes_the_same(heads: int, groups: int, converter: types.ModuleType, tmp_path: Path) -> None:
    """Every configuration that both of us write: the same tensors, and the way back gives the source."""
    source = hf(tmp_path / "hf", heads, groups)
    stored = load_file(source / "model.safetensors")
    torch.save(stored, tmp_path / "full.pt")
    save_file(stored, source / "model.safetensors", {"format": "pt"})
    compared = 0
    for number, case in enumerate(configurations(heads, groups)):
        ours, aws, back = (tmp_path / f"{name}{number}" for name in ("ours", "aws", "back"))
        options = {
            "model_style": case["style"],
            "hw_backend": case["hardware"],
            "kv_size_multiplier": str(case["copies"]),
        }
        options |= {"virtual_pp": str(case["vpp"]), "layout": "aws-converter", "qkv": case["qkv"]}
        try:
            convert(source, ours, to="nxdt", tp=case["tp"], pp=case["pp"], options=options)
        except CkptError:
            continue  # no job has this
        if not theirs(converter, tmp_path / "full.pt", source / "config.json", aws, case):
            continue
        names = sorted(path.name for path in (aws / "model").iterdir())
        assert names == sorted(path.name for path in (ours / "model").iterdir())
        for name in names:
            one, two = torch.load(aws / "model" / name), torch.load(ours / "model" / name)
            assert one.keys() == two.keys(), case
            assert all(torch.equal(one[key], two[key]) for key in one), case
        reading = {"hw_backend": case["hardware"], "layout": "aws-converter"}
        convert(aws, back, to="hf", config=str(source / "config.json"), options=reading)
        returned = load_file(back / "model.safetensors")
        assert returned.keys() == stored.keys()
        assert all(torch.equal(returned[key], stored[key]) for key in stored), case
        compared += 1
    assert compared > 20
