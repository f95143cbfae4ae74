"""The language model in a model of several parts: what its config says, and what its tensors are called beside the others'.

A class of transformers that sees has a tower for images, a projector, and a language model, which on text alone computes what the
class of that decoder does. `-o part=language` reads this one, and leaves the others where they are. The three rows of positions of
multimodal rotary embedding (m-rope) are one and the same row on text, so that it is the ordinary rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    ReadRequest,
    StoredTensor,
    Table,
    company,
    errors,
    layouts,
    ledgers,
    row,
)
from ckpt_hf.common import Family, TableSet
from ckpt_hf.config import BY_TYPE
from ckpt_hf.names import Match
from ckpt_hf.wholes import LANGUAGES, PART, QWEN3_VL_MOE, WHOLES, Language, Whole

_SECTION = "text_config"
_HEAD = "lm_head.weight"
ASKED = "as -o part=language asks"
_OF_IMAGES = {"preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"}
_ROTARY = ("rope_parameters", "rope_scaling")
_POSITIONS = ("mrope_section", "mrope_interleaved")
# What a model says once for all its parts, where the config of the language model does not say it.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")


def _beside_the_tower(name: str) -> str:
    """`model.language_model.layers.0` beside `model.visual`: transformers 5, and all classes that are newer than it."""
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _within(name: str) -> str:
    """`language_model.model.layers.0` beside `vision_tower`: the class of the language model as a module, in LLaVA's time."""
    return f"language_model.{name}"


def _text_model(name: str) -> str:
    """`model.text_model.layers.0`: Idefics."""
    return f"model.text_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


# What a tensor of the language model's class is called in the whole. As in the class itself, it is in the first Qwen-VLs.
_FORMS: tuple[Callable[[str], str], ...] = (lambda name: name, _beside_the_tower, _within, _text_model)

# Qwen3-VL's experts lie fused in the files: on the Hub with the input first, as no other's do, and with the output first where
# transformers 5 saved a model that it had made itself. It tells them by their shapes (conversion_mapping.py, `Transpose(check_dims=True)`).
_GATE_UP, _DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
_INPUT_FIRST = (
    row(_GATE_UP, "x h ((gate + up) f)", "mlp.experts.{part}.weight"),
    row(_DOWN, "x f h", "mlp.experts.down.weight"),
)


@dataclass(frozen=True)
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
        return [tuple(table.renamed(form) for table in tables) for form in _FORMS for tables in usual]

    def _has_input_first(self, tensors: Mapping[str, StoredTensor]) -> bool:
        """Whether fused experts have their input on the first axis of each; where the width of an expert is the hidden size, only one
        of the two tensors can tell."""
        shapes = {
            end: tensor.shape for name, tensor in tensors.items() for end in (_GATE_UP, _DOWN) if name.endswith(end)
        }
        if QWEN3_VL_MOE not in self.whole.language or {len(shape) for shape in shapes.values()} != {3}:
            return False
        hidden, (_, first, last) = self.config["hidden_size"], shapes.get(_DOWN, (0, 0, 0))
        return bool(last == hidden if first != last else shapes.get(_GATE_UP, (0, 0, 0))[1] == hidden)

    def leftovers(self, usual: Table) -> Table:
        """What lies beside the language model: the other parts, and what may lie beside the class of its family."""
        renamed = dict.fromkeys(dropped for form in _FORMS for dropped in usual.renamed(form).drops)
        return self.whole.others.extend(*renamed)

    def with_head(self, names: Collection[str]) -> dict[str, Any]:
        """The config with one word on whether the head is the embedding. Where nothing says it, or two keys disagree, the files with
        tensors called `names` do: transformers 4 looks at the config of the language model, version 5 at that of the whole, and ties
        nothing that differs.
        """
        stored = any(name == _HEAD or name.endswith(f".{_HEAD}") for name in names)
        return {**self.config, "tie_word_embeddings": self.tied[0] if len({*self.tied}) == 1 else not stored}

    def enter(self, ledger: ledgers.Ledger, file: str, whole: Mapping[str, Any]) -> None:
        """Enter the keys of the config of the whole: those of the language model, and those that stay with the others."""
        fates = self.family.config.fates
        if self.section:
            ledger.config(file, fates(whole[self.section]), self.section)
            ledger.config(file, fates({key: value for key, value in whole.items() if key in (*_READ, *_GENERAL)}))
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
    return table.replace(*_INPUT_FIRST) if held >= {_GATE_UP, _DOWN} else table


def asks_for_language(request: ReadRequest) -> bool:
    """Whether the user wants the language model of a model that sees."""
    return request.options.get(PART.name) == "language"


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
    inner = config.get(_SECTION)
    if inner is None and not whole.flat:
        raise CkptError(f"there is no {_SECTION}", file=file, expected="the config of the language model in it")
    if inner is not None and not isinstance(inner, dict):
        raise CkptError(f"key {_SECTION!r} is not an object", file=file, found=repr(inner)[:80])
    language, family = _language(inner or {}, whole, file)
    beside = {key: value for key, value in config.items() if key not in (*whole.own, _SECTION)}
    said = _plain(beside if inner is None else inner, language, file)
    if inner is not None and whole.flat:
        _check_twice(family, said, _plain(beside, language, file), beside, file)
    said |= {key: config[key] for key in _SHARED if config.get(key) is not None and said.get(key) is None}
    tied = [one.get("tie_word_embeddings") for one in (config, inner or {})]
    left = [
        key for key in config if key not in (_SECTION, *_READ, *_GENERAL) and (inner is not None or key in whole.own)
    ]
    return Part(
        whole,
        family,
        said,
        "" if inner is None else _SECTION,
        tuple(left),
        tuple(one for one in tied if isinstance(one, bool)),
    )


_READ = ("architectures", "model_type", "tie_word_embeddings", *_SHARED)
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
            found=f"{_SECTION}.model_type = {kind!r:.80}",
            expected=", ".join(known) or "none so far",
        )
    return LANGUAGES[kind], BY_TYPE[LANGUAGES[kind].family]


def _plain(said: Mapping[str, Any], language: Language, file: str) -> dict[str, Any]:
    """The config of a language model in the keys of its family, with what its own config class has where it is silent."""
    for key, value in language.fixed.items():
        if said.get(key, value) != value:
            raise CkptError(
                f"key {key!r} says what the class never does", file=file, found=f"{said[key]!r}", expected=f"{value!r}"
            )
    plain = {**language.usual, **said, **language.fixed}
    if "num_experts" in language.usual and "num_local_experts" in said:
        plain.pop("num_experts", None)
    if language.three_rows:
        rotary = {key: _one_row(plain[key]) for key in _ROTARY if isinstance(plain.get(key), dict)}
        plain |= _with_base(rotary, language, file) if _says_no_base(plain, rotary) else rotary
    return plain


def _says_no_base(said: Mapping[str, Any], rotary: Mapping[str, Mapping[str, Any]]) -> bool:
    return said.get("rope_theta") is None and not any("rope_theta" in one for one in rotary.values())


def _with_base(rotary: Mapping[str, dict[str, Any]], language: Language, file: str) -> dict[str, Any]:
    """Rotary keys that say no base, with that of the class."""
    if language.theta is None:
        raise CkptError(
            "no key says the rotary base, and the versions of transformers differ in what they then take",
            file=file,
            expected="rope_theta, or rope_parameters with it",
        )
    if "rope_parameters" not in rotary:
        return {**rotary, "rope_theta": language.theta}
    return {**rotary, "rope_parameters": {**rotary["rope_parameters"], "rope_theta": language.theta}}


def _one_row(rotary: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters for one row of positions, of those for three."""
    plain = {key: value for key, value in rotary.items() if key not in _POSITIONS}
    return {
        key: "default" if key in ("type", "rope_type") and value == "mrope" else value for key, value in plain.items()
    }


def _check_twice(
    family: Family, said: Mapping[str, Any], again: Mapping[str, Any], beside: Mapping[str, Any], file: str
) -> None:
    """A config that says the language model beside the other parts, too, must say the same there."""
    # transformers before 4.52 reads the keys beside the other parts, and later ones the object
    twice = {key: again[key] for key in beside if key in said and key in family.config.keys and key not in _READ}
    if twice and family.config.read({**said, **twice}, file)[0] != family.config.read(said, file)[0]:
        apart = [key for key, value in twice.items() if value != said[key]]
        raise CkptError(
            f"keys of the language model say other things beside {_SECTION} than in it",
            file=file,
            found=", ".join(f"{key} = {twice[key]!r:.40} and {said[key]!r:.40}" for key in apart),
            fix="delete the wrong ones from config.json",
        )
