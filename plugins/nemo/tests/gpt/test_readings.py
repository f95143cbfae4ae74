"""What NeMo writes that no golden shows: masters, virtual stages, odd biases, configs that say less, runs of many steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

import pytest
import torch
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import Activation
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import detect
from ckpt_core.sdk import torch_files
from ckpt_nemo.container.omegaconf import plain, resolved
from ckpt_nemo.container.sentencepiece import piece_count
from ckpt_nemo.gpt.config import LEGACY, MCORE
from ckpt_tests import nemo, tiny
from ckpt_tests.folders import assert_same_bits

STEP = "step=0-consumed_samples=0.0"
CKPT = {"container": "ckpt"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF models: `heads` has as many groups as heads, `grouped` fewer, `biased` biases everywhere; all have gates."""
    folder = tmp_path_factory.mktemp("models")
    tiny.build(folder / "heads", "llama", num_hidden_layers=4, num_key_value_heads=12)
    tiny.build(folder / "grouped", "llama", num_hidden_layers=4)
    tiny.build(folder / "biased", "llama", num_hidden_layers=2, attention_bias=True, mlp_bias=True)
    return folder


def rank_files(run: Path) -> list[Path]:
    return sorted(run.rglob("*.ckpt"))


# --- fp32 masters --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def o2_run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with megatron_amp_O2: bf16 weights, and their fp32 masters in the order of Apex's groups."""
    folder = tmp_path_factory.mktemp("o2")
    for dtype in ("bf16", "fp32"):
        convert(
            models / "heads", folder / dtype, to="nemo", tp=2, pp=2, dtype=dtype, options={**CKPT, "names": "legacy"}
        )
    for rounded, exact in zip(rank_files(folder / "bf16"), rank_files(folder / "fp32"), strict=True):
        content, masters = torch.load(rounded, weights_only=False), torch.load(exact, weights_only=False)["state_dict"]
        parameters = {name: tensor for name, tensor in masters.items() if not name.endswith("inv_freq")}
        groups = [
            [tensor for tensor in parameters.values() if tensor.dim() > 1],
            [tensor for tensor in parameters.values() if tensor.dim() == 1],
        ]
        content["optimizer_states"] = [
            {"optimizer": {"state": {}, "param_groups": [{}, {}]}, "fp32_from_fp16_params": groups}
        ]
        torch.save(content, rounded)
    return folder / "bf16"


def test_masters_of_rank_files_are_the_full_precision(o2_run: Path, models: Path) -> None:
    with open_checkpoint(o2_run) as source:
        assert source.checkpoint.provenance.masters
        assert {tensor.dtype.name for tensor in source.values()} == {"bf16"}
        assert any(loss.kind == "dropped" and "optimizer" in loss.subject for loss in source.checkpoint.all_losses)
    assert fingerprint(o2_run, weights="master", options={"vocab": "61"}) == fingerprint(models / "heads")
    assert fingerprint(o2_run, options={"vocab": "61"}) != fingerprint(models / "heads")


def test_rounded_frequencies_are_a_loss(o2_run: Path) -> None:
    with open_checkpoint(o2_run) as source:
        (loss,) = [loss for loss in source.checkpoint.provenance.losses if "inv_freq" in loss.subject]
        assert loss.kind == "assumed" and "bf16" in loss.reason


def test_masters_whose_order_cannot_be_told_are_refused(o2_run: Path, tmp_path: Path) -> None:
    shutil.copytree(o2_run, tmp_path / "run")
    path = rank_files(tmp_path / "run")[0]
    content = torch.load(path, weights_only=False)
    content["optimizer_states"][0]["fp32_from_fp16_params"][0].reverse()
    torch.save(content, path)
    with pytest.raises(CkptError, match="order of the fp32 masters"):
        fingerprint(tmp_path / "run", weights="master")


def test_masters_of_a_distributed_checkpoint_are_the_full_precision(models: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "fp32"):
        convert(models / "grouped", tmp_path / dtype, to="nemo", tp=2, dtype=dtype, options={**CKPT, "backend": "zarr"})
    for array in (tmp_path / f"fp32/checkpoints/{STEP}").glob("model.*"):
        if (array / ".zarray").exists():
            shutil.copytree(array, tmp_path / f"bf16/checkpoints/{STEP}/optimizer.state.fp32_param.{array.name}")
    assert fingerprint(tmp_path / "bf16", weights="master", options={"vocab": "61"}) == fingerprint(models / "grouped")
    with open_checkpoint(tmp_path / "bf16") as source:
        assert source.checkpoint.provenance.masters


def test_masters_that_are_not_there_are_refused(models: Path, tmp_path: Path) -> None:
    convert(models / "grouped", tmp_path / "x.nemo", to="nemo")
    with pytest.raises(CkptError, match="no fp32 masters"):
        fingerprint(tmp_path / "x.nemo", weights="master")


# --- arrangements --------------------------------------------------------------------------------------------------


def test_virtual_stages_are_counted_through_all_ranks(models: Path, tmp_path: Path) -> None:
    options = {**CKPT, "names": "legacy"}
    convert(models / "heads", tmp_path / "plain", to="nemo", options=options)
    convert(models / "heads", tmp_path / "virtual", to="nemo", pp=2, options={**options, "vpp": "2"})
    (whole,) = rank_files(tmp_path / "plain")
    whole = torch.load(whole, weights_only=False)["state_dict"]
    name = "language_model.encoder.layers.{}.mlp.dense_4h_to_h.weight"
    for stage, path in enumerate(rank_files(tmp_path / "virtual")):
        content = torch.load(path, weights_only=False)
        for chunk in range(2):
            assert torch.equal(
                content[f"model{chunk}"][name.format(0)], whole["model." + name.format(chunk * 2 + stage)]
            )
    with open_checkpoint(tmp_path / "virtual") as source:
        assert source.checkpoint.parallel == {"tp": 1, "pp": 2, "vpp": 2}
    assert fingerprint(tmp_path / "virtual") == fingerprint(models / "heads")
    with pytest.raises(CkptError, match="no virtual pipeline stages"):
        convert(models / "heads", tmp_path / "x.nemo", to="nemo", pp=2, options={"names": "legacy", "vpp": "2"})


@pytest.mark.parametrize("backend", ["zarr", "torch_dist"])
def test_the_bias_of_a_gated_mlp_is_stored_as_its_version_did(backend: str, models: Path, tmp_path: Path) -> None:
    """Megatron-Core before 0.8 kept each rank's [gate; up] together, since 0.8 it cuts the bias as it cuts the weight."""
    convert(models / "biased", tmp_path / "x.nemo", to="nemo", tp=2, options={"names": "mcore", "backend": backend})
    if backend == "zarr":
        (gate, up) = (
            torch.cat([block[i * 28 : (i + 1) * 28] for i in range(2)]) for block in _gate_and_up(models / "biased")
        )
        expected = torch.cat([gate[:28], up[:28], gate[28:], up[28:]])
        assert torch.equal(nemo.tensors(tmp_path / "x.nemo")["model.decoder.layers.mlp.linear_fc1.bias"][0], expected)
    assert fingerprint(tmp_path / "x.nemo") == fingerprint(models / "biased")


def _gate_and_up(folder: Path) -> list[torch.Tensor]:
    from ckpt_tests.models import weights

    held = weights(folder)
    return [held[f"model.layers.0.mlp.{part}_proj.bias"] for part in ("gate", "up")]


def test_two_linear_layers_in_place_of_a_gated_one(models: Path, tmp_path: Path) -> None:
    """`swiglu` without `fast-` keeps the gate in dense_h_to_4h and the rest in dense_h_to_4h_2."""
    convert(models / "heads", tmp_path / "fast.nemo", to="nemo", options={"names": "legacy"})

    def separate(files: dict[str, bytes]) -> None:
        def change(state: dict) -> None:
            for name in [name for name in state if name.endswith("dense_h_to_4h.weight")]:
                gate, up = state[name].chunk(2)
                state[name], state[name.replace("4h.", "4h_2.")] = gate.clone(), up.clone()

        nemo.changed_torch(files, "model_weights.ckpt", change)
        nemo.changed_config(files, activation="swiglu")

    nemo.repack(tmp_path / "fast.nemo", tmp_path / "swiglu.nemo", separate)
    options = {"vocab": "61"}
    assert fingerprint(tmp_path / "swiglu.nemo", options=options) == fingerprint(models / "heads")
    convert(
        tmp_path / "swiglu.nemo",
        tmp_path / "back.nemo",
        to="nemo",
        options={"vocab": "61", "make_vocab_size_divisible_by": "128"},
    )
    assert_same_bits(nemo.tensors(tmp_path / "back.nemo"), nemo.tensors(tmp_path / "swiglu.nemo"))
    assert nemo.config_of(tmp_path / "back.nemo")["activation"] == "swiglu"


def test_wrapped_names_are_unwrapped(models: Path, tmp_path: Path) -> None:
    convert(models / "heads", tmp_path / "x.nemo", to="nemo", options={"names": "legacy"})
    for number, wrapper in enumerate(("model.module.", "model._orig_mod.", "module.")):

        def wrap(state: dict, wrapper: str = wrapper) -> None:
            for name in list(state):
                state[wrapper + name.removeprefix("model.")] = state.pop(name)

        odd = nemo.repack(
            tmp_path / "x.nemo",
            tmp_path / f"{number}.nemo",
            lambda files, wrap=wrap: nemo.changed_torch(files, "model_weights.ckpt", wrap),
        )
        assert fingerprint(odd, options={"vocab": "61"}) == fingerprint(models / "heads")


# --- configs that say less or other --------------------------------------------------------------------------------


def test_absent_keys_have_nemos_defaults(models: Path, tmp_path: Path) -> None:
    tiny_gpt2(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", options={"names": "legacy"})
    defaults = {"normalization": "layernorm", "layernorm_epsilon": 1e-5, "bias": True, "activation": "gelu", "kv_channels": 8, "num_query_groups": None,
                "position_embedding_type": "learned_absolute", "share_embeddings_and_output_weights": True, "normalize_attention_scores": True,
                "transformer_block_type": "pre_ln", "headscale": False, "megatron_legacy": False}  # fmt: skip
    bare = nemo.repack(
        tmp_path / "x.nemo",
        tmp_path / "bare.nemo",
        lambda files: nemo.changed_config(files, **dict.fromkeys(defaults, "absent")),
    )
    options = {"vocab": "61"}
    assert fingerprint(bare, options=options) == fingerprint(tmp_path / "hf")
    with open_checkpoint(bare, options=options) as one, open_checkpoint(tmp_path / "hf") as two:
        assert one.architecture.decoder == two.architecture.decoder and one.architecture.head == two.architecture.head


def tiny_gpt2(folder: Path) -> None:
    from ckpt_tests.families import CASES, build

    build(CASES["gpt2"], folder)


BASE = {
    "num_layers": 2,
    "hidden_size": 96,
    "ffn_hidden_size": 56,
    "num_attention_heads": 12,
    "encoder_seq_length": 64,
    "max_position_embeddings": 64,
}
TANH, ERF = Activation.GELU_TANH, Activation.GELU_ERF


@pytest.mark.parametrize(
    ("table", "keys", "expected"),
    [
        (LEGACY, {}, TANH),  # bias_activation_fusion is on by default, and its kernel is tanh
        (LEGACY, {"bias_activation_fusion": False}, ERF),
        (LEGACY, {"bias": False}, ERF),
        (LEGACY, {"bias_activation_fusion": False, "openai_gelu": True}, TANH),
        (LEGACY, {"activation": "fast-geglu"}, TANH),
        (LEGACY, {"activation": "fast-swiglu", "bias_activation_fusion": False}, Activation.SILU),
        (LEGACY, {"activation": "fast-swiglu", "bias": False}, Activation.SILU),
        (LEGACY, {"activation": "reglu", "bias_activation_fusion": False, "openai_gelu": True}, TANH),
        (LEGACY, {"activation": "fast-swiglu"}, "no swiglu is applied"),
        (LEGACY, {"activation": "squared-relu", "bias_activation_fusion": False}, Activation.RELU_SQUARED),
        (LEGACY, {"activation": "squared-relu", "bias_activation_fusion": False, "onnx_safe": True}, "onnx_safe"),
        (MCORE, {}, TANH),
        (MCORE, {"bias": False}, ERF),
        (MCORE, {"bias_activation_fusion": False}, ERF),
        (MCORE, {"openai_gelu": True, "bias": False, "nemo_version": "2.0.0"}, TANH),
        (MCORE, {"openai_gelu": True, "bias": False, "nemo_version": "1.23.0"}, ERF),
        (MCORE, {"openai_gelu": True, "bias": False}, "nemo_version"),
        (MCORE, {"activation": "fast-geglu"}, "depends on the version of Megatron-Core"),
        (MCORE, {"activation": "fast-geglu", "bias_activation_fusion": False}, ERF),
        (MCORE, {"activation": "fast-swiglu"}, Activation.SILU),
        (MCORE, {"activation": "approx-gelu", "bias_activation_fusion": False}, Activation.GELU_QUICK),
    ],
)
def test_the_activation_is_the_one_that_is_computed(table, keys: dict, expected: object) -> None:
    if isinstance(expected, str) and not isinstance(expected, Activation):
        with pytest.raises(CkptError, match=expected):
            table.read(BASE | keys, "model_config.yaml")
    else:
        assert table.read(BASE | keys, "model_config.yaml")[0]["mlp.activation"] is expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 10000.0),
        ({"rotary_base": 500.0, "nemo_version": "1.22.0"}, 500.0),
        ({"rotary_base": 500.0, "nemo_version": "1.21.0"}, "ignores rotary_base before 1.22"),
        ({"rotary_base": 500.0}, "nemo_version"),
    ],
)
def test_the_rotary_base_is_read_by_versions_that_read_it(keys: dict, expected: object) -> None:
    config = BASE | {"position_embedding_type": "rope"} | keys
    if isinstance(expected, str):
        with pytest.raises(CkptError, match=expected):
            MCORE.read(config, "model_config.yaml")
    else:
        assert MCORE.read(config, "model_config.yaml")[0]["attention.rotary.theta"] == expected


@pytest.mark.parametrize("path", ["/data/tokens", "data/tokens"])
def test_paths_are_text(path: str, tmp_path: Path) -> None:
    """Before Python 3.13 a path is pickled in its parts, ("/", "data", "tokens"), and since then as it was given."""
    torch.save({"path": PurePosixPath(path)}, tmp_path / "x.ckpt")
    assert plain(torch_files.read_torch_file(str(tmp_path / "x.ckpt")), "x.ckpt") == {"path": path}


def test_interpolations_are_resolved_or_left() -> None:
    config = {"a": 4, "b": "${.a}", "c": "${model.b}", "d": {"e": "${..b}", "f": "${multiply:${model.a}, ${..c}}", "g": "x${.e}y"},
              "h": "${oc.env:HOME}", "i": "${.j}", "j": "${.i}", "k": "${sum:1,${a}}", "l": ["${model.d.f}"], "m": "${trainer.precision}"}  # fmt: skip
    found = resolved(config)
    assert (found["b"], found["c"], found["d"], found["k"], found["l"]) == (
        4,
        4,
        {"e": 4, "f": 16, "g": "x4y"},
        5,
        [16],
    )
    assert (found["h"], found["i"], found["m"]) == ("${oc.env:HOME}", "${.j}", "${trainer.precision}")
    assert resolved(config, {"model": config, "trainer": {"precision": 16}}, ("model",))["m"] == 16


def test_a_config_may_stand_under_model(models: Path, tmp_path: Path) -> None:
    convert(models / "grouped", tmp_path / "x.nemo", to="nemo")

    def wrap(files: dict[str, bytes]) -> None:
        config = yaml.safe_load(files["model_config.yaml"])
        config["max_position_embeddings"] = "${model.encoder_seq_length}"
        files["model_config.yaml"] = yaml.safe_dump({"trainer": {"devices": 8}, "model": config}).encode()

    odd = nemo.repack(tmp_path / "x.nemo", tmp_path / "y.nemo", wrap)
    assert fingerprint(odd, options={"vocab": "61"}) == fingerprint(models / "grouped")


def test_a_checkpoint_without_config_is_read_with_one(models: Path, tmp_path: Path) -> None:
    convert(models / "heads", tmp_path / "run", to="nemo", tp=2, options={**CKPT, "names": "legacy"})
    hparams = (tmp_path / "run/hparams.yaml").read_bytes()
    (tmp_path / "run/hparams.yaml").unlink()
    for path in rank_files(tmp_path / "run"):
        content = torch.load(path, weights_only=False)
        del content["hyper_parameters"]
        torch.save(content, path)
    config = str(models / "heads/config.json")
    with pytest.raises(CkptError, match="holds no config"):
        fingerprint(tmp_path / "run")
    with pytest.raises(CkptError, match="in which order q, k and v are"):
        fingerprint(tmp_path / "run", config=config)
    assert fingerprint(tmp_path / "run", config=config, options={"megatron_legacy": "false"}) == fingerprint(
        models / "heads"
    )
    (tmp_path / "elsewhere.yaml").write_bytes(hparams)
    options = {"hparams": str(tmp_path / "elsewhere.yaml"), "vocab": "61"}
    assert fingerprint(tmp_path / "run", options=options) == fingerprint(models / "heads")


def test_hparams_stand_in_for_a_config(models: Path, tmp_path: Path) -> None:
    convert(models / "heads", tmp_path / "run", to="nemo", options={**CKPT, "names": "legacy"})
    (path,) = rank_files(tmp_path / "run")
    content = torch.load(path, weights_only=False)
    del content["hyper_parameters"]
    torch.save(content, path)
    assert fingerprint(tmp_path / "run") == fingerprint(models / "heads")
    assert fingerprint(path, options={"vocab": "61"}) == fingerprint(models / "heads")


# --- runs ----------------------------------------------------------------------------------------------------------


def test_of_several_steps_one_must_be_chosen(models: Path, tmp_path: Path) -> None:
    convert(models / "heads", tmp_path / "run", to="nemo", tp=2, options={**CKPT, "names": "legacy"})
    for path in rank_files(tmp_path / "run"):
        shutil.copy(path, path.with_name(f"{STEP}-last.ckpt"))
    expected = fingerprint(models / "heads")
    assert fingerprint(tmp_path / "run") == expected  # -last repeats the other one
    for path in rank_files(tmp_path / "run"):
        shutil.copy(path, path.with_name("step=9-consumed_samples=72.0.ckpt"))
    with pytest.raises(CkptError, match="several checkpoints lie here"):
        fingerprint(tmp_path / "run", format="nemo")
    assert (
        fingerprint(tmp_path / "run/checkpoints/mp_rank_01/step=9-consumed_samples=72.0.ckpt", options={"vocab": "61"})
        == expected
    )


def test_what_was_not_saved_to_its_end_is_refused(models: Path, tmp_path: Path) -> None:
    convert(models / "heads", tmp_path / "run", to="nemo", options={**CKPT, "names": "legacy"})
    (tmp_path / f"run/checkpoints/{STEP}-unfinished").touch()
    with pytest.raises(CkptError, match="not saved to its end"):
        fingerprint(tmp_path / "run")


def test_shards_of_fsdp_are_refused(models: Path, tmp_path: Path) -> None:
    convert(models / "heads", tmp_path / "run", to="nemo", tp=2, options={**CKPT, "names": "legacy"})
    folder = tmp_path / "run/checkpoints"
    (folder / "mp_rank_01").rename(folder / "mp_rank_01_fsdp_shard_00001")
    with pytest.raises(CkptError, match="FSDP"):
        fingerprint(tmp_path / "run", format="nemo")


# --- tokenizers ----------------------------------------------------------------------------------------------------


def test_pieces_are_counted() -> None:
    assert piece_count(nemo.sentencepiece(61), "x") == 61
    for damaged in (b"", b"\x0a\xff", b"\x0a\x05abc", b"\x0b\x00", b"{}"):
        with pytest.raises(CkptError, match="not a SentencePiece model"):
            piece_count(damaged, "x")


def test_a_tokenizer_travels_both_ways(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "grouped", tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").write_bytes(nemo.sentencepiece(61))
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2)
    config = nemo.config_of(tmp_path / "x.nemo")
    assert (
        config["tokenizer"]["library"] == "sentencepiece" and "override_vocab_size" not in config
    )  # NeMo pads to the same
    assert nemo.members(tmp_path / "x.nemo")[config["tokenizer"]["model"][5:]] == nemo.sentencepiece(61)
    (tmp_path / "x.nemo.ckpt-receipt.json").unlink()
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf")
    assert (tmp_path / "back/tokenizer.model").read_bytes() == nemo.sentencepiece(61)
    assert json.loads((tmp_path / "back/config.json").read_text())["vocab_size"] == 61


def test_a_bpe_tokenizer_is_embedded_as_two_files(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "grouped", tmp_path / "hf")
    (tmp_path / "hf/vocab.json").write_text(json.dumps({f"t{number}": number for number in range(61)}))
    (tmp_path / "hf/merges.txt").write_text("#version: 0.2\n")
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    section = nemo.config_of(tmp_path / "x.nemo")["tokenizer"]
    assert (section["library"], section["type"]) == ("megatron", "GPT2BPETokenizer")
    assert all(section[key][5:] in nemo.members(tmp_path / "x.nemo") for key in ("vocab_file", "merge_file"))
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf")
    assert (tmp_path / "back/merges.txt").is_file()


def test_a_tokenizer_that_nemo_does_not_embed_is_named(models: Path, tmp_path: Path) -> None:
    receipt = convert(models / "grouped", tmp_path / "x.nemo", to="nemo")
    assert any("tokenizer_name" in loss["reason"] for loss in receipt.body["losses"])
    convert(models / "grouped", tmp_path / "y.nemo", to="nemo", options={"tokenizer_name": "acme/tiny"})
    section = nemo.config_of(tmp_path / "y.nemo")["tokenizer"]
    assert (section["library"], section["type"]) == ("huggingface", "acme/tiny")


def test_rows_that_no_tokenizer_explains_are_an_assumption(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "grouped", tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").write_bytes(nemo.sentencepiece(40))
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", options={"make_vocab_size_divisible_by": "16"})
    (tmp_path / "x.nemo.ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "x.nemo") as source:
        assert (
            source.architecture.tokens.vocabulary == 64
        )  # override_vocab_size: tokens beyond the tokenizer's were added
    odd = nemo.repack(
        tmp_path / "x.nemo", tmp_path / "y.nemo", lambda files: nemo.changed_config(files, override_vocab_size="absent")
    )
    with open_checkpoint(odd) as source:
        assert source.architecture.tokens.vocabulary == 64
        assert any("do not lead to 64 rows" in loss.reason for loss in source.checkpoint.provenance.losses)


def test_no_other_format_takes_what_lightning_stored(models: Path, tmp_path: Path) -> None:
    """The distributed checkpoint of a run has the files of Megatron's."""
    convert(models / "grouped", tmp_path / "run", to="nemo", options={**CKPT, "backend": "torch_dist"})
    step = tmp_path / f"run/checkpoints/{STEP}"
    for path in (tmp_path / "run", step.parent, step):
        assert [plugin.name for plugin, _ in detect(str(path))] == ["nemo"]
    assert fingerprint(step, options={"vocab": "61"}) == fingerprint(models / "grouped")


@pytest.mark.parametrize("backend", ["ranks", "zarr", "torch_dist"])
def test_of_an_unpacked_archive_a_stray_file_alone_is_not_looked_at(backend: str, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    options = {"container": "folder", "names": "mcore", "backend": backend}
    convert(models / "heads", folder, to="nemo", options=options)
    assert _not_known(folder) == []
    (folder / "notes.txt").write_text("hello")
    assert _not_known(folder) == ["files that the reader does not know, 5 B: notes.txt"]


def _not_known(folder: Path) -> list[str]:
    with open_checkpoint(folder) as source:
        return [loss.subject for loss in source.checkpoint.all_losses if "does not know" in loss.subject]
