"""Tokenizer files: artifacts of the archive that the config's `tokenizer` section refers to.

    library: sentencepiece   model: nemo:<32 hex digits>_tokenizer.model
    library: megatron        type: GPT2BPETokenizer   vocab_file, merge_file: nemo:...
    library: huggingface     type: a name on the hub, or a folder: nothing is embedded

A path of the training machine stands in the config of a `.ckpt`; there the file of that name beside the checkpoint
is taken, or the one given with `-o tokenizer=FILE`. No path that a stranger's config names is ever followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from blake3 import blake3

from ckpt_core.sdk import CkptError, FormatError, company, documents, ledgers, schema, trees
from ckpt_megatron.sdk import DIVISIBLE
from ckpt_nemo.container.sentencepiece import piece_count

SECTION = "tokenizer"
_DIGITS = re.compile(r"^[0-9a-f]{32}_")
_LIMIT = 256 << 20
# key of the section -> the name under which other formats know the file
_FILES = {"model": "tokenizer.model", "vocab_file": "vocab.json", "merge_file": "merges.txt"}


@schema.dataclass
class Tokenizer:
    """The tokenizer of a checkpoint: its section of the config, its files by their usual names, and its size if known."""

    section: dict[str, Any]
    files: dict[str, company.Sidecar] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    count: int | None = None
    losses: list[ledgers.Loss] = field(default_factory=list)


def find_tokenizer(config: Mapping[str, Any], artifacts: Mapping[str, company.Sidecar], given: str | None) -> Tokenizer:
    """The tokenizer that `config` names among `artifacts`; `given` is a file in place of the one it names."""
    section = config.get(SECTION)
    found = Tokenizer(dict(section) if isinstance(section, Mapping) else {})
    for key, usual in _FILES.items():
        named = found.section.get(key)
        if given is not None and key == (
            "model" if found.section.get("library") in (None, "sentencepiece") else "vocab_file"
        ):
            found.files[usual], found.names[key] = company.Sidecar(given, _size(given)), os.path.basename(given)
        elif isinstance(named, str) and named:
            _enter(found, key, named, artifacts)
    model, vocabulary = found.files.get("tokenizer.model"), found.files.get("vocab.json")
    if model is not None:
        found.count = piece_count(content(model), model.path)
    elif vocabulary is not None:
        found.count = _entries(content(vocabulary), vocabulary.path)
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise CkptError(f"cannot read the tokenizer: {error.strerror}", file=path) from error


def _enter(found: Tokenizer, key: str, named: str, artifacts: Mapping[str, company.Sidecar]) -> None:
    base = named.removeprefix("nemo:").rpartition("/")[2]
    stored = (
        base if base in artifacts else next((name for name in sorted(artifacts) if _DIGITS.sub("", name) == base), None)
    )
    if stored is not None:
        found.files[_FILES[key]], found.names[key] = artifacts[stored], _DIGITS.sub("", stored)
    elif named.startswith("nemo:"):
        raise FormatError(
            f"the archive lacks the tokenizer file {base!r}", expected=f"it is named under {SECTION}.{key}"
        )
    else:
        why = "the config names a file of the training machine: give it with -o tokenizer=FILE"
        found.losses.append(ledgers.Loss("dropped", f"{SECTION}.{key} {named}", why))


def content(file: company.Sidecar) -> bytes:
    """The bytes of a tokenizer file."""
    if file.size > _LIMIT:
        raise FormatError(
            "a tokenizer file is far too large",
            file=file.path,
            found=f"{file.size} bytes",
            expected=f"at most {_LIMIT}",
        )
    return trees.Extent(file.path, file.offset, file.size).read()


def _entries(data: bytes, file: str) -> int | None:
    value = documents.parse_json(data, file)
    return len(value) if isinstance(value, dict) else None


def multiple_in(config: Mapping[str, Any]) -> int:
    """make_vocab_size_divisible_by, checked."""
    value = config.get(DIVISIBLE)
    if value is None:
        return 128
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise CkptError(f"key {DIVISIBLE!r} is not a number of rows", found=repr(value)[:80])
    return value


@schema.dataclass
class Artifacts:
    """What a written checkpoint has of a tokenizer: the section of the config, and the files by their stored names.

    `held` are the usual names of these, under which a reader finds them.
    """

    section: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    count: int | None = None
    losses: list[ledgers.Loss] = field(default_factory=list)


def section_in(artifacts: Artifacts, container: str, destination: str) -> dict[str, Any]:
    """The section of the config as `container` needs it: `nemo:` names resolve in an archive alone, a `.ckpt` has paths."""
    if container != "ckpt":
        return artifacts.section
    folder = os.path.abspath(destination)
    return {
        key: os.path.join(folder, value.removeprefix("nemo:")) if key in _FILES and value else value
        for key, value in artifacts.section.items()
    }


def artifacts_of(
    sidecars: Mapping[str, company.Sidecar], before: Mapping[str, Any], names: Mapping[str, str], name: str | None
) -> Artifacts:
    """The artifacts among `sidecars`. `before` is the section that the source had, `names` its files' names there;
    `name` that of a Hugging Face tokenizer."""
    empty = {"library": None, "type": None, **dict.fromkeys(_FILES), "delimiter": None, "sentencepiece_legacy": False}
    made = Artifacts({**empty, **{key: value for key, value in before.items() if key not in _FILES}})
    held = {key: sidecars[usual] for key, usual in _FILES.items() if usual in sidecars}
    if name is not None:
        made.section |= {"library": "huggingface", "type": name}
        return made
    if "model" in held and _is_sentencepiece(held["model"]):
        made.count = piece_count(content(held["model"]), held["model"].path)
        chosen = {"model": held["model"]}
        made.section |= {"library": "sentencepiece"}
    elif "vocab_file" in held and "merge_file" in held:
        made.count = _entries(content(held["vocab_file"]), held["vocab_file"].path)
        chosen = {key: held[key] for key in ("vocab_file", "merge_file")}
        made.section |= {"library": "megatron", "type": made.section["type"] or "GPT2BPETokenizer"}
    else:
        if made.section["library"] is None:
            made.section["library"] = "huggingface"
            why = "NeMo loads no Hugging Face tokenizer from its archive: name one (repository or folder) with -o tokenizer_name=..."
            made.losses.append(ledgers.Loss("unsaid", "tokenizer", why))
        return made
    for key, sidecar in chosen.items():
        data = content(sidecar)
        # NeMo puts a random number before the name; a hash serves as well, and is the same every time.
        stored = f"{blake3(data).hexdigest(length=16)}_{names.get(key) or _FILES[key]}"
        made.files[stored], made.section[key] = data, f"nemo:{stored}"
        made.held.add(_FILES[key])
    return made


def _is_sentencepiece(file: company.Sidecar) -> bool:
    """Tokenizers of other kinds (tiktoken's) are called tokenizer.model too."""
    try:
        piece_count(content(file), file.path)
    except FormatError:
        return False
    return True
