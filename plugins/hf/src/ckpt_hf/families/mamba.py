"""What the classes with Mamba-2 blocks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, key, note, row, schema, values
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


def chunks(name: str) -> configs.Entry:
    """How many positions are computed at once, which changes the rounding alone: kept, so that a model comes back with its own."""
    return note(name, "chunk_size")


def enter_mamba_layers(facts: Facts, attends: Sequence[bool]) -> None:
    """Enter which layers attend; the others have Mamba-2 blocks."""
    if not all(attends):
        facts["attention?"] = schema.PerLayer(attends)
        facts["mamba?"] = schema.PerLayer(not one for one in attends)


def _expanded(width: int, heads: int, hidden: int) -> int:
    return width * heads // hidden


def _multiplied(width: int, heads: int) -> int:
    return width * heads


def head_width(heads: str, width: str, expand: str, *, usual: object = "auto", inner: str = "") -> configs.Entry:
    """The key `width`, with which `expand` must agree: the heads, 128 where the key `heads` does not say it, are `expand` times the
    hidden size together. `inner`: a key that says how wide they are together, if it is not null.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        many = values.checked(heads, config.get(heads, 128), values.whole)
        whole = config.get(inner, 1024) if inner else None
        if whole is None:
            times = values.checked(expand, config.get(expand, 2), values.whole)
            whole = times * values.checked("hidden_size", config.get("hidden_size", 4096), values.whole)
        one = config.get(width, usual)
        one = whole // many if one == "auto" else values.checked(width, one, values.whole)
        if one * many != whole:
            raise CkptError(
                f"keys {width!r}, {heads!r} and {inner or expand!r} do not agree on the inner width",
                found=f"{many} heads of {one}, and {whole}",
            )
        facts["mamba.head_dim"] = one

    size = configs.value_of("mamba.head_dim")
    if inner:
        together = (width, inner), (size, configs.value_of("mamba.head_dim", "mamba.heads", by=_multiplied))
    else:
        paths = ("mamba.head_dim", "mamba.heads", "hidden")
        together = (width, expand), (size, configs.value_of(*paths, by=_expanded))
    return decided(
        [width, expand, *([inner] if inner else [])],
        ["mamba.head_dim"],
        read=read,
        values={together[0]: [together[1]]},
        uses=[heads, "hidden_size", "mamba.heads", "hidden"],
        why=f"the heads together are {expand} times hidden_size wide"
        + (f", or as wide as {inner} says" if inner else ""),
    )


def block() -> list[Any]:
    """The lines of a Mamba-2 block of Bamba and Granite 4, whose norms have the eps of the MLP's."""
    found = ("mamba.norm", "mamba.gated_norm")
    return [
        key("mamba_n_heads", "mamba.heads", default=128),
        head_width("mamba_n_heads", "mamba_d_head", "mamba_expand"),
        # transformers 4 took one norm over all groups where it had no kernels; the kernels, and version 5, take one for each
        key("mamba_n_groups", "mamba.groups", "mamba.norm_groups", default=1),
        key("mamba_d_state", "mamba.state", default=256),
        key("mamba_d_conv", "mamba.conv", default=4),
        key("mamba_conv_bias", "mamba.conv_bias", default=True),
        key("mamba_proj_bias", "mamba.bias", default=False),
        norms("rms", *found),
        *(configs.fact_as(f"{norm}.eps", "mlp.norm.eps") for norm in found),
        step_limit(),
        chunks("mamba_chunk_size"),
    ]


# fmt: off
MIXER = (
    row("in_proj.weight",  "(z[g r d] + x[g r d] + b[g n] + c[g n] + dt[g r]) h", "mamba.{part}.weight"),
    row("in_proj.bias",    "(z[g r d] + x[g r d] + b[g n] + c[g n] + dt[g r])",   "mamba.{part}.bias"),
    row("conv1d.weight",   "(x_conv[g r d] + b_conv[g n] + c_conv[g n]) 1 t",     "mamba.{part}.weight"),
    row("conv1d.bias",     "(x_conv[g r d] + b_conv[g n] + c_conv[g n])",         "mamba.{part}.bias"),
    row("A_log",           "(g r)",     "mamba.a_log.weight"),
    row("D",               "(g r)",     "mamba.skip.weight"),
    row("dt_bias",         "(g r)",     "mamba.dt_bias.weight"),
    row("norm.weight",     "(g r d)",   "mamba.gated_norm.weight"),
    row("out_proj.weight", "h (g r d)", "mamba.out.weight"),
    row("out_proj.bias",   "h",         "mamba.out.bias"),
)
MAMBA = (row("input_layernorm.weight", "h", "mamba.norm.weight"), *(replace(one, native=f"mamba.{one.native}") for one in MIXER))
# fmt: on
