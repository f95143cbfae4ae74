"""The language model in a model of several parts: what its config says, and what its tensors are called beside the others'.

A class of transformers that sees has a tower for images, a projector, and a language model, which on text alone computes what the
class of that decoder does. `-o part=language` reads this one, and leaves the others where they are. The three rows of positions of
multimodal rotary embedding (m-rope) are one and the same row on text, so that it is the ordinary rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, StoredTensor, Table, company, errors, layouts, ledgers, schema
from ckpt_hf.common import Family, TableSet
from ckpt_hf.config import BY_TYPE
from ckpt_hf.files import SECTION
from ckpt_hf.language import HEAD, SHARED, check_twice, completed, for_one_row
from ckpt_hf.names import Match
from ckpt_hf.weights import INPUT_FIRST
from ckpt_hf.wholes import (
    DOWN,
    GATE_UP,
    LANGUAGES,
    QWEN3_VL_MOE,
    WHOLES,
    Language,
    Whole,
    beside_the_tower,
    has_input_first,
    within,
)

ASKED = "as -o part=language asks"
_OF_IMAGES = {"preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"}


def _text_model(name: str) -> str:
    """`model.text_model.layers.0`: Idefics."""
    return f"model.text_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


# What a tensor of the language model's class is called in the whole. As in the class itself, it is in the first Qwen-VLs.
_FORMS: tuple[Callable[[str], str], ...] = (lambda name: name, beside_the_tower, within, _text_model)
_OF_THINKERS: tuple[Callable[[str], str], ...] = (
    lambda name: f"thinker.{name}",
    lambda name: f"thinker.{beside_the_tower(name)}",
)


@schema.dataclass(frozen=True)
class Part:
    """The language model of a `whole`: its `family`, and its `config` in the keys of that family.

    `section` is where in the file the config stands, and `left` are the keys of the file that are of the other parts. `tied` is what
    the config of the whole and that of the language model say of a head that is the embedding.
    """

    whole: Whole
    family: Family
    config: Mapping[str, Any]
    section: str
    left: tuple[str, ...]
    tied: tuple[bool, ...]

    @property
    def evidence(self) -> str:
        """By what it is read as it is, in words."""
        kind = next(kind for kind, whole in WHOLES.items() if whole is self.whole)
        return f"{self.family.class_name}, the language model of {self.whole.class_name}, by model_type={kind!r}"

    def spellings(self, usual: list[TableSet], tensors: Mapping[str, StoredTensor]) -> list[TableSet]:
        """The tables of the family under each of the names that the tensors have in files of the whole."""
        if self._has_input_first(tensors):
            usual = [tuple(_with_input_first(table) for table in tables) for tables in usual]
        return [tuple(table.renamed(form) for table in tables) for form in self._forms for tables in usual]

    @property
    def _forms(self) -> tuple[Callable[[str], str], ...]:
        return _OF_THINKERS if self.whole.inside else _FORMS

    def _has_input_first(self, tensors: Mapping[str, StoredTensor]) -> bool:
        """Whether fused experts have their input on the first axis of each."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        return QWEN3_VL_MOE in self.whole.language and has_input_first(self.config["hidden_size"], shapes)

    def leftovers(self, usual: Table) -> Table:
        """What lies beside the language model: the other parts, and what may lie beside the class of its family."""
        renamed = dict.fromkeys(dropped for form in self._forms for dropped in usual.renamed(form).drops)
        return self.whole.others.extend(*renamed)

    def with_head(self, names: Collection[str]) -> dict[str, Any]:
        """The config with one word on whether the head is the embedding. Where nothing says it, or two keys disagree, the files with
        tensors called `names` do: transformers 4 looks at the config of the language model, version 5 at that of the whole, and ties
        nothing that differs.
        """
        stored = any(name == HEAD or name.endswith(f".{HEAD}") for name in names)
        return {**self.config, "tie_word_embeddings": self.tied[0] if len({*self.tied}) == 1 else not stored}

    def enter(self, ledger: ledgers.Ledger, file: str, whole: Mapping[str, Any]) -> None:
        """Enter the keys of the config of the whole: those of the language model, and those that stay with the others."""
        fates = self.family.config.fates
        if self.section:
            inner: Any = whole
            for name in self.section.split("."):
                ledger.config(file, fates({key: value for key, value in inner.items() if key in (*_READ, *_GENERAL)}))
                inner = inner[name]
            ledger.config(file, fates(inner), self.section)
        else:
            ledger.config(file, fates({key: value for key, value in whole.items() if key not in self.left}))
        if self.left:
            ledger.left(ledgers.Reason("settings of the other parts", ASKED), file, *self.left)

    def companions(self, found: Mapping[str, company.Sidecar], ledger: ledgers.Ledger) -> dict[str, company.Sidecar]:
        """The companions without those that say how images are prepared, which stay with the other parts."""
        for name in _OF_IMAGES & found.keys():
            reason = ledgers.Reason("settings of images and of how they go into a text", ASKED)
            ledger.left(reason, found[name].path, size=found[name].size)
        return {name: file for name, file in found.items() if name not in _OF_IMAGES}

    def losses(self, match: Match, tensors: Mapping[str, StoredTensor]) -> Iterator[ledgers.Loss]:
        """What lies beside the language model, by the rule that leaves it: how many tensors, and how large."""
        others = {name: tensor for name, tensor in tensors.items() if name not in match.natives}
        for dropped in match.leftovers.drops:
            found = [tensor for name, tensor in others.items() if layouts.matches(dropped.native, name)]
            size = sum(tensor.elements * tensor.dtype.size for tensor in found)
            if found:
                what = f"{len(found):,} tensors, {size:,} bytes" if len(found) > 1 else f"{size:,} bytes"
                # what may lie beside the class of the family is left whether a part is asked for or not
                asked = any(dropped.why == other.why for other in self.whole.others.drops)
                yield ledgers.Loss(
                    "dropped", f"{dropped.native}: {what}", f"{dropped.why}, {ASKED}" if asked else dropped.why
                )


def _with_input_first(table: Table) -> Table:
    held = {one.native for one in table.rows}
    return table.replace(*INPUT_FIRST) if held >= {GATE_UP, DOWN} else table


def language_in(config: Mapping[str, Any], file: str) -> Part:
    """The language model that the config of a whole says. Raises `CkptError` where there is none, or one that is not read."""
    kind = config.get("model_type")
    whole = WHOLES.get(kind) if isinstance(kind, str) else None
    if whole is None:
        alone = kind in BY_TYPE
        raise CkptError(
            "this is a language model by itself" if alone else "this is not a model that sees, as far as is known",
            file=file,
            found=f"model_type = {kind!r:.80}",
            expected=f"with -o part=language: {', '.join(WHOLES)}",
            fix="leave the option out" if alone else errors.did_you_mean(str(kind), WHOLES),
        )
    _check_class(config, whole, file)
    top, section = config, SECTION
    if whole.inside:
        config, section = config.get(whole.inside, {}), f"{whole.inside}.{SECTION}"
        if not isinstance(config, dict):
            raise CkptError(f"key {whole.inside!r} is not an object", file=file, found=repr(config)[:80])
    inner = config.get(SECTION)
    if inner is None and not whole.flat:
        raise CkptError(f"there is no {SECTION}", file=file, expected="the config of the language model in it")
    if inner is not None and not isinstance(inner, dict):
        raise CkptError(f"key {SECTION!r} is not an object", file=file, found=repr(inner)[:80])
    language, family = _language(inner or {}, whole, file)
    beside = {key: value for key, value in config.items() if key not in (*whole.own, SECTION)}
    said = for_one_row(completed(beside if inner is None else inner, language, file), language)
    if inner is not None and whole.flat:
        again = for_one_row(completed(beside, language, file), language)
        check_twice(family.config, said, again, (key for key in beside if key not in _READ), file)
    said |= {key: config[key] for key in SHARED if config.get(key) is not None and said.get(key) is None}
    tied = [one.get("tie_word_embeddings") for one in (config, inner or {})]
    left = [
        key for key in config if key not in (SECTION, *_READ, *_GENERAL) and (inner is not None or key in whole.own)
    ]
    if whole.inside:
        others = [key for key in top if key not in (whole.inside, *_READ, *_GENERAL)]
        left = [*others, *(f"{whole.inside}.{key}" for key in left)]
    return Part(
        whole,
        family,
        said,
        "" if inner is None else section,
        tuple(left),
        tuple(one for one in tied if isinstance(one, bool)),
    )


_READ = ("architectures", "model_type", "tie_word_embeddings", *SHARED)
# Of the whole, and of the language model just so.
_GENERAL = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map", "use_cache")


def _check_class(config: Mapping[str, Any], whole: Whole, file: str) -> None:
    named = config.get("architectures")
    if named and named != [whole.class_name]:
        raise CkptError(
            f"the language model is taken out of {whole.class_name} alone",
            file=file,
            found=f"architectures = {str(named)[:80]}",
            expected=whole.class_name,
        )


def _language(inner: Mapping[str, Any], whole: Whole, file: str) -> tuple[Language, Family]:
    kind = inner.get("model_type", whole.language[0])
    known = [one for one in whole.language if LANGUAGES[one].family in BY_TYPE]
    if kind not in known:
        raise CkptError(
            f"this language model of {whole.class_name} is not read",
            file=file,
            found=f"{SECTION}.model_type = {kind!r:.80}",
            expected=", ".join(known) or "none so far",
        )
    return LANGUAGES[kind], BY_TYPE[LANGUAGES[kind].family]
