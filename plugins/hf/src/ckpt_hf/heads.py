"""Heads: what the classes of transformers have that put another head than one over the vocabulary on a decoder or an encoder, or none.

Such a class is the decoder of `...ForCausalLM` (or the encoder of `...ForMaskedLM`) with other lines for its head. So a family says its
language model, and which of these classes transformers has besides; `Family.with_head` makes the class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import Architecture, Table, configs, fact_is, ignore, key, note, row, schema
from ckpt_hf.labels import LABELS


def decodes(architecture: Architecture) -> bool:
    """Whether a model is a decoder without a head over the vocabulary."""
    return architecture.decoder is not None and architecture.encoder is None and architecture.head is None


def encodes(architecture: Architecture, head: bool = False) -> bool:
    """Whether a model is an encoder of tokens, with a head over the vocabulary or without."""
    alone = architecture.encoder is not None and architecture.decoder is None
    return alone and architecture.tokens is not None and (architecture.head is not None) == head


def is_language_model(architecture: Architecture) -> bool:
    """Whether a model is a decoder with the head over the vocabulary and nothing else: none of the other heads is on it."""
    alone = architecture.decoder is not None and architecture.encoder is None and architecture.head is not None
    return alone and architecture.classifier is None and architecture.vision is None


def _pooling(architecture: Architecture) -> schema.Pooling | None:
    return architecture.classifier.pooling if architecture.classifier else None


Stored = Callable[[Mapping[str, Any], Collection[str], Callable[[str, str], bool]], Mapping[str, Any]]


@schema.dataclass(frozen=True)
class Head:
    """What stands on a stack in a class whose name is that of the family with this `ending`.

    `lines` are those of its config, from the id of padding that the class has where a config says none; `tables` hold its tensors.
    `bare`: the class is the stack itself, so its tensors have names without the prefix that they have in the other classes.
    `beside`: the class has the head over the vocabulary, too.
    `holds`: whether a model has this kind of head. `as_stored` is the `Family`'s, where the head has one of its own.
    """

    ending: str
    lines: Callable[[int | None], Sequence[Any]] = lambda padding: ()
    tables: tuple[Table, ...] = ()
    bare: bool = False
    beside: bool = False
    holds: Callable[[Architecture], bool] = decodes
    as_stored: Stored | None = None


def _scores(padding: int | None) -> list[Any]:
    return [
        LABELS,
        note("problem_type", "problem_type"),
        fact_is("classifier.hidden", False),
        fact_is("classifier.bias", False),
        fact_is("classifier.pooling", schema.Pooling.LAST),
        # transformers reads the last token that is not this one (modeling_layers.py, GenericForSequenceClassification)
        key("pad_token_id", "classifier.padding", default=padding, null=None, noted="pad"),
    ]


def _tags(padding: int | None) -> list[Any]:
    return [
        LABELS,
        note("problem_type", "problem_type"),
        fact_is("classifier.hidden", False),
        fact_is("classifier.pooling", schema.Pooling.EACH),
        ignore("classifier_dropout", why="training only"),
    ]


# fmt: off
BARE = Head("Model", bare=True, holds=lambda model: decodes(model) and model.classifier is None)

# What is before the head of a language model that sees; the class says it whole (`ckpt_hf.seeing`).
SEES = Head("ForConditionalGeneration", holds=lambda model: model.vision is not None)

# Reward models and rerankers.
SCORED = Head("ForSequenceClassification", _scores, holds=lambda model: decodes(model) and _pooling(model) == schema.Pooling.LAST, tables=(Table(rows=[
    row("score.weight", "k h", "classifier.weight"),
]),))

# Critics, and classifiers of tokens.
TAGGED = Head("ForTokenClassification", lambda padding: [
    *_tags(padding),
    # a key since transformers 5.20; before, there is always a bias
    key("token_classification_bias", "classifier.bias", default=True),
], holds=lambda model: decodes(model) and _pooling(model) == schema.Pooling.EACH, tables=(Table(rows=[
    row("score.weight", "k h", "classifier.weight"),
    row("score.bias",   "k",   "classifier.bias"),
]),))

# The classes that have a head of their own code, which is older than that of the others (GPT-2, GPT-NeoX, BLOOM, Falcon).
TAGGED_BY_CLASSIFIER = Head("ForTokenClassification", lambda padding: [
    *_tags(padding),
    fact_is("classifier.bias", True),
], holds=lambda model: decodes(model) and _pooling(model) == schema.Pooling.EACH, tables=(Table(rows=[
    row("classifier.weight", "k h", "classifier.weight"),
    row("classifier.bias",   "k",   "classifier.bias"),
]),))

# The same of an encoder.
ENCODER_TAGGED = replace(TAGGED_BY_CLASSIFIER, holds=lambda model: encodes(model) and _pooling(model) == schema.Pooling.EACH)

# Where an answer starts and where it ends: the classes have no labels.
ANSWERED = Head("ForQuestionAnswering", lambda padding: [
    fact_is("classifier.hidden", False),
    fact_is("classifier.classes", 2),
    fact_is("classifier.bias", True),
    fact_is("classifier.pooling", schema.Pooling.SPAN),
    ignore("classifier_dropout", why="training only"),
], holds=lambda model: encodes(model) and _pooling(model) == schema.Pooling.SPAN, tables=(Table(rows=[
    row("qa_outputs.weight", "k h", "classifier.weight"),
    row("qa_outputs.bias",   "k",   "classifier.bias"),
]),))
# fmt: on

ALL = (BARE, SCORED, TAGGED)
"""What transformers has of most decoders."""
BY_CLASSIFIER = (BARE, SCORED, TAGGED_BY_CLASSIFIER)
"""What it has of the first ones."""


def unsaid_of_vocabulary(config: configs.Config) -> tuple[list[configs.Entry], list[str]]:
    """The lines that carry what a config says of a head over the vocabulary to classes without one, and the facts that these lack.

    The keys mean nothing there; they stay with the model as notes, as transformers leaves them in its configs.
    """
    gone = [
        entry for entry in config.entries if entry.claims and all(claim.startswith("head.") for claim in entry.claims)
    ]
    notes: list[configs.Entry] = [note(name, name) for entry in gone for name in entry.keys]
    return notes, [claim for entry in gone for claim in entry.claims]
