"""Seed-OSS: Llama with a bias on the output of attention of its own."""

from __future__ import annotations

from ckpt_core.sdk import key
from ckpt_hf import weights
from ckpt_hf.common import QKV_BIASES, Family, groups, head_dim
from ckpt_hf.families.llama import LLAMA

# fmt: off
SEED_OSS = LLAMA.replace("SeedOssForCausalLM",
    groups(8),
    head_dim(default=128),
    key("attention_bias", *QKV_BIASES, default=True),
    key("attention_out_bias", "attention.out_bias", default=False),
)
# fmt: on

FAMILIES = [Family("seed_oss", SEED_OSS, weights.LLAMA, padding=1)]
