"""The annotations of public names can be evaluated, though what they name is imported for type checkers alone: notebooks, validators and other tools ask."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from types import ModuleType

import pytest

from ckpt_core.architecture import Architecture
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.tensors.assembly import LazyParameter

PUBLIC = (
    *("ckpt_core", "ckpt_core.sdk", "ckpt_core.testing", "ckpt_core.lazily", "ckpt_page"),
    *(f"ckpt_{name}" for name in ("deepspeed", "fsdp", "gguf", "hf", "megatron", "nanotron", "nemo", "nxdt", "peft")),
    *("ckpt_fsdp.sdk", "ckpt_hf.sdk", "ckpt_megatron.sdk", "ckpt_nemo.sdk"),
)


def names_of(module: ModuleType, seen: set[str]) -> Iterator[tuple[str, object]]:
    """The classes, methods and functions of ours that a module publishes, those of the modules among its names too."""
    seen.add(module.__name__)
    published = getattr(module, "__all__", None)
    for name in published or [name for name in vars(module) if not name.startswith("_")]:
        found = getattr(module, name)
        if inspect.ismodule(found) and not published:
            continue  # a module of a package that somebody imported
        if inspect.ismodule(found):
            if found.__name__.startswith("ckpt_") and found.__name__ not in seen:
                yield from names_of(found, seen)
        elif str(getattr(found, "__module__", "")).startswith("ckpt_") and callable(found):
            yield f"{module.__name__}.{name}", found
            for inner, value in vars(found).items() if inspect.isclass(found) else ():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if inspect.isfunction(function) and (inner == "__init__" or not inner.startswith("_")):
                    yield f"{module.__name__}.{name}.{inner}", function


def test_every_public_annotation_can_be_evaluated() -> None:
    failed, count = {}, 0
    seen: set[str] = set()
    for place in PUBLIC:
        for name, found in names_of(importlib.import_module(place), seen):
            if not (inspect.isclass(found) or inspect.isfunction(found)):
                continue
            count += 1
            try:
                typing.get_type_hints(found)
            except Exception as problem:
                failed[name] = f"{type(problem).__name__}: {problem}"
    assert failed == {} and count > 600


def test_what_they_evaluate_to_is_the_type_itself() -> None:
    hints = typing.get_type_hints(Checkpoint)
    assert hints["architecture"] is Architecture
    assert typing.get_args(hints["tensors"]) == (str, LazyParameter)
    pytest.importorskip("transformers")
    from transformers import PreTrainedModel

    from ckpt_hf import load_model

    assert typing.get_type_hints(load_model)["return"] is PreTrainedModel
