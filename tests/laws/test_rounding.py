"""What is rounded is said, and what is not rounded is not; numbers that two formats compute in two ways are one number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import convert, fingerprint
from ckpt_core.api import plan_conversion, read_checkpoint
from ckpt_core.architecture import Architecture, architecture_of, facts_of
from ckpt_core.errors import CkptError
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.reading import check_agreement
from ckpt_core.rewrite import Rewritable, folded_attention_scale, folded_head_scale, folded_logit_scale
from ckpt_core.tensors.assembly import significant_bits
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import calm_numbers
from ckpt_core.verify.difference import architecture_differences

USUAL = example("gpt2").decoder.layers[0].attention.head_dim ** -0.5
# The factor that a fold multiplies into q, and what is lost by it where the values are of float32, and of bf16.
FOLDS = {
    math.sqrt(12): ("computed in float32: times 3.46410162",) * 2,
    3.0: ("computed in float32: times 3", None),  # two bits more than the eight of bf16
    0.5: (None, None),
}


def rounded(losses: list) -> list[str]:
    return [loss.reason for loss in losses if loss.kind == "rounded"]


@pytest.mark.parametrize("factor", FOLDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_fold_that_rounds_is_a_loss(factor: float, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("ckpt_megatron")
    architecture = example("gpt2", layers=2, attention__scale=USUAL * factor)
    source = write_ir(tmp_path / "ir", architecture, dtype=dtype, values=calm_numbers)
    reason = FOLDS[factor][dtype == "bf16"]
    assert rounded(plan_conversion(source, tmp_path / "out", to="megatron").losses) == ([reason] if reason else [])
    receipt = convert(source, tmp_path / "out", to="megatron")
    assert [loss["reason"] for loss in receipt.body["losses"] if loss["kind"] == "rounded"] == (
        [reason] if reason else []
    )
    assert receipt.fingerprint == fingerprint(tmp_path / "out") != fingerprint(source)
    with OpenCheckpoint(read_checkpoint(source)) as before, OpenCheckpoint(read_checkpoint(tmp_path / "out")) as after:
        for name in ("layers.0.attention.q.weight", "layers.1.attention.q.bias"):
            exact = before[name].numpy().astype(np.float64) * float(np.float32(factor))
            assert np.array_equal(after[name].numpy(), exact.astype(np.float32))
            assert reason or np.array_equal(after[name].numpy().astype(np.float64), exact)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_one_that_is_added_to_float32_is_a_loss(dtype: str, tmp_path: Path) -> None:
    """GGUF has Gemma's norms around one."""
    pytest.importorskip("ckpt_gguf")
    from ckpt_tests.gguf import MODELS

    gemma = MODELS["gemma2"]
    source = write_ir(tmp_path / "ir", gemma, dtype=dtype, values=calm_numbers)
    options = {"dst.type": "F32", "dst.tokenizer": "none"}
    losses = plan_conversion(source, tmp_path / "x.gguf", to="gguf", options=options).losses
    said = [loss for loss in losses if loss.kind == "rounded"]
    assert [loss.reason for loss in said] == (["computed in float32: add(1)"] if dtype == "fp32" else [])
    assert [loss.subject for loss in said] == ([f"{4 * len(gemma.decoder.layers) + 1} tensors"] if said else [])


def test_zeros_that_are_added_are_not_rounded(tmp_path: Path) -> None:
    """Qwen2 as Llama: the output projection gets a bias of zeros."""
    pytest.importorskip("ckpt_hf")
    source = write_ir(tmp_path / "ir", example("qwen", layers=2), dtype="bf16", values=calm_numbers)
    plan = plan_conversion(source, tmp_path / "out", to="hf", options={"hf_class": "LlamaForCausalLM"})
    assert any("zero biases added" in text for text in plan.target.decisions["rewrites"])
    assert rounded(plan.losses) == []


def test_bits_are_those_that_products_take(tmp_path: Path) -> None:
    """Exact products are those with at most the bits of float32; the parts of a product are counted, wherever they come from."""
    assert [significant_bits(number) for number in (0.0, 1.0, -0.25, 3.0, 10.0, 1 / 3)] == [0, 0, 0, 2, 3, 53]
    for dtype, bits in (("bf16", 8), ("fp16", 11), ("fp32", 24)):
        heads = folded_head_scale(
            opened(example("gpt2", layers=1, attention__head_scale=True), tmp_path / dtype, dtype)
        )
        assert heads.tensors["layers.0.attention.out.weight"].bits == 2 * bits
        head = folded_logit_scale(opened(example("llama", layers=1, head__scale=5.0), tmp_path / f"{dtype}5", dtype))
        assert head.tensors["head.weight"].bits == bits + 3


def opened(architecture: Architecture, folder: Path, dtype: str) -> Rewritable:
    source = read_checkpoint(write_ir(folder, architecture, dtype=dtype, values=calm_numbers))
    return Rewritable(source.architecture, source.tensors, files=source.files)


def nudged(architecture: Architecture, path: str, relative: float) -> Architecture:
    facts = facts_of(architecture)
    facts[path] *= 1 + relative
    return architecture_of(facts, "nudged")


@pytest.mark.parametrize("path", ["attention.scale", "final_norm.eps", "attention.rotary.theta"])
def test_numbers_are_compared_as_numbers(path: str) -> None:
    """The last bits of a number are nobody's fact; 1e-9 of it are."""
    one = example("llama", attention__scale=0.11472138679292611)
    same, other = nudged(one, path, 4e-16), nudged(one, path, 1e-9)
    assert same != one
    assert not list(architecture_differences(one, same)) and not list(architecture_differences(same, one))
    assert [found.subject for found in architecture_differences(one, other)] == [path]
    check_agreement(one, same, "config.json")
    with pytest.raises(CkptError, match=path):
        check_agreement(one, other, "config.json")


def test_a_scale_that_is_not_said_is_the_usual_one() -> None:
    for name in ("llama", "latent"):
        one = example(name)
        path = "latent_attention" if name == "latent" else "attention"
        facts = facts_of(one)
        widths = [facts.get(f"{path}.{width}", 0) for width in ("head_dim", "nope_dim", "rope_dim")]
        said = {**facts, f"{path}.scale": sum(widths) ** -0.5}
        assert not list(architecture_differences(one, architecture_of(type(facts)(said), name)))
        assert list(architecture_differences(one, architecture_of(type(facts)(said | {f"{path}.scale": 0.3}), name)))


def test_what_differs_in_its_last_bits_is_not_folded(tmp_path: Path) -> None:
    architecture = example("gpt2", layers=2)
    model = opened(
        nudged(example("gpt2", layers=2, attention__scale=USUAL), "attention.scale", 3e-16), tmp_path, "fp32"
    )
    folded = folded_attention_scale(model)
    assert folded.architecture == architecture and not folded.rewrites and folded.tensors == model.tensors
