"""Mamba-2 alone: layers of one block each, with nothing that attends and no MLP."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import Table, configs, fact_is, ignore, key, key_is, layouts, row
from ckpt_hf import heads
from ckpt_hf.common import GENERIC, Family, norms
from ckpt_hf.families.mamba import MIXER, chunks, head_width, step_limit

# fmt: off
MAMBA2 = configs.Config("Mamba2ForCausalLM", [
    *GENERIC,
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_hidden_layers", "layers"),
    key("tie_word_embeddings", "head.tied", default=False),
    key("num_heads", "mamba.heads", default=128),
    head_width("num_heads", "head_dim", "expand", usual=64),
    # transformers 4 took one norm over all groups where it had no kernels; the kernels, and version 5, take one for each
    key("n_groups", "mamba.groups", "mamba.norm_groups", default=8),
    key("state_size", "mamba.state", default=128),
    key("conv_kernel", "mamba.conv", default=4),
    key("use_conv_bias", "mamba.conv_bias", default=True),
    key("use_bias", "mamba.bias", default=False),
    key_is("hidden_act", "silu", or_absent=True),
    key("layer_norm_epsilon", "mamba.norm.eps", "mamba.gated_norm.eps", "final_norm.eps", default=1e-5),
    norms("rms", "mamba.norm", "mamba.gated_norm", "final_norm"),
    step_limit(),
    key_is("rms_norm", True, or_absent=True, written=False),
    key_is("norm_before_gate", False, or_absent=True, written=False),
    ignore("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "rescale_prenorm_residual", why="of the initialisation"),
    ignore("residual_in_fp32", why="how to run it, not what it computes"),
    chunks("chunk_size"),
])

# The first files have the second name, which transformers still loads.
_SPELLINGS = layouts.Choice("names", ("stored", "singular", "held"), default="stored",
    help="names of tensors as transformers saves them and holds them in memory, or as the first files have them")

_MODEL = Table(rows=[
    row("backbone.embeddings.weight", "v h", "embedding.tokens.weight", under={"names": ("stored", "held")}),
    row("backbone.embedding.weight",  "v h", "embedding.tokens.weight", under={"names": "singular"}),
    row("backbone.norm_f.weight",     "h",   "final_norm.weight"),
    row("lm_head.weight",             "v h", "head.weight"),
    row("lm_head.weight",             "v h", "embedding.tokens.weight", when="head.tied", copy=True),
])

_LAYER = Table("backbone.layers.{l}", to="layers.{l}", rows=[
    row("norm.weight", "h", "mamba.norm.weight"),
    *(replace(one, native=f"mixer.{one.native}") for one in MIXER),
])
# fmt: on

FAMILIES = [
    Family("mamba2", MAMBA2, layouts.Tables([_MODEL, _LAYER], [_SPELLINGS]), heads=(heads.BARE,), padding=1),
]
