"""Config files as tables: each line maps a framework's key to a fact of the architecture, both ways.

    CONFIG = Config("LlamaForCausalLM", [
        key("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
        key("rms_norm_eps", "attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-6),
        derived("head_dim", "attention.head_dim", "hidden_size / num_attention_heads", rounding="floor"),
        fact_is("mlp.gated", True),
        key_is("is_decoder", False, or_absent=True),
        note("bos_token_id", "bos", default=1),
        ignore("use_cache", why="inference only"),
    ])

Reading claims every key of the file: one that is neither mapped nor ignored is an error. Writing claims every
fact of the architecture: one that no line says must be at the schema's default ("does not happen"), or the
architecture is refused by that fact's name. A key, and a fact, belongs to one line: see `lines`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.architecture import Facts
from ckpt_core.architecture.facts import default_of
from ckpt_core.config.entry import Entry, Fate
from ckpt_core.config.lines import Lines, one_by_one
from ckpt_core.errors import CkptError, Problems, Refusal, did_you_mean


class Config:
    """A config table: see the module's docstring. `TableError` if two of its lines say one key or one fact."""

    def __init__(self, name: str, entries: Iterable[Entry | Sequence[Entry]]) -> None:
        self.name = name
        self.entries = Lines(name, entries)
        claims = [claim for entry in self.entries for claim in entry.claims]
        self._exact = frozenset(claims)
        self._below = tuple(claim[:-1] for claim in claims if claim.endswith(".*"))

    def replace(self, name: str, *entries: Entry | Sequence[Entry], without: Iterable[str] = ()) -> Config:
        """A variant: entries that share a key or claim with a new one, or are named in `without`, are left out.

        A note that gives way stays beside a line that speaks for its key, unless it is named in `without`.
        """
        added, gone = list(one_by_one(entries)), set(without)
        taken = {key for entry in added for key in (*entry.keys, *entry.claims)} | gone
        kept = [
            entry for entry in self.entries if not (gone if entry.gives_way else taken) & {*entry.keys, *entry.claims}
        ]
        return Config(name, [*kept, *added])

    @property
    def keys(self) -> frozenset[str]:
        """Every key some line speaks for."""
        return self.entries.keys

    def said(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The notes that a written config says, as a reader of it finds them. What cannot be read back says nothing."""
        notes: dict[str, Any] = {}
        with contextlib.suppress(CkptError):
            self.entries.read(config, Facts(), notes, Problems(self.name))
        return notes

    def fates(self, config: Mapping[str, Any]) -> dict[str, Fate]:
        """What becomes of every key of a config that this table reads, for the ledger. A note carries its key, also where it gives way."""
        known = {key: entry.fate for entry in self.entries for key in entry.keys}
        known |= {key: entry.fate for entry in self.entries if entry.gives_way for key in entry.keys}
        return {key: known[key] for key in config if key in known}

    def read(self, config: Mapping[str, Any], file: str) -> tuple[Facts, dict[str, Any]]:
        """The facts and notes of a config; every unknown key and wrong value is raised at once, naming `file`."""
        facts = Facts()
        notes: dict[str, Any] = {}
        problems = Problems(f"config of {self.name}")
        for key in self.entries.unknown(config):
            problems.add(
                CkptError(
                    f"unknown config key {key!r} (value {str(config[key])[:60]})",
                    fix=did_you_mean(
                        str(key),
                        self.keys,
                        "if it changes no output of the model, name it in -o ignore_keys=..., or give a copy without it, where --config names the file",
                    ),
                )
            )
        self.entries.read(config, facts, notes, problems)
        for problem in problems.found:
            problem.file = problem.file or file
        problems.raise_any()
        return facts, notes

    def write(self, facts: Facts, notes: Mapping[str, Any]) -> dict[str, Any]:
        """The config that says `facts`; raises every refusal at once."""
        unsaid, refused = Problems(""), Problems("")
        for refusal in self.unsaid(facts):
            unsaid.add(refusal)
        if self._lacks_its_head(facts):
            raise Refusal(
                f"{self.name} gives logits over the vocabulary, and this model has no such head",
                found=_head_in_words(facts),
                fix="convert to ir, or to a format that holds the source's own class",
                fact=("head", "classifier"),
            )
        config = self.entries.write(facts, notes, refused, {})
        problems = Problems(f"{self.name} cannot hold this architecture")
        for problem in refused.found:
            problem.problem = f"{self.name}: {problem.problem}"
        for problem in (*unsaid.found, *refused.found):
            problems.add(problem)
        problems.raise_any()
        return config

    def _lacks_its_head(self, facts: Facts) -> bool:
        """Whether a decoder has no head where every model of this kind has one."""
        always = any(claim.startswith("head.") for claim in self._exact)
        return always and facts.get("kind") == "decoder" and facts.present("head") is False

    def unsaid(self, facts: Facts) -> Iterator[Refusal]:
        """A refusal for each fact that no line says, and that is not as the schema has it where nothing is said."""
        for path, value in facts.items():
            if path in self._exact or (
                path.startswith(self._below) and path.removesuffix("?") + ".*" not in self._exact
            ):
                continue
            if path.startswith(_VISION) and f"{_VISION}hidden" not in self._exact:
                if path == f"{_VISION}hidden":
                    yield _without_vision(self.name, path, value)
                continue
            if path.endswith("?"):
                found = "layers " + ", ".join(str(index) for index, exists in enumerate(value) if exists)
                yield Refusal(f"{self.name} has {path[:-1]} in every layer or in none", found=found, fact=path)
                continue
            if path.startswith(_PREDICTORS):
                if path == f"{_PREDICTORS}count":
                    yield _without_predictors(self.name, path, value)
                continue
            default = default_of(path)
            if default is dataclasses.MISSING or value != default:
                yield Refusal(f"{self.name} has no {path}", found=f"{path} = {value}", fact=path)


def _head_in_words(facts: Facts) -> str:
    said = [f"{path} = {facts[path]}" for path in ("classifier.classes", "classifier.pooling") if path in facts]
    return ", ".join(said) or "no head.tied: a bare decoder"


_PREDICTORS = "predictors."
_VISION = "vision."


def _without_vision(name: str, path: str, hidden: object) -> Refusal:
    """One refusal for all facts of a vision tower: its language model is a model by itself."""
    return Refusal(
        f"{name} has no vision tower",
        found=f"{path} = {hidden}",
        fix="take the language model out of an HF folder of this model with -o part=language",
        fact=f"{_VISION}*",
    )


def _without_predictors(name: str, path: str, count: object) -> Refusal:
    """One refusal for all facts of the layers that predict further tokens: a model can do without them."""
    return Refusal(
        f"{name} has no layers that predict further tokens",
        found=f"{path} = {count}",
        fix="leave them out with -o predictors=drop: the model's own logits do not depend on them",
        fact=f"{_PREDICTORS}*",
    )
