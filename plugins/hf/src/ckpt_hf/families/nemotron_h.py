"""Nemotron-H and Nemotron 3: layers of one block each, Mamba-2, attention without positions, an MLP or a mixture, behind one norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Table,
    configs,
    decided,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    row,
    schema,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import ACTIVATION, CAUSAL, GENERIC, Family, groups, norms, unbiased
from ckpt_hf.families.deepseek import groups_by_two_best
from ckpt_hf.families.mamba import MIXER, step_limit
from ckpt_hf.predictors import LEFT

# A block by its letter in patterns, and in lists: as transformers wrote them until 5.12, and as it does since.
_BLOCKS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NEWER = {"linear_attention": "M", "full_attention": "*"}
_LETTERS = {**{name: letter for letter, name in _BLOCKS.items()}, **_NEWER}
_EXPECTED = "M (mamba), * (attention), - (mlp), E (moe)"


def _pattern(config: Mapping[str, Any]) -> str:
    """A letter for each layer. `CkptError` where the keys that say so differ, or none of them does."""
    said: dict[str, str] = {}
    for name in ("layers_block_type", "layer_types"):
        kinds = config.get(name)
        if kinds is not None:
            known = isinstance(kinds, list) and all(isinstance(kind, str) and kind in _LETTERS for kind in kinds)
            if not known:
                raise CkptError(
                    f"key {name!r} is not one known kind per layer", found=str(kinds)[:80], expected=_EXPECTED
                )
            said[name] = "".join(_LETTERS[kind] for kind in kinds)
    pattern = config.get("hybrid_override_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or set(pattern) - set(_BLOCKS):
            raise CkptError(
                "key 'hybrid_override_pattern' is not one known letter per layer",
                found=str(pattern)[:80],
                expected=_EXPECTED,
            )
        said["hybrid_override_pattern"] = pattern
    if len({*said.values()}) != 1:
        found = ", ".join(f"{name} = {letters}" for name, letters in said.items()) or "no key"
        raise CkptError("key 'layers_block_type' does not say which layers are what", found=found, expected=_EXPECTED)
    return said.popitem()[1]


def _read_blocks(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    pattern = _pattern(config)
    count = config.get("num_hidden_layers")
    # transformers 5 takes the length of the list, and the code beside the published files this key
    if count is not None and count != len(pattern):
        raise CkptError("key 'num_hidden_layers' is not the number of blocks", found=f"{count}, {pattern}")
    if not {"M", "*"} <= {*pattern} or not {"-", "E"} & {*pattern}:
        raise CkptError(
            "key 'layers_block_type' lacks a kind of block",
            found=pattern,
            expected="layers with Mamba-2, layers with attention, and layers with an MLP or a mixture",
        )
    facts["layers"] = len(pattern)
    for path, letters in (("mamba", "M"), ("attention", "*"), ("mlp", "-E")):
        facts[f"{path}?"] = schema.PerLayer(letter in letters for letter in pattern)
    if "E" in pattern:
        # the first fact of the mixtures, by which the other lines know that there are some
        facts["mlp.moe.router.score"] = "sigmoid"
    if "-" in pattern:
        facts["mlp.ffn"] = values.checked("intermediate_size", config.get("intermediate_size", 21504), values.whole)
    if {"-", "E"} <= {*pattern}:
        facts["mlp.moe?"] = schema.PerLayer(letter == "E" for letter in pattern)
        facts["mlp.ffn?"] = schema.PerLayer(letter == "-" for letter in pattern)


def _letters(facts: Facts) -> str | None:
    """The pattern of a model; None where a layer is not one of these blocks."""

    def has(path: str, index: int) -> bool:
        present = facts.present(path)
        return present[index] if isinstance(present, schema.PerLayer) else present

    found = ""
    for index in range(facts["layers"]):
        mixed = "M" * has("mamba", index) + "*" * has("attention", index)
        fed = ("E" if has("mlp.moe", index) else "-") * has("mlp", index)
        if len(mixed + fed) != 1:
            return None
        found += mixed + fed
    return found


def _names(facts: Facts) -> list[str] | None:
    letters = _letters(facts)
    return None if letters is None else [_BLOCKS[letter] for letter in letters]


_PATTERN = ("layers_block_type", "hybrid_override_pattern", "num_hidden_layers")
_WIDTH = configs.value_of("mlp.ffn")
_MIXERS = ("attention.norm", "mamba.norm", "mlp.norm")

# fmt: off
NEMOTRON_H = configs.Config("NemotronHForCausalLM", [
    *GENERIC,
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key_is("tie_word_embeddings", False, or_absent=True, why="the class ties nothing, whatever it says"),
    fact_is("head.tied", False),
    # Every reader finds the pattern under its own key: transformers 5 and 5.24, Megatron-Bridge, and the code beside the files.
    decided([*_PATTERN, "layer_types", "intermediate_size"],
            ["layers", "mamba?", "attention?", "mlp?", "mlp.ffn", "mlp.ffn?", "mlp.moe?", "mlp.moe.router.score"],
            read=_read_blocks,
            values={_PATTERN: [(configs.Said(_names, "the kinds of the layers"), configs.Said(_letters, "their letters"), configs.value_of("layers"))],
                    "intermediate_size": [_WIDTH, configs.LEFT_OUT]},
            why="each layer is one block: Mamba-2, attention, an MLP or a mixture, and the model has some of the first two and of the others"),
    key("num_attention_heads", "attention.heads", default=32),
    groups(8),
    key("head_dim", "attention.head_dim", also=["attention_head_dim"], default=128),
    key("mamba_num_heads", "mamba.heads", default=128),
    key("mamba_head_dim", "mamba.head_dim", default=64),
    key("n_groups", "mamba.groups", "mamba.norm_groups", default=8),
    key("ssm_state_size", "mamba.state", default=128),
    key("conv_kernel", "mamba.conv", default=4),
    key("use_conv_bias", "mamba.conv_bias", default=True),
    key("use_bias", "mamba.bias", default=False),
    key_is("mamba_hidden_act", "silu", or_absent=True),
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in (*_MIXERS, "mamba.gated_norm", "final_norm")), also=["rms_norm_eps"], default=1e-5),
    norms("rms", *_MIXERS, "mamba.gated_norm", "final_norm"),
    key("mlp_hidden_act", "mlp.activation", default="relu2", via=ACTIVATION),
    fact_is("mlp.gated", False),
    configs.where("mlp.moe", [
        key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts"], default=8),
        key("num_experts_per_tok", "mlp.moe.router.top_k", default=2),
        key("moe_intermediate_size", "mlp.moe.ffn", default=7688),
        key("moe_shared_expert_intermediate_size", "mlp.moe.shared.ffn", default=7688),
        key("moe_latent_size", "mlp.moe.latent", default=None, null=None),
        key("norm_topk_prob", "mlp.moe.router.normalise", default=True),
        key("routed_scaling_factor", "mlp.moe.router.scale", default=1.0),
        fact_is("mlp.moe.router.correction_bias", True),
        groups_by_two_best(1, 1),
    ]),
    key_is("n_shared_experts", 1, or_absent=True, why="the shared expert is as wide as moe_shared_expert_intermediate_size says, whatever their number"),
    ignore("sliding_window", why="the class of transformers does not read it, and no published model has one"),
    unbiased("attention_bias", "mlp_bias", "mamba_proj_bias"),
    step_limit(),
    # transformers cuts the steps of the state below this number where it has no kernels (modeling_nemotron_h.py), which Megatron,
    # mamba_ssm and the code that the models were trained with do not: where nothing is known, it is so small that nothing is cut.
    note("time_step_min", "time_step_min", default=1e-9),
    ignore("time_step_max", "time_step_floor", "rescale_prenorm_residual", "mamba_dt_min", "mamba_dt_max", "mamba_dt_init_floor",
           why="of the initialisation"),
    ignore("expand", "mamba_expand", why="the inner width is mamba_num_heads times mamba_head_dim"),
    # how many positions are computed together, by which transformers rounds
    note("chunk_size", "chunk_size"),
    ignore("mamba_chunk_size", "use_mamba_kernels", "mamba_ssm_cache_dtype", "residual_in_fp32", "moe_shared_expert_overlap",
           why="how to run it, not what it computes"),
    ignore("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
           why="the layers that predict further tokens take no part in the model, and are not kept"),
])

# Files have the first names, transformers 5.12 saves `embedding`, and the third ones are those in memory.
_SPELLINGS = layouts.Choice("names", ("stored", "singular", "held"), default="stored",
    help="names of tensors as published files have them, as transformers 5.12 saves them, or as transformers 5 holds them in memory")
_IN_FILES = {"names": ("stored", "singular")}

_MODEL = Table(rows=[
    row("backbone.embeddings.weight", "v h", "embedding.tokens.weight", under={"names": "stored"}),
    row("backbone.embedding.weight",  "v h", "embedding.tokens.weight", under={"names": "singular"}),
    row("model.embeddings.weight",    "v h", "embedding.tokens.weight", under={"names": "held"}),
    row("backbone.norm_f.weight",     "h",   "final_norm.weight",       under=_IN_FILES),
    row("model.norm_f.weight",        "h",   "final_norm.weight",       under={"names": "held"}),
    row("lm_head.weight",             "v h", "head.weight"),
])

_LAYER = [
    row("norm.weight",                        "h",         "mamba.norm.weight"),
    row("norm.weight",                        "h",         "attention.norm.weight"),
    row("norm.weight",                        "h",         "mlp.norm.weight"),
    *(replace(one, native=f"mixer.{one.native}") for one in MIXER),
    row("mixer.q_proj.weight",                "(g r d) h", "attention.q.weight"),
    row("mixer.k_proj.weight",                "(g d) h",   "attention.k.weight"),
    row("mixer.v_proj.weight",                "(g d) h",   "attention.v.weight"),
    row("mixer.o_proj.weight",                "h (g r d)", "attention.out.weight"),
    row("mixer.up_proj.weight",               "f h",       "mlp.up.weight"),
    row("mixer.down_proj.weight",             "h f",       "mlp.down.weight"),
    row("mixer.gate.weight",                  "x h",       "mlp.router.weight"),
    row("mixer.gate.e_score_correction_bias", "x",         "mlp.router.correction_bias"),
    row("mixer.shared_experts.up_proj.weight",   "f h",    "mlp.shared.up.weight"),
    row("mixer.shared_experts.down_proj.weight", "h f",    "mlp.shared.down.weight"),
    row("mixer.fc1_latent_proj.weight",       "m h",       "mlp.latent_in.weight"),
    row("mixer.fc2_latent_proj.weight",       "h m",       "mlp.latent_out.weight"),
]

_STORED_LAYER = Table("backbone.layers.{l}", to="layers.{l}", under=_IN_FILES, rows=[
    *_LAYER,
    row("mixer.experts.{x}.up_proj.weight",   "f h",       "mlp.experts.up.weight"),
    row("mixer.experts.{x}.down_proj.weight", "h f",       "mlp.experts.down.weight"),
])

_HELD_LAYER = Table("model.layers.{l}", to="layers.{l}", under={"names": "held"}, rows=[
    *_LAYER,
    row("mixer.experts.up_proj",              "x f h",     "mlp.experts.up.weight"),
    row("mixer.experts.down_proj",            "x h f",     "mlp.experts.down.weight"),
])
# fmt: on

FAMILIES = [
    Family(
        "nemotron_h",
        NEMOTRON_H,
        layouts.Tables([_MODEL, _STORED_LAYER, _HELD_LAYER], [_SPELLINGS]),
        leftovers=LEFT,
        heads=(heads.BARE,),
        padding=0,
        noted=("time_step_min", "chunk_size"),
    )
]
