"""Writes every format's `sentences.txt`: `CKPT_GOLDENS=... python tools/declare.py`.

A sentence is shown by a checkpoint of the framework itself (a golden, or a model of transformers) if a table reads it by that
sentence, and what was read computes the framework's logits: `tests/reference`, and the tests of the
plugin, assert the latter for all of them. The rest is
what the tables say of example models.
Read the difference before it is committed: a line that changes is a claim that changes.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from unittest import mock

from ckpt_core import open_checkpoint
from ckpt_core.api import read_checkpoint
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.errors import CkptError
from ckpt_core.layout import Native
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.installed import format_names
from ckpt_core.plugins.request import WriteRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.storage.dtypes import BF16
from ckpt_core.tensors.assembly import ParameterBuilder
from ckpt_core.testing.examples import ABSENT, example, example_architectures
from ckpt_core.verify.declared import FILE, Declared
from ckpt_core.verify.holes import model_of_holes
from ckpt_tests import judged
from ckpt_tests.forwards import opened
from ckpt_tests.gguf import MODELS as GGUF_MODELS
from ckpt_tests.goldens import Golden, every_golden, of_2026

HEAD = """# Layout sentences of format {format}: native | canonical | sentence | division over ranks | map of values | under | shown by
# `under` is the decision that a line is for, where others are for other decisions; the last column names checkpoints of the framework itself that are read by the sentence and give its own logits.
"""
# Formats that keep models of transformers under the names that `hf` declares.
KEEPING_HF = ("deepspeed", "fsdp")
# Choices of a writer that change sentences; each is tried with every example.
CHOICES: dict[str, list[dict[str, str]]] = {
    "megatron": [
        {"container": "torch", "names": names, "experts": experts}
        for names in ("te", "local", "legacy")
        for experts in ("sequential", "grouped")
    ]
    + [{"container": "torch_dist", "names": names} for names in ("te", "local")],
    "megatron-bridge": [{"names": names} for names in ("te", "local")] + [{"post_norm_eps": "1e-5"}],
    "nemo": [
        {"names": names, "backend": backend} for names in ("mcore", "legacy") for backend in ("ranks", "torch_dist")
    ]
    + [{}, {"layout": "script"}, {"patch_layer": "conv1"}],
    "nemo2": [{"names": names} for names in ("te", "local")],
    "nxdt": [
        {"model_style": style, "hw_backend": chip, "kv_size_multiplier": times, **qkv}
        for style, chip, times in itertools.product(("hf", "megatron"), ("trn1", "trn2"), ("1", "2"))
        for qkv in ([{"qkv": kind} for kind in ("split", "linear", "fused", "coalesced")] if style == "hf" else [{}])
    ],
    "gguf": [{"tokenizer": "none"}],
    "nanotron": [{"rope_interleaved": text} for text in ("true", "false")],
    "deepspeed": [{"flat": "true"}, {"flat": "false"}],
    "megatron-deepspeed": [{"universal": "true"}, {"universal": "false"}],
}
LAYOUTS: list[dict[str, int | None]] = [{}, {"tp": 2, "pp": 3}]
# hidden = heads x head_dim, as some formats want it
EXAMPLES = [example(name, hidden=216) for name in example_architectures()] + [
    example("latent", **{f"latent_attention__{norm}__eps": 1e-5 for norm in ("norm", "q_norm", "kv_norm")}),
    # hidden is that of the embedding's scale; Bridge has no window that is shorter than an image
    example("seeing-whole", attention__window=40),
    example("bloom", hidden=216, tokens__norm=ABSENT, mlp__gated=True, mlp__activation="silu"),
    *GGUF_MODELS.values(),
    example("vit", patches__width=24, patches__class_tokens=2, positions__count=11, layer_scale=True),
]


@contextmanager
def reading() -> Iterator[list[Native]]:
    """The native tensors that are read meanwhile, by whatever plugin."""
    seen: list[Native] = []
    parts = ParameterBuilder._stored_parts

    def noted(self: ParameterBuilder, native: Native, shards: object):
        seen.append(native)
        return parts(self, native, shards)

    with mock.patch.object(ParameterBuilder, "_stored_parts", noted):
        yield seen


@dataclass(frozen=True)
class Seen:
    """A line of a format, and the decisions of the writer that wrote by it; none where it was read."""

    format: str
    line: Declared
    decisions: Mapping[str, object]


def shown() -> Iterator[Seen]:
    """Every sentence by which a checkpoint of a framework is read, and those by which it is written back."""
    with tempfile.TemporaryDirectory() as folder:
        for golden in [*every_golden(), *of_2026("fsdp"), *of_2026("torchtitan"), *_of_bridge(), *_of_llama_cpp()]:
            with reading() as seen, opened(golden, Path(folder)) as model:
                lines = dict.fromkeys(Declared.of(native.row, str(golden)) for native in seen)
            yield from (Seen(model.format, line, {}) for line in lines)
            yield from seen_in(model.format, model.checkpoint, {}, {"tp": golden.case.get("tp")})
    for name in judged.NAMES:
        with tempfile.TemporaryDirectory() as folder:
            judged.build(name, Path(folder))
            with reading() as seen, open_checkpoint(folder) as model:
                lines = dict.fromkeys(Declared.of(native.row, f"transformers {name}") for native in seen)
            yield from (Seen("hf", line, {}) for line in lines)
            yield from seen_in("hf", model.checkpoint, {}, {})


def _of_llama_cpp() -> list[Golden]:
    """The files that llama.cpp's converter and quantiser wrote."""
    return [golden for golden in of_2026("quantised") if golden.case.get("format") == "gguf"]


def _of_bridge() -> Iterator[Golden]:
    """What Megatron-Bridge made of the families of 2026, without the models that are refused by name: its tests say which."""
    for golden in of_2026("families", "megatron-bridge"):
        try:
            read_checkpoint(golden.checkpoint)
        except CkptError:
            continue
        yield golden


def written() -> Iterator[Seen]:
    """Every sentence by which an example is written."""
    for format in (name for name in format_names() if require(name).info.writes):
        for options in CHOICES.get(format, [{}]):
            for architecture in EXAMPLES:
                for layout in LAYOUTS if require(format).info.parallel else LAYOUTS[:1]:
                    yield from seen_in(format, _of_holes(architecture), options, layout)


_of_holes = functools.cache(lambda architecture: model_of_holes(architecture, BF16))


def seen_in(
    format: str, checkpoint: Checkpoint, options: Mapping[str, str], layout: Mapping[str, int | None]
) -> Iterator[Seen]:
    """The sentences by which a checkpoint is written; none where the format does not hold it, or not in this layout."""
    plugin = require(format)
    request = WriteRequest(typed_options(plugin.info, options, "write"), **layout, destination="/nowhere")
    try:
        target: Target = plugin.hooks.ckpt_write(checkpoint=checkpoint, request=request)
    except CkptError:
        return
    lines = dict.fromkeys(Declared.of(placement.native.row) for placement in target.placements)
    yield from (Seen(format, line, target.decisions) for line in lines)


def gathered() -> dict[str, list[Declared]]:
    """The lines of every format: those that are shown, in the order in which they are read, then the others.

    The tensors of `ir` are arranged as the canonical parameters are; there is nothing to declare. What DeepSpeed and FSDP
    keep of a transformers model is declared by `hf`.
    """
    writing = (name for name in format_names() if require(name).info.writes)
    names: dict[str, dict[Declared, list[str]]] = {name: {} for name in writing if name != "ir"}
    decisions: dict[tuple[str, Declared], list[Mapping[str, object]]] = {}
    found = [*shown(), *written()]
    for one in sorted(found, key=lambda one: one.format in KEEPING_HF and not one.line.shown_by):  # hf's own come first
        line = replace(one.line, shown_by=())
        if one.format in names and (one.format not in KEEPING_HF or one.line.shown_by or line not in names["hf"]):
            names[one.format].setdefault(line, []).extend(one.line.shown_by)
            decisions.setdefault((one.format, line), []).extend([one.decisions] if one.decisions else [])
    return {
        format: [replace(line, under=under(format, line, decisions), shown_by=tuple(by)) for line, by in lines.items()]
        for format, lines in names.items()
    }


def under(format: str, line: Declared, decisions: Mapping[tuple[str, Declared], list[Mapping[str, object]]]) -> str:
    """The decision that sets a line apart from the others of its tensor, if there is one."""
    taken = decisions[format, line]
    others = [
        decision
        for (name, other), found in decisions.items()
        if name == format and other != line and (other.native, other.canonical) == (line.native, line.canonical)
        for decision in found
    ]
    for name in taken[0] if taken and others else ():
        mine, theirs = ({str(decision.get(name)) for decision in group} for group in (taken, others))
        if not mine & theirs:
            return f"{name}={', '.join(sorted(mine))}"
    return ""


def text(format: str, lines: list[Declared]) -> str:
    """The file."""
    return HEAD.format(format=format) + "".join(f"{line}\n" for line in lines)


def file_of(format: str) -> Path:
    """Where the lines of a format are."""
    return Path(str(resources.files(require(format).module))) / FILE


if __name__ == "__main__":
    for name, lines in gathered().items():
        file_of(name).write_text(text(name, lines), encoding="utf-8")
        print(f"{file_of(name)}: {len(lines)} sentences, {sum(bool(line.shown_by) for line in lines)} of them shown")
