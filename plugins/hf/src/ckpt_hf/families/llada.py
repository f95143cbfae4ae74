"""LLaDA: Llama whose positions all see each other, in the keys and names of OLMo's first code. transformers runs the code beside its files.

The functions are those of `modeling_llada.py` with `block_type: llama`; Megatron-Bridge maps the same keys and tensors (llada15_bridge.py, 0.6).
"""

from __future__ import annotations

from ckpt_core.sdk import Table, derived, fact_is, ignore, key, key_is, layouts, note, row, same_as
from ckpt_hf.common import ACTIVATION, MLP_BIASES, NORMS, QKV_BIASES, Family, divides
from ckpt_hf.families.llama import LLAMA

# fmt: off
LLADA = LLAMA.replace("LLaDAModelLM",
    fact_is("causal", False),
    key("d_model", "hidden"),
    key("vocab_size", "tokens.vocabulary"),
    key("embedding_size", "tokens.padded_vocabulary", default=same_as("vocab_size")),
    key("n_layers", "layers"),
    key("n_heads", "attention.heads"),
    key("n_kv_heads", "attention.groups", default=same_as("n_heads")),
    derived(None, "attention.head_dim", "d_model / n_heads"),
    key("mlp_hidden_size", "mlp.ffn"),
    ignore("mlp_ratio", why="mlp_hidden_size says the width"),
    key("activation_type", "mlp.activation", default="silu", via=ACTIVATION),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key_is("include_bias", False, or_absent=True),
    key("include_qkv_bias", *QKV_BIASES, default=False),
    [fact_is(bias, False) for bias in (*MLP_BIASES, "attention.out_bias")],
    key("weight_tying", "head.tied", default=False),
    note("max_sequence_length", "max_positions"),
    key_is("block_type", "llama"),
    key_is("layer_norm_type", "rms"),
    key_is("rope", True),
    key_is("layer_norm_with_affine", True, or_absent=True),
    *(key_is(name, False, None, or_absent=True) for name in
      ("alibi", "attention_layer_norm", "bias_for_layer_norm", "input_emb_norm", "scale_logits", "multi_query_attention")),
    key_is("clip_qkv", None, or_absent=True, written=False),
    ignore("alibi_bias_max", "attention_layer_norm_with_affine", "block_group_size", why="of what the model does not have"),
    ignore("flash_attention", "rope_full_precision", "precision", "init_device", why="how to run it"),
    ignore("init_fn", "init_std", "init_cutoff_factor", why="how parameters start"),
    without=["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
             "attention_bias", "mlp_bias", "tie_word_embeddings", "seq_length"],
)

TABLES = layouts.Tables([
    Table(rows=[
        row("model.transformer.wte.weight",    "v h", "embedding.tokens.weight"),
        row("model.transformer.ln_f.weight",   "h",   "final_norm.weight"),
        row("model.transformer.ff_out.weight", "v h", "head.weight"),
    ]),
    Table("model.transformer.blocks.{l}", to="layers.{l}", rows=[
        row("attn_norm.weight", "h",         "attention.norm.weight"),
        row("q_proj.weight",    "(g r d) h", "attention.q.weight"),
        row("q_proj.bias",      "(g r d)",   "attention.q.bias"),
        row("k_proj.weight",    "(g d) h",   "attention.k.weight"),
        row("k_proj.bias",      "(g d)",     "attention.k.bias"),
        row("v_proj.weight",    "(g d) h",   "attention.v.weight"),
        row("v_proj.bias",      "(g d)",     "attention.v.bias"),
        row("attn_out.weight",  "h (g r d)", "attention.out.weight"),
        row("ff_norm.weight",   "h",         "mlp.norm.weight"),
        row("ff_proj.weight",   "f h",       "mlp.gate.weight"),
        row("up_proj.weight",   "f h",       "mlp.up.weight"),
        row("ff_out.weight",    "h f",       "mlp.down.weight"),
    ]),
])
# fmt: on


FAMILIES = [Family("llada", LLADA, TABLES, divides, heads=())]
