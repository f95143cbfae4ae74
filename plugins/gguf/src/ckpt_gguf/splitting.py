"""How byte pair encodings cut a text into words, as Hugging Face tokenizers say it and as llama.cpp names it (`tokenizer.ggml.pre`).

llama.cpp has the expressions in its code (src/llama-vocab.cpp), and refuses a name that it does not know. The converter of its own
finds the name by a hash of what a tokenizer makes of a text; here it is found by the expressions themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import schema

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = f"{_CASED}{_CONTRACTIONS}?|{_UPPER}{_CONTRACTIONS}?|" + r"\p{N}{1,3}|" + _SLASHED
_SEED = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_LING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_K_EXAONE = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BLANKS = "|".join(rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
_JAIS2 = _CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _BLANKS + r"|\s{1}"
)
_TEKKEN = f"{_CASED}|{_UPPER}|" + r"\p{N}|" + _SLASHED
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_DIGITS, _WORDS = "digits one by one", "words of GPT-2"
"""What is no expression of its own: the parts `Digits` and `ByteLevel` of a tokenizer."""


@schema.dataclass(frozen=True, slots=True)
class Splitting:
    """A way to cut texts: its name, and the expressions one after the other. `whole`: a word that is a token is not taken apart. `cleans`:
    llama.cpp removes blanks before punctuation where it makes text of tokens; of two names for one way it tells them apart. `of` are the
    model types of transformers whose files have this name, which is another one's for the same way."""

    name: str
    parts: tuple[str, ...]
    whole: bool = False
    cleans: bool | None = None
    of: tuple[str, ...] = ()


# of two that are alike the first is meant, or that of the model
SPLITTINGS = (
    Splitting("llama-bpe", (_LLAMA3,), whole=True),
    Splitting("smaug-bpe", (_LLAMA3,)),
    Splitting("qwen2", (_QWEN2,)),
    Splitting("qwen35", (_QWEN35,)),
    Splitting("gpt-4o", (_GPT4O,)),
    Splitting("tekken", (_TEKKEN,), whole=True),
    Splitting("deepseek-v3", _DEEPSEEK3),
    Splitting("starcoder", (_DIGITS, _WORDS), cleans=True),
    Splitting("smollm", (_DIGITS, _WORDS)),
    Splitting("gpt-2", (_WORDS,)),
    Splitting("bloom", (_BLOOM,)),
    Splitting("glm4", (_LLAMA3,), of=("glm", "glm4", "glm4_moe")),
    Splitting("solar-open", (_QWEN2,), of=("solar_open",)),
    Splitting("command-r", (_DIGITS, _WORDS), of=("cohere", "cohere2")),
    Splitting("olmo", (_WORDS,), of=("olmo",)),
    Splitting("phi-2", (_WORDS,), of=("phi",)),
    Splitting("mpt", (_WORDS,), of=("mpt",)),
    Splitting("seed-coder", (_SEED,)),
    Splitting("bailingmoe2", (_LING,)),
    Splitting("exaone-moe", (_K_EXAONE,)),
    Splitting("jais-2", (_JAIS2,)),
    Splitting("dbrx", (_LLAMA3,), of=("olmo2", "olmo3")),
    Splitting("hunyuan", (_QWEN2,), of=("hunyuan_v1_moe",)),
    Splitting("hunyuan-dense", _DEEPSEEK3, of=("hunyuan_v1_dense",)),
    Splitting("minimax-m2", (_GPT4O,), of=("minimax_m2",)),
    Splitting("llama4", (_GPT4O,), of=("llama4_text",)),
    Splitting("exaone", (_DIGITS, _WORDS), of=("exaone",)),
    Splitting("exaone4", (_WORDS,), of=("exaone4",)),
    Splitting("mellum2", (_DIGITS, _WORDS), of=("mellum",)),
)
# Other names for which llama.cpp has the same expressions.
_ALIKE = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "glm4": ("chatglm-bpe",),
    "qwen2": ("deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "grok-2"),
    "gpt-4o": ("kanana2",),
    "deepseek-v3": ("joyai-llm",),
    "smollm": ("refact", "codeshell", "minerva-7b"),
    "gpt-2": ("gigachat", "a.x-4.0", "mellum", "modern-bert", "jais", "trillion", "granite-docling"),
}
BY_NAME = {one.name: one for one in SPLITTINGS}
BY_NAME |= {other: BY_NAME[name] for name, others in _ALIKE.items() for other in others}
"""The ways by name."""


def splitting_of(tokenizer: Mapping[str, Any], cleans: object, origin: str = "") -> Splitting | None:
    """The way in which a Hugging Face tokenizer (the object in tokenizer.json) cuts texts; None if it is none of those known.

    `cleans` is what its config says of blanks before punctuation, and `origin` the model type of transformers that it is of.
    """
    parts = parts_of(tokenizer.get("pre_tokenizer"))
    whole = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    found = [one for one in SPLITTINGS if parts is not None and one.parts == parts]
    fitting = [one for one in found if one.whole == whole and one.cleans in (None, cleans)]
    return next((one for one in fitting if origin in one.of), next((one for one in fitting if not one.of), None))


def parts_of(pre_tokenizer: object) -> tuple[str, ...] | None:
    """The expressions of a pre-tokenizer, one after the other; None where one of its parts does something else."""
    if not isinstance(pre_tokenizer, dict):
        return None
    listed = pre_tokenizer.get("pretokenizers")
    steps = listed if pre_tokenizer.get("type") == "Sequence" and isinstance(listed, list) else [pre_tokenizer]
    parts: list[str] = []
    for number, step in enumerate(steps):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "Split" and (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True)):
            parts.append(str((step.get("pattern") or {}).get("Regex")))
        elif kind == "Digits" and step.get("individual_digits") is True:
            parts.append(_DIGITS)
        elif kind == "ByteLevel" and number == len(steps) - 1 and step.get("add_prefix_space") is False:
            parts += [_WORDS] if step.get("use_regex", True) else []
        else:
            return None
    last = steps[-1] if steps else None
    return tuple(parts) if isinstance(last, dict) and last.get("type") == "ByteLevel" else None


def pre_tokenizer_of(splitting: Splitting) -> dict[str, Any]:
    """The pre-tokenizer of a Hugging Face tokenizer that cuts texts so."""
    steps: list[dict[str, Any]] = [
        {"type": "Digits", "individual_digits": True}
        if part == _DIGITS
        else {"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False}
        for part in splitting.parts
        if part != _WORDS
    ]
    steps.append(byte_level(_WORDS in splitting.parts))
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def byte_level(words: bool) -> dict[str, Any]:
    """The part that makes characters of bytes; `words`: it cuts words as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def names(known: Sequence[Splitting] = SPLITTINGS) -> str:
    """The names, for an error."""
    return ", ".join(one.name for one in known)
