"""DeepSpeed's own checkpoints: to the logits that were recorded, to DeepSpeed's own consolidation, and back to the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_hf import load_model
from ckpt_tests import deepspeed
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4  # of fp32 logits; the two frameworks' own forwards differ by up to 1e-5
WRONG = 1e-2  # what a mistake in the layout does to logits, at the least
MASTERS = {"bf16": "master", "fp32": "auto"}


def each(goldens: list[Golden], which=lambda golden: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("golden", [golden for golden in goldens if which(golden)], ids=str)


PIPELINE, MODELS = deepspeed.pipeline_goldens(), deepspeed.model_goldens()


def is_universal(golden: Golden) -> bool:
    return "universal" in golden.folder.name


def is_drifted(golden: Golden) -> bool:
    return golden.folder.name.endswith("desync")


def in_bf16(golden: Golden) -> bool:
    return golden.case["dtype"] == "bf16"


def expected(golden: Golden, name: str = "logits") -> torch.Tensor:
    return load_file(golden.folder / "expected.safetensors")[name]


def off(golden: Golden, logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference over the true vocabulary."""
    return (logits - wanted[..., : logits.shape[-1]]).abs().max().item()


# --- pipeline modules ------------------------------------------------------------------------------------------------


@each(PIPELINE, lambda golden: not is_universal(golden) and not is_drifted(golden))
def test_transformers_computes_the_recorded_logits(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf")
    model = load(tmp_path / "hf")
    assert type(model).__name__ == golden.case["hf_architecture"].split()[0]
    assert off(golden, logits_of(model, golden.input_ids), expected(golden)) <= TOLERANCE
    assert fingerprint(tmp_path / "hf") == fingerprint(golden.checkpoint)


@each(PIPELINE, in_bf16)
def test_masters_compute_the_logits_of_full_precision(golden: Golden) -> None:
    model = load_model(golden.checkpoint, weights="master", dtype="fp32")
    assert off(golden, logits_of(model, golden.input_ids), expected(golden, "logits_master")) <= TOLERANCE


@each(PIPELINE, lambda golden: in_bf16(golden) and not is_universal(golden))
def test_masters_are_not_the_weights(golden: Golden) -> None:
    """Else the test above proves nothing."""
    model = load_model(golden.checkpoint, dtype="fp32")
    assert off(golden, logits_of(model, golden.input_ids), expected(golden, "logits_master")) > WRONG


@each(PIPELINE, is_drifted)
def test_drifted_ranks_are_averaged_and_told_of(golden: Golden, tmp_path: Path) -> None:
    receipt = convert(golden.checkpoint, tmp_path / "hf", to="hf")
    official = load_file(golden.folder / "expected_official_hf.safetensors")
    logits = logits_of(load(tmp_path / "hf"), golden.input_ids)
    assert off(golden, logits, official.pop("logits_averaged_fp32")) <= TOLERANCE
    losses = {loss["subject"]: loss["reason"] for loss in receipt.body["losses"] if loss["kind"] == "assumed"}
    assert len(losses) == 8 and all("differ by up to 0.0" in reason for reason in losses.values())
    for name, tensor in weights(tmp_path / "hf").items():
        rows = official[name.removeprefix("transformer.")][: len(tensor)]
        # The official converter averages in bfloat16, whose steps are 2 ** -8 of a value.
        assert torch.allclose(tensor.float(), rows, rtol=2**-7, atol=1e-3), name
        assert tensor.dtype == torch.bfloat16 or "norm" in name or "ln_f" in name


@each(PIPELINE)
def test_the_architecture_and_the_layout_are_those_of_the_case(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint) as source:
        model, found = golden.case["model"], source.checkpoint
        assert source.architecture.tokens.vocabulary == model["original_vocab_size"]
        assert len(source.architecture.decoder.layers) == model["num_layers"]
        if not is_universal(golden):
            assert found.parallel == {name: golden.case[name] for name in ("tp", "pp", "dp")}
            assert found.provenance.masters == in_bf16(golden)


@each(PIPELINE, lambda golden: not is_drifted(golden))
def test_back_in_its_own_layout_every_tensor_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="megatron-deepspeed", tp=golden.case["tp"], pp=golden.case["pp"])
    assert_same_bits(deepspeed.tensors(tmp_path / "run"), deepspeed.tensors(golden.checkpoint))


@each(PIPELINE)
def test_every_layout_has_the_same_fingerprint(golden: Golden, tmp_path: Path) -> None:
    source = fingerprint(golden.checkpoint)
    for tp, pp in ((1, 1), (2, 1), (1, golden.case["model"]["num_layers"])):
        # Averages are in float32, and stay what they are only there.
        dtype = "fp32" if is_drifted(golden) else "keep"
        destination = tmp_path / f"tp{tp}pp{pp}"
        convert(golden.checkpoint, destination, to="megatron-deepspeed", tp=tp, pp=pp, dtype=dtype)
        assert fingerprint(destination) == source, (tp, pp)


@each(PIPELINE, lambda golden: golden.folder.name.startswith("bloom") and not is_drifted(golden))
def test_a_universal_checkpoint_holds_the_masters(golden: Golden, tmp_path: Path) -> None:
    options = {"universal": "true", "moments": "false"}
    which = MASTERS[golden.case["dtype"]]
    convert(golden.checkpoint, tmp_path / "run", to="megatron-deepspeed", tp=2, weights=which, options=options)
    assert fingerprint(tmp_path / "run") == fingerprint(golden.checkpoint, weights=which)


# --- models of transformers ------------------------------------------------------------------------------------------


@each(MODELS)
def test_weights_are_those_of_deepspeeds_own_consolidation(golden: Golden, tmp_path: Path) -> None:
    config = deepspeed.config_of(golden, tmp_path / "config")
    convert(golden.checkpoint, tmp_path / "hf", to="hf", config=str(config))
    consolidated = load_file(golden.folder / "consolidated_fp32.safetensors")
    if golden.case["model"]["tie_word_embeddings"]:
        assert torch.equal(consolidated.pop("lm_head.weight"), consolidated["model.embed_tokens.weight"])
    assert_same_bits(weights(tmp_path / "hf"), consolidated)
    logits = logits_of(load(tmp_path / "hf"), golden.input_ids)
    assert off(golden, logits, expected(golden)) <= TOLERANCE


@each(MODELS, lambda golden: "zero3" not in golden.folder.name)
def test_the_module_in_the_training_dtype_can_be_asked_for(golden: Golden, tmp_path: Path) -> None:
    config = str(deepspeed.config_of(golden, tmp_path / "config"))
    with (
        open_checkpoint(golden.checkpoint, config=config, weights="model") as source,
        open_checkpoint(golden.checkpoint, config=config) as masters,
    ):
        assert {tensor.dtype.name for tensor in source.values()} == {"bf16"}
        for name, tensor in source.items():
            rounded = torch.from_numpy(masters[name].numpy().copy()).to(torch.bfloat16).float()
            assert np.array_equal(rounded.numpy(), tensor.numpy()), name


@each(MODELS)
def test_universal_files_are_the_same_from_every_kind_of_zero(golden: Golden, tmp_path: Path) -> None:
    config = str(deepspeed.config_of(golden, tmp_path / "config"))
    convert(golden.checkpoint, tmp_path / "run", to="deepspeed", config=config, options={"moments": "false"})
    assert fingerprint(tmp_path / "run") == fingerprint(golden.checkpoint, config=config)
    written = {name: t for name, t in deepspeed.tensors(tmp_path / "run").items() if "fp32.pt" in name}
    masters = load_file(golden.folder / "consolidated_fp32.safetensors")
    for name, tensor in written.items():
        assert torch.equal(tensor.flatten(), masters[Path(name).parent.name].float().flatten()), name
    if is_universal(golden):
        original = deepspeed.tensors(golden.checkpoint)
        aliases = {name for name in original if "lm_head" in name and golden.case["model"]["tie_word_embeddings"]}
        assert_same_bits(written, {n: t for n, t in original.items() if "fp32.pt" in n and n not in aliases})


# --- would these tests notice? ---------------------------------------------------------------------------------------


@each(PIPELINE, lambda golden: golden.folder.name.startswith("bloom-tp2-dp2"))
def test_notices_ranks_put_together_in_another_order(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_core.errors import CkptError
    from ckpt_deepspeed import zero

    honest = zero.partitions
    monkeypatch.setattr(zero, "partitions", lambda *arguments: honest(*arguments)[::-1])
    with pytest.raises(CkptError, match="do not round"):
        fingerprint(golden.checkpoint, weights="master")
