"""Metadata that is wrong: a key that is missing, unknown, or of another type is an error that says so, and never a crash."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ckpt_core.api import read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.request import WriteRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.storage.dtypes import BF16
from ckpt_core.testing.configs import wrong_configs
from ckpt_core.verify.holes import model_of_holes
from ckpt_gguf.container import plan_file, read_header
from ckpt_tests.gguf import MODELS


def written(name: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and the tensors of a file without data."""
    plugin = require("gguf")
    request = WriteRequest(typed_options(plugin.info, {"tokenizer": "none"}, "write"), destination="/x.gguf")
    target = plugin.hooks.ckpt_write(checkpoint=model_of_holes(MODELS[name], BF16), request=request)
    (file,) = target.files
    with open(path, "wb") as stream:
        for offset, data in file.literals:
            stream.seek(offset)
            stream.write(data)
        stream.truncate(file.size)
    header = read_header(str(path))
    return header.metadata, {key: (entry.kind, entry.shape) for key, entry in header.tensors.items()}


@pytest.mark.parametrize("name", ["mixtral", "gemma3", "deepseek2"])
def test_a_wrong_key_is_an_error_and_never_a_crash(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata, tensors = written(name, path)
    own = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    assert read_checkpoint(path).architecture == MODELS[name]
    for said, body in wrong_configs(own):
        try:
            plan = plan_file(tensors, body)
        except (AttributeError, TypeError, struct.error, OverflowError, CkptError):
            continue  # no value of GGUF
        with open(path, "wb") as stream:
            stream.write(plan.header)
            stream.truncate(plan.size)
        try:
            read_checkpoint(path)
        except CkptError:
            continue
        except Exception as error:
            raise AssertionError(f"{said} crashes the reader") from error


def test_an_unknown_key_of_the_architecture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata, tensors = written("llama", path)
    plan = plan_file(tensors, {**metadata, "llama.attention.surprise": 3})
    path.write_bytes(plan.header + bytes(plan.size - len(plan.header)))
    with pytest.raises(CkptError, match=r"attention\.surprise"):
        read_checkpoint(path)
    read_checkpoint(path, options={"ignore_keys": "llama.attention.surprise"})


# What llama.cpp takes for something else than it says, or does not load.
MISLEADING = {
    "a scale of experts that llama.cpp takes for none": ("deepseek2", "deepseek2.expert_weights_scale", 0.0),
    "groups that are none": ("deepseek2", "deepseek2.expert_group_count", True),
    "groups of which no number is used": ("deepseek2", "deepseek2.expert_group_used_count", "all"),
    "a factor that is an empty list": ("mistral3", "mistral3.rope.scaling.factor", []),
    "a growth that is an empty list": ("mistral3", "mistral3.attention.temperature_scale", []),
}


@pytest.mark.parametrize("what", MISLEADING)
def test_a_value_that_llama_cpp_reads_otherwise_is_an_error(what: str, tmp_path: Path) -> None:
    name, key, value = MISLEADING[what]
    path = tmp_path / "x.gguf"
    metadata, tensors = written(name, path)
    plan = plan_file(tensors, {**metadata, key: value})
    with open(path, "wb") as stream:
        stream.write(plan.header)
        stream.truncate(plan.size)
    with pytest.raises(CkptError, match=key.partition(".")[2].replace(".", r"\.")):
        read_checkpoint(path)


def test_a_window_is_read_of_a_phi3_though_llama_cpp_computes_without_it(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata, tensors = written("phi3", path)
    assert metadata["phi3.attention.sliding_window"] == 0
    plan = plan_file(tensors, {**metadata, "phi3.attention.sliding_window": 16})
    with open(path, "wb") as stream:
        stream.write(plan.header)
        stream.truncate(plan.size)
    (attention,) = {layer.attention for layer in read_checkpoint(path).architecture.decoder.layers}
    assert attention.window == 16


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    plan = plan_file({}, {"general.architecture": "rwkv7"})
    path.write_bytes(plan.header)
    with pytest.raises(CkptError, match="rwkv7"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "llama.context_length", "long"),
        ("llama", "llama.context_length", 0),
        ("llama", "tokenizer.ggml.bos_token_id", "<s>"),
        ("qwen2", "qwen2.rope.scaling.attn_factor", 1.5),
    ],
)
def test_a_value_that_would_be_carried_or_lost_in_silence_is_refused(
    name: str, key: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    metadata, tensors = written(name, path)
    plan = plan_file(tensors, metadata | {key: value})
    with open(path, "wb") as stream:
        stream.write(plan.header)
        stream.truncate(plan.size)
    with pytest.raises(CkptError, match=key.partition(".")[2].replace("ggml.", "")):
        read_checkpoint(path)
