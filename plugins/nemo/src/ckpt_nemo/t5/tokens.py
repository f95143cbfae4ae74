"""The special tokens of a NeMo T5: its SentencePiece model, and what NeMo adds to that when it loads it.

MegatronT5Model.add_special_tokens_to_tokenizer (r1.16): after the pieces come <cls> <sep> <mask> <pad> <bos> <eos>, those
that the model lacks, then the sentinels, and for UL2 the three mode tokens. Files of T5 are taken with the sentinels first,
the last one foremost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import FormatError, schema
from ckpt_nemo.container.sentencepiece import PIECES, TRAINER, fields

_UL2 = ("<extra_id_r>", "<extra_id_s>", "<extra_id_x>")
_UNKNOWN, _BOS, _EOS, _PAD = 40, 41, 42, 43  # fields of sentencepiece's TrainerSpec
_DEFAULTS = {_UNKNOWN: 0, _BOS: 1, _EOS: 2, _PAD: -1}
_MAX_SENTINELS = 10_000


@schema.dataclass(frozen=True)
class Tokens:
    """How many tokens there are, and which of them begin, end and pad a sequence; `start` is the decoder's first.

    NeMo's decoder starts with the token that begins any sequence, not with padding.
    """

    count: int
    bos: int
    eos: int
    pad: int
    start: int

    @property
    def notes(self) -> dict[str, int]:
        """As notes of a checkpoint."""
        return {"bos": self.bos, "eos": self.eos, "pad": self.pad, "decoder_start": self.start}


class _Vocabulary:
    def __init__(self, pieces: list[str], ids: Mapping[int, int]) -> None:
        self.known = {piece: number for number, piece in enumerate(pieces)}
        self.count, self._pieces, self._ids = len(pieces), pieces, ids

    def add(self, token: str) -> int:
        """The id of a token, which is new if the model has no such piece (or has it as the unknown one)."""
        if self.known.get(token, self._ids[_UNKNOWN]) == self._ids[_UNKNOWN]:
            self.known[token] = self.count
            self.count += 1
        return self.known[token]

    def own(self, field: int, otherwise: str) -> int:
        """The id that the model itself has for a role; 0 counts as none."""
        number = self._ids[field]
        return number if 0 < number < len(self._pieces) else self.add(otherwise)


def special_tokens(model: bytes, section: Mapping[str, Any], ul2: bool, file: str) -> Tokens:
    """The tokens of a SentencePiece `model` with the `tokenizer` section of the config; `ul2` is its data's kind."""
    pieces, ids = _parsed(model, file)
    vocabulary = _Vocabulary(pieces, ids)
    count = section.get("num_sentinel_tokens") or 0
    if type(count) is not int or not 0 <= count <= _MAX_SENTINELS:
        raise FormatError("tokenizer.num_sentinel_tokens is not a number of tokens", file=file, found=repr(count)[:60])
    numbers = range(count)
    sentinels = [
        f"<extra_id_{n}>"
        for n in (reversed(numbers) if section.get("add_sentinel_tokens_in_reverse_order") else numbers)
    ]
    sentinels += _UL2 if ul2 else ()
    first = bool(section.get("add_sentinel_tokens_first"))
    for token in sentinels if first else ():
        vocabulary.add(token)
    for token in ("<cls>", "<sep>", "<mask>"):
        vocabulary.add(token)
    pad, bos, eos = (
        vocabulary.own(field, f"<{name}>") for field, name in ((_PAD, "pad"), (_BOS, "bos"), (_EOS, "eos"))
    )
    for token in sentinels if not first else ():
        vocabulary.add(token)
    return Tokens(vocabulary.count, bos, eos, pad, start=bos)


def like_t5(section: Mapping[str, Any]) -> bool:
    """Whether the sentinels of a `tokenizer` section are those of transformers' T5, whose SentencePiece model is spiece.model."""
    return bool(section.get("add_sentinel_tokens_first") and section.get("add_sentinel_tokens_in_reverse_order"))


def tokens_of(model: bytes, config: Mapping[str, Any], file: str) -> Tokens:
    """The tokens of a SentencePiece `model` with a whole `config`."""
    data, section = ({} if not isinstance(config.get(key), Mapping) else config[key] for key in ("data", "tokenizer"))
    tokens = special_tokens(model, section, data.get("dataset_type") == "ul2", file)
    # a model that came from transformers was trained there with padding before the target
    padded = str(config.get("library") or "").startswith("huggingface") or data.get("decoder_starts_with_pad") is True
    return replace(tokens, start=tokens.pad) if padded else tokens


def _parsed(model: bytes, file: str) -> tuple[list[str], dict[int, int]]:
    """The pieces in the order of their ids, and the ids of the roles (sentencepiece_model.proto)."""
    pieces: list[str] = []
    ids = dict(_DEFAULTS)
    for field, value in fields(model, file):
        if field == PIECES and isinstance(value, bytes):
            text = next((inner for number, inner in fields(value, file) if number == 1), b"")
            pieces.append(text.decode("utf-8", "replace") if isinstance(text, bytes) else "")
        elif field == TRAINER and isinstance(value, bytes):
            # a negative id is a number of 64 bits
            found = {number: inner for number, inner in fields(value, file) if number in ids and isinstance(inner, int)}
            ids |= {number: inner - (1 << 64) if inner >> 63 else inner for number, inner in found.items()}
    return pieces, ids
