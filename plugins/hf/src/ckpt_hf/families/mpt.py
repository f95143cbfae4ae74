"""MPT: alibi in place of positions, LayerNorm without biases, fused q, k, v, and an ungated MLP of four times the width."""

from __future__ import annotations

from ckpt_core.sdk import (
    Activation,
    Config,
    Table,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    nested,
    note,
    row,
)
from ckpt_hf import heads
from ckpt_hf.common import CAUSAL, GENERIC, NORMS, Family, norms
from ckpt_hf.weights import LM_HEAD

# fmt: off
_ATTENTION = [
    *ignore("model_type", why="of an object in a config"),
    key("softmax_scale", "attention.scale", default=None),
    key_is("alibi", True, or_absent=True),
    # with another largest slope the model would be another one
    key_is("alibi_bias_max", 8, or_absent=True),
    key_is("attn_type", "multihead_attention", or_absent=True),
    key_is("clip_qkv", None, or_absent=True, why="it limits the values of q, k and v"),
    key_is("qk_ln", False, or_absent=True, why="q and k then have norms"),
    key_is("prefix_lm", False, or_absent=True, why="the first tokens then see each other"),
    key_is("attn_uses_sequence_id", False, or_absent=True, written=False),
    *ignore("attn_pdrop", why="training only"),
    *ignore("architectures", "chunk_size_feed_forward", "dtype", "torch_dtype", "id2label", "label2id", "is_encoder_decoder", "output_attentions",
            "output_hidden_states", "problem_type", "return_dict", "_name_or_path", why="saved for every object in a config, and read of none"),
    *ignore("attn_impl", why="how to run it, not what it computes"),
]

MPT = Config("", GENERIC).replace("MptForCausalLM",
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("d_model", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("n_layers", "layers"),
    key("n_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "d_model / n_heads"),
    fact_is("attention.alibi", True),
    nested("attn_config", _ATTENTION),
    derived(None, "mlp.ffn", "4 * d_model"),
    key_is("expansion_ratio", 4, or_absent=True, why="the class has four in its code, whatever it says"),
    fact_is("mlp.activation", Activation.GELU_ERF),
    fact_is("mlp.gated", False),
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS),
    key_is("no_bias", True, or_absent=True),
    key_is("logit_scale", None, or_absent=True, why="the class stores it, and never applies it"),
    key("tie_word_embeddings", "head.tied", default=True),
    note("max_seq_len", "max_positions"),
    ignore("learned_pos_emb", why="the class has alibi alone"),
    ignore("norm_type", "embedding_fraction", "init_device", "init_config", "verbose", "resid_pdrop", "emb_pdrop",
           why="of training, or of the code beside the first files"),
    without=["max_position_embeddings"],
)

MODEL = Table(rows=[
    row("transformer.wte.weight",    "v h", "embedding.tokens.weight"),
    row("transformer.norm_f.weight", "h",   "final_norm.weight"),
    *LM_HEAD,
])

LAYER = Table("transformer.blocks.{l}", to="layers.{l}", rows=[
    row("norm_1.weight",        "h",                             "attention.norm.weight"),
    row("attn.Wqkv.weight",     "((q[g r] + k[g] + v[g]) d) h",  "attention.{part}.weight"),
    row("attn.out_proj.weight", "h (g r d)",                     "attention.out.weight"),
    row("norm_2.weight",        "h",                             "mlp.norm.weight"),
    row("ffn.up_proj.weight",   "f h",                           "mlp.up.weight"),
    row("ffn.down_proj.weight", "h f",                           "mlp.down.weight"),
])
# fmt: on

FAMILIES = [
    Family(
        "mpt",
        MPT,
        layouts.Tables([MODEL, LAYER]),
        heads=heads.BY_CLASSIFIER,
    )
]
