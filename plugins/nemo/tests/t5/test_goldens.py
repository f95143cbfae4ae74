"""T5 and UL2 as NeMo trained them: to the class of transformers that computes the same, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_tests import nemo_t5
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, goldens
from ckpt_tests.models import weights
from ckpt_tests.nemo_t5 import cases, exported, own_layout, source, tensors
from ckpt_tests.seq2seq import load

TOLERANCE = 1e-4
FOLDED = 4e-7  # of the largest element: a factor multiplied in and divided out again, in float32
RELATIVE = "relative_position_embedding.relative_position_embedding.weight"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Golden], Path]:
    """A case in HF, converted once."""
    done: dict[str, Path] = {}

    def make(golden: Golden) -> Path:
        if str(golden) not in done:
            done[str(golden)] = tmp_path_factory.mktemp(str(golden)) / "hf"
            convert(source(golden), done[str(golden)], to="hf")
        return done[str(golden)]

    return make


def receipt(folder: Path) -> dict:
    return json.loads((folder / "ckpt-receipt.json").read_text())


@cases(exported)
def test_transformers_computes_the_recorded_logits(golden: Golden, hf: Callable) -> None:
    model = load(hf(golden))
    assert type(model).__name__ == golden.case["expect"]["hf"]
    assert nemo_t5.off_by(golden, model) <= TOLERANCE


@cases()
def test_the_reference_computes_the_recorded_logits_even_where_no_class_does(golden: Golden) -> None:
    recorded = load_file(golden.folder / "expected.safetensors")
    mask = recorded["decoder_attention_mask"]
    inputs = Inputs(recorded["decoder_input_ids"], recorded["input_ids"], None, mask, recorded["attention_mask"])
    with open_checkpoint(source(golden)) as model:
        *_, logits = forward(model, inputs)
    assert nemo_t5.off(logits.values, recorded["logits"], mask) <= TOLERANCE


@cases(lambda golden: (golden.folder / "source_hf.safetensors").exists())
def test_what_the_script_of_nvidia_took_comes_back(golden: Golden, hf: Callable) -> None:
    given = load_file(golden.folder / "source_hf.safetensors")
    assert_same_bits(weights(hf(golden)), {name.removeprefix("hf."): tensor for name, tensor in given.items()})


@cases(exported)
def test_generation_begins_as_in_nemo(golden: Golden, hf: Callable) -> None:
    """The tokenizer says with which token, and without one nothing is guessed."""
    config = json.loads((hf(golden) / "config.json").read_text())
    if source(golden).suffix != ".nemo":
        assert config["decoder_start_token_id"] is None
        assert any("decoder_start_token_id" in loss["subject"] for loss in receipt(hf(golden))["losses"])
        return
    case = golden.case
    starts = case["pad_id"] if "script" in str(golden) else case["bos_id"]  # the script's source began with padding
    found = [config[f"{name}_token_id"] for name in ("decoder_start", "bos", "eos", "pad")]
    assert found == [starts, case["bos_id"], case["eos_id"], case["pad_id"]]


def test_a_tokenizer_given_beside_a_ckpt_says_it_too(tmp_path: Path) -> None:
    archives = [
        golden for golden in goldens("nemo-t5") if source(golden).suffix == ".nemo" and "script" not in str(golden)
    ]
    files = [golden for golden in goldens("nemo-t5") if source(golden).suffix != ".nemo"]
    model = next(data for name, data in nemo_t5.members(source(archives[0])).items() if name.endswith(".model"))
    (tmp_path / "spm.model").write_bytes(model)
    with open_checkpoint(source(files[0]), options={"tokenizer": str(tmp_path / "spm.model")}) as found:
        assert found.checkpoint.notes["decoder_start"] == files[0].case["bos_id"]


# --- what no class holds -----------------------------------------------------------------------------------------------


@cases(lambda golden: "t5" in golden.case["expect"])
def test_what_t5_cannot_hold_is_refused_in_the_words_of_the_config(golden: Golden, tmp_path: Path) -> None:
    for wanted in [{"hf_class": "t5"}] + ([] if exported(golden) else [{}]):
        with pytest.raises(CkptError) as refusal:
            convert(source(golden), tmp_path / "hf", to="hf", options=wanted)
        config = golden.case["model_config"]
        said = golden.case["expect"]["t5"].replace("tokens_head.bias", "tokens_head_bias")
        keys = {word.strip(",:") for word in said.split()} & {*config, *config["encoder"]}
        assert keys
        for key in keys:
            assert key in str(refusal.value), key
        assert not (tmp_path / "hf").exists()


@cases(lambda golden: not exported(golden))
def test_a_refusal_says_what_would_change(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"move by up to \d"):
        convert(source(golden), tmp_path / "hf", to="hf")


# --- and back ----------------------------------------------------------------------------------------------------------


def stale(key: tuple[str, str], tensor: torch.Tensor, golden: Golden) -> torch.Tensor:
    """A table of relative biases without the columns of other ranks' heads, which this rank never trains."""
    rank, name = key
    if not name.endswith(RELATIVE) or golden.case["tp"] == 1:
        return tensor
    own = tensor.shape[1] // golden.case["tp"]
    t = int(rank.removeprefix("mp_rank_").removeprefix("tp_rank_")[:2])
    return tensor[:, t * own : (t + 1) * own]


@cases()
def test_in_its_own_layout_every_tensor_is_the_original(golden: Golden, tmp_path: Path) -> None:
    path, layout = own_layout(golden, tmp_path)
    convert(source(golden), path, **layout)
    back, original = (
        {key: stale(key, tensor, golden) for key, tensor in tensors(side).items()} for side in (path, source(golden))
    )
    assert_same_bits(back, original)
    assert fingerprint(path) == fingerprint(source(golden))


@cases(exported)
def test_through_hf_only_what_was_folded_is_rounded(golden: Golden, hf: Callable, tmp_path: Path) -> None:
    path, layout = own_layout(golden, tmp_path)
    convert(hf(golden), path, **layout)
    back, original = (
        {key: stale(key, tensor, golden) for key, tensor in tensors(side).items()} for side in (path, source(golden))
    )
    folds = " ".join(receipt(hf(golden))["target"]["decisions"]["rewrites"])
    touched = [
        *(["query"] if "attention scale" in folds else []),
        *(["final_layernorm"] if "final norm" in folds else []),
        *(["attention.dense"] if "head scale" in folds else []),
    ]
    gone = {key for key in original if key[1].endswith("head_scale_tensor")} if "head scale" in folds else set()
    assert back.keys() == original.keys() - gone
    for key, tensor in back.items():
        assert tensor.dtype == original[key].dtype
        if not any(part in key[1] for part in touched):
            assert torch.equal(tensor, original[key]), key
        elif "attention.dense" in key[1] and "head scale" in folds:
            scale = original[key[0], key[1].replace("dense.weight", "head_scale_tensor")].flatten()
            expected = original[key] * scale.repeat_interleave(tensor.shape[1] // len(scale))
            assert torch.equal(tensor, expected), key
        else:
            assert (tensor - original[key]).abs().max() <= FOLDED * original[key].abs().max(), key


@cases(lambda golden: golden.case["dtype"] == "bf16")
def test_bf16_comes_back_bit_for_bit_as_folds_are_kept_in_float32(golden: Golden, hf: Callable, tmp_path: Path) -> None:
    stored = {name: tensor.dtype for name, tensor in weights(hf(golden)).items()}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name, dtype in stored.items() if dtype == torch.float32} == {
        "q"
    }
    path, layout = own_layout(golden, tmp_path)
    convert(hf(golden), path, **layout)
    assert_same_bits(tensors(path), tensors(source(golden)))


@cases(lambda golden: golden.case["dtype"] == "bf16")
def test_masters_are_those_of_the_optimizer(golden: Golden) -> None:
    (data,) = nemo_t5.members(source(golden)).values()
    groups = nemo_t5.content(data)["optimizer_states"][0]["fp32_from_fp16_params"]
    with open_checkpoint(source(golden), weights="master") as held, open_checkpoint(source(golden)) as model:
        assert model.checkpoint.provenance.masters
        assert {tensor.dtype.name for tensor in held.values()} == {"fp32"}
        sums = sorted(float(tensor.double().sum()) for group in groups for tensor in group)
        fused = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in held.items()}
        for name, tensor in model.items():
            assert torch.equal(fused[name].bfloat16().float(), torch.from_numpy(tensor.numpy().copy())), name
        assert sum(sums) == pytest.approx(sum(float(tensor.double().sum()) for tensor in fused.values()), abs=1e-6)


@cases(lambda golden: golden.case["dtype"] == "fp32")
def test_masters_that_are_not_there_are_refused(golden: Golden) -> None:
    with pytest.raises(CkptError, match="no fp32 masters"):
        open_checkpoint(source(golden), weights="master")


@cases(lambda golden: "tp2" in str(golden) or "default" in str(golden))
def test_every_layout_is_the_same_model(golden: Golden, tmp_path: Path) -> None:
    expected = fingerprint(source(golden))
    tied = golden.case["model_config"]["share_decoder_tokens_head_embeddings"]
    # a vocabulary padded further for more ranks is told apart by the receipt
    layouts = [
        ("native", 2, 1, "nemo"),
        ("script", 1, 1, "folder"),
        ("script", 2, 1, "ckpt"),
        *([("native", 2, 2, "folder"), ("script", 1, 2, "ckpt")] if tied else []),
    ]
    for number, (layout, tp, pp, container) in enumerate(layouts):
        path = tmp_path / f"{number}{'.nemo' if container == 'nemo' else ''}"
        convert(source(golden), path, to="nemo", tp=tp, pp=pp, options={"layout": layout, "container": container})
        assert fingerprint(path) == expected, (layout, tp, pp, container)
    if not tied:
        with pytest.raises(CkptError, match="share_decoder_tokens_head_embeddings"):
            convert(source(golden), tmp_path / "staged.nemo", to="nemo", pp=2)


# --- the answer ----------------------------------------------------------------------------------------------------------


@cases()
def test_inspect_tells_which_of_the_five_differences_there_are(golden: Golden) -> None:
    with open_checkpoint(source(golden)) as found:
        told = {line[0]: line for line in found.checkpoint.provenance.evidence if line[:1].isdigit()}
    assert sorted(told) == list("12345")
    section = golden.case["model_config"]["encoder"]
    assert ("is divided by sqrt" in told["1"]) == section["normalize_attention_scores"]
    assert ("are blocks" in told["2"]) == section["megatron_legacy"]
    relative = section["position_embedding_type"] == "relative"
    assert ("L times the bias" in told["3"]) == (relative and section["apply_query_key_layer_scaling"])
    tanh = section["openai_gelu"] or section["bias_activation_fusion"]
    assert ("the tanh form" in told["4"].split(";")[0]) == tanh
    assert ("tied to the embedding" in told["5"]) == golden.case["model_config"]["share_decoder_tokens_head_embeddings"]
