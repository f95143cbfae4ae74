"""What the config of a model of several parts says of its language model.

It stands in a section of its own, and leaves out what its own config class has. Old configs have its keys beside those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Config
from ckpt_hf.files import SECTION
from ckpt_hf.wholes import LANGUAGES, WHOLES, Language

SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")
"""What a model says once for all its parts, where the config of the language model does not say it."""
TIED = "tie_word_embeddings"
HEAD = "lm_head.weight"

_OF_THE_WHOLE = ("architectures", "model_type", "auto_map", TIED, "transformers_version", "dtype", "torch_dtype")
_ROTARY = ("rope_parameters", "rope_scaling")
_POSITIONS = ("mrope_section", "mrope_interleaved")


def completed(said: Mapping[str, Any], language: Language, file: str) -> dict[str, Any]:
    """The config of a language model, with what its own config class has where it is silent. Raises `CkptError` where it says what the
    class never does."""
    for key, value in language.fixed.items():
        if said.get(key, value) != value:
            raise CkptError(
                f"key {key!r} says what the class never does", file=file, found=f"{said[key]!r}", expected=f"{value!r}"
            )
    plain = {**language.usual, **said, **language.fixed}
    if "num_experts" in language.usual and "num_local_experts" in said:
        plain.pop("num_experts", None)
    return plain | _with_base(plain, language, file) if language.three_rows else plain


def for_one_row(said: dict[str, Any], language: Language) -> dict[str, Any]:
    """The config of a language model for a text, in which the three rows of positions are one and the same."""
    rotary = {key: _one_row(said[key]) for key in _ROTARY if isinstance(said.get(key), dict)}
    return said | rotary if language.three_rows else said


def in_sections(text: Config, config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The config of a whole with its language model in a section, completed; `text` are the lines of that section.

    Whether the head is the embedding is said once, or not at all where the config says both: the tensors tell then (`tied_as_stored`).
    Raises `CkptError` where the section says another thing than the keys beside it.
    """
    whole = WHOLES[str(config.get("model_type"))]
    inner = config.get(SECTION)
    if inner is not None and not isinstance(inner, dict):
        raise CkptError(f"key {SECTION!r} is not an object", file=file, found=repr(inner)[:80])
    if inner is None and not whole.flat:
        raise CkptError(f"there is no {SECTION}", file=file, expected="the config of the language model in it")
    kind = (inner or {}).get("model_type")
    language = LANGUAGES[kind if kind in whole.language else whole.language[0]]
    own = (*whole.own, *_OF_THE_WHOLE, SECTION)
    beside = {key: value for key, value in config.items() if whole.flat and key not in own}
    said = completed(beside if inner is None else inner, language, file)
    if inner is not None and whole.flat:
        twice = [key for key in beside if key in inner and key in text.keys and key not in SHARED]
        check_twice(text, said, completed(beside, language, file), twice, file)
    said |= {key: config[key] for key in SHARED if config.get(key) is not None and said.get(key) is None}
    outer = {key: value for key, value in config.items() if key not in beside}
    tied = {one[TIED] for one in (config, inner or {}) if isinstance(one.get(TIED), bool)}
    outer = {key: value for key, value in outer.items() if key != TIED} | ({TIED: tied.pop()} if len(tied) == 1 else {})
    return {**outer, SECTION: {key: value for key, value in said.items() if key != TIED}}


def tied_as_stored(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """The config with one word on whether the head is the embedding. Where nothing says it, or two keys disagree, the files with
    tensors called `names` do: transformers 4 looks at the config of the language model, version 5 at that of the whole, and ties
    nothing that differs.
    """
    stored = any(name == HEAD or name.endswith(f".{HEAD}") for name in names)
    return config if TIED in config else {**config, TIED: not stored}


def check_twice(
    text: Config, said: Mapping[str, Any], again: Mapping[str, Any], keys: Iterable[str], file: str
) -> None:
    """A config that says the language model beside the other parts, too, must say the same there.

    `again` is what it says there, `keys` are those that it has there, and `text` the table that reads both.
    """
    # transformers before 4.52 reads the keys beside the other parts, and later ones the object
    twice = {key: again[key] for key in keys if key in said and key in text.keys}
    if twice and text.read({**said, **twice}, file)[0] != text.read(said, file)[0]:
        apart = [key for key, value in twice.items() if value != said[key]]
        raise CkptError(
            f"keys of the language model say other things beside {SECTION} than in it",
            file=file,
            found=", ".join(f"{key} = {twice[key]!r:.40} and {said[key]!r:.40}" for key in apart),
            fix="delete the wrong ones from config.json",
        )


def _with_base(said: Mapping[str, Any], language: Language, file: str) -> dict[str, Any]:
    """Rotary keys with the base of the class, where they say none."""
    parameters = said.get("rope_parameters")
    rotary = [one for one in (said.get(key) for key in _ROTARY) if isinstance(one, dict)]
    if said.get("rope_theta") is not None or any("rope_theta" in one for one in rotary):
        return {}
    if language.theta is None:
        raise CkptError(
            "no key says the rotary base, and the versions of transformers differ in what they then take",
            file=file,
            expected="rope_theta, or rope_parameters with it",
        )
    if not isinstance(parameters, dict):
        return {"rope_theta": language.theta}
    return {"rope_parameters": {**parameters, "rope_theta": language.theta}}


def _one_row(rotary: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters for one row of positions, of those for three."""
    plain = {key: value for key, value in rotary.items() if key not in _POSITIONS}
    return {
        key: "default" if key in ("type", "rope_type") and value == "mrope" else value for key, value in plain.items()
    }
