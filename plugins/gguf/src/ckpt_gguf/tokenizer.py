"""A Hugging Face tokenizer, made of what a GGUF file says of its own.

Where the file keeps tokenizer.json, that is it. Else it is made of tokens, types, merges or scores, and the name of how words are cut: all
that decides the ids of a text. What is around it in tokenizer.json, such as whether blanks beside a special token belong to it, is not in
the file, and is taken as usual.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import CkptError, FormatError, company, ledgers, schema
from ckpt_gguf.splitting import BY_NAME, byte_level, pre_tokenizer_of
from ckpt_gguf.vocabulary import (
    BLANK,
    BYTE,
    CONFIG,
    CONTROL,
    JSON,
    KEPT_JSON,
    KEPT_TEMPLATE,
    NORMAL,
    TEMPLATE,
    UNUSED,
    USER_DEFINED,
)

_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_GGML = "tokenizer.ggml."
_LONGEST_PIECE = 1024
_USED = (
    "model",
    "pre",
    "tokens",
    "token_type",
    "scores",
    "merges",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
)
_IGNORED = (
    "bos_token_id",
    "eos_token_id",
    "unknown_token_id",
    "padding_token_id",
    "seperator_token_id",
    "mask_token_id",
)


@schema.dataclass
class Told:
    """The files of a tokenizer, by name, and the keys of the metadata that they hold. `losses` is what is assumed, or not told."""

    files: dict[str, company.Sidecar] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    losses: list[ledgers.Loss] = field(default_factory=list)


def told_by(metadata: Mapping[str, Any], places: Mapping[str, tuple[int, int]], file: str) -> Told:
    """The tokenizer that the metadata of `file` tells of; `places` are where its strings lie."""
    told = Told()
    for key, name in ((KEPT_TEMPLATE, TEMPLATE), (KEPT_JSON, JSON)):
        if key in metadata and key in places:
            offset, size = places[key]
            told.files[name] = company.Sidecar(file, size, offset)
            told.keys.append(key)
    model = metadata.get(f"{_GGML}model")
    if model in (None, "none", "no_vocab"):
        told.keys += [key for key in (f"{_GGML}model",) if key in metadata]
        return told
    if JSON not in told.files:
        try:
            made = _made(metadata, str(model), file)
        except CkptError as problem:
            told.losses.append(ledgers.Loss("dropped", "the tokenizer", problem.problem))
            return told
        told.files[JSON] = company.Sidecar.made_of(file, _json(made))
        why = "made of its tokens and merges: what is beside a special token, and characters that are normalised, are taken as usual"
        told.losses.append(ledgers.Loss("assumed", JSON, why))
    told.files[CONFIG] = company.Sidecar.made_of(file, _json(_config(metadata)))
    told.keys += [f"{_GGML}{name}" for name in (*_USED, *_IGNORED) if f"{_GGML}{name}" in metadata]
    return told


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _made(metadata: Mapping[str, Any], model: str, file: str) -> dict[str, Any]:
    tokens = _listed(metadata, "tokens", str, file)
    types = _listed(metadata, "token_type", int, file)
    if not set(types) <= set(range(NORMAL, BYTE + 1)):
        raise FormatError(f"{_GGML}token_type has a type that llama.cpp has not", file=file)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise FormatError("the tokens have not one type each, or one is there twice", file=file)
    known = {text: number for number, text in enumerate(tokens) if types[number] not in (UNUSED,)}
    if model == "gpt2":
        return _of_bytes(metadata, known, tokens, types, file)
    if model == "llama":
        return _of_pieces(metadata, known, tokens, types, file)
    raise CkptError(f"there is no way from llama.cpp's tokenizer {model!r} to one of Hugging Face yet")


def _listed(metadata: Mapping[str, Any], name: str, kind: type, file: str) -> list[Any]:
    found = metadata.get(f"{_GGML}{name}")
    if not isinstance(found, list) or not all(type(one) is kind for one in found):
        raise FormatError(f"{_GGML}{name} is not a list of {kind.__name__}", file=file)
    return found


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": text, **usual, "special": types[number] != USER_DEFINED}
        for number, text in enumerate(tokens)
        if types[number] in (CONTROL, USER_DEFINED)
    ]


def _of_bytes(
    metadata: Mapping[str, Any], known: dict[str, int], tokens: Sequence[str], types: Sequence[int], file: str
) -> dict[str, Any]:
    name = metadata.get(f"{_GGML}pre", "")
    splitting = BY_NAME.get(str(name))
    if splitting is None:
        raise CkptError(f"how llama.cpp cuts words under the name {name!r} is not known here")
    merges = [one.split(" ", 1) for one in _listed(metadata, "merges", str, file)]
    if any(len(one) != 2 for one in merges):
        raise FormatError(f"a merge in {_GGML}merges is no pair", file=file)
    if any(left not in known or right not in known or left + right not in known for left, right in merges):
        raise FormatError(f"a merge in {_GGML}merges is not of two tokens into one", file=file)
    return _whole(
        metadata,
        tokens,
        types,
        normalizer=None,
        pre_tokenizer=pre_tokenizer_of(splitting),
        decoder=byte_level(True),
        model={
            **_model(),
            "ignore_merges": splitting.whole,
            "vocab": known,  # with the added tokens, which would get ids behind all others
            "merges": merges,
        },
    )


def _of_pieces(
    metadata: Mapping[str, Any], known: dict[str, int], tokens: Sequence[str], types: Sequence[int], file: str
) -> dict[str, Any]:
    scores = _listed(metadata, "scores", float, file)
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise FormatError("the tokens have not one score each", file=file)
    prefixed = metadata.get(f"{_GGML}add_space_prefix", True)
    usual = {text: number for text, number in known.items() if types[number] not in (CONTROL, USER_DEFINED, BYTE)}
    longest = max(map(len, usual), default=0)
    if longest > _LONGEST_PIECE:  # all ways to cut it in two are tried
        raise CkptError(f"a token has {longest} characters, and at most {_LONGEST_PIECE} are read")
    merges = [
        (-scores[number], len(text[:cut]), text[:cut], text[cut:])
        for text, number in usual.items()
        for cut in range(1, len(text))
        if text[:cut] in usual and text[cut:] in usual
    ]
    merges.sort(key=lambda one: one[:2])
    unknown = metadata.get(f"{_GGML}unknown_token_id", 0)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    steps = [{"type": "Prepend", "prepend": BLANK}, replaced] if prefixed else [replaced]
    shown = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []),
    ]
    return _whole(
        metadata,
        tokens,
        types,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": shown},
        model={
            **_model(),
            "unk_token": tokens[unknown] if type(unknown) is int and 0 <= unknown < len(tokens) else None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": known,
            "merges": [[left, right] for _, _, left, right in merges],
        },
    )


def _model() -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False,
    }  # fmt: skip


def _whole(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], **parts: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _framing(metadata, tokens),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _framing(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """The template that puts the first and the last token around a text; None where neither is put."""
    ends: list[tuple[str, int] | None] = []
    for name in ("bos", "eos"):
        number = metadata.get(f"{_GGML}{name}_token_id")
        if metadata.get(f"{_GGML}add_{name}_token") is True and isinstance(number, int) and 0 <= number < len(tokens):
            ends.append((tokens[number], number))
        else:
            ends.append(None)
    if ends == [None, None]:
        return None

    def around(part: str, kind: int) -> list[dict[str, Any]]:
        first, last = ([{"SpecialToken": {"id": end[0], "type_id": kind}}] if end else [] for end in ends)
        return [*first, {"Sequence": {"id": part, "type_id": kind}}, *last]

    special = {end[0]: {"id": end[0], "ids": [end[1]], "tokens": [end[0]]} for end in ends if end}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": special,
    }


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens by name, and what is added to a text."""
    tokens = metadata.get(f"{_GGML}tokens") or []
    said: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, name in _ROLES.items():
        number = metadata.get(f"{_GGML}{role}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            said[name] = tokens[number]
    return said
