"""Each thing that makes a NeMo T5 right in transformers, undone alone: how far the logits are then from NeMo's own.

python tools/ablation.py tests/data/golden/nemo-t5/ul2_legacy_false_ckpt ...
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from ckpt_core import convert
from ckpt_core.errors import CkptError
from ckpt_tests import nemo_t5
from ckpt_tests.goldens import Golden
from ckpt_tests.rows import wrong_sentences

Section = Mapping[str, Any]


@contextlib.contextmanager
def _config_read_as(**changes: object) -> Iterator[None]:
    """Both sections read as if a key had another value."""
    read = importlib.import_module("ckpt_nemo.t5.read")  # the package has a function of that name

    def changed(config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **read_sections(config),
            **{f"{section}.{key}": value for section in ("encoder", "decoder") for key, value in changes.items()},
        }

    read_sections = read.sections
    with mock.patch.object(read, "sections", changed):
        yield


@contextlib.contextmanager
def scores_not_divided() -> Iterator[None]:
    """1: q as NeMo has it, in a class that does not divide."""
    from ckpt_core import rewrite
    from ckpt_core.rewrite import map_attentions, map_layers

    def unfolded(model, wanted=None):
        architecture = map_layers(
            model.architecture, lambda layer: map_attentions(layer, lambda old: replace(old, scale=wanted))
        )
        return replace(model, architecture=architecture)

    with mock.patch.object(rewrite, "folded_attention_scale", unfolded):
        yield


@contextlib.contextmanager
def _rows(blocks: bool, self_attention: bool = True, cross: bool = True) -> Iterator[None]:
    """Fused tensors taken for blocks, or for rows head by head, whatever the config says."""
    orders = (
        ("(g (q[r] + k + v) d)", "((q[g r] + k[g] + v[g]) d)") if self_attention else None,
        ("(g (k + v) d)", "((k + v) g d)") if cross else None,
    )
    wrong = {f"{pair[not blocks]}{end}": f"{pair[blocks]}{end}" for pair in orders if pair for end in ("", " h")}
    with pytest.MonkeyPatch.context() as patch:
        wrong_sentences(patch, wrong)
        yield


def rows_in_blocks() -> contextlib.AbstractContextManager:
    """2: as NVIDIA's script would have made them."""
    return _rows(blocks=True)


def cross_rows_in_blocks() -> contextlib.AbstractContextManager:
    """2, halfway: the self attention alone taken apart head by head."""
    return _rows(blocks=True, self_attention=False)


def rows_head_by_head() -> contextlib.AbstractContextManager:
    """2, the other way: taken apart where there is nothing to take apart."""
    return _rows(blocks=False)


def bias_without_layer_number() -> contextlib.AbstractContextManager:
    """3: one relative bias for all layers."""
    return _config_read_as(apply_query_key_layer_scaling=False)


def tanh_for_erf() -> contextlib.AbstractContextManager:
    """4: the GELU that transformers calls gated-gelu."""
    return _config_read_as(openai_gelu=True)


def erf_for_tanh() -> contextlib.AbstractContextManager:
    """4, the other way: `activation` read without what overrides it."""
    return _config_read_as(openai_gelu=False, bias_activation_fusion=False)


@contextlib.contextmanager
def relative_bias_of_rank_0() -> Iterator[None]:
    """The table of the first rank for all heads."""
    read = importlib.import_module("ckpt_nemo.t5.read")  # the package has a function of that name

    seen: dict[str, object] = {}
    own_heads = read._with_own_heads

    def of_first(tensors, architecture, t, tp):
        tables = {name: seen.setdefault(name, tensors[name]) for name in tensors if name in read.RELATIVE_TABLES}
        return own_heads({**tensors, **tables}, architecture, t, tp)

    with mock.patch.object(read, "_with_own_heads", of_first):
        yield


def head_as_hf_ties_it(folder: Path) -> None:
    """5: a tied head left to the class, which scales it by d_model**-0.5."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))


def _section(golden: Golden) -> Section:
    return golden.case["model_config"]["encoder"]


def _is_t5(golden: Golden) -> bool:
    return golden.case["expect"].get("hf") == "T5ForConditionalGeneration"


def _is_tanh(golden: Golden) -> bool:
    return _section(golden)["openai_gelu"] or _section(golden)["bias_activation_fusion"]


Undo = Callable[[], contextlib.AbstractContextManager]
# what is undone, how, and for which cases it matters
ABLATIONS: dict[str, tuple[Undo, Callable[[Golden], bool]]] = {
    "1 scores not divided": (scores_not_divided, lambda golden: _is_t5(golden) and _section(golden)["normalize_attention_scores"]),
    "2 rows in blocks": (rows_in_blocks, lambda golden: not _section(golden)["megatron_legacy"]),
    "2 cross rows in blocks": (cross_rows_in_blocks, lambda golden: not _section(golden)["megatron_legacy"]),
    "2 rows head by head": (rows_head_by_head, lambda golden: _section(golden)["megatron_legacy"]),
    "3 bias without layer number": (bias_without_layer_number, lambda golden: golden.case["expect"].get("hf", "").startswith("UMT5")),
    "4 tanh for erf": (tanh_for_erf, lambda golden: not _is_tanh(golden)),
    "4 erf for tanh": (erf_for_tanh, lambda golden: _is_tanh(golden)),
    "relative bias of rank 0": (relative_bias_of_rank_0, lambda golden: "trained" in str(golden)),
}  # fmt: skip
AFTERWARDS: dict[str, tuple[Callable[[Path], None], Callable[[Golden], bool]]] = {
    "5 head as HF ties it": (head_as_hf_ties_it, lambda golden: _is_t5(golden) and golden.case["model_config"]["share_decoder_tokens_head_embeddings"]),
}  # fmt: skip


def logits_off(
    golden: Golden, undo: Undo = contextlib.nullcontext, afterwards: Callable[[Path], None] | None = None
) -> float:
    """The distance to the recorded logits, with something undone while converting, or afterwards in the folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hf"
        with undo():
            convert(nemo_t5.source(golden), path, to="hf")
        if afterwards is not None:
            afterwards(path)
        return nemo_t5.off_by(golden, AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval())


def _shown(distance: float) -> str:
    return f"{distance:.2g}" if distance > 1e-4 else "below 0.0001"


def main(folders: list[str]) -> None:
    for folder in folders:
        golden = Golden(Path(folder))
        print(golden)
        try:
            print(f"  {'nothing':28}{_shown(logits_off(golden))}")
        except CkptError as refusal:
            print(f"  {refusal.problem}")
            continue
        for name, (undo, matters) in ABLATIONS.items():
            if matters(golden):
                print(f"  {name:28}{_shown(logits_off(golden, undo))}")
        for name, (afterwards, matters) in AFTERWARDS.items():
            if matters(golden):
                print(f"  {name:28}{_shown(logits_off(golden, afterwards=afterwards))}")


if __name__ == "__main__":
    main(sys.argv[1:])
