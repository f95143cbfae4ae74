"""NeMo T5 checkpoints by torch and tarfile alone, to judge what ckpt read and wrote; and their goldens."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ckpt_tests.goldens import Golden, goldens
from ckpt_tests.inert import pickle_module

ROOT = "enc_dec_model."
_inert = pickle_module({"torch", "collections", "_codecs"})


def content(data: bytes) -> dict:
    """What `torch.save` wrote."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_inert)


def members(path: Path) -> dict[str, bytes]:
    """The files of an archive (or of the only one in a folder), or of a folder."""
    archive = path if path.is_file() else next(iter(path.glob("*.nemo")), None)
    if archive is None:
        return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    with tarfile.open(archive) as tar:
        return {one.name.removeprefix("./"): tar.extractfile(one).read() for one in tar if one.isfile()}


def tensors(path: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor by the folder of its rank and its name."""
    found = {}
    for file, data in members(path).items():
        if file.endswith(".ckpt"):
            held = content(data)
            rank = file.rpartition("/")[0].rpartition("/")[2]
            found |= {
                (rank if "rank" in rank else "", name): tensor for name, tensor in held.get("state_dict", held).items()
            }
    return found


def config(path: Path) -> dict:
    """The config of an archive or folder."""
    return yaml.safe_load(members(path)["model_config.yaml"])


def cases(which: Callable[[Golden], bool] = lambda golden: True) -> pytest.MarkDecorator:
    """Run a test for the NeMo T5 goldens that `which` chooses."""
    chosen = [golden for golden in goldens("nemo-t5") if which(golden)]
    return pytest.mark.parametrize("golden", chosen, ids=str)


def exported(golden: Golden) -> bool:
    """Whether a class of transformers holds the case."""
    return "hf" in golden.case["expect"]


def source(golden: Golden) -> Path:
    return next(iter(golden.checkpoint.glob("*.nemo")), golden.checkpoint)


def own_layout(golden: Golden, folder: Path) -> tuple[Path, dict]:
    """Where and how to write a case as NeMo wrote it."""
    layout = {"to": "nemo", "tp": golden.case["tp"], "pp": golden.case["pp"]}
    if source(golden).suffix == ".nemo":
        return folder / "back.nemo", layout
    return folder / "back", {**layout, "options": {"container": "ckpt"}}


def off_by(golden: Golden, model: PreTrainedModel) -> float:
    """How far a transformers model is from the recorded logits, where the target is not padding.

    NeMo masks queries as well as keys, so that it computes something else where there is padding.
    """
    recorded = load_file(golden.folder / "expected.safetensors")
    expected = recorded.pop("logits")
    with torch.no_grad():
        found = model(**recorded).logits
    return off(found, expected, recorded["decoder_attention_mask"])


def off(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> float:
    columns = min(found.shape[-1], expected.shape[-1])
    return (found[..., :columns] - expected[..., :columns])[mask.bool()].abs().max().item()
