"""NeMo's own GPT checkpoints: read to its own logits, written back to its own tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import facts_of, parameters
from ckpt_core.reference import Inputs, forward
from ckpt_tests import nemo
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, each, one_of_each_model
from ckpt_tests.models import load, logits_of, weights
from ckpt_tests.rows import wrong_sentences

TOLERANCE = 1e-4  # of fp32 logits; the two frameworks' own forwards differ by up to 5e-6
ROUNDED = 5e-3  # where NeMo computed with rotary frequencies rounded to bf16, which no other framework does
WRONG = 1e-2  # what a mistake in the layout does to logits, at the least


def is_gpt(golden: Golden) -> bool:
    return golden.folder.parent.name == "nemo-gpt" or golden.folder.name.startswith(
        ("legacy-", "mcore-", "officially-repartitioned-gpt")
    )


def tolerance(golden: Golden) -> float:
    return ROUNDED if "bf16-O2" in golden.folder.name else TOLERANCE


def is_for_hf(golden: Golden) -> bool:
    """GPT-2 of transformers has no other head dim than hidden / heads."""
    model = golden.case.get("model", {"kv_channels": 10})
    return not (model.get("kv_channels") and model.get("position_embedding_type") != "rope")


def is_zero_centred(golden: Golden) -> bool:
    return "ln1p" in golden.folder.name


def is_archive(golden: Golden) -> bool:
    return nemo.archive_of(golden.checkpoint) is not None


def off(golden: Golden) -> float:
    with open_checkpoint(golden.checkpoint) as model:
        *_, last = forward(model, Inputs(tokens=golden.input_ids))
    return golden.off_by(last.values[..., :101])


# --- to HF and to ir ---------------------------------------------------------------------------------------------------


@each("nemo", is_gpt)
def test_the_reference_forward_computes_the_recorded_logits(golden: Golden) -> None:
    assert off(golden) <= tolerance(golden)


@each("nemo", lambda golden: is_gpt(golden) and is_for_hf(golden))
def test_transformers_computes_the_recorded_logits(golden: Golden, tmp_path: Path) -> None:
    options = nemo.tokenizer_options(golden)
    convert(golden.checkpoint, tmp_path / "hf", to="hf", options=options)
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= tolerance(golden)
    if not is_zero_centred(golden):  # there, one is added to norms
        assert fingerprint(tmp_path / "hf") == fingerprint(golden.checkpoint, options=options)
    assert (tmp_path / "hf/tokenizer.model").is_file()


@each("nemo", lambda golden: is_gpt(golden) and not is_for_hf(golden))
def test_a_head_dim_that_gpt2_does_not_have_is_refused_by_name(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="head_dim"):
        convert(golden.checkpoint, tmp_path / "hf", to="hf", options={"hf_class": "GPT2LMHeadModel"})


@each("nemo", is_gpt)
def test_ir_holds_every_parameter_in_fp32(golden: Golden, tmp_path: Path) -> None:
    receipt = convert(golden.checkpoint, tmp_path / "ir", to="ir")
    held = weights(tmp_path / "ir")
    with open_checkpoint(golden.checkpoint) as source:
        assert held.keys() == parameters(source.architecture).keys()
        assert_same_bits(held, {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in source.items()})
    assert receipt.fingerprint == fingerprint(tmp_path / "ir") == fingerprint(golden.checkpoint)


@each("nemo", is_gpt)
def test_the_vocabulary_is_the_tokenizers(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint, options=nemo.tokenizer_options(golden)) as source:
        assert source.architecture.tokens.vocabulary == golden.case.get("vocab_size", 101)


@each("nemo", is_gpt)
def test_the_parallel_layout_is_found(golden: Golden) -> None:
    expected = nemo.own_layout(golden)
    with open_checkpoint(golden.checkpoint) as source:
        assert source.checkpoint.parallel == {"tp": expected["tp"], "pp": expected["pp"]}


# --- and back ------------------------------------------------------------------------------------------------------


@each("nemo", is_gpt)
def test_back_in_its_own_layout_every_tensor_and_file_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "back", to="nemo", **nemo.own_layout(golden))
    assert_same_bits(nemo.tensors(tmp_path / "back"), nemo.tensors(golden.checkpoint))
    assert nemo.file_set(tmp_path / "back") == nemo.file_set(golden.checkpoint)


@each("nemo", lambda golden: is_gpt(golden) and is_archive(golden))
def test_back_in_its_own_layout_the_config_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "back", to="nemo", **nemo.own_layout(golden))
    written, original = nemo.config_of(tmp_path / "back"), nemo.config_of(golden.checkpoint)
    for config in (written, original):  # NeMo draws random digits
        config["tokenizer"]["model"] = config["tokenizer"]["model"][37:]
    assert written == original


@each("nemo", lambda golden: is_gpt(golden) and is_for_hf(golden) and not is_zero_centred(golden))
def test_through_hf_every_tensor_but_the_padding_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf", options=nemo.tokenizer_options(golden))
    convert(tmp_path / "hf", tmp_path / "back", to="nemo", **nemo.own_layout(golden))
    written, original = nemo.tensors(tmp_path / "back"), nemo.tensors(golden.checkpoint)
    tables = [name for name in original if "word_embeddings" in name or "output_layer" in name]
    sides = ({name: tensor for name, tensor in side.items() if name not in tables} for side in (written, original))
    assert_same_bits(*sides)
    assert [written[name].shape for name in tables] == [original[name].shape for name in tables]


def test_every_layout_has_the_same_fingerprint(tmp_path: Path) -> None:
    for golden in one_of_each_model("nemo", is_gpt):
        (folder := tmp_path / golden.folder.name).mkdir()
        assert_every_layout_has_the_same_fingerprint(golden, folder)


def assert_every_layout_has_the_same_fingerprint(golden: Golden, folder: Path) -> None:
    expected = fingerprint(golden.checkpoint)
    with open_checkpoint(golden.checkpoint) as source:
        layers, groups = facts_of(source.architecture)["layers"], facts_of(source.architecture)["attention.groups"]
    backends = ("zarr", "torch_dist", "ranks") if golden.folder.name.startswith("mcore") else ("ranks",)
    for number, (tp, pp) in enumerate([(1, layers), (groups, 1), (2, layers)]):
        options = {"backend": backends[number % len(backends)], "container": ("nemo", "folder", "ckpt")[number % 3]}
        convert(golden.checkpoint, folder / str(number), to="nemo", tp=tp, pp=pp, options=options)
        assert fingerprint(folder / str(number)) == expected, (golden, tp, pp, options)


@each(
    "nemo",
    lambda golden: (
        is_gpt(golden) and golden.folder.name.startswith("legacy") and "megatronlegacy" not in golden.folder.name
    ),
)
def test_legacy_names_become_those_of_core_and_back(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "mcore", to="nemo", tp=2, options={"names": "mcore", "backend": "ranks"})
    assert "mp_rank_01/model.decoder.layers.1.self_attention.linear_qkv.layer_norm_weight" in nemo.tensors(
        tmp_path / "mcore"
    )
    assert fingerprint(tmp_path / "mcore") == fingerprint(golden.checkpoint)
    convert(
        tmp_path / "mcore",
        tmp_path / "legacy",
        to="nemo",
        options={"names": "legacy"},
        **{k: v for k, v in nemo.own_layout(golden).items() if k != "options"},
    )
    assert fingerprint(tmp_path / "legacy") == fingerprint(golden.checkpoint)
    assert nemo.tensors(tmp_path / "legacy").keys() == nemo.tensors(golden.checkpoint).keys()


@each("nemo", lambda golden: golden.folder.name == "officially-repartitioned-gpt2-tp1pp3")
def test_our_repartitioning_gives_the_tensors_of_the_official_script(golden: Golden, tmp_path: Path) -> None:
    source = golden.folder.parent / golden.case["source_case"] / "checkpoint"
    convert(source, tmp_path / "ours.nemo", to="nemo", tp=1, pp=3)
    assert_same_bits(nemo.tensors(tmp_path / "ours.nemo"), nemo.tensors(golden.checkpoint))
    ours, official = nemo.config_of(tmp_path / "ours.nemo"), nemo.config_of(golden.checkpoint)
    differing = {key for key in ours.keys() | official.keys() if ours.get(key) != official.get(key)}
    assert differing <= {"tokenizer", "global_batch_size"}  # the script raises the batch to a multiple of the ranks


@each("nemo", lambda golden: golden.folder.name == "legacy-gpt2-ln1p-tp2-nemo")
@pytest.mark.parametrize(("tp", "pp", "rows"), [(4, 1, 128), (2, 3, 112), (2, 1, 112)])
def test_rows_of_padding_are_zeros_after_repartitioning(
    golden: Golden, tp: int, pp: int, rows: int, tmp_path: Path
) -> None:
    """As the official script leaves them: it goes through one rank, whose embedding has 104 rows."""

    def embedding(path: Path) -> torch.Tensor:
        held = nemo.tensors(path)
        return torch.cat([held[name] for name in sorted(held) if name.endswith("embedding.word_embeddings.weight")])

    convert(golden.checkpoint, tmp_path / "x.nemo", to="nemo", tp=tp, pp=pp)
    written, original = embedding(tmp_path / "x.nemo"), embedding(golden.checkpoint)
    assert len(written) == rows and torch.equal(written[:104], original[:104])
    assert torch.equal(written[104:], original[104:]) if (tp, pp) == (2, 1) else not written[104:].any()


@each("nemo", lambda golden: is_gpt(golden) and not is_archive(golden))
def test_a_ckpt_becomes_a_nemo_with_its_tokenizer(golden: Golden, tmp_path: Path) -> None:
    layout = nemo.own_layout(golden)
    convert(
        golden.checkpoint,
        tmp_path / "x.nemo",
        to="nemo",
        tp=layout["tp"],
        pp=layout["pp"],
        options=nemo.tokenizer_options(golden),
    )
    assert_same_bits(nemo.tensors(tmp_path / "x.nemo"), nemo.tensors(golden.checkpoint))
    config = nemo.config_of(tmp_path / "x.nemo")
    assert config["tokenizer"]["model"].startswith("nemo:") and config["tokenizer"]["model"][5:] in nemo.members(
        tmp_path / "x.nemo"
    )
    assert config["target"].endswith(".MegatronGPTModel") and config["nemo_version"]


# --- would these tests notice? -------------------------------------------------------------------------------------


@each(
    "nemo",
    lambda golden: (
        golden.folder.name
        in ("legacy-llama-tp2-nemo", "legacy-gpt2-megatronlegacy-tp2-nemo", "legacy-gpt2-ln1p-tp2-nemo")
    ),
)
def test_notices_another_reading(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and up of each rank put one after the other; q, k and v by head; a norm that does not add one; erf for tanh."""
    from ckpt_nemo.gpt import config

    fc1, qkv = "mlp.linear_fc1.weight", "self_attention.linear_qkv.weight"
    wrong = {
        "legacy-llama-tp2-nemo": lambda: wrong_sentences(monkeypatch, {"((gate + up) f) h": "(f (gate + up)) h"}, fc1),
        "legacy-gpt2-megatronlegacy-tp2-nemo": lambda: wrong_sentences(
            monkeypatch, {"((q[r] + k + v) g d) h": "(g (q[r] + k + v) d) h"}, qkv
        ),
        "legacy-gpt2-ln1p-tp2-nemo": lambda: monkeypatch.setattr(
            config, "_KINDS", {**config._KINDS, "layernorm1p": ("layer", False)}
        ),
    }
    wrong[golden.folder.name]()
    assert off(golden) > WRONG
