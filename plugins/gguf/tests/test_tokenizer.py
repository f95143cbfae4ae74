"""Tokenizers into a GGUF file and back: kept as they are, and made again of tokens and merges."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from ckpt_core import convert
from ckpt_core.api import plan_conversion, read_checkpoint
from ckpt_core.errors import Refusal
from ckpt_gguf.container import read_header
from ckpt_gguf.splitting import SPLITTINGS, pre_tokenizer_of, splitting_of
from ckpt_gguf.tokenizer import Told, told_by
from ckpt_gguf.vocabulary import BLANK, KEPT_JSON
from ckpt_tests import tiny
from ckpt_tests.gguf import CORPUS, SPECIAL, byte_pairs

TEXTS = [*CORPUS[:3], "  two  blanks", "THE CAT'S 12 34567", "<|begin|>the<|end|> mat", "🙂"]
ROWS = 400


def of_pieces() -> Tokenizer:
    """Byte pairs of pieces, with bytes for what has no piece, as transformers makes of Llama 2's tokenizer."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=["<unk>", *SPECIAL, *bytes_], show_progress=False)
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode() for text in CORPUS], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    body = json.loads(tokenizer.to_str())
    body["added_tokens"] = [one for one in body["added_tokens"] if not one["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(body))


def folder(tmp_path: Path, tokenizer: Tokenizer | None, **config: Any) -> Path:
    path = tmp_path / "hf"
    tiny.build(path, "llama", vocab_size=ROWS, num_hidden_layers=1)
    if tokenizer is not None:
        (path / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    given = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "clean_up_tokenization_spaces": False, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(given))
    (path / "chat_template.jinja").write_text("{{ messages }} é")
    return path


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_byte_pairs_are_said_and_come_back(name: str, tmp_path: Path) -> None:
    tokenizer = byte_pairs(name)
    source, file = folder(tmp_path, tokenizer), tmp_path / "model.gguf"
    convert(source, file, to="gguf")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(str(file)).fields.items()}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", name)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == ROWS and tokens[-1] == f"[PAD{ROWS - 1}]" and types[-1] == 5
    ids = tokenizer.get_vocab()
    assert all(tokens[number] == text for text, number in ids.items())
    assert [types[ids[text]] for text in ("<|begin|>", "mat", "a")] == [3, 4, 1]
    assert fields["tokenizer.ggml.merges"] == [
        " ".join(one) for one in json.loads(tokenizer.to_str())["model"]["merges"]
    ]
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.ggml.add_eos_token"] is False
    convert(file, tmp_path / "back", to="hf")
    for kept in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "back" / kept).read_bytes() == (source / kept).read_bytes()


@pytest.mark.parametrize(
    "tokenizer",
    [*map(byte_pairs, ("llama-bpe", "qwen2", "smollm")), of_pieces()],
    ids=("llama-bpe", "qwen2", "smollm", "pieces"),
)
def test_made_again_it_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    convert(folder(tmp_path, tokenizer), file, to="gguf")
    header = read_header(str(file))
    stripped = {key: value for key, value in header.metadata.items() if key != KEPT_JSON}
    told = told_by(stripped, header.places, str(file))
    assert [loss.kind for loss in told.losses] == ["assumed"]
    again = Tokenizer.from_str(told.files["tokenizer.json"].extent.read().decode())
    for text in TEXTS:
        ids, found = tokenizer.encode(text).ids, again.encode(text).ids
        assert found == ids, text
        assert again.decode(found) == tokenizer.decode(ids)


def test_every_way_to_cut_words_is_found_again() -> None:
    for one in SPLITTINGS:
        tokenizer = {"pre_tokenizer": pre_tokenizer_of(one), "model": {"ignore_merges": one.whole}}
        assert splitting_of(tokenizer, bool(one.cleans), next(iter(one.of), "")) is one


def _field(tag: int, value: bytes | int | float) -> bytes:
    if isinstance(value, float):
        return bytes([tag << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([tag << 3, value])
    assert len(value) < 128
    return bytes([tag << 3 | 2, len(value)]) + value


def test_pieces_of_sentencepiece_are_said_with_their_scores(tmp_path: Path) -> None:
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<0x0A>", 0.0, 6),
        (f"{BLANK}a", -1.5, 1),
        ("b", -2.25, 1),
    ]
    model = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind)) for text, score, kind in pieces
    )
    source = folder(
        tmp_path,
        None,
        bos_token="<s>",
        eos_token="</s>",
        added_tokens_decoder={"6": {"content": "<x>", "special": False}},
    )
    (source / "tokenizer.model").write_bytes(model + _field(2, _field(3, 2)) + _field(3, _field(3, 0)))
    convert(source, tmp_path / "model.gguf", to="gguf")
    metadata = read_header(str(tmp_path / "model.gguf")).metadata
    said = {name: metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")}
    assert said["tokens"][:7] == [*(text for text, _, _ in pieces), "<x>"]
    assert said["scores"][:7] == [0.0, 0.0, 0.0, 0.0, -1.5, -2.25, -1000.0]
    assert said["token_type"][:8] == [2, 3, 3, 6, 1, 1, 4, 5]
    assert metadata["tokenizer.ggml.add_space_prefix"] is False and metadata["tokenizer.ggml.add_bos_token"] is True
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_a_tokenizer_that_llama_cpp_does_not_run_is_refused(tmp_path: Path) -> None:
    unknown = byte_pairs("gpt-2")
    body = json.loads(unknown.to_str())
    body["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}, body["pre_tokenizer"]],
    }
    source = folder(tmp_path, Tokenizer.from_str(json.dumps(body)))
    with pytest.raises(Refusal, match="-o pre=NAME"):
        convert(source, tmp_path / "x.gguf", to="gguf")
    convert(source, tmp_path / "x.gguf", to="gguf", options={"dst.pre": "falcon"})
    assert read_header(str(tmp_path / "x.gguf")).metadata["tokenizer.ggml.pre"] == "falcon"
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    (source / "tokenizer.json").write_text(words.to_str())
    with pytest.raises(Refusal, match="WordLevel"):
        convert(source, tmp_path / "y.gguf", to="gguf")


def test_a_name_that_is_not_known_here_is_a_loss(tmp_path: Path) -> None:
    source = folder(tmp_path, byte_pairs("gpt-2"))
    convert(source, tmp_path / "x.gguf", to="gguf", options={"dst.pre": "falcon"})
    header = read_header(str(tmp_path / "x.gguf"))
    told = told_by({key: value for key, value in header.metadata.items() if key != KEPT_JSON}, header.places, "x")
    assert "tokenizer.json" not in told.files and [str(loss) for loss in told.losses if "falcon" in str(loss)]


PIECES = {
    "model": "llama",
    "tokens": ["<unk>", "a", "b", "ab"],
    "token_type": [2, 1, 1, 1],
    "scores": [0.0, -1.0, -2.0, -3.0],
}
PAIRS = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "c", "ab"], "token_type": [1] * 4, "merges": ["a b"]}


@pytest.mark.parametrize(
    ("whole", "change", "said"),
    [
        (
            PIECES,
            {"tokens": ["<unk>", "a", "b", "a" * 100_000]},
            "100000 characters",
        ),  # all ways to cut it take minutes
        (PIECES, {"scores": [0.0, -1.0, float("nan"), -3.0]}, "one score each"),
        (PIECES, {"token_type": [2, 1, 1, 99]}, "token_type has a type"),
        (PAIRS, {"merges": ["a b", "b c"]}, "not of two tokens into one"),
    ],
)
def test_a_tokenizer_that_no_program_would_load_is_a_loss(
    whole: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    def told(values: dict[str, Any]) -> Told:
        return told_by({f"tokenizer.ggml.{key}": value for key, value in values.items()}, {}, "x")

    assert "tokenizer.json" in told(whole).files
    found = told(whole | change)
    assert "tokenizer.json" not in found.files and any(said in str(loss) for loss in found.losses)


def test_tokens_above_the_embedding_are_a_loss(tmp_path: Path) -> None:
    tokenizer = byte_pairs("gpt-2")
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(ROWS)])
    plan = plan_conversion(folder(tmp_path, tokenizer), tmp_path / "x.gguf", to="gguf")
    assert any(loss.kind == "dropped" and "tokens: <extra_" in loss.subject for loss in plan.losses)


def test_files_beside_the_file_go_before_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(folder(tmp_path, byte_pairs("gpt-2")), out, to="gguf")
    found = read_checkpoint(out).sidecars
    assert found["tokenizer.json"].path == str(out / "tokenizer.json") and not found["tokenizer.json"].offset
