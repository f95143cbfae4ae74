"""The classes of a classifier: how many there are, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, custom, values


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    named = config.get("id2label")
    if named is None:
        facts["classifier.classes"] = values.checked("num_labels", config.get("num_labels", 2), values.whole)
        return
    numbers = [str(number) for number in range(len(named))]
    if {str(key) for key in named} != set(numbers) or not numbers:
        raise CkptError("key 'id2label' does not number its labels from 0 on", found=str(list(named))[:80])
    if config.get("num_labels", len(named)) != len(named):
        raise CkptError(
            "keys 'num_labels' and 'id2label' disagree", found=f"{config['num_labels']} and {len(named)} labels"
        )
    labels = [{str(key): label for key, label in named.items()}[number] for number in numbers]
    facts["classifier.classes"] = len(labels)
    if labels != _unnamed(len(labels)):
        notes["labels"] = labels


def _write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    count, labels = facts["classifier.classes"], notes.get("labels")
    labels = labels if isinstance(labels, list) and len(labels) == count else _unnamed(count)
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    config["label2id"] = {str(label): number for number, label in enumerate(labels)}


def _unnamed(count: int) -> list[str]:
    return [f"LABEL_{number}" for number in range(count)]


LABELS = custom(
    ["id2label", "label2id", "num_labels"],
    ["classifier.classes"],
    read=_read,
    write=_write,
    uses=(),
    why="names that are numbered are a note, of which no fact is made, and are written twice, the second time the other way round",
)
"""The classes by name; a config that names none has LABEL_0, LABEL_1, ... as transformers calls them."""
