"""T5, UL2, mT5, UMT5 and Blenderbot of transformers to NeMo, in any layout, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import nemo_t5
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import weights
from ckpt_tests.seq2seq import build, change_config, config_of, load, logits_of

TOLERANCE = 2e-5
EXACT = ["t5_v1.1", "ul2", "mt5", "blenderbot"]  # those of which nothing is folded
ROWS = 128  # of a rank of two: NeMo pads 61 tokens to a multiple of 128 for each


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, torch.Tensor]]:
    found: dict[str, tuple[Path, torch.Tensor]] = {}

    def make(name: str) -> tuple[Path, torch.Tensor]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name) / "hf"
            found[name] = folder, logits_of(build(name, folder))
        return found[name]

    return make


def to_nemo(hf: Path, path: Path, tp: int = 1, pp: int = 1, **options: str) -> dict:
    receipt = convert(hf, path, to="nemo", tp=tp, pp=pp, options={"container": "folder", **options})
    return receipt.body["target"]["decisions"]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("layout", "tp"), [("script", 1), ("native", 2)])
def test_nothing_is_rounded_where_nothing_is_folded(
    name: str, layout: str, tp: int, made: Callable, tmp_path: Path
) -> None:
    hf, expected = made(name)
    decisions = to_nemo(hf, tmp_path / "nemo", tp=tp, layout=layout)
    assert decisions["layout"] == layout
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(hf))
    assert config_of(tmp_path / "back")["architectures"] == config_of(hf)["architectures"]
    assert torch.equal(logits_of(load(tmp_path / "back")), expected)


@pytest.mark.parametrize("name", ["t5_v1.1", "blenderbot"])
def test_the_two_layouts_of_q_k_v_are_those_of_nemo(name: str, made: Callable, tmp_path: Path) -> None:
    """Built by hand: rank t of 2 holds heads 2t and 2t + 1, its rows in blocks or head by head."""
    hf, _ = made(name)
    held = weights(hf)
    prefix = (
        "decoder.block.1.layer.0.SelfAttention.{}.weight"
        if name == "t5_v1.1"
        else "model.decoder.layers.1.self_attn.{}_proj.weight"
    )
    crossed = (
        "decoder.block.1.layer.1.EncDecAttention.{}.weight"
        if name == "t5_v1.1"
        else "model.decoder.layers.1.encoder_attn.{}_proj.weight"
    )
    count = 4 if name == "t5_v1.1" else 6
    for layout in ("script", "native"):
        to_nemo(hf, tmp_path / layout, tp=2, layout=layout)
        written = nemo_t5.tensors(tmp_path / layout)
        for t in range(2):
            for parts, native, pattern in (
                ("qkv", "self_attention.query_key_value", prefix),
                ("kv", "inter_attention.key_value", crossed),
            ):
                own = [
                    held[pattern.format(part)].unflatten(0, (count, -1))[t * count // 2 : (t + 1) * count // 2]
                    for part in parts
                ]
                expected = torch.stack(own, 0 if layout == "script" else 1).flatten(0, 2)
                assert torch.equal(
                    written[f"mp_rank_0{t}", f"enc_dec_model.enc_dec_model.decoder.model.layers.1.{native}.weight"],
                    expected,
                )


def test_what_nemo_loads_strictly_is_all_there(made: Callable, tmp_path: Path) -> None:
    hf, _ = made("t5_v1.1")
    to_nemo(hf, tmp_path / "nemo", tp=2, layout="native")
    written, config = nemo_t5.tensors(tmp_path / "nemo"), nemo_t5.config(tmp_path / "nemo")
    table = "enc_dec_model.encoder_relative_position_embedding.relative_position_embedding.weight"
    bias = weights(hf)["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    for rank in ("mp_rank_00", "mp_rank_01"):
        embedding = written[rank, "enc_dec_model.encoder_embedding.word_embeddings.weight"]
        assert torch.equal(written[rank, "enc_dec_model.decoder_embedding.word_embeddings.weight"], embedding)
        assert torch.equal(written[rank, table], bias), "every rank has the whole table"
        assert len(embedding) == ROWS
    assert config["make_vocab_size_divisible_by"] == ROWS
    assert config["target"].endswith("MegatronT5Model")
    assert {config[key] for key in ("share_decoder_tokens_head_embeddings", "tokens_head_bias")} == {False}
    for section in ("encoder", "decoder"):
        said = config[section]
        assert said["normalize_attention_scores"] is said["apply_query_key_layer_scaling"] is said["bias"] is False
        assert (said["activation"], said["openai_gelu"], said["bias_activation_fusion"]) == ("geglu", True, False)
        assert (said["layernorm_epsilon"], said["relative_attention_max_distance"]) == (1e-5, 9)


def test_silu_is_not_overridden_by_openai_gelu(made: Callable, tmp_path: Path) -> None:
    """NVIDIA's script leaves openai_gelu on for UL2, which then computes GELU."""
    to_nemo(made("ul2")[0], tmp_path / "nemo")
    said = nemo_t5.config(tmp_path / "nemo")["encoder"]
    assert (said["activation"], said["openai_gelu"]) == ("swiglu", False)


def test_t5_1_0_with_a_gate_that_is_one_and_its_head_written_out(made: Callable, tmp_path: Path) -> None:
    """NeMo's only ReLU is gated, and it scales no logits."""
    hf, expected = made("t5_v1.0")
    decisions = to_nemo(hf, tmp_path / "nemo", tp=2)
    assert len(decisions["rewrites"]) == 4  # relu, the head untied, its scale, the rows
    assert nemo_t5.config(tmp_path / "nemo")["decoder"]["activation"] == "reglu"
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert (logits_of(load(tmp_path / "back")) - expected).abs().max() < TOLERANCE
    back = weights(tmp_path / "back")
    head = back.pop("lm_head.weight")
    assert_same_bits(back, weights(hf))
    assert torch.equal(head, back["shared.weight"] * torch.tensor(36**-0.5, dtype=torch.float32))


def test_stages_keep_the_head_tied(made: Callable, tmp_path: Path) -> None:
    hf, expected = made("t5_v1.0")
    to_nemo(hf, tmp_path / "nemo", pp=3, split="1")
    written = nemo_t5.tensors(tmp_path / "nemo")
    last = {name for rank, name in written if rank == "tp_rank_00_pp_rank_002"}
    assert "enc_dec_model.word_embeddings.weight" in last
    assert not any("embedding.word" in name and "decoder" in name for name in last)
    # 3 encoder layers on stage 0, one decoder layer on each of the others
    assert {name.split("layers.")[1][0] for rank, name in written if "layers." in name and "pp_rank_002" in rank} == {
        "0"
    }
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert (logits_of(load(tmp_path / "back")) - expected).abs().max() < TOLERANCE
    with pytest.raises(CkptError, match="divide the 3 layers of the encoder"):
        to_nemo(hf, tmp_path / "uneven", pp=4, split="2")


@pytest.mark.parametrize(
    ("name", "key"), [("t5_v1.1", "share_decoder_tokens_head_embeddings"), ("blenderbot", "share_token_embeddings")]
)
def test_stages_that_nemo_does_not_build_are_refused(name: str, key: str, made: Callable, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=key):
        to_nemo(made(name)[0], tmp_path / "nemo", pp=2)


def test_a_bias_in_every_layer_is_refused_unless_it_is_one_bias(made: Callable, tmp_path: Path) -> None:
    hf, _ = made("umt5")
    with pytest.raises(CkptError, match="relative_bias"):
        to_nemo(hf, tmp_path / "nemo")
    other = tmp_path / "multiples"
    other.mkdir()
    (other / "config.json").write_text((hf / "config.json").read_text())
    held = load_file(hf / "model.safetensors")
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        name = f"{stack}.block.{{}}.layer.0.SelfAttention.relative_attention_bias.weight"
        for layer in range(layers):
            held[name.format(layer)] = held[name.format(0)] * (layer + 1)
    save_file(held, other / "model.safetensors", {"format": "pt"})
    expected = logits_of(load(other))
    to_nemo(other, tmp_path / "nemo")
    assert nemo_t5.config(tmp_path / "nemo")["decoder"]["apply_query_key_layer_scaling"] is True
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert type(load(tmp_path / "back")).__name__.startswith("UMT5")
    assert (logits_of(load(tmp_path / "back")) - expected).abs().max() < TOLERANCE


def test_blenderbot_has_positions_in_each_stack(made: Callable, tmp_path: Path) -> None:
    """One embedding for both stacks would be one table of positions for both."""
    to_nemo(made("blenderbot")[0], tmp_path / "nemo", tp=2)
    assert nemo_t5.config(tmp_path / "nemo")["share_token_embeddings"] is False
    losses = json.loads((tmp_path / "nemo" / "ckpt-receipt.json").read_text())["losses"]
    assert any("share_token_embeddings" in loss["subject"] for loss in losses)


def test_the_vocabulary_is_padded_with_zeros_and_known_again(made: Callable, tmp_path: Path) -> None:
    hf, _ = made("t5_v1.1")
    to_nemo(hf, tmp_path / "nemo", make_vocab_size_divisible_by="8")
    embedding = nemo_t5.tensors(tmp_path / "nemo")["", "enc_dec_model.encoder_embedding.word_embeddings.weight"]
    assert embedding.shape == (64, 36)
    assert not embedding[61:].any()
    assert fingerprint(tmp_path / "nemo") == fingerprint(hf)
    (tmp_path / "nemo" / "ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "nemo") as found:
        assert found.architecture.tokens.vocabulary == 64


def test_another_dtype_is_noted_in_the_config(made: Callable, tmp_path: Path) -> None:
    convert(made("t5_v1.1")[0], tmp_path / "nemo.nemo", to="nemo", dtype="bf16")
    config = nemo_t5.config(tmp_path / "nemo.nemo")
    assert (config["megatron_amp_O2"], config["precision"]) == (True, "bf16")
    assert {tensor.dtype for tensor in nemo_t5.tensors(tmp_path / "nemo.nemo").values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["blenderbot", "blenderbot_own_head"])
def test_a_scaled_embedding_is_folded_into_it(name: str, tmp_path: Path) -> None:
    """Blenderbots of the hub have scale_embedding: the head that is tied to the embedding is made up for in the last norm."""
    model = build(name, tmp_path / "hf", scale_embedding=True)
    to_nemo(tmp_path / "hf", tmp_path / "nemo", tp=2)
    assert nemo_t5.config(tmp_path / "nemo")["share_decoder_tokens_head_embeddings"] == (name == "blenderbot")
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    back = load(tmp_path / "back")
    assert not back.config.scale_embedding
    assert (logits_of(back) - logits_of(model)).abs().max() < 5 * TOLERANCE


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def sentencepiece(pieces: list[str], **ids: int) -> bytes:
    """A model of sentencepiece, by its protocol buffer: the pieces, and the ids of the roles."""
    body = b""
    for piece in pieces:
        inner = b"\x0a" + varint(len(piece.encode())) + piece.encode() + b"\x15\x00\x00\x00\x00"
        body += b"\x0a" + varint(len(inner)) + inner
    fields = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
    trainer = b"".join(varint(fields[name] << 3) + varint(number % (1 << 64)) for name, number in ids.items())
    return body + b"\x12" + varint(len(trainer)) + trainer


def test_the_tokens_that_nemo_adds_have_rows(made: Callable, tmp_path: Path) -> None:
    """The model of T5 has <pad>, </s> and <unk> first and no <s>; then come 100 sentinels, <cls>, <sep>, <mask> and <bos>."""
    hf, _ = made("t5_v1.1")
    folder = tmp_path / "hf"
    shutil.copytree(hf, folder)
    change_config(folder, decoder_start_token_id=0)
    (folder / "spiece.model").write_bytes(
        sentencepiece(["<pad>", "</s>", "<unk>", *map(str, range(30))], unk=2, bos=-1, eos=1, pad=0)
    )
    to_nemo(folder, tmp_path / "nemo", make_vocab_size_divisible_by="8")
    embedding = nemo_t5.tensors(tmp_path / "nemo")["", "enc_dec_model.encoder_embedding.word_embeddings.weight"]
    assert len(embedding) == 144  # 33 + 100 + 4 tokens, padded
    section = nemo_t5.config(tmp_path / "nemo")["tokenizer"]
    assert (section["library"], section["num_sentinel_tokens"], section["add_sentinel_tokens_first"]) == (
        "sentencepiece",
        100,
        True,
    )
    with open_checkpoint(tmp_path / "nemo") as found:
        # <bos> is token 136 of NeMo's, and this model has 61 rows
        assert {name: found.checkpoint.notes[name] for name in ("bos", "eos", "pad")} == {
            "bos": None,
            "eos": 1,
            "pad": 0,
        }
        assert any("136" in loss.subject or "136" in loss.reason for loss in found.checkpoint.provenance.losses)
        assert list(found.checkpoint.sidecars) == ["generation_config.json", "spiece.model"]
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert config_of(tmp_path / "back")["decoder_start_token_id"] == 0, (
        "padding, not the <bos> that NeMo would start with"
    )
    assert (tmp_path / "back" / "spiece.model").read_bytes() == (folder / "spiece.model").read_bytes()


def test_a_run_names_its_tokenizer_by_its_path(made: Callable, tmp_path: Path) -> None:
    """A name inside an archive (nemo:...) resolves in an archive alone."""
    folder = tmp_path / "hf"
    shutil.copytree(made("t5_v1.1")[0], folder)
    data = sentencepiece(["<pad>", "</s>", "<unk>", *map(str, range(30))], unk=2, bos=-1, eos=1, pad=0)
    (folder / "spiece.model").write_bytes(data)
    to_nemo(folder, tmp_path / "run", container="ckpt", make_vocab_size_divisible_by="8")
    named = yaml.safe_load((tmp_path / "run/hparams.yaml").read_text())["cfg"]["tokenizer"]["model"]
    assert Path(named).parent == tmp_path / "run" and Path(named).read_bytes() == data
