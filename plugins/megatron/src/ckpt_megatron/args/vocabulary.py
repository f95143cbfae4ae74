"""The vocabulary, true and padded, and the head over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from ckpt_core.sdk import Facts, configs, custom, key, one_of, values
from ckpt_megatron.args.values import Args

_SIZES = ("orig_vocab_size", "vocab_size")


def is_said(args: Args) -> bool:
    """Whether the args say how many of the padded rows are tokens: Megatron keeps the number only of some tokenizers."""
    return any(_is_size(args.get(key), args["padded_vocab_size"]) for key in _SIZES)


def _is_size(size: object, padded: int) -> TypeGuard[int]:
    return type(size) is int and 0 < size <= padded


def vocabulary() -> configs.Custom:
    """padded_vocab_size rows are stored; how many are real, the args say only if a tokenizer did not."""

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        padded = args["padded_vocab_size"]
        known = [size for key in _SIZES if _is_size(size := args.get(key), padded)]
        facts["tokens.padded_vocabulary"], facts["tokens.vocabulary"] = padded, max(known, default=padded)

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        args["padded_vocab_size"] = facts["tokens.padded_vocabulary"]
        args |= dict.fromkeys(_SIZES, facts["tokens.vocabulary"])

    claims = ["tokens.vocabulary", "tokens.padded_vocabulary"]
    why = "the rows that are stored, and how many of them are tokens: the largest number that fits among two keys"
    return custom(["padded_vocab_size", *_SIZES], claims, read=read, write=write, uses=[], why=why)


def head() -> configs.Entry:
    """Tied to the embedding unless --untie-embeddings-and-output-weights."""
    untied = one_of({False: True, True: False})
    return key("untie_embeddings_and_output_weights", "head.tied", default=False, type=values.switch, via=untied)
