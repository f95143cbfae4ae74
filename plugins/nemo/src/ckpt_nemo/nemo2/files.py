"""The folder of a NeMo 2 checkpoint.

    DIR/context/io.json model.yaml nemo_tokenizer/...      what the model is
    DIR/weights/metadata.json .metadata common.pt *.distcp its tensors, as Megatron-Core's torch_dist keeps them

NeMo 2.0 could leave out either of the two folders. A run keeps its checkpoints in a folder side by side.
"""

from __future__ import annotations

import os

from ckpt_core.sdk import CkptError, FormatError, documents, schema

GRAPH = "io.json"
MODEL = "model.yaml"
CONTEXT, WEIGHTS = "context", "weights"
COMMON = "common.pt"
_METADATA = "metadata.json"
_ADAPTER = "adapter_metadata.json"
_HF = ("hf_weights", "hf_adapter")
_UNFINISHED = "-unfinished"
_COPY = "-last"


@schema.dataclass(frozen=True)
class Place:
    """The folders of a checkpoint at `root`."""

    root: str
    context: str
    weights: str


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a NeMo 2 checkpoint, or None."""
    try:
        place = find(path)
    except (CkptError, OSError):
        return None
    if not is_graph(os.path.join(place.context, GRAPH)):
        return None
    graph = os.path.relpath(os.path.join(place.context, GRAPH), path)
    return f"{graph} (NeMo 2)"


def is_graph(file: str) -> bool:
    """Whether a file is a graph of fiddle's, as NeMo 2 keeps it. One that can't be read may be."""
    if not os.path.isfile(file):
        return False
    try:
        graph = documents.read_json(file)
    except (CkptError, OSError):
        return True
    return isinstance(graph, dict) and {"root", "objects"} <= graph.keys()


def find(path: str) -> Place:
    """The checkpoint at `path`, in it if it is the only one, or around it if `path` is one of its two folders."""
    inside = os.path.basename(os.path.normpath(path)) in (CONTEXT, WEIGHTS)
    around = _at(os.path.dirname(os.path.abspath(path))) if inside else None
    place = around or _at(path) or _only_below(path)
    _check(place)
    return place


def _at(root: str) -> Place | None:
    """The checkpoint whose root a folder is. Loaders look for io.json in both places, and so do we."""
    contexts = [root, os.path.join(root, CONTEXT)]
    context = next((folder for folder in contexts if os.path.isfile(os.path.join(folder, GRAPH))), None)
    if context is None:
        return None
    inner = os.path.join(root, WEIGHTS)
    return Place(root, context, inner if os.path.isdir(inner) else root)


def _only_below(path: str) -> Place:
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    places = {name: place for name in names if (place := _at(os.path.join(path, name))) is not None}
    # a duplicate of another, under a name of its own
    kept = {name: place for name, place in places.items() if name.removesuffix(_COPY) == name or len(places) == 1}
    if len(kept) != 1:
        raise FormatError(
            "this is not a checkpoint of NeMo 2" if not kept else "several checkpoints lie here",
            file=path,
            found=", ".join(places) or "no io.json",
            expected=f"{CONTEXT}/{GRAPH} and {WEIGHTS}/{_METADATA}",
            fix="give the folder of one" if kept else None,
        )
    return next(iter(kept.values()))


def _check(place: Place) -> None:
    """Refuse what has a context, but no whole model."""
    root = os.path.normpath(os.path.abspath(place.root))
    marker = root.removesuffix(".ckpt") + _UNFINISHED
    if os.path.exists(marker) or os.path.exists(root + _UNFINISHED):
        raise FormatError("the save was interrupted", file=place.root, found=os.path.basename(marker))
    if os.path.isfile(os.path.join(place.weights, _ADAPTER)):
        raise FormatError(
            "these are the adapters of a LoRA training, and no whole model",
            file=os.path.join(place.weights, _ADAPTER),
            fix="read them with ckpt-peft (--from megatron-lora -o base=FOLDER), or merge them with NeMo (llm.peft.merge_lora)",
        )
    for name in _HF:
        if os.path.isdir(os.path.join(place.root, name)) and not os.path.isfile(os.path.join(place.weights, _METADATA)):
            raise FormatError(
                "the weights are Hugging Face files",
                file=os.path.join(place.root, name),
                fix=f"convert the folder {name} with --from hf",
            )
