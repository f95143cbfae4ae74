"""InternLM 3, which transformers runs as a Llama: biases everywhere, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, decided, key, values
from ckpt_hf import weights
from ckpt_hf.common import ATTENTION_BIASES, MLP_BIASES, NORMS, Family, divides, groups, head_dim
from ckpt_hf.families.llama import LLAMA

_BIASES = (*ATTENTION_BIASES, *MLP_BIASES)
# Of the code beside the first files: one key for q, k and v, and one for all other projections.
_NAMES = ("attention_bias", "mlp_bias", "qkv_bias", "bias")


def _read_biases(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = {key: values.checked(key, config[key], values.flag) for key in _NAMES if config.get(key) is not None}
    attention, others = (
        {given[key] for key in pair if key in given} or {False} for pair in (_NAMES[::2], _NAMES[1::2])
    )
    if len(attention | others) > 1:
        raise CkptError(
            "the keys of biases differ, which transformers refuses: its class has all of them or none",
            found=", ".join(f"{key} = {value}" for key, value in given.items()),
            expected="the same for attention_bias (or qkv_bias) and mlp_bias (or bias), which are false where they are left out",
        )
    facts.update(dict.fromkeys(_BIASES, attention.pop()))


# fmt: off
INTERNLM3 = LLAMA.replace("LlamaForCausalLM",  # the class of transformers; the code beside the first files has one of its own
    groups(2),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    decided(_NAMES, _BIASES, read=_read_biases, values={_NAMES: [(False,) * 4, (True,) * 4]},
            why="all projections have biases, or none; qkv_bias and bias are older names"),
)
# fmt: on

FAMILIES = [Family("internlm3", INTERNLM3, weights.LLAMA, divides, other_names=("InternLM3ForCausalLM",), heads=())]
