"""What NeMo 2 and Megatron-Bridge have in common: torch_dist files, beside the config class of a Megatron-Core model."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import Quirks, example
from ckpt_tests import tiny
from ckpt_tests.distributed import DistributedEntries
from ckpt_tests.families import CASES, build

COMMON_FACTS = (
    "head.tied", "attention.head_dim", "attention.rotary.theta", "attention.rotary.fraction", "attention.rotary?",
    "attention.rotary.scaling=linear", "attention.window", "attention.qkv_bias", "attention.scale",
    "mlp.moe.router.normalise", "mlp.moe.router.scale",
)  # fmt: skip
OPTIONS = {"make_vocab_size_divisible_by": "1"}
LATENT = {f"latent_attention__{norm}__eps": 1e-5 for norm in ("norm", "q_norm", "kv_norm")}


def dense(expresses: tuple[str, ...], frameworks: tuple[str, ...]) -> Quirks:
    """Models without experts."""
    return Quirks(
        models={name: example(name) for name in ("llama", "llama-padded", "gpt2", "starcoder2", "smollm3")},
        tp=(1, 2),
        keeps_padding=True,  # should_pad_vocab says that the rows are there
        write_options=OPTIONS,
        expresses=(*COMMON_FACTS, *expresses),
        entries=DistributedEntries(),
        frameworks=frameworks,
    )


def experts(**changes: object) -> Quirks:
    """Layers with experts between layers without, under the names of local modules."""
    return Quirks(
        models={"moe-mixed": example("moe-mixed", **changes)},
        tp=(1, 2),
        pp=(1, 3),
        ep=(1, 2),
        keeps_padding=True,
        write_options={**OPTIONS, "names": "local"},
    )


def latent() -> Quirks:
    """Latent attention, with the one epsilon that these frameworks have for all norms."""
    return Quirks(models={"latent": example("latent", **LATENT)}, write_options=OPTIONS)


def written(family: str, folder: Path, to: str) -> tuple[Path, Path]:
    """A tiny transformers model of a family, and what it is as format `to` for TP 2 PP 2, without the receipt."""
    source, run = folder / "hf", folder / "run"
    if family in CASES:
        build(CASES[family], source, **({"rope_parameters": None} if family.startswith("deepseek_v3") else {}))
    else:
        tiny.build(source, family, num_hidden_layers=2, **({"sliding_window": 9} if family == "mistral" else {}))
    convert(source, run, to=to, tp=2, pp=2)
    (run / "ckpt-receipt.json").unlink()
    return source, run


def assert_same_model(source: Path, run: Path, **options: str) -> None:
    """`run`, read with `options`, is the model of `source`: its layers, its head, its tensors."""
    with open_checkpoint(source) as one, open_checkpoint(run, options=options) as two:
        assert one.architecture.decoder == two.architecture.decoder
        assert one.architecture.head == two.architecture.head
        assert one.architecture.tokens.scale == two.architecture.tokens.scale
    assert fingerprint(run, options=options) == fingerprint(source)


class Refusals:
    """What no config class of Megatron-Core holds, and ranks that do not divide a model; inherit, and name the `format`."""

    format: str
    of_gemma2 = "softcap"  # what the classes of the format lack of Gemma 2

    @pytest.mark.parametrize(
        ("family", "fact"),
        [
            ("gemma2", ""),
            ("olmo2", "attention.norm"),
            ("falcon", "parallel"),
            ("bloom", "attention.alibi"),
        ],
    )
    def test_what_no_class_holds_is_refused_by_name(self, family: str, fact: str, tmp_path: Path) -> None:
        build(CASES[family], tmp_path / "hf")
        with pytest.raises(CkptError) as refusal:
            convert(tmp_path / "hf", tmp_path / "run", to=self.format)
        assert (fact or self.of_gemma2) in str(refusal.value)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("layout", "words"), [({"tp": 5}, "heads"), ({"pp": 3}, "2 layers"), ({"ep": 2}, "experts")], ids=str
    )
    def test_ranks_that_do_not_divide_are_refused(self, layout: dict[str, int], words: str, tmp_path: Path) -> None:
        tiny.build(tmp_path / "hf", "llama", num_hidden_layers=2)
        with pytest.raises(CkptError, match=words):
            convert(tmp_path / "hf", tmp_path / "run", to=self.format, **layout)
