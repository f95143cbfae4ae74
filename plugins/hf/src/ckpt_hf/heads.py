"""Heads of decoders: what the classes of transformers have that put another head than one over the vocabulary on a decoder, or none.

Such a class is the decoder of `...ForCausalLM` with other lines for its head. So a family says its language model, and which of
these classes transformers has besides; `Family.with_head` makes the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_core.sdk import Architecture, Table, configs, fact_is, ignore, key, note, row, schema
from ckpt_hf.labels import LABELS


@dataclass(frozen=True)
class Head:
    """What stands on a decoder in a class whose name is that of the family with this `ending`.

    `lines` are those of its config, from the id of padding that the class has where a config says none; `tables` hold its tensors.
    `bare`: the class is the decoder itself, so its tensors have names without the prefix that they have in the other classes.
    `pooling` is what it reads of a sequence; None where there are no classes.
    """

    ending: str
    lines: Callable[[int | None], Sequence[Any]] = lambda padding: ()
    tables: tuple[Table, ...] = ()
    bare: bool = False
    pooling: schema.Pooling | None = None

    def is_of(self, architecture: Architecture) -> bool:
        """Whether this is the kind of head that a model has."""
        classifier = architecture.classifier
        decoder_alone = architecture.decoder is not None and architecture.encoder is None
        return decoder_alone and architecture.head is None and (classifier and classifier.pooling) == self.pooling


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
BARE = Head("Model", bare=True)

# Reward models and rerankers.
SCORED = Head("ForSequenceClassification", _scores, pooling=schema.Pooling.LAST, tables=(Table(rows=[
    row("score.weight", "k h", "classifier.weight"),
]),))

# Critics, and classifiers of tokens.
TAGGED = Head("ForTokenClassification", lambda padding: [
    *_tags(padding),
    # a key since transformers 5.20; before, there is always a bias
    key("token_classification_bias", "classifier.bias", default=True),
], pooling=schema.Pooling.EACH, tables=(Table(rows=[
    row("score.weight", "k h", "classifier.weight"),
    row("score.bias",   "k",   "classifier.bias"),
]),))

# The classes that have a head of their own code, which is older than that of the others (GPT-2, GPT-NeoX, BLOOM, Falcon).
TAGGED_BY_CLASSIFIER = Head("ForTokenClassification", lambda padding: [
    *_tags(padding),
    fact_is("classifier.bias", True),
], pooling=schema.Pooling.EACH, tables=(Table(rows=[
    row("classifier.weight", "k h", "classifier.weight"),
    row("classifier.bias",   "k",   "classifier.bias"),
]),))
# fmt: on

ALL = (BARE, SCORED, TAGGED)
"""What transformers has of most decoders."""


def unsaid_of_vocabulary(config: configs.Config) -> tuple[list[configs.Entry], list[str]]:
    """The lines that carry what a config says of a head over the vocabulary to classes without one, and the facts that these lack.

    The keys mean nothing there; they stay with the model as notes, as transformers leaves them in its configs.
    """
    gone = [
        entry for entry in config.entries if entry.claims and all(claim.startswith("head.") for claim in entry.claims)
    ]
    notes: list[configs.Entry] = [note(name, name) for entry in gone for name in entry.keys]
    return notes, [claim for entry in gone for claim in entry.claims]
