"""The tokenizer of a GGUF file, made of the files of a Hugging Face tokenizer.

    tokenizer.json with merges of bytes     model "gpt2": tokens, merges, and how words are cut
    tokenizer.model                         model "llama": SentencePiece's pieces with their scores
    tokenizer.json with byte fallback       model "llama": scores by the order of its merges

Token types are those of conversion/base.py. tokenizer.json itself is kept along, under the key that the format has for it, and so is the
chat template; the rest of what surrounds a tokenizer has no key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import Checkpoint, FormatError, Refusal, company, documents, errors, ledgers, schema
from ckpt_gguf.splitting import names, splitting_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
JSON, MODEL, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"
KEPT_JSON, KEPT_TEMPLATE = "tokenizer.huggingface.json", "tokenizer.chat_template"
"""The keys of a file under which tokenizer.json and the chat template lie as they are."""
BLANK = "\u2581"  # what SentencePiece writes for a blank
_LARGEST = 256 << 20
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0  # conversion/base.py


@schema.dataclass
class Vocabulary:
    """What a file says of the tokenizer: `metadata`, and the names of the files that lie in it (`held`). `losses` is what it lacks."""

    metadata: dict[str, Any]
    held: set[str] = field(default_factory=set)
    losses: list[ledgers.Loss] = field(default_factory=list)


@schema.dataclass
class _Tokens:
    """The tokens by id, as many as the embedding has rows."""

    texts: list[str]
    types: list[int]
    scores: list[float]

    @classmethod
    def of(cls, rows: int) -> _Tokens:
        return cls([f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows, [_UNUSED_SCORE] * rows)

    def put(self, number: object, text: str, kind: int, score: float) -> bool:
        """Enter a token; False if the embedding has no row for it."""
        if type(number) is not int or not 0 <= number < len(self.texts):
            return False
        self.texts[number], self.types[number], self.scores[number] = text, kind, score
        return True


def no_vocabulary() -> Vocabulary:
    """What llama.cpp takes for a file without a tokenizer: it computes with ids alone."""
    return Vocabulary({"tokenizer.ggml.model": "no_vocab"})


def vocabulary_of(checkpoint: Checkpoint, rows: int, pre: str | None) -> Vocabulary:
    """The tokenizer of a checkpoint, for an embedding of `rows` rows. `pre` is the name of how words are cut, where the user gives it.

    Raises `Refusal` where there is none, and for one that llama.cpp does not run.
    """
    files = checkpoint.sidecars
    if JSON not in files and MODEL not in files:
        raise Refusal(
            "there is no tokenizer, which llama.cpp asks for",
            file=checkpoint.path,
            found=", ".join(sorted(files)) or "no files beside the weights",
            expected=f"{JSON} or {MODEL}",
            fix="put it beside the model, give its folder with --config, or write ids alone with -o tokenizer=none",
        )
    tokenizer, config = _object(files, JSON), _object(files, CONFIG)
    found = tokenizer.get("model")
    model: dict[str, Any] = found if isinstance(found, dict) else {}
    tokens = _Tokens.of(rows)
    if MODEL in files and not _is_of_bytes(model):
        made = _of_sentencepiece(files[MODEL], tokens)
    elif model.get("type") == "BPE" and model.get("byte_fallback"):
        made = _of_fallback(tokenizer, model, tokens)
    elif _is_of_bytes(model):
        origin = str(checkpoint.hints_for("hf").get("model_type") or "")
        made = _of_bytes(tokenizer, model, config, tokens, pre, origin)
    else:
        raise Refusal(
            "llama.cpp's file of this architecture has no such tokenizer",
            file=files[JSON].path if JSON in files else None,
            found=f"a model of type {model.get('type')!r}",
            expected="byte pairs",
            fix="write ids alone, with -o tokenizer=none",
        )
    outside = _add_added(tokenizer, config, tokens, spaced="tokenizer.ggml.scores" in made)
    metadata = {key: value for key, value in made.items() if key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")}
    metadata["tokenizer.ggml.tokens"] = tokens.texts
    if "tokenizer.ggml.scores" in made:
        metadata["tokenizer.ggml.scores"] = tokens.scores
    metadata["tokenizer.ggml.token_type"] = tokens.types
    metadata |= {key: value for key, value in made.items() if key not in metadata}
    metadata |= dict(_special(tokenizer, config, tokens, "tokenizer.ggml.scores" in made))
    vocabulary = Vocabulary(metadata)
    _keep(vocabulary, files, config)
    if outside:
        why = f"the embedding has {rows} rows, and they have ids above"
        vocabulary.losses.append(
            ledgers.Loss("dropped", f"{errors.plural(len(outside), 'token')}: {', '.join(outside)[:100]}", why)
        )
    return vocabulary


def _is_of_bytes(model: Mapping[str, Any]) -> bool:
    return model.get("type", "BPE") == "BPE" and isinstance(model.get("vocab"), dict) and not model.get("byte_fallback")


# --- byte pairs ------------------------------------------------------------------------------------------------------


def _of_bytes(
    tokenizer: Mapping[str, Any],
    model: Mapping[str, Any],
    config: Mapping[str, Any],
    tokens: _Tokens,
    pre: str | None,
    origin: str,
) -> dict[str, Any]:
    found = splitting_of(tokenizer, config.get("clean_up_tokenization_spaces", False), origin)
    if pre is None and found is None:
        raise Refusal(
            "it is not known under which name llama.cpp cuts words as this tokenizer does",
            found=f"pre_tokenizer {str(tokenizer.get('pre_tokenizer'))[:300]}",
            expected=names(),
            fix="give the name that llama.cpp has for it with -o pre=NAME, or write ids alone with -o tokenizer=none",
        )
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise Refusal("llama.cpp changes no characters before it cuts words", found=f"a normalizer {normalizer}")
    for text, number in model["vocab"].items():
        tokens.put(number, text, NORMAL, 0.0)
    merges = [_merge(one) for one in model.get("merges") or []]
    name = pre if pre is not None else found.name if found else ""
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}


def _merge(pair: object) -> str:
    """A merge as llama.cpp has it: two tokens with a blank between, and Ġ for a blank in one of them."""
    if isinstance(pair, str):
        return pair
    if not isinstance(pair, list) or len(pair) != 2:
        raise FormatError("a merge of the tokenizer is no pair", found=str(pair)[:60])
    return " ".join(str(one).replace(" ", "Ġ") for one in pair)


# --- SentencePiece ---------------------------------------------------------------------------------------------------


def _of_sentencepiece(file: company.Sidecar, tokens: _Tokens) -> dict[str, Any]:
    data = _content(file)
    prefixed, kind = True, 1
    number = 0
    for tag, value in _fields(data, file.path):
        if tag == 1 and isinstance(value, bytes):
            text, score, piece = "", 0.0, NORMAL
            for part, inner in _fields(value, file.path):
                if part == 1 and isinstance(inner, bytes):
                    text = inner.decode("utf-8", "replace")
                elif part == 2 and isinstance(inner, bytes):
                    score = struct.unpack("<f", inner)[0]
                elif part == 3 and isinstance(inner, int):
                    piece = inner
            tokens.put(number, text, piece if piece in range(NORMAL, BYTE + 1) else NORMAL, score)
            number += 1
        elif tag == 2 and isinstance(value, bytes):
            kind = next((one for part, one in _fields(value, file.path) if part == 3 and isinstance(one, int)), 1)
        elif tag == 3 and isinstance(value, bytes):
            flags = dict(_fields(value, file.path))
            prefixed = bool(flags.get(3, 1))
    if kind != 2:
        raise Refusal(
            "llama.cpp's tokenizer of pieces merges them by score",
            file=file.path,
            found="a SentencePiece model of another kind than BPE",
            fix="write ids alone, with -o tokenizer=none",
        )
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": [],
            "tokenizer.ggml.add_space_prefix": prefixed}  # fmt: skip


def _fields(data: bytes, file: str) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: numbers, and bytes of what is longer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, file)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at, file)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at, file)
        if size is None or at + size > len(data):
            raise FormatError("this is not a SentencePiece model", file=file, expected="a protocol buffer of pieces")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, file: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise FormatError("this is not a SentencePiece model", file=file, expected="a protocol buffer of pieces")


def _of_fallback(tokenizer: Mapping[str, Any], model: Mapping[str, Any], tokens: _Tokens) -> dict[str, Any]:
    """Pieces whose scores are the order in which they are merged: what is merged first has the highest."""
    ranks: dict[str, int] = {}
    for number, pair in enumerate(model.get("merges") or []):
        left, right = pair if isinstance(pair, list) else str(pair).split(" ", 1)
        ranks.setdefault(left + right, number)
    unknown = model.get("unk_token")
    for text, number in model["vocab"].items():
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = UNKNOWN if text == unknown else BYTE if is_byte else NORMAL
        tokens.put(number, text, kind, -float(ranks.get(text, len(ranks))) if kind == NORMAL else 0.0)
    steps = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    prefixed = any(_prefixes(step) for step in steps)
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": [],
            "tokenizer.ggml.add_space_prefix": prefixed}  # fmt: skip


def _prefixes(step: object) -> bool:
    """Whether a step of a tokenizer puts a blank before a text."""
    if not isinstance(step, dict):
        return False
    inner = step.get("normalizers") or step.get("pretokenizers") or []
    alone = step.get("type") == "Prepend" or (
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
    )
    return alone or any(map(_prefixes, inner if isinstance(inner, list) else []))


# --- what is the same for all ----------------------------------------------------------------------------------------


def _add_added(tokenizer: Mapping[str, Any], config: Mapping[str, Any], tokens: _Tokens, *, spaced: bool) -> list[str]:
    """Enter the added tokens; those that the embedding has no row for are returned. `spaced`: blanks are written as SentencePiece does."""
    added = {one.get("id"): one for one in tokenizer.get("added_tokens") or [] if isinstance(one, dict)}
    decoder = config.get("added_tokens_decoder")
    for number, one in decoder.items() if isinstance(decoder, dict) else ():
        if number.isdecimal() and isinstance(one, dict):
            added.setdefault(int(number), one)
    outside = []
    for number, one in added.items():
        text = str(one.get("content"))
        if type(number) is int and 0 <= number < len(tokens.types) and tokens.types[number] == UNKNOWN:
            continue
        special = bool(one.get("special")) or _looks_special(text)
        if spaced and not special:
            text = text.replace(BLANK, " ")
        if not tokens.put(number, text, CONTROL if special else USER_DEFINED, _ADDED_SCORE):
            outside.append(text)
    return outside


def _looks_special(text: str) -> bool:
    """What llama.cpp's converter takes for control tokens, whatever the tokenizer says (conversion/base.py, does_token_look_special)."""
    framed = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(begin) and text.endswith(end) for begin, end in framed
    )


_ROLES = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id", "mask_token": "mask_token_id",
}  # fmt: skip


def _special(
    tokenizer: Mapping[str, Any], config: Mapping[str, Any], tokens: _Tokens, pieces: bool
) -> Iterator[tuple[str, Any]]:
    """The ids of special tokens, and whether a text begins and ends with them."""
    ids = {text: number for number, text in enumerate(tokens.texts) if tokens.types[number] != UNUSED}
    for name, key in _ROLES.items():
        given = config.get(name)
        text = given.get("content") if isinstance(given, dict) else given
        if isinstance(text, str) and text in ids:
            yield f"tokenizer.ggml.{key}", ids[text]
    for name, end in (("bos", 0), ("eos", -1)):
        said = config.get(f"add_{name}_token")
        if not isinstance(said, bool):
            said = _frames(tokenizer.get("post_processor"), end)
        if (
            said is None
        ):  # the classes of Llama and Gemma put it there themselves, and so does a SentencePiece model alone
            by_class = str(config.get("tokenizer_class")).startswith(("Llama", "Gemma", "CodeLlama"))
            said = pieces and name == "bos" and (by_class or not tokenizer)
        yield f"tokenizer.ggml.add_{name}_token", said


def _frames(post: object, end: int) -> bool | None:
    """Whether a template puts a special token at the first or last place of a text; None where there is no template."""
    if not isinstance(post, dict):
        return None
    if post.get("type") == "Sequence":
        found = [_frames(one, end) for one in post.get("processors") or []]
        return next((one for one in found if one is not None), None)
    single = post.get("single")
    if post.get("type") != "TemplateProcessing" or not isinstance(single, list) or not single:
        return None
    return "SpecialToken" in single[end]


def _keep(vocabulary: Vocabulary, files: Mapping[str, company.Sidecar], config: Mapping[str, Any]) -> None:
    """Keep tokenizer.json as it is, and the chat template."""
    if JSON in files:
        vocabulary.metadata[KEPT_JSON] = _content(files[JSON]).decode("utf-8")
        vocabulary.held.add(JSON)
    if MODEL in files:
        vocabulary.held.add(MODEL)
    template = config.get("chat_template")
    if TEMPLATE in files:
        vocabulary.metadata[KEPT_TEMPLATE] = _content(files[TEMPLATE]).decode("utf-8")
        vocabulary.held.add(TEMPLATE)
    elif isinstance(template, str):
        vocabulary.metadata[KEPT_TEMPLATE] = template
    elif isinstance(template, list):
        named = {str(one["name"]): str(one["template"]) for one in template if isinstance(one, dict)}
        others = [name for name in named if name != "default"]
        if "default" in named:
            vocabulary.metadata[KEPT_TEMPLATE] = named["default"]
        vocabulary.metadata |= {f"{KEPT_TEMPLATE}.{name}": named[name] for name in others}
        if others:
            vocabulary.metadata["tokenizer.chat_templates"] = others


def _object(files: Mapping[str, company.Sidecar], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    value = documents.parse_json(_content(files[name]), files[name].path)
    if not isinstance(value, dict):
        raise FormatError("a file of the tokenizer holds no object", file=files[name].path)
    return value


def _content(file: company.Sidecar) -> bytes:
    if file.size > _LARGEST:
        raise FormatError("a file of the tokenizer is far too large", file=file.path, found=f"{file.size} bytes")
    return file.extent.read()
