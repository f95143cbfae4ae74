"""Which kind of model a NeMo 1 checkpoint holds: by the class in its config, else by the names of its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ckpt_core.sdk import Checkpoint, FormatError, Refusal, schema
from ckpt_nemo.container.saved import SavedCheckpoint


@schema.dataclass(frozen=True)
class Kind:
    """A kind of model: the classes of NeMo that are it, what its tensors' names begin with, and the module for it.

    `options` are those that mean something for this kind of model alone.
    """

    module: str
    targets: frozenset[str]
    prefixes: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def code(self) -> ModuleType:
        """The module with `read` and `write`."""
        return importlib.import_module(f"ckpt_nemo.{self.module}")


# fmt: off
KINDS = (
    Kind("gpt", frozenset({"MegatronGPTModel", "MegatronGPTSFTModel"}),
         ("language_model.", "decoder.layers.", "embedding.word_embeddings."), ("names", "backend", "vpp")),
    Kind("t5", frozenset({"MegatronT5Model", "MegatronT5FinetuneModel", "MegatronT0Model", "MegatronT5GLUEModel", "MegatronT5LMAdaptModel",
                          "MegatronT5SFTModel", "MegatronUL2Model", "MegatronBARTModel"}),
         ("enc_dec_model.",), ("layout", "split")),
    Kind("vit", frozenset({"MegatronVitClassificationModel"}), ("backbone.",), ("patch_layer", "image_size")),
)
# fmt: on


def kind_of(saved: SavedCheckpoint) -> Kind:
    """The kind of a checkpoint; a `FormatError` naming the class where it is not supported."""
    for kind in KINDS:
        if saved.target in kind.targets:
            return kind
    names = saved.names
    if not saved.target:
        for kind in KINDS:
            if any(name.startswith(kind.prefixes) for name in names):
                return kind
    raise FormatError(
        "a NeMo model of a kind that is not supported",
        file=saved.place,
        found=saved.target or f"tensors such as {', '.join(names[:3])}",
        expected=", ".join(sorted(target for kind in KINDS for target in kind.targets)),
    )


def kind_for(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Kind:
    """The kind of model that holds an architecture; a `Refusal` where there is none, or for options of another kind."""
    found = _kind_for(checkpoint)
    for kind in KINDS:
        for name in kind.options:
            if kind is not found and options.get(name) is not None:
                raise Refusal(
                    f"the option {name} is for a {kind.module.upper()} alone",
                    found=f"a {found.module.upper()}",
                    fix="leave it out",
                )
    return found


def _kind_for(checkpoint: Checkpoint) -> Kind:
    architecture = checkpoint.architecture
    stacks = {name for name in ("encoder", "decoder") if getattr(architecture, name) is not None}
    modules = {frozenset({"decoder"}): "gpt", frozenset({"encoder", "decoder"}): "t5"}
    module = "vit" if stacks == {"encoder"} and architecture.patches is not None else modules.get(frozenset(stacks))
    for kind in KINDS:
        if kind.module == module:
            return kind
    raise Refusal(
        "no kind of NeMo model is this",
        found="kind = encoder, which reads tokens",
        expected="a decoder, both, or an encoder of images",
    )
