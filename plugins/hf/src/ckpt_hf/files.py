"""The files of an HF folder: weights in one file or shards with an index, config, and what travels along.

    config.json
    model.safetensors                      or  model-00001-of-00003.safetensors ... + model.safetensors.index.json
    pytorch_model.bin                      or  pytorch_model-00001-of-00003.bin ... + pytorch_model.bin.index.json
    tokenizer.json, chat_template.jinja, generation_config.json, README.md, ...      carried as they are

Where safetensors and .bin lie side by side, safetensors is what transformers loads, and so do we (`ckpt_hf.sets`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    FormatError,
    StoredTensor,
    TargetBuilder,
    company,
    containers,
    disk,
    documents,
    errors,
    layouts,
    lazy,
    ledgers,
    schema,
    torch_files,
)

CONFIG = "config.json"
"""The file that says what a model of transformers is."""

SECTION = "text_config"
"""What a model that sees has its language model below in it."""

SIDE_FILE = "hf_quant_config.json"
"""The file in which ModelOpt says how weights are quantised. It is never carried along: it would be said of weights that are not."""

MODULES = "modules.json"
"""The file in which sentence-transformers says what it runs: the model, and modules after it in folders of their own."""


@schema.dataclass(frozen=True, slots=True)
class WeightFiles:
    """One of the two ways transformers keeps weights: the container, and the names of its files."""

    container: containers.Container
    suffix: str
    stem: str

    @property
    def single(self) -> str:
        return f"{self.stem}{self.suffix}"

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"

    def shard(self, number: int, count: int) -> str:
        return self.single if count == 1 else f"{self.stem}-{number:05d}-of-{count:05d}{self.suffix}"


SAFETENSORS = WeightFiles(containers.SAFETENSORS, ".safetensors", "model")
BIN = WeightFiles(containers.TORCH, ".bin", "pytorch_model")
KINDS = (SAFETENSORS, BIN)


def kind_of(folder: str) -> WeightFiles | None:
    """How the weights in a folder are kept; None if there are none."""
    for kind in KINDS:
        if any(os.path.isfile(os.path.join(folder, name)) for name in (kind.single, kind.index)):
            return kind
    return None


def looks_like(path: str) -> str | None:
    """The fact by which a folder or a weight file is a model of transformers, or None."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if not _may_be_config(os.path.join(folder, CONFIG)):
        return None
    if os.path.isfile(path):
        return f"a weight file beside {CONFIG}" if path.endswith((SAFETENSORS.suffix, BIN.suffix)) else None
    kind = kind_of(path)
    return f"{CONFIG} beside {kind.stem}*{kind.suffix}" if kind else None


def _may_be_config(file: str) -> bool:
    """Whether a config is of a class of transformers. timm, diffusers and others call theirs config.json too, and say another
    thing in it. A damaged one may be any: its reader says what is wrong with it."""
    if not os.path.isfile(file):
        return False
    try:
        config = documents.read_json(file, infinite=True)
    except (FormatError, OSError):
        return True
    return not isinstance(config, dict) or not config.keys().isdisjoint(("model_type", "architectures"))


def config_in(path: str) -> dict[str, Any] | None:
    """The config in a file; None if it is not one of transformers."""
    config = documents.read_json_object(path, infinite=True) if path.endswith(".json") else {}
    return config if "model_type" in config else None


@schema.dataclass
class StoredFiles:
    """The stored tensors of some weight files by name, the states of the files, and what else the files hold."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    states: list[disk.FileState] = field(default_factory=list)
    wrapper: str = ""
    losses: list[ledgers.Loss] = field(default_factory=list)

    def are_same(self, one: str, other: str) -> bool:
        """Whether the tensors of two names hold the same elements; not where one of them is missing."""
        held = self.tensors
        return {one, other} <= held.keys() and lazy.are_equal(
            lazy.whole(held[one]), lazy.whole(held[other]), self.states
        )


def read_tensors(folder: str, files: Iterable[str], index: str | None) -> StoredFiles:
    """Every tensor of these files, checked against the index if there is one."""
    problems = errors.Problems(f"reading {folder}")
    stored = StoredFiles()
    for name in files:
        path = os.path.join(folder, name)
        stored.states.append(disk.FileState.of(path))
        held = read_weights(path)
        stored.wrapper = stored.wrapper or held.wrapper
        if held.beside:
            stored.losses.append(
                ledgers.Loss(
                    "dropped",
                    f"{name}: {', '.join(held.beside)}",
                    f"beside the weights, which are its {held.wrapper!r}",
                )
            )
        for tensor, where in held.tensors.items():
            if tensor in stored.tensors:
                problems.add(
                    FormatError(f"tensor {tensor!r} is in two files", file=path, found=stored.tensors[tensor].file)
                )
            stored.tensors[tensor] = where
    if index is not None:
        stored.states.append(disk.FileState.of(os.path.join(folder, index)))
        for problem in _against_index(stored.tensors, folder, os.path.join(folder, index)):
            problems.add(problem)
    problems.raise_any()
    return stored


def _against_index(tensors: Mapping[str, StoredTensor], folder: str, index: str) -> Iterator[FormatError]:
    weight_map = containers.read_index(index)
    shards = {path: os.path.basename(path) for path in {tensor.file for tensor in tensors.values()}}
    for name, file in weight_map.items():
        if name not in tensors:
            yield FormatError(f"tensor {name!r} is missing from its shard", file=os.path.join(folder, file))
        elif shards[tensors[name].file] != file:
            yield FormatError(
                f"tensor {name!r} is not where the index says", file=index, found=tensors[name].file, expected=file
            )
    for name in tensors.keys() - weight_map.keys():
        yield FormatError(f"tensor {name!r} is not in the index", file=tensors[name].file)


def read_weights(path: str) -> torch_files.StateDict:
    """The stored tensors of one weight file."""
    return containers.Container.of(path).read(path)


def sidecars(folder: str) -> dict[str, company.Sidecar]:
    """Every file that travels along: all small files beside the weights, the folders of chat templates, and those of the modules
    that sentence-transformers runs after the model."""
    modules = {
        f"{module}/{name}": file
        for module in module_folders(folder)
        for name, file in company.files_below(os.path.join(folder, module)).items()
    }
    return modules | company.files_in(
        folder,
        lambda name: (
            name not in (CONFIG, SIDE_FILE)
            and not name.startswith((".", "ckpt-receipt"))
            and not name.endswith(containers.WEIGHT_SUFFIXES)
        ),
    )


def module_folders(folder: str) -> list[str]:
    """The folders of the modules that sentence-transformers runs after the model: pooling, dense layers. `modules.json` names them."""
    path = os.path.join(folder, MODULES)
    if not os.path.isfile(path):
        return []
    modules = documents.read_json(path)
    named = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    inside = [name for name in named if isinstance(name, str) and name == os.path.basename(name) and name.strip(".")]
    return sorted({name for name in inside if os.path.isdir(os.path.join(folder, name))})


def add_weights(
    builder: TargetBuilder,
    tensors: Iterable[layouts.Native],
    kind: WeightFiles,
    limit: int,
    quantised: Mapping[str, StoredTensor] | None = None,
    kept: Mapping[str, lazy.Quantised] | None = None,
) -> None:
    """Shards of at most `limit` bytes of `tensors` each (a larger tensor gets its own), and the index if there are several.

    `quantised` and `kept` are those of `TargetBuilder.add_file`; the scales of a weight lie in its shard.
    """
    coded = {name: held for name, one in (quantised or {}).items() if (held := one.quantised) is not None}
    shards: list[dict[str, layouts.Native]] = [{}]
    sizes = [0]
    for native in tensors:
        size = coded[native.name].stored_bytes if native.name in coded else builder.bytes_of(native)
        if sizes[-1] + size > limit and shards[-1]:
            shards.append({})
            sizes.append(0)
        shards[-1][native.name] = native
        sizes[-1] += size
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = kind.shard(number, len(shards))
        builder.add_file(path, shard, kind.container, {"format": "pt"}, quantised, kept)
        for name in shard:
            names = [operand.name for operand in coded[name].stored] if name in coded else [name]
            weight_map |= dict.fromkeys(names, path)
    if len(shards) > 1:
        builder.documents[kind.index] = containers.index_text(weight_map, sum(sizes))
