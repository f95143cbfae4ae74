"""The layout algebra: a sentence means what it says, and writing then reading is the identity.

Sizes are pairwise different, so that no two axes can be mistaken for each other; tensors are numbered, so that
no two elements can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ckpt_core.architecture import (
    Activation,
    Architecture,
    Attention,
    Axis,
    Head,
    LatentAttention,
    Layer,
    Mlp,
    Moe,
    Norm,
    Parameter,
    Rotary,
    Router,
    SharedExpert,
    Stack,
    Tokens,
    parameters,
)
from ckpt_core.errors import CkptError
from ckpt_core.layout import BoundTables, SplitError, Table, row
from ckpt_core.layout.split import shares
from ckpt_tests.packing import numbered, pack, read_back, written

NORM = Norm(kind="rms", eps=1e-5)
ATTENTION = "attention.{part}.weight"
EXPERTS = "mlp.experts.{part}.weight"


def model(
    *,
    groups: int = 4,
    per_group: int = 3,
    head_dim: int = 8,
    hidden: int = 5,
    ffn: int = 6,
    fraction: float = 0.75,
    bias: bool = True,
) -> Architecture:
    attention = Attention(
        heads=groups * per_group, groups=groups, head_dim=head_dim, norm=NORM, rotary=Rotary(theta=1e4, fraction=fraction),
        q_bias=bias, k_bias=bias, v_bias=bias,
    )  # fmt: skip
    layer = Layer(attention=attention, mlp=Mlp(activation=Activation.SILU, gated=True, ffn=ffn, norm=NORM))
    return architecture(layer, hidden)


def architecture(layer: Layer, hidden: int) -> Architecture:
    stack = Stack(layers=(layer, layer), causal=True, final_norm=NORM)
    return Architecture(
        hidden=hidden, tokens=Tokens(vocabulary=13, padded_vocabulary=14), decoder=stack, head=Head(tied=False)
    )


def sparse(experts: int = 4) -> Architecture:
    moe = Moe(experts=experts, ffn=6, router=Router(top_k=2), shared=SharedExpert(ffn=8, gate=True))
    layer = Layer(
        attention=Attention(heads=6, groups=2, head_dim=10, norm=NORM),
        mlp=Mlp(activation=Activation.SILU, gated=True, moe=moe, norm=NORM),
    )
    return architecture(layer, 5)


def latent() -> Architecture:
    attention = LatentAttention(
        heads=4,
        kv_rank=7,
        nope_dim=5,
        rope_dim=6,
        value_dim=3,
        q_rank=9,
        rotary=Rotary(theta=1e4),
        norm=NORM,
        kv_norm=NORM,
        q_norm=NORM,
    )
    return architecture(
        Layer(latent_attention=attention, mlp=Mlp(activation=Activation.SILU, gated=True, ffn=8, norm=NORM)), 11
    )


@dataclass(frozen=True)
class Case:
    """Rows of one native prefix, and the ranks to try. `whole` names the parameters that only all ranks together hold."""

    architecture: Architecture
    native: str
    sentence: str
    canonical: str
    tp: str | None = None
    ep: str | None = None
    ranks: tuple[int, ...] = (1,)
    eps: tuple[int, ...] = (1,)
    sizes: Mapping[str, int] = field(default_factory=dict)
    stacked: bool = False


# fmt: off
CASES = {
    "qkv by group":              Case(model(), "qkv", "(g (q[r] + k + v) d) h", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "qkv by group, bias":        Case(model(), "qkv", "(g (q[r] + k + v) d)", "attention.{part}.bias", tp="g", ranks=(1, 2, 4)),
    "qkv in blocks":             Case(model(), "qkv", "(q[g r d] + k[g d] + v[g d]) h", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "qkv in blocks, interleaved": Case(model(fraction=1.0), "qkv", "(q[g r (e c)] + k[g (e c)] + v[g d]) h", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "partial rotary in blocks":  Case(model(), "qkv", "(q[g r (e c + o)] + k[g (e c + o)] + v[g d]) h", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "partial rotary by group":   Case(model(), "qkv", "(g (q[r (e c + o)] + k[(e c + o)] + v[d])) h", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "unrotated elements first":  Case(model(), "qkv", "(g (q[r (o + c e)] + k[(o + c e)] + v[d])) h", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "a row per head":            Case(model(), "q", "g r (e c + o) h", "attention.q.weight", tp="g", ranks=(1, 2, 4)),
    "Conv1D":                    Case(model(per_group=1), "c_attn", "h ((q[r] + k + v) g d)", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "Conv1D with groups":        Case(model(), "c_attn", "h (q[g r d] + k[g d] + v[g d])", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "row-parallel output":       Case(model(), "out", "h (g r d)", "attention.out.weight", tp="g", ranks=(1, 2, 4)),
    "gate and up":               Case(model(), "fc1", "((gate + up) f) h", "mlp.{part}.weight", tp="f", ranks=(1, 2, 3, 6)),
    "gate and up, interleaved":  Case(model(), "fc1", "(f (gate + up)) h", "mlp.{part}.weight", tp="f", ranks=(1, 2, 3, 6)),
    "gate and up, transposed":   Case(model(), "fc1", "h ((gate + up) f)", "mlp.{part}.weight", tp="f", ranks=(1, 2, 3, 6)),
    "gate and up, two axes":     Case(model(), "fc1", "(gate + up) f h", "mlp.{part}.weight", tp="f", ranks=(1, 2, 3, 6)),
    "down":                      Case(model(), "fc2", "h f", "mlp.down.weight", tp="f", ranks=(1, 2, 3, 6)),
    "down, transposed":          Case(model(), "fc2", "f h", "mlp.down.weight", tp="f", ranks=(1, 2, 3, 6)),
    "an axis of size one":       Case(model(), "norm", "1 h 1", "attention.norm.weight"),
    "all layers in one tensor":  Case(model(), "qkv", "l (g (q[r] + k + v) d) h", ATTENTION, tp="g", ranks=(1, 2, 4), stacked=True),
    "layers innermost":          Case(model(), "norm", "(h l)", "attention.norm.weight", stacked=True),
    "more ranks than groups":    Case(model(), "q", "(g r d) h", "attention.q.weight", tp="g r", ranks=(1, 2, 4, 12)),
    "ranks by head in group":    Case(model(), "q", "(g r d) h", "attention.q.weight", tp="r g", ranks=(1, 2, 4, 12)),
    "key copies, neighbours":    Case(model(), "k", "(g d) h", "attention.k.weight", tp="g r", ranks=(1, 2, 4, 12)),
    "key copies, a stride apart": Case(model(), "k", "(g d) h", "attention.k.weight", tp="r g", ranks=(1, 2, 4, 12)),
    "fused with key copies":     Case(model(), "qkv", "(q[g r d] + k[g d] + v[g d]) h", ATTENTION, tp="g r", ranks=(4, 12)),
    "copies everywhere":         Case(model(), "norm", "h", "attention.norm.weight", tp="g", ranks=(1, 2, 4)),
    "padding at the end":        Case(model(), "up", "(f + 0[pad]) h", "mlp.up.weight", sizes={"pad": 3}),
    "padding within":            Case(model(), "qkv", "(g (q[r] + 0[pad] + k + v) d) h", ATTENTION, tp="g", ranks=(1, 2, 4), sizes={"pad": 2}),
    "padding in another axis":   Case(model(), "up", "(0[pad] + f) (h + 0[more])", "mlp.up.weight", sizes={"pad": 1, "more": 2}),
    "experts in one tensor":     Case(sparse(), "w1", "x h ((gate + up) f)", EXPERTS, tp="f", ep="x", ranks=(1, 2, 3), eps=(1, 2, 4)),
    "experts stacked in rows":   Case(sparse(), "w1", "(x (gate + up) f) h", EXPERTS, ep="x", eps=(1, 2, 4)),
    "a tensor per expert":       Case(sparse(), "experts.{x}.w1", "((gate + up) f) h", EXPERTS, tp="f", ep="x", ranks=(1, 2, 6), eps=(1, 2, 4)),
    "a tensor per expert, down": Case(sparse(), "experts.{x}.w2", "h f", "mlp.experts.down.weight", tp="f", ep="x", ranks=(1, 3), eps=(1, 4)),
    "latent queries":            Case(latent(), "q_up", "(g (q_nope[dn] + q_rope[dr])) ql", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "latent queries, interleaved": Case(latent(), "q_up", "(g (q_nope[dn] + q_rope[e c])) ql", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "latent down projection":    Case(latent(), "kv_down", "(kv_down[kl] + k_rope[e c]) h", ATTENTION),
    "latent keys and values":    Case(latent(), "kv_up", "(g (k_nope[dn] + v[dv])) kl", ATTENTION, tp="g", ranks=(1, 2, 4)),
    "latent output":             Case(latent(), "out", "h (g dv)", "attention.out.weight", tp="g", ranks=(1, 2, 4)),
}
# fmt: on


def layout_of(case: Case) -> BoundTables:
    prefix = "all" if case.stacked else "layers.{l}"
    table = Table(
        prefix, to="layers.{l}", rows=[row(case.native, case.sentence, case.canonical, tp=case.tp, ep=case.ep)]
    )
    layout = BoundTables([table], case.architecture, sizes=case.sizes)
    parts = [name.split(".")[-2] for name in layout.parameters]
    held = {case.canonical.format(part=part) for part in parts} if "{part}" in case.canonical else {case.canonical}
    sentence_names = set("".join(c if c.isalnum() or c == "_" else " " for c in case.sentence).split())
    layout.parameters = {
        name: parameter
        for name, parameter in layout.parameters.items()
        if name.split(".", 2)[-1] in held and ("{part}" not in case.canonical or name.split(".")[-2] in sentence_names)
    }
    return layout


def share_of(axes: str | None, rank: int, count: int, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The share of every split axis, by counting: ranks count through the pieces of the axes, the last one fastest."""
    names = (axes or "").split()
    pieces = dict.fromkeys(names, 1)
    left = count
    for axis in sorted(names, key=lambda axis: axis != "g"):  # groups are cut first
        pieces[axis] = min(left, sizes[axis])
        left //= pieces[axis]
    assert left == 1 or not names
    index = list(np.ndindex(*(pieces[axis] for axis in names)))[rank] if names else ()
    return {
        axis: (at * (sizes[axis] // pieces[axis]), sizes[axis] // pieces[axis])
        for axis, at in zip(names, index, strict=True)
    }


def expected_natives(
    case: Case, layout: BoundTables, tp: tuple[int, int], ep: tuple[int, int]
) -> dict[str, np.ndarray]:
    """What every native tensor of a rank holds, by the interpreter."""
    tensors = numbered(layout.parameters)
    first: dict[str | None, Parameter] = {}
    for name, parameter in layout.parameters.items():
        if name.startswith("layers.0."):
            first[name.split(".")[-2] if "{part}" in case.canonical else None] = parameter
    attention = case.architecture.decoder.layers[0].attention
    sizes = {axis.name: axis.size for parameter in first.values() for axis in parameter.axes}
    every = {"g": attention.groups, "r": attention.heads // attention.groups, **sizes} if attention else sizes
    divided = share_of(case.tp, *tp, every) | share_of(case.ep, *ep, every)
    divided = {axis: share for axis, share in divided.items() if axis in sizes}
    found = {}
    for layer in range(2):
        held = {
            part: (parameter, tensors[parameter.name.replace("layers.0.", f"layers.{layer}.")])
            for part, parameter in first.items()
        }
        if "{x}" in case.native:
            start, count = divided.get("x", (0, sizes["x"]))
            for expert in range(start, start + count):
                name = f"layers.{layer}.{case.native.format(x=expert)}"
                found[name] = pack(case.sentence, held, divided | {"x": (expert, 1)}, case.sizes)
        elif case.stacked:
            with_layers = {
                part: (stacked(p), np.stack([tensors[p.name.replace(".0.", f".{n}.")] for n in range(2)]))
                for part, p in first.items()
            }
            found[f"all.{case.native}"] = pack(case.sentence, with_layers, divided, case.sizes)
        else:
            found[f"layers.{layer}.{case.native}"] = pack(case.sentence, held, divided, case.sizes)
    return found


def stacked(parameter: Parameter) -> Parameter:
    return replace(parameter, axes=(Axis("l", 2), *parameter.axes))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_rank_holds_what_the_sentence_says(case: Case) -> None:
    layout = layout_of(case)
    assert layout.parameters
    tensors = numbered(layout.parameters)
    for tp in case.ranks:
        for ep in case.eps:
            seen = []
            for tp_rank in range(tp):
                for ep_rank in range(ep):
                    natives = layout.natives({"tp": (tp_rank, tp), "ep": (ep_rank, ep)})
                    values = {name: written(native, tensors) for name, native in natives.items()}
                    expected = expected_natives(case, layout, (tp_rank, tp), (ep_rank, ep))
                    assert values.keys() == expected.keys()
                    for name, native in expected.items():
                        np.testing.assert_array_equal(
                            values[name], native, err_msg=f"{name} at tp={tp_rank}/{tp} ep={ep_rank}/{ep}"
                        )
                    seen += [(native, values[name]) for name, native in natives.items()]
            back = read_back(seen, layout.parameters)
            for name, tensor in tensors.items():
                np.testing.assert_array_equal(back[name], tensor, err_msg=f"{name} over tp={tp} ep={ep}")


@pytest.mark.parametrize(
    ("tp", "key_of_rank"),
    [
        ("g r", [0, 0, 1, 1, 2, 2, 3, 3]),  # neighbours share a group
        ("r g", [0, 1, 2, 3, 0, 1, 2, 3]),  # groups come round again
    ],
)
def test_key_copies_lie_where_the_split_says(tp: str, key_of_rank: list[int]) -> None:
    layout = layout_of(Case(model(per_group=2), "k", "(g d) h", "attention.k.weight", tp=tp))
    tensor = numbered(layout.parameters)
    for rank, group in enumerate(key_of_rank):
        held = written(layout.natives({"tp": (rank, 8)})["layers.0.k"], tensor)
        np.testing.assert_array_equal(held, tensor["layers.0.attention.k.weight"][group])


def test_the_parts_of_a_tensor_are_dealt_out_as_each_says() -> None:
    """Queries in the order of ranks beside keys and values that come round again."""
    case = Case(model(per_group=2), "qkv", "(q[g r d] + k[g d] + v[g d]) h", ATTENTION, tp="q: g r; k v: r g")
    layout = layout_of(case)
    tensors = numbered(layout.parameters)
    q, k, v = (tensors[f"layers.0.attention.{part}.weight"] for part in "qkv")
    for rank in range(8):
        held = written(layout.natives({"tp": (rank, 8)})["layers.0.qkv"], tensors)
        expected = [q[rank // 2, rank % 2], k[rank % 4], v[rank % 4]]
        np.testing.assert_array_equal(held, np.concatenate(expected))


def test_parts_that_hold_unequally_much_of_an_axis_are_refused() -> None:
    case = Case(model(per_group=2), "qkv", "(q[g r d] + k[g d] + v[g d]) h", ATTENTION, tp="q: r; k v: g")
    with pytest.raises(CkptError, match="hold different shares: 2 and 4 of g=4"):
        layout_of(case).natives({"tp": (0, 2)})


NOT_A_DIVISOR = [
    # axes, sizes, tp: axis named, its size, divisors shown
    ("g", {"g": 4}, 3, "tp=3 does not divide axis g=4", "tp among 1, 2, 4"),
    ("g", {"g": 4}, 8, "tp=8 does not divide axis g=4", "tp among 1, 2, 4"),
    ("f", {"f": 6}, 4, "tp=4 does not divide axis f=6", "tp among 1, 2, 3, 6"),
    ("g r", {"g": 4, "r": 3}, 8, "tp=8 does not divide axis r=3", "tp among 1, 3"),
    ("g r", {"g": 4, "r": 3}, 6, "tp=6 does not divide axis g=4", "tp among 1, 2, 4"),
    ("v", {"v": 50257}, 2, "tp=2 does not divide axis v=50257", "tp among 1, 29, 1733, 50257"),
    ("f", {"f": 10080}, 11, "tp=11 does not divide axis f=10080", "tp among 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..."),
]


@pytest.mark.parametrize(("axes", "sizes", "count", "problem", "expected"), NOT_A_DIVISOR)
def test_a_split_that_does_not_divide_says_what_would(
    axes: str, sizes: dict, count: int, problem: str, expected: str
) -> None:
    with pytest.raises(SplitError) as caught:
        shares({"tp": axes}, {"tp": (0, count)}, sizes, "(g r d) h")
    assert (caught.value.problem, caught.value.found, caught.value.expected) == (problem, "(g r d) h", expected)


# --- what a table must not do ------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], BoundTables], str]] = {
    "an axis left out": (
        lambda: layout_of(Case(model(), "k", "g h", "attention.k.weight")),
        "places 20 of the 160 elements",
    ),
    "an axis of something else": (lambda: layout_of(Case(model(), "up", "f h g", "mlp.up.weight")), "unknown name 'g'"),
    "a part that does not exist": (
        lambda: layout_of(Case(model(), "up", "((gate + side) f) h", "mlp.{part}.weight")),
        "unknown name 'side'",
    ),
    "no word about layers": (
        lambda: layout_of(Case(model(), "up", "f h", "mlp.up.weight", stacked=True)),
        "which layer",
    ),
    "an index it does not have": (
        lambda: layout_of(Case(model(), "e.{x}.up", "f h", "mlp.up.weight")),
        "'x', which its parameters do not have",
    ),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_a_row_that_does_not_fit_is_refused(make: Callable[[], BoundTables], says: str) -> None:
    with pytest.raises(CkptError) as caught:
        make().natives()
    assert says in str(caught.value)


def test_a_parameter_without_a_row_is_refused_by_name() -> None:
    table = Table("layers.{l}", to="layers.{l}", rows=[row("up", "f h", "mlp.up.weight")])
    with pytest.raises(CkptError) as caught:
        BoundTables([table], model()).natives()
    for name in parameters(model()):
        assert (f"parameter {name}:" in str(caught.value)) == (".mlp.up." not in name), name


def test_two_rows_for_one_tensor_are_refused() -> None:
    layout = layout_of(Case(model(), "up", "f h", "mlp.up.weight"))
    layout.tables = [*layout.tables, *layout.tables]
    with pytest.raises(CkptError, match=r"two rows claim the native tensor 'layers\.0\.up'"):
        layout.natives()
