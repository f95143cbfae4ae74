"""The tokenizer in `context/`: its files, and how many tokens it has, which no config of NeMo 2 says.

AutoTokenizer(pretrained_model_name="nemo_tokenizer")       a folder of Hugging Face files, kept under its own name
SentencePieceTokenizer(model_path="tokenizer.model")        a file
TiktokenTokenizer(vocab_file="tokenizer.vocab.json")        a file
ByteLevelTokenizer()                                        nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import company, ledgers, schema, trees
from ckpt_megatron.sdk import fiddle
from ckpt_nemo.nemo2.classes import short

_TOKENIZERS = "nemo.collections.common.tokenizers"
_AUTO = f"{_TOKENIZERS}.huggingface.auto_tokenizer.AutoTokenizer"
_SENTENCEPIECE = f"{_TOKENIZERS}.sentencepiece_tokenizer.SentencePieceTokenizer"
_FOLDER = "nemo_tokenizer"
_MODEL = "tokenizer.model"
_HF_FILES = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", _MODEL}
_FILE_ARGUMENTS = ("model_path", "vocab_file", "merges_file")
_ARTIFACTS = ("DirOrStringArtifact", "FileArtifact", "DirArtifact")
_TIKTOKEN_TOKENS, _BYTES = 1 << 17, 512  # defaults of TiktokenTokenizer and ByteLevelTokenizer


@schema.dataclass
class Tokenizer:
    """What a context says about its tokenizer. `size` is None where its files don't say it; `files` are by the names
    under which they travel with the model; `hint` is what a writer needs to say the same again.
    """

    size: int | None = None
    files: dict[str, company.Sidecar] = field(default_factory=dict)
    hint: dict[str, Any] | None = None


def read_tokenizer(call: fiddle.Call | None, context: trees.Tree) -> Tokenizer:
    """The tokenizer that `call` would make, with its files in `context`."""
    if call is None:
        return Tokenizer()
    kind = short(call.target)
    given = {name: _named_file(value) for name, value in call.arguments.items()}
    hint = {"target": call.target, "arguments": {name: value for name, value in given.items() if _is_plain(value)}}
    if kind == "AutoTokenizer":
        folder = str(given.get("pretrained_model_name"))
        held = context.below(folder) if _is_file_name(folder) else None
        held_files = _sidecars({name: held[name] for name in held.files} if held is not None else {})
        return Tokenizer(company.size_of(held_files), held_files, hint)
    named = {name: str(given[name]) for name in _FILE_ARGUMENTS if _is_file_name(given.get(name))}
    files = {name: context[file] for name, file in named.items() if file in context}
    if kind == "SentencePieceTokenizer" and "model_path" in files:
        # with `legacy`, special tokens are added behind the pieces
        alone = not (given.get("legacy") and given.get("special_tokens"))
        model = _sidecars({_MODEL: files["model_path"]})
        return Tokenizer(company.pieces_of(model[_MODEL]) if alone else None, model, hint)
    size = {"TiktokenTokenizer": _TIKTOKEN_TOKENS, "ByteLevelTokenizer": _BYTES}.get(kind)
    said = given.get("vocab_size")
    if size is not None and isinstance(said, int):
        size = said
    return Tokenizer(size, _sidecars({str(given[name]): extent for name, extent in files.items()}), hint)


def _named_file(value: Any) -> Any:
    """An argument, or what an artifact stands for: a name in the context, or one of the hub (`skip`)."""
    if isinstance(value, fiddle.Call) and short(value.target) in _ARTIFACTS:
        return value.arguments.get("attr")
    return value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not {"/", "\\", "\0"} & set(value)


def _sidecars(files: Mapping[str, trees.Extent]) -> dict[str, company.Sidecar]:
    return {name: company.Sidecar(extent.file, extent.size, extent.offset) for name, extent in sorted(files.items())}


# --- writing -----------------------------------------------------------------------------------------------------------


@schema.dataclass
class WrittenTokenizer:
    """The call for `io.json`, or None without a tokenizer; its files by their place in the context; how many tokens."""

    call: fiddle.Call | None
    files: dict[str, company.Sidecar]
    size: int | None
    losses: list[ledgers.Loss]


def write_tokenizer(sidecars: Mapping[str, company.Sidecar], hint: Mapping[str, Any] | None) -> WrittenTokenizer:
    """The tokenizer among the files of a model, said as in the source (`hint`) where its files are the same."""
    flat = {name: sidecar for name, sidecar in sidecars.items() if "/" not in name}
    nested = sorted(sidecars.keys() - flat.keys())
    losses = [
        ledgers.Loss("dropped", name, "NeMo keeps the files of a tokenizer in one flat folder") for name in nested
    ]
    arguments = dict(hint["arguments"]) if hint is not None else {}
    kind = short(hint["target"]) if hint is not None else ""
    if hint is not None and kind not in ("AutoTokenizer", "SentencePieceTokenizer"):
        files = {value: flat[value] for name in _FILE_ARGUMENTS if (value := arguments.get(name)) in flat}
        return WrittenTokenizer(fiddle.Call(hint["target"], arguments), files, None, losses + _left(flat, files))
    if set(flat) == {_MODEL} or (kind == "SentencePieceTokenizer" and _MODEL in flat):
        arguments = arguments if kind == "SentencePieceTokenizer" else {"model_path": _MODEL}
        target = hint["target"] if hint is not None and kind == "SentencePieceTokenizer" else _SENTENCEPIECE
        call = fiddle.Call(target, arguments)
        files = {str(arguments["model_path"]): flat[_MODEL]}
        return WrittenTokenizer(
            call, files, company.pieces_of(flat[_MODEL]), losses + _left(flat, {_MODEL: flat[_MODEL]})
        )
    if not flat.keys() & _HF_FILES:
        return WrittenTokenizer(None, {}, None, losses + _left(flat, {}))
    named = arguments if kind == "AutoTokenizer" else {"pretrained_model_name": _FOLDER}
    folder = named.get("pretrained_model_name")
    if not _is_file_name(folder):
        named, folder = named | {"pretrained_model_name": _FOLDER}, _FOLDER
    target = hint["target"] if hint is not None and kind == "AutoTokenizer" else _AUTO
    files = {f"{folder}/{name}": sidecar for name, sidecar in flat.items()}
    return WrittenTokenizer(fiddle.Call(target, named), files, company.size_of(flat), losses)


def _left(flat: Mapping[str, company.Sidecar], taken: Mapping[str, company.Sidecar]) -> list[ledgers.Loss]:
    return [
        ledgers.Loss("dropped", name, "no tokenizer of NeMo has such a file")
        for name in sorted(flat.keys() - taken.keys())
    ]
