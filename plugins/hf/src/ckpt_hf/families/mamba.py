"""What the classes with Mamba-2 blocks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, ignore, key, row, schema, values
from ckpt_hf.common import norms

# As Python's writer of JSON has it, and as transformers 5.12 does.
_WITHOUT_LIMIT = (float("inf"), {"__float__": "Infinity"})


def _read_limit(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    limit = config.get("time_step_limit")
    if limit is None:
        return
    if not isinstance(limit, list) or len(limit) != 2 or limit[0] != 0 or limit[1] not in _WITHOUT_LIMIT:
        raise CkptError(
            "key 'time_step_limit' cuts the steps of the state", found=str(limit)[:80], expected="0 and infinity"
        )


def step_limit() -> configs.Entry:
    """`time_step_limit`, which must leave the steps of the state as they are."""
    return decided(
        ["time_step_limit"], [], read=_read_limit, values={}, why="the steps of the state are not cut: 0 to infinity"
    )


def enter_mamba_layers(facts: Facts, attends: Sequence[bool]) -> None:
    """Enter which layers attend; the others have Mamba-2 blocks."""
    if not all(attends):
        facts["attention?"] = schema.PerLayer(attends)
        facts["mamba?"] = schema.PerLayer(not one for one in attends)


def _read_width(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    heads = values.checked("mamba_n_heads", config.get("mamba_n_heads", 128), values.whole)
    expand = values.checked("mamba_expand", config.get("mamba_expand", 2), values.whole)
    inner = expand * values.checked("hidden_size", config.get("hidden_size", 4096), values.whole)
    width = config.get("mamba_d_head", "auto")
    width = inner // heads if width == "auto" else values.checked("mamba_d_head", width, values.whole)
    if width * heads != inner:
        raise CkptError(
            "keys 'mamba_d_head', 'mamba_n_heads' and 'mamba_expand' do not agree on the inner width",
            found=f"{width} x {heads}, and {expand} x hidden_size = {inner}",
        )
    facts["mamba.head_dim"] = width


def _expanded(width: int, heads: int, hidden: int) -> int:
    return width * heads // hidden


def block(*eps: str) -> list[Any]:
    """The lines of a Mamba-2 block of the classes that grew out of Bamba, whose norms have the eps of the MLP's.

    `eps` are further norms of the block.
    """
    found = ("mamba.norm", "mamba.gated_norm", *eps)
    return [
        key("mamba_n_heads", "mamba.heads", default=128),
        decided(
            ["mamba_d_head", "mamba_expand"],
            ["mamba.head_dim"],
            read=_read_width,
            values={
                ("mamba_d_head", "mamba_expand"): [
                    (
                        configs.value_of("mamba.head_dim"),
                        configs.value_of("mamba.head_dim", "mamba.heads", "hidden", by=_expanded),
                    )
                ]
            },
            uses=["mamba_n_heads", "hidden_size", "mamba.heads", "hidden"],
            why="`auto` is the inner width, mamba_expand times hidden_size, over the heads; a number must agree with it",
        ),
        # transformers 4 took one norm over all groups where it had no kernels; the kernels, and version 5, take one for each
        key("mamba_n_groups", "mamba.groups", "mamba.norm_groups", default=1),
        key("mamba_d_state", "mamba.state", default=256),
        key("mamba_d_conv", "mamba.conv", default=4),
        key("mamba_conv_bias", "mamba.conv_bias", default=True),
        key("mamba_proj_bias", "mamba.bias", default=False),
        norms("rms", *found),
        *(configs.fact_as(f"{norm}.eps", "mlp.norm.eps") for norm in found),
        step_limit(),
        ignore("mamba_chunk_size", why="how to run it, not what it computes"),
    ]


# fmt: off
MAMBA = (
    row("input_layernorm.weight",    "h",         "mamba.norm.weight"),
    row("mamba.in_proj.weight",      "(z[g r d] + x[g r d] + b[g n] + c[g n] + dt[g r]) h", "mamba.{part}.weight"),
    row("mamba.in_proj.bias",        "(z[g r d] + x[g r d] + b[g n] + c[g n] + dt[g r])",   "mamba.{part}.bias"),
    row("mamba.conv1d.weight",       "(x_conv[g r d] + b_conv[g n] + c_conv[g n]) 1 t",     "mamba.{part}.weight"),
    row("mamba.conv1d.bias",         "(x_conv[g r d] + b_conv[g n] + c_conv[g n])",         "mamba.{part}.bias"),
    row("mamba.A_log",               "(g r)",     "mamba.a_log.weight"),
    row("mamba.D",                   "(g r)",     "mamba.skip.weight"),
    row("mamba.dt_bias",             "(g r)",     "mamba.dt_bias.weight"),
    row("mamba.norm.weight",         "(g r d)",   "mamba.gated_norm.weight"),
    row("mamba.out_proj.weight",     "h (g r d)", "mamba.out.weight"),
    row("mamba.out_proj.bias",       "h",         "mamba.out.bias"),
)
# fmt: on
