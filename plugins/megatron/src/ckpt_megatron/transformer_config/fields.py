"""What the fields of a config class mean: one table for models with usual attention, one for latent attention.

How many rows the vocabulary has is not here: the formats say it in ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    note,
    one_of,
    same_as,
    schema,
)
from ckpt_megatron.args.attention import biases, head_dim, window
from ckpt_megatron.args.mlp import clamped, widths
from ckpt_megatron.args.norms import USUAL, norms
from ckpt_megatron.args.predictors import predictors
from ckpt_megatron.transformer_config.activation import ENGINE, activation
from ckpt_megatron.transformer_config.config_fields import AT_DEFAULT, HARMLESS, inert
from ckpt_megatron.transformer_config.delta import delta_nets, no_delta_nets
from ckpt_megatron.transformer_config.generation import generation
from ckpt_megatron.transformer_config.positions import positions

_RENAMED = {"num_experts": "num_moe_experts"}  # argument: field
_ARGUMENTS_ALONE = frozenset({"disable_bias_linear", "norm_epsilon", "apply_layernorm_1p"})
_BALANCED = ("aux_loss", "seq_aux_loss", "global_aux_loss", "none")
# The block that a model of the tables is built of; NeMo and Bridge have one function each, Megatron-Core another.
_SPECS = (
    "default_layer_spec",
    "local_layer_spec",
    "transformer_engine_layer_spec",
    "get_gpt_decoder_block_spec",
    "get_gpt_layer_local_spec",
    "get_gpt_layer_with_transformer_engine_spec",
    "get_transformer_block_with_experimental_attention_variant_spec",
)


@schema.dataclass(frozen=True)
class OfFields(configs.Entry):
    """A line about arguments as one about fields: under the fields' names, without what is an argument alone."""

    line: configs.Entry

    @property
    def _names(self) -> dict[str, str]:
        return {key: _RENAMED.get(key, key) for key in self.line.keys if key not in _ARGUMENTS_ALONE}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._names.values())

    @property
    def claims(self) -> tuple[str, ...]:
        return self.line.claims

    @property
    def uses(self) -> tuple[str, ...]:
        return tuple(_RENAMED.get(name, name) for name in self.line.uses)

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        return self.line.by_hand

    def words(self) -> str:
        return self.line.words()

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        known = {key: value for key, value in config.items() if key not in _ARGUMENTS_ALONE}
        self.line.read(known | {key: config[name] for key, name in self._names.items() if name in config}, facts, notes)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: Any) -> None:
        args = dict(config)
        self.line.write(facts, notes, args)
        config.update({self._names[key]: value for key, value in args.items() if key in self._names})


def of_fields(*lines: configs.Entry) -> list[configs.Entry]:
    """Lines about arguments as lines about fields."""
    return [OfFields(line) for line in lines]


_BALANCING = "moe_router_load_balancing_type"
SPEC = "transformer_layer_spec"
"""The field that names the function which makes the layers."""


def _check_balancing(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    kinds = config.get(_BALANCING, "none")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in _BALANCED:
            raise CkptError(
                f"key {_BALANCING!r} asks for something that is not supported",
                found=repr(kind)[:80],
                expected=" or ".join(_BALANCED),
            )


def spec_of(config: Mapping[str, Any]) -> str:
    """The dotted name of the function that makes the layers; "" if none is said."""
    spec = config.get(SPEC)
    name = spec.get("_target_") if isinstance(spec, dict) else spec
    return "" if name is None else str(name)


def short(name: str) -> str:
    """The last part of a dotted name, without arguments.

    >>> short("megatron.core.models.gpt.gpt_layer_specs.get_gpt_layer_local_spec(8)")
    'get_gpt_layer_local_spec'
    """
    return name.partition("(")[0].rpartition(".")[2]


def _check_spec(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    name = spec_of(config)
    if name and short(name) not in _SPECS:
        raise CkptError(
            f"key {SPEC!r} makes layers that we do not know",
            found=name[:120],
            expected=" or ".join(_SPECS),
            fix=f"if they are layers of the usual kind, leave it out with -o ignore_keys={SPEC}",
        )


def _common(attention: str, package: str, *, yarn: bool = False, alike: Sequence[str] = USUAL) -> list[configs.Entry]:
    latent = attention == "latent_attention"
    return [
        fact_is("kind", "decoder"),
        fact_is("causal", True),
        key("hidden_size", "hidden"),
        key("num_attention_heads", f"{attention}.heads"),
        *of_fields(widths()),
        activation(package),
        clamped(*ENGINE, left_out=True),
        *of_fields(biases(latent), *norms(latent, alike), predictors()),
        positions(attention, yarn=yarn),
        key("share_embeddings_and_output_weights", "head.tied", default=True),
        key("apply_residual_connection_post_layernorm", "residual_from_norm", default=False),
        configs.elsewhere(
            "tokens.vocabulary", "tokens.padded_vocabulary", why="each format says it in a way of its own"
        ),
        *configs.implied("vocab_size", "make_vocab_size_divisible_by", "should_pad_vocab", why="read with the files"),
        note("init_method_std", "initializer_range"),
        generation(),
        # Sinkhorn chooses other experts; the others only add a loss. Since core 0.14 it may be a list.
        decided(
            [_BALANCING],
            [],
            read=_check_balancing,
            values={},
            why="no routing by Sinkhorn, which chooses other experts",
        ),
        decided(
            [SPEC], [], read=_check_spec, values={}, why="one of the specs of the usual blocks, or a partial of one"
        ),
        *AT_DEFAULT,
        *HARMLESS,
    ]


def usual(name: str, package: str, *, yarn: bool = False, delta: bool = False, alike: Sequence[str] = USUAL) -> Config:
    """The table of models with usual attention. `package` has the activations that torch does not have; see `positions`.

    `delta`: some layers may be delta nets, and the output of attention may have a gate. `alike` are the norms of a layer, and the final one.
    """
    return Config(
        name,
        [
            *_common("attention", package, yarn=yarn, alike=alike),
            *(delta_nets() if delta else no_delta_nets()),
            inert("multi_latent_attention", False),
            note("rotary_interleaved", "interleaved"),
            key("num_query_groups", "attention.groups", default=same_as("num_attention_heads")),
            head_dim(),
            *window(),
            key(
                "softmax_type", "attention.sinks", default="vanilla", via=one_of({"vanilla": False, "learnable": True})
            ),
            key("softmax_scale", "attention.scale", default=None),
            ignore(*_LATENT, why="fields of latent attention, which this model does not have"),
        ],
    )


_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")


def latent(name: str, package: str) -> Config:
    """The table of models with latent attention. Ranks and widths come first: norms and yarn ask for them."""
    return Config(
        name,
        [
            key_is("multi_latent_attention", True, or_absent=True),
            key("q_lora_rank", "latent_attention.q_rank", default=None),
            key("kv_lora_rank", "latent_attention.kv_rank"),
            key("qk_head_dim", "latent_attention.nope_dim"),
            key("qk_pos_emb_head_dim", "latent_attention.rope_dim"),
            key("v_head_dim", "latent_attention.value_dim"),
            *_common("latent_attention", package),
            *no_delta_nets(),
            inert("rotary_interleaved", False),
            inert("window_size"),
            inert("softmax_type", "vanilla"),
            inert("softmax_scale"),
            ignore("kv_channels", "num_query_groups", "window_attn_skip_freq", why="latent attention has no groups"),
        ],
    )


def scaled_embedding() -> configs.Entry:
    """No field says it: the models of Gemma multiply the embedding by the square root of hidden_size."""
    # frameworks round the root to their own precision
    return derived(None, "tokens.scale", "hidden_size ** 0.5", rounding="none", tolerance=1e-6)
