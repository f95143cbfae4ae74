"""The tokenizer in `context/`: its files, and how many tokens it has, which no config of NeMo 2 says.

AutoTokenizer(pretrained_model_name="nemo_tokenizer")       a folder of Hugging Face files, kept under its own name
SentencePieceTokenizer(model_path="tokenizer.model")        a file
TiktokenTokenizer(vocab_file="tokenizer.vocab.json")        a file
ByteLevelTokenizer()                                        nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_core.checkpoint import Loss, Sidecar
from ckpt_core.errors import FormatError
from ckpt_core.storage.jsonfile import parse_json
from ckpt_core.storage.tree import Extent, Tree
from ckpt_nemo.nemo2.classes import short
from ckpt_nemo.nemo2.graph import Call

_TOKENIZERS = "nemo.collections.common.tokenizers"
_AUTO = f"{_TOKENIZERS}.huggingface.auto_tokenizer.AutoTokenizer"
_SENTENCEPIECE = f"{_TOKENIZERS}.sentencepiece_tokenizer.SentencePieceTokenizer"
_FOLDER = "nemo_tokenizer"
_MODEL = "tokenizer.model"
_HF_FILES = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", _MODEL}
_LARGE = 512 << 20  # a tokenizer.json
_FILE_ARGUMENTS = ("model_path", "vocab_file", "merges_file")
_ARTIFACTS = ("DirOrStringArtifact", "FileArtifact", "DirArtifact")
_TIKTOKEN_TOKENS, _BYTES = 1 << 17, 512  # defaults of TiktokenTokenizer and ByteLevelTokenizer


@dataclass
class Tokenizer:
    """What a context says about its tokenizer. `size` is None where its files don't say it; `files` are by the names
    under which they travel with the model; `hint` is what a writer needs to say the same again.
    """

    size: int | None = None
    files: dict[str, Sidecar] = field(default_factory=dict)
    hint: dict[str, Any] | None = None


def read_tokenizer(call: Call | None, context: Tree) -> Tokenizer:
    """The tokenizer that `call` would make, with its files in `context`."""
    if call is None:
        return Tokenizer()
    kind = short(call.target)
    given = {name: _named_file(value) for name, value in call.arguments.items()}
    hint = {"target": call.target, "arguments": {name: value for name, value in given.items() if _is_plain(value)}}
    if kind == "AutoTokenizer":
        folder = str(given.get("pretrained_model_name"))
        held = context.below(folder) if _is_file_name(folder) else None
        files = {name: held[name] for name in held.files} if held is not None else {}
        return Tokenizer(_hf_size(files), _sidecars(files), hint)
    named = {name: str(given[name]) for name in _FILE_ARGUMENTS if _is_file_name(given.get(name))}
    files = {name: context[file] for name, file in named.items() if file in context}
    if kind == "SentencePieceTokenizer" and "model_path" in files:
        # with `legacy`, special tokens are added behind the pieces
        alone = not (given.get("legacy") and given.get("special_tokens"))
        size = _pieces(files["model_path"]) if alone else None
        return Tokenizer(size, _sidecars({_MODEL: files["model_path"]}), hint)
    size = {"TiktokenTokenizer": _TIKTOKEN_TOKENS, "ByteLevelTokenizer": _BYTES}.get(kind)
    said = given.get("vocab_size")
    if size is not None and isinstance(said, int):
        size = said
    return Tokenizer(size, _sidecars({str(given[name]): extent for name, extent in files.items()}), hint)


def _named_file(value: Any) -> Any:
    """An argument, or what an artifact stands for: a name in the context, or one of the hub (`skip`)."""
    if isinstance(value, Call) and short(value.target) in _ARTIFACTS:
        return value.arguments.get("attr")
    return value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not {"/", "\\", "\0"} & set(value)


def _sidecars(files: Mapping[str, Extent]) -> dict[str, Sidecar]:
    return {name: Sidecar(extent.file, extent.size, extent.offset) for name, extent in sorted(files.items())}


# --- sizes -------------------------------------------------------------------------------------------------------------


def size_of(sidecars: Mapping[str, Sidecar]) -> int | None:
    """How many tokens the tokenizer among the files of a model has; None if there is none that we can read."""
    return _hf_size({name: sidecar.extent for name, sidecar in sidecars.items()})


def _hf_size(files: Mapping[str, Extent]) -> int | None:
    """One more than the largest id, added tokens included: what `len(tokenizer)` is where no id is left out."""
    ids: list[int] = []
    if "tokenizer.json" in files:
        body = _object(files["tokenizer.json"])
        model, added = body.get("model"), body.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, list):  # Unigram: pieces with their scores
            ids.append(len(vocabulary) - 1)
        ids += _numbers(vocabulary.values() if isinstance(vocabulary, dict) else [])
        ids += _numbers(token.get("id") for token in added or [] if isinstance(token, dict))
    elif "vocab.json" in files:
        ids += _numbers(_object(files["vocab.json"]).values())
    elif _MODEL in files:
        ids.append(_pieces(files[_MODEL]) - 1)
    if not ids:
        return None
    if "added_tokens.json" in files:
        ids += _numbers(_object(files["added_tokens.json"]).values())
    if "tokenizer_config.json" in files:
        added = _object(files["tokenizer_config.json"]).get("added_tokens_decoder")
        ids += [int(number) for number in added if number.isdecimal()] if isinstance(added, dict) else []
    return max(ids) + 1


def _object(extent: Extent) -> dict[str, Any]:
    if extent.size > _LARGE:
        raise FormatError("a file of the tokenizer is far too large", file=extent.file, found=f"{extent.size} bytes")
    value = parse_json(extent.read(), extent.file)
    if not isinstance(value, dict):
        raise FormatError("a file of the tokenizer holds no object", file=extent.file, found=type(value).__name__)
    return value


def _numbers(values: Any) -> list[int]:
    return [value for value in values if type(value) is int and 0 <= value < 1 << 31]


def _pieces(extent: Extent) -> int:
    """The pieces of a SentencePiece model: the first field of a protocol buffer, once for each."""
    if extent.size > _LARGE:
        raise FormatError("a file of the tokenizer is far too large", file=extent.file, found=f"{extent.size} bytes")
    data, at, count = extent.read(), 0, 0
    while at < len(data):
        key, at = _varint(data, at, extent.file)
        if key & 7 == 2:  # so many bytes
            length, at = _varint(data, at, extent.file)
            at += length
        elif key & 7 == 0:
            _, at = _varint(data, at, extent.file)
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            at = len(data) + 1
        count += key >> 3 == 1
    if at != len(data) or not count:
        raise FormatError("this is no SentencePiece model", file=extent.file, expected="a protocol buffer of pieces")
    return count


def _varint(data: bytes, at: int, file: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise FormatError("this is no SentencePiece model", file=file, expected="a protocol buffer of pieces")


# --- writing -----------------------------------------------------------------------------------------------------------


@dataclass
class WrittenTokenizer:
    """The call for `io.json`, or None without a tokenizer; its files by their place in the context; how many tokens."""

    call: Call | None
    files: dict[str, Sidecar]
    size: int | None
    losses: list[Loss]


def write_tokenizer(sidecars: Mapping[str, Sidecar], hint: Mapping[str, Any] | None) -> WrittenTokenizer:
    """The tokenizer among the files of a model, said as in the source (`hint`) where its files are the same."""
    flat = {name: sidecar for name, sidecar in sidecars.items() if "/" not in name}
    nested = sorted(sidecars.keys() - flat.keys())
    losses = [Loss("dropped", name, "NeMo keeps the files of a tokenizer in one flat folder") for name in nested]
    arguments = dict(hint["arguments"]) if hint is not None else {}
    kind = short(hint["target"]) if hint is not None else ""
    if hint is not None and kind not in ("AutoTokenizer", "SentencePieceTokenizer"):
        files = {value: flat[value] for name in _FILE_ARGUMENTS if (value := arguments.get(name)) in flat}
        return WrittenTokenizer(Call(hint["target"], arguments), files, None, losses + _left(flat, files))
    if set(flat) == {_MODEL} or (kind == "SentencePieceTokenizer" and _MODEL in flat):
        arguments = arguments if kind == "SentencePieceTokenizer" else {"model_path": _MODEL}
        target = hint["target"] if hint is not None and kind == "SentencePieceTokenizer" else _SENTENCEPIECE
        call = Call(target, arguments)
        files = {str(arguments["model_path"]): flat[_MODEL]}
        return WrittenTokenizer(call, files, _pieces(flat[_MODEL].extent), losses + _left(flat, {_MODEL: flat[_MODEL]}))
    if not flat.keys() & _HF_FILES:
        return WrittenTokenizer(None, {}, None, losses + _left(flat, {}))
    named = arguments if kind == "AutoTokenizer" else {"pretrained_model_name": _FOLDER}
    folder = named.get("pretrained_model_name")
    if not _is_file_name(folder):
        named, folder = named | {"pretrained_model_name": _FOLDER}, _FOLDER
    target = hint["target"] if hint is not None and kind == "AutoTokenizer" else _AUTO
    files = {f"{folder}/{name}": sidecar for name, sidecar in flat.items()}
    return WrittenTokenizer(Call(target, named), files, size_of(flat), losses)


def _left(flat: Mapping[str, Sidecar], taken: Mapping[str, Sidecar]) -> list[Loss]:
    return [
        Loss("dropped", name, "no tokenizer of NeMo has such a file") for name in sorted(flat.keys() - taken.keys())
    ]
