"""The folder of an adapter of NeMo 2, and what its context says of the training.

    DIR/weights/.metadata, *.distcp        module.decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight  [layers, rank, in]
    DIR/weights/adapter_metadata.json      {"model_ckpt_path": BASE}
    DIR/context/io.json, model.yaml        the call of the model that was trained: model_transform is LoRA(dim, alpha, target_modules, ...)

io.json is what NeMo itself loads. Since 2.1 it has only those arguments that were given; model.yaml has all of them. Nothing is imported
or called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import FormatError, chunked, disk, documents, ledgers, schema, torch_files
from ckpt_peft.keys import DOWN, UP, AdaptedModule

LORA = "nemo.collections.llm.peft.lora.LoRA"
SECTION = "model.model_transform"

METADATA = "adapter_metadata.json"
_GRAPH, _MODEL = "io.json", "model.yaml"
_CONTEXT, _WEIGHTS, _TOKENIZER = "context", "weights", "nemo_tokenizer"
_TRANSFORM, BASE = "model_transform", "model_ckpt_path"
_UNFINISHED = "-unfinished"
# What the class has where no argument is given, in 2.0 to 2.4 (nemo/collections/llm/peft/lora.py)
_DEFAULTS = {"dim": 32, "alpha": 32, "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]}
_FC1 = "linear_fc1"
_TOKENIZER_OF_RUN = ledgers.Reason("tokenizer of the run", "that of the base goes along with the model")


@schema.dataclass(frozen=True)
class Place:
    """The folders of an adapter: `weights` is a distributed checkpoint, and `context` is where a context is looked for."""

    root: str
    weights: str
    context: str

    @property
    def metadata(self) -> str:
        """The file by which this is an adapter."""
        return os.path.join(self.weights, METADATA)

    @property
    def graph(self) -> str:
        """Where io.json is, or would be."""
        return os.path.join(self.context, _GRAPH)

    @property
    def dump(self) -> str:
        """Where model.yaml is, or would be."""
        return os.path.join(self.context, _MODEL)

    @property
    def base(self) -> str | None:
        """Where the base lay when the adapter was trained."""
        said = documents.read_json_object(self.metadata).get(BASE)
        return said if isinstance(said, str) and said not in ("", "None") else None  # NeMo writes str(None)


@schema.dataclass(frozen=True)
class Transform:
    """The call that adapted the model, `file`, which says it (or would say it, where `call` is None), and the files that were `read`."""

    file: str
    call: Mapping[str, Any] | None
    read: Sequence[str]


def place_of(path: str) -> Place | None:
    """The adapter of NeMo 2 at a path, or around it where the path is its folder of weights (nemo 2.4, lightning/pytorch/callbacks/peft.py)."""
    for weights in (path, os.path.join(path, _WEIGHTS)):
        if all(os.path.isfile(os.path.join(weights, name)) for name in (METADATA, chunked.METADATA)):
            inside = os.path.basename(os.path.abspath(weights)) == _WEIGHTS
            root = os.path.dirname(os.path.abspath(weights)) if inside and weights == path else path
            found = (root, os.path.join(root, _CONTEXT))
            context = next((folder for folder in found if os.path.isfile(os.path.join(folder, _GRAPH))), found[1])
            return Place(root, weights, context)
    return None


def check_finished(place: Place) -> None:
    """Raise a `FormatError` for a save that did not end: NeMo leaves a file beside the folder until it does."""
    root = os.path.abspath(place.root)
    for marker in (root + _UNFINISHED, root.removesuffix(".ckpt") + _UNFINISHED):
        if os.path.exists(marker):
            raise FormatError("the save was interrupted", file=place.root, found=os.path.basename(marker))


def read_transform(place: Place, ledger: ledgers.Ledger) -> Transform:
    """What the context says of the adapter. Raises a `FormatError` where its two files disagree."""
    given, said = _of_graph(place.graph, ledger), _of_dump(place.dump, ledger)
    read = [file for file in (place.graph, place.dump) if os.path.isfile(file)]
    ledger.left_whole(_TOKENIZER_OF_RUN, os.path.join(place.context, _TOKENIZER))
    if given is not None and given.get("_target_") == LORA:
        given = {**_DEFAULTS, **given}
    if given is not None and said is not None:
        for key in ("_target_", *_DEFAULTS, "exclude_modules"):
            if key in given and key in said and given[key] != said[key]:
                raise FormatError(
                    f"{_MODEL} and {_GRAPH} disagree about '{SECTION}.{key}'",
                    file=place.dump,
                    found=repr(said[key])[:80],
                    expected=f"{given[key]!r:.80}, as {_GRAPH} has it, which NeMo itself reads",
                    fix="copy the folder context of the training again",
                )
    call = {**(said or {}), **(given or {})} or None
    return Transform(place.dump if given is None and said is not None else place.graph, call, read)


def _of_graph(file: str, ledger: ledgers.Ledger) -> dict[str, Any] | None:
    """The call in io.json, None where there is none."""
    if not os.path.isfile(file):
        return None
    from ckpt_megatron.sdk import fiddle

    root = fiddle.read_graph(documents.read_json(file), file)
    model = root.arguments.get("model") if isinstance(root, fiddle.Call) else None
    if not isinstance(model, fiddle.Call):
        raise FormatError("the graph holds no model", file=file, found=torch_files.brief(model))
    ledger.used("the merge", file, f"root.model.{_TRANSFORM}")
    others = [f"root.{name}" for name in root.arguments if name != "model"]
    others += [f"root.model.{name}" for name in model.arguments if name != _TRANSFORM]
    ledger.left(ledgers.SETTINGS, file, *others)
    return _as_call(fiddle.plain_of(model.arguments.get(_TRANSFORM)))


def _of_dump(file: str, ledger: ledgers.Ledger) -> dict[str, Any] | None:
    """The call in model.yaml, None where there is none."""
    if not os.path.isfile(file):
        return None
    from ckpt_megatron.sdk import transformer_config

    model = transformer_config.plain(documents.parse_yaml(disk.read_small(file), file))
    if not isinstance(model, dict):
        raise FormatError("the file describes no model", file=file, found=torch_files.brief(model))
    ledger.used("the merge", file, _TRANSFORM)
    ledger.left(ledgers.SETTINGS, file, *(str(key) for key in model if key != _TRANSFORM))
    return _as_call(model.get(_TRANSFORM))


def _as_call(value: Any) -> dict[str, Any] | None:
    """A call by the names of its arguments. What else adapts a model is taken for a call without any."""
    return value if value is None or isinstance(value, dict) else {"_target_": value}


def rows_of_ranks(adapted: AdaptedModule, gated: bool) -> bool:
    """Whether the rows of B lie as tensor parallel ranks had them, and not as those of the layer.

    NeMo before 2.3 stores B of linear_fc1 rank by rank (gate and up of one, then those of the next), where the base has all of gate before
    all of up. Since 2.3 each rank stores two halves (`apply_swiglu_sharded_factory`), which takes the rows of a layer without a gate apart.
    A is divided over the ranks by its rows, which tells how many ranks there were.
    """
    if adapted.path.rpartition(".")[2] != _FC1:
        return False
    ranks, parts = (len({shard.origin[0] for shard in adapted.tensors[role].shards}) for role in (DOWN, UP))
    return ranks > 1 and parts != (2 * ranks if gated else ranks)
