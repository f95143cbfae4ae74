"""What the files of a tokenizer say: how many tokens there are, and which of them begin, end and pad a sequence.

The files are those of Hugging Face tokenizers, which travel with a model in every format:

    tokenizer.json           the tokens and their ids, added ones among them
    tokenizer_config.json    names of the special tokens
    special_tokens_map.json  the same, before transformers 5
    added_tokens.json, vocab.json, tokenizer.model, spiece.model
    generation_config.json   ids for `generate`, which a model's own config need not repeat
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from ckpt_core.checkpoint import Sidecar
from ckpt_core.errors import FormatError
from ckpt_core.storage.documents import parse_json

ROLES = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token", "decoder_start": "decoder_start_token"}
"""The notes that are ids of tokens, with the names that Hugging Face files have for them."""

GENERATION = "generation_config.json"
"""The file of Hugging Face that says how a model generates, ids of special tokens among it."""

_LARGE = 512 << 20
_MODELS = ("tokenizer.model", "spiece.model")  # of SentencePiece


def has_tokenizer(files: Mapping[str, Sidecar]) -> bool:
    """Whether there is a tokenizer among the files; ids for `generate` or a chat template alone are none."""
    return any(name in files for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json", *_MODELS))


def size_of(files: Mapping[str, Sidecar]) -> int | None:
    """One more than the largest id, added tokens included: what `len(tokenizer)` is where no id is left out.

    None if no file says it; `FormatError` for a damaged one.
    """
    ids = list(_own_ids(files))
    return max([*ids, *_added_ids(files)]) + 1 if ids else None


def size_beyond(files: Mapping[str, Sidecar], vocabulary: int) -> int | None:
    """`size_of` where it is more than `vocabulary`, else None. Mostly tokenizer.json is only searched: parsing it takes as long as a command takes to start."""
    file = files.get("tokenizer.json")
    if file is None or _may_reach(_content(file), vocabulary):
        size = size_of(files)
    else:
        size = max(_added_ids(files), default=-1) + 1
    return size if size is not None and size > vocabulary else None


def _may_reach(data: bytes, vocabulary: int) -> bool:
    """Whether a tokenizer.json may have an id from `vocabulary` on: a number behind a colon that is as large, or pieces of Unigram, whose places are their ids."""
    numbers = re.findall(rb":\s*(\d{%d,})" % len(str(vocabulary)), data)
    return any(int(number) >= vocabulary for number in numbers) or re.search(rb'"vocab"\s*:\s*\[', data) is not None


def _added_ids(files: Mapping[str, Sidecar]) -> list[int]:
    """The ids of added tokens that stand in files of their own."""
    added = _object(files, "tokenizer_config.json").get("added_tokens_decoder")
    ids = [int(number) for number in added if number.isdecimal()] if isinstance(added, dict) else []
    return [*_numbers(_object(files, "added_tokens.json").values()), *ids]


def _own_ids(files: Mapping[str, Sidecar]) -> Iterator[int]:
    """The ids of the tokenizer's model, or the largest of them."""
    if "tokenizer.json" in files:
        body = _object(files, "tokenizer.json")
        model, added = body.get("model"), body.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, list) and vocabulary:  # Unigram: pieces with their scores
            yield len(vocabulary) - 1
        yield from _numbers(vocabulary.values() if isinstance(vocabulary, dict) else [])
        yield from _numbers(token.get("id") for token in _listed(added) if isinstance(token, dict))
    elif "vocab.json" in files:
        yield from _numbers(_object(files, "vocab.json").values())
    else:
        yield from (pieces_of(files[name]) - 1 for name in _MODELS if name in files)


def ids_of(files: Mapping[str, Sidecar]) -> dict[str, tuple[int | list[int], str]]:
    """The ids of the `ROLES` that the files say, each with the file that says it; `FormatError` for a damaged one.

    What `generate` uses comes first: generation_config.json, then the names in the tokenizer's own configs.
    """
    found: dict[str, tuple[int | list[int], str]] = {}
    ids: dict[str, int] | None = None
    generation = _object(files, GENERATION)
    for role, name in ROLES.items():
        value = generation.get(f"{name}_id")
        if is_token(value):
            found[role] = value, GENERATION
            continue
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            token = _text(_object(files, file).get(name))
            if token is not None:
                ids = dict(_ids_by_token(files)) if ids is None else ids
                if token in ids:
                    found[role] = ids[token], file
                break
    return found


def is_token(value: object) -> TypeGuard[int | list[int]]:
    """Whether a value is the id of a token, or a list of them."""
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(type(number) is int and number >= 0 for number in ids)


def _ids_by_token(files: Mapping[str, Sidecar]) -> Iterator[tuple[str, int]]:
    """Every token with its id; later ones are meant where a token is there twice."""
    tokenizer, config = _object(files, "tokenizer.json"), _object(files, "tokenizer_config.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        yield from (
            (str(piece[0]), number) for number, piece in enumerate(vocabulary) if isinstance(piece, list) and piece
        )
    for entries in (vocabulary, _object(files, "vocab.json"), _object(files, "added_tokens.json")):
        if isinstance(entries, dict):
            yield from ((token, number) for token, number in entries.items() if _numbers([number]))
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = _text(token)
        if text is not None and number.isdecimal():
            yield text, int(number)
    for token in _listed(tokenizer.get("added_tokens")):
        text = _text(token)
        if text is not None and _numbers([token.get("id")]):
            yield text, token["id"]


def _text(token: object) -> str | None:
    """A token that stands as text, or as an object with its `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(values: Iterable[Any]) -> list[int]:
    return [value for value in values if type(value) is int and 0 <= value < 1 << 31]


def _object(files: Mapping[str, Sidecar], name: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    if name not in files:
        return {}
    value = parse_json(_content(files[name]), files[name].path)
    if not isinstance(value, dict):
        raise FormatError("a file of the tokenizer holds no object", file=files[name].path, found=type(value).__name__)
    return value


def _content(file: Sidecar) -> bytes:
    if file.size > _LARGE:
        raise FormatError("a file of the tokenizer is far too large", file=file.path, found=f"{file.size} bytes")
    return file.extent.read()


def pieces_of(file: Sidecar) -> int:
    """The pieces of a SentencePiece model: the first field of a protocol buffer, once for each."""
    data, at, count = _content(file), 0, 0
    while at < len(data):
        key, at = _varint(data, at, file.path)
        if key & 7 == 2:  # so many bytes
            length, at = _varint(data, at, file.path)
            at += length
        elif key & 7 == 0:
            _, at = _varint(data, at, file.path)
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            at = len(data) + 1
        count += key >> 3 == 1
    if at != len(data) or not count:
        raise FormatError("this is not a SentencePiece model", file=file.path, expected="a protocol buffer of pieces")
    return count


def _varint(data: bytes, at: int, file: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise FormatError("this is not a SentencePiece model", file=file, expected="a protocol buffer of pieces")
