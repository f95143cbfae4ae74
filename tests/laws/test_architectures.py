"""Architectures: facts, JSON and parameters say the same model, and nothing but the schema is accepted."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.architecture import (
    Activation,
    Architecture,
    Attention,
    Classifier,
    DeltaNet,
    Facts,
    Head,
    Indexer,
    LatentAttention,
    Layer,
    Mamba,
    Mlp,
    Moe,
    Norm,
    Patches,
    Positions,
    RelativeBias,
    Rotary,
    RotaryKind,
    RotaryScaling,
    Router,
    SharedExpert,
    Stack,
    Temperature,
    Tokens,
    architecture_of,
    differing,
    dumps,
    facts_of,
    from_json,
    parameters,
    rotary_width,
    to_json,
    validate,
)
from ckpt_core.architecture.facts import default_of
from ckpt_core.architecture.schema import SCALING_FIELDS
from ckpt_core.errors import CkptError

# --- any architecture ---------------------------------------------------------------------------------------------------

flags = st.booleans()
sizes = st.integers(1, 9)
factors = st.sampled_from([0.25, 0.5, 2.0, 3.5])


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


norms = st.builds(
    Norm,
    kind=st.sampled_from(["rms", "layer"]),
    eps=st.sampled_from([0.0, 1e-6, 1e-5]),
    weight=flags,
    bias=flags,
    zero_centred=flags,
)


@st.composite
def scalings(draw: st.DrawFn, pairs: int) -> RotaryScaling:
    """`pairs`: how many pairs of a head are rotated; longrope has a factor for each."""
    kind = draw(st.sampled_from(list(RotaryKind)))
    required, optional = SCALING_FIELDS[kind]
    values: dict[str, object] = {}
    for name in sorted(required | {name for name in optional if draw(flags)}):
        if name.endswith("positions"):
            values[name] = draw(st.integers(1, 1 << 20))
        elif name.endswith("_factors"):
            values[name] = tuple(draw(st.lists(factors, min_size=pairs, max_size=pairs)))
        else:
            values[name] = draw(flags) if name == "truncate" else draw(factors)
    low = values.get("low_frequency_factor")
    if isinstance(low, float):
        values["high_frequency_factor"] = low + 0.5  # the high one is above the low one
    return RotaryScaling(kind=kind, **values)


@st.composite
def rotaries(draw: st.DrawFn, head_dim: int) -> Rotary:
    fraction = draw(st.sampled_from([0.5, 1.0]))
    scaling = draw(maybe(scalings(int(head_dim * fraction) // 2)))
    return Rotary(theta=draw(st.sampled_from([1e4, 5e5])), fraction=fraction, scaling=scaling)


temperatures = st.builds(Temperature, interval=sizes, scale=factors, shift=sizes)
relative = st.builds(RelativeBias, buckets=sizes, max_distance=sizes, bidirectional=flags)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    groups, head_dim = draw(st.integers(1, 4)), draw(st.sampled_from([4, 8]))
    return draw(
        st.builds(
            Attention, heads=st.just(groups * draw(st.integers(1, 3))), groups=st.just(groups), head_dim=st.just(head_dim),
            norm=maybe(norms), out_norm=maybe(norms), scale=maybe(factors), q_bias=flags, k_bias=flags, v_bias=flags, out_bias=flags,
            qk_norm=maybe(norms), qk_norm_whole=flags, rotary=maybe(rotaries(head_dim)), alibi=flags, relative_bias=maybe(relative),
            relative_bias_scale=factors, window=maybe(sizes), softcap=maybe(factors), sinks=flags, head_scale=flags,
            qk_norm_after_rotary=flags, out_gate=flags, chunk=maybe(sizes), temperature=maybe(temperatures), in_scale=factors, out_scale=factors,
        )
    )  # fmt: skip


indexers = st.builds(Indexer, heads=sizes, head_dim=st.integers(4, 9), top_k=sizes, norm=norms)


@st.composite
def latents(draw: st.DrawFn) -> LatentAttention:
    rank = draw(maybe(sizes))
    return draw(
        st.builds(
            LatentAttention, heads=sizes, kv_rank=sizes, nope_dim=sizes, rope_dim=st.just(4), value_dim=sizes, rotary=maybe(rotaries(4)),
            kv_norm=norms, q_rank=st.just(rank), q_norm=maybe(norms), norm=maybe(norms), out_norm=maybe(norms), scale=maybe(factors), bias=flags,
            indexer=maybe(indexers) if rank else st.none(),
        )
    )  # fmt: skip


@st.composite
def deltas(draw: st.DrawFn) -> DeltaNet:
    heads = draw(st.integers(1, 4))
    return draw(
        st.builds(
            DeltaNet, key_heads=st.just(heads), value_heads=st.just(heads * draw(st.integers(1, 3))), key_dim=sizes, value_dim=sizes,
            conv=sizes, head_norm=norms, norm=maybe(norms), out_norm=maybe(norms), beta_scale=factors,
            decay_rank=maybe(sizes), gate_rank=maybe(sizes), sigmoid_gate=flags,
        )
    )  # fmt: skip


@st.composite
def mambas(draw: st.DrawFn) -> Mamba:
    groups, parts = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    return draw(
        st.builds(
            Mamba, heads=st.just(groups * draw(st.integers(1, 3))), head_dim=st.just(parts * draw(sizes)), groups=st.just(groups), state=sizes,
            conv=sizes, norm=maybe(norms), out_norm=maybe(norms), gated_norm=maybe(norms), norm_groups=st.just(parts), conv_bias=flags, bias=flags,
            norm_before_gate=flags, in_scale=factors, out_scale=factors, scales=maybe(st.tuples(*[factors] * 5)),
        )
    )  # fmt: skip


routers = st.builds(
    Router, top_k=st.integers(1, 2), score=st.sampled_from(["softmax", "sigmoid"]), normalise=flags, scale=factors, bias=flags,
    correction_bias=flags, groups=maybe(sizes), group_top_k=maybe(sizes), group_score=st.sampled_from(["max", "top2"]), on_input=flags,
)  # fmt: skip
one_by_one = st.builds(Router, top_k=st.integers(1, 2), scale=factors, bias=flags, on_input=flags, margin=factors)
moes = st.builds(
    Moe,
    experts=st.integers(2, 5),
    ffn=sizes,
    router=routers | one_by_one,
    shared=maybe(st.builds(SharedExpert, ffn=sizes, gate=flags)),
    latent=maybe(sizes),
)


@st.composite
def mlps(draw: st.DrawFn) -> Mlp:
    dense, gated = draw(flags), draw(flags)
    known = [one for one in Activation if dense or one is not Activation.XIELU]
    return draw(
        st.builds(
            Mlp, activation=st.sampled_from(known), gated=st.just(gated), ffn=sizes if dense else st.none(), moe=st.none() if dense else moes,
            norm=maybe(norms), out_norm=maybe(norms), up_bias=flags, down_bias=flags,
            clamp=maybe(factors) if gated else st.none(), up_offset=factors if gated else st.just(0.0),
            gate_scale=factors if gated else st.just(1.0), out_scale=factors,
        )
    )  # fmt: skip


@st.composite
def stacks(draw: st.DrawFn, crossing: bool) -> Stack:
    kinds = []
    for _ in range(draw(st.integers(1, 3))):
        mixers = {"attention": attentions(), "latent_attention": latents(), "delta": deltas(), "mamba": mambas()}
        mixer = draw(st.sampled_from([*mixers, None]))
        alone = mixer is None or draw(flags)
        mlp = st.none() if alone and mixer else mlps()
        both = st.just(False) if alone else flags
        beside = mixer == "attention" and draw(flags)
        mixers["mamba"] = mambas().map(lambda one: dataclasses.replace(one, norm=None)) if beside else mixers["mamba"]
        chosen = [mixer, "mamba"] if beside else [mixer] if mixer else []
        kinds.append(
            draw(
                st.builds(
                    Layer, mlp=mlp, **{one: mixers[one] for one in chosen},
                    cross_attention=maybe(attentions()) if crossing else st.none(), parallel=both, shared_norm=both,
                    residual_from_norm=flags, layer_scale=st.just(False) if beside else flags, residual_scale=factors,
                )
            )
        )  # fmt: skip
    layers = tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5)))
    shared = relative if layers[0].attention else st.none()
    crossed = relative if layers[0].cross_attention else st.none()
    return draw(
        st.builds(
            Stack, layers=st.just(layers), causal=st.just(True) if any(layer.delta or layer.mamba for layer in layers) else flags, positions=maybe(st.builds(Positions, count=sizes, offset=sizes)), input_norm=maybe(norms),
            final_norm=maybe(norms), relative_bias=maybe(shared), cross_relative_bias=maybe(crossed),
        )
    )  # fmt: skip


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    kind = draw(st.sampled_from(["decoder", "encoder", "encoder-decoder", "vision"]))
    tokens = Tokens(
        vocabulary=draw(sizes), padded_vocabulary=9 + draw(sizes), scale=draw(factors), norm=draw(maybe(norms))
    )
    heads = st.builds(Head, tied=flags, bias=flags, scale=factors, softcap=maybe(factors))
    vision = kind == "vision"
    return Architecture(
        hidden=draw(sizes),
        tokens=None if vision else tokens,
        patches=draw(
            st.builds(Patches, height=sizes, width=sizes, patch=sizes, channels=sizes, bias=flags, class_tokens=sizes)
        )
        if vision
        else None,
        encoder=draw(stacks(crossing=False)) if kind != "decoder" else None,
        decoder=draw(stacks(crossing=kind == "encoder-decoder")) if "decoder" in kind else None,
        head=None if vision else draw(maybe(heads)),
        classifier=draw(maybe(st.builds(Classifier, classes=maybe(sizes), hidden=flags))),
    )


@settings(max_examples=150)
@given(architectures())
def test_facts_say_the_whole_architecture(architecture: Architecture) -> None:
    validate(architecture)
    assert architecture_of(facts_of(architecture), "test") == architecture


@settings(max_examples=150)
@given(architectures())
def test_json_says_the_whole_architecture(architecture: Architecture) -> None:
    assert from_json(json.loads(dumps(architecture))) == architecture


@settings(max_examples=50)
@given(architectures())
def test_every_fact_is_one_of_the_schema(architecture: Architecture) -> None:
    for path in facts_of(architecture):
        if path not in ("kind", "layers", "encoder.layers", "decoder.layers"):
            default_of(path.removesuffix("?"))


@settings(max_examples=100)
@given(architectures())
def test_finer_axes_fill_their_axis(architecture: Architecture) -> None:
    names = list(parameters(architecture))
    assert len(names) == len(set(names))
    for parameter in parameters(architecture).values():
        for axis in parameter.axes:
            if axis.terms:
                assert sum(math.prod(size for _, size in term) for term in axis.terms) == axis.size, parameter


# --- one that has everything, to take apart ---------------------------------------------------------------------------------


def full() -> Architecture:
    norm = Norm(kind="rms", eps=1e-5, bias=True)
    scaling = RotaryScaling(
        kind=RotaryKind.LONGROPE,
        original_positions=8,
        short_factors=(1.0, 2.0, 1.5, 3.0),
        long_factors=(2.0, 3.0, 2.5, 4.0),
    )
    attention = Attention(
        heads=4, groups=2, head_dim=8, norm=norm, qk_norm=norm, rotary=Rotary(theta=1e4, scaling=scaling), window=7, scale=0.5,
        relative_bias=RelativeBias(buckets=3, max_distance=9, bidirectional=True),
        chunk=6, temperature=Temperature(interval=5, scale=0.1, shift=1),
    )  # fmt: skip
    latent = LatentAttention(
        heads=2,
        kv_rank=3,
        nope_dim=5,
        rope_dim=4,
        value_dim=6,
        rotary=Rotary(theta=2e4),
        kv_norm=norm,
        q_rank=7,
        q_norm=norm,
        norm=norm,
        indexer=Indexer(heads=3, head_dim=8, top_k=4, norm=norm),
    )
    delta = DeltaNet(
        key_heads=2, value_heads=4, key_dim=3, value_dim=5, conv=6, norm=norm, head_norm=norm, beta_scale=2.0, decay_rank=7, gate_rank=8
    )  # fmt: skip
    mamba = Mamba(heads=6, head_dim=4, groups=3, state=5, conv=2, norm=norm, gated_norm=norm, norm_groups=2)
    beside = Mamba(heads=6, head_dim=4, groups=3, state=5, conv=2, scales=(0.5, 1.5, 2.0, 0.25, 3.0))
    router = Router(top_k=2, groups=2, group_top_k=1)
    moe = Moe(experts=4, ffn=5, router=router, shared=SharedExpert(ffn=6, gate=True), latent=7)
    dense = Mlp(activation=Activation.SILU, gated=True, ffn=10, norm=norm, up_bias=True)
    sparse = Mlp(activation=Activation.GELU_ERF, gated=True, moe=moe, norm=norm, clamp=7.0, up_offset=1.0)
    decoder = (
        Layer(attention=attention, cross_attention=attention, mlp=dense),
        Layer(attention=attention, cross_attention=attention, mlp=dense),
        Layer(latent_attention=latent, cross_attention=attention, mlp=sparse),
        Layer(delta=delta, cross_attention=attention, mlp=dense),
        Layer(mamba=mamba),
        Layer(mlp=dense),
        Layer(attention=attention, mamba=beside, mlp=dense),
    )
    return Architecture(
        hidden=16,
        tokens=Tokens(vocabulary=13, padded_vocabulary=16, norm=norm),
        encoder=Stack(layers=(Layer(attention=attention, mlp=dense),), causal=False, positions=Positions(count=8)),
        decoder=Stack(
            layers=decoder,
            causal=True,
            final_norm=norm,
            relative_bias=RelativeBias(buckets=3, max_distance=9, bidirectional=False),
            cross_relative_bias=RelativeBias(buckets=5, max_distance=7, bidirectional=True),
        ),
        head=Head(tied=True, softcap=30.0),
        classifier=Classifier(classes=3),
    )


def objects(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every object in a JSON value."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects(inner, (*path, key))


def leaves(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a JSON value that is not an object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def at(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return value


def spelled(path: tuple) -> str:
    """A path as errors write it."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


FULL = to_json(full())
OBJECTS, LEAVES = (
    sorted(objects(FULL), key=str),
    sorted((path for path in leaves(FULL) if path != ("schema",)), key=str),
)


def test_the_full_one_is_legal_and_uses_every_class() -> None:
    architecture = full()
    assert from_json(copy.deepcopy(FULL)) == architecture
    seen = {type(at_class) for at_class in _dataclasses_in(architecture)}
    assert seen == {
        Architecture, Tokens, Stack, Layer, Attention, LatentAttention, DeltaNet, Mamba, Mlp, Moe, Router, SharedExpert, Norm, Rotary, RotaryScaling,
        RelativeBias, Positions, Head, Classifier, Temperature, Indexer,
    }  # fmt: skip


def _dataclasses_in(value: object) -> Iterator[object]:
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _dataclasses_in(getattr(value, field.name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from _dataclasses_in(inner)


@pytest.mark.parametrize("path", OBJECTS, ids=spelled)
def test_an_unknown_field_is_refused_by_its_path(path: tuple) -> None:
    changed = copy.deepcopy(FULL)
    at(changed, path)["hiden"] = 3
    with pytest.raises(CkptError) as caught:
        from_json(changed, "some.json")
    assert caught.value.problem == f"unknown field {spelled((*path, 'hiden'))!r}"
    assert caught.value.file == "some.json"


def test_an_unknown_field_is_told_the_nearest_known() -> None:
    with pytest.raises(CkptError) as caught:
        from_json({"schema": 1, "hiden": 3})
    assert caught.value.fix == "did you mean 'hidden'?"


REQUIRED = [
    ("hidden",), ("tokens", "vocabulary"), ("tokens", "padded_vocabulary"), ("tokens", "norm", "kind"), ("tokens", "norm", "eps"), ("head", "tied"),
    ("decoder", "layers"), ("decoder", "causal"), ("decoder", "layers", 0, "attention", "heads"),
    ("decoder", "layers", 0, "attention", "groups"), ("decoder", "layers", 0, "attention", "head_dim"),
    ("decoder", "layers", 0, "attention", "rotary", "theta"), ("decoder", "layers", 0, "attention", "rotary", "scaling", "kind"),
    ("decoder", "layers", 0, "mlp", "activation"), ("decoder", "layers", 0, "mlp", "gated"), ("decoder", "layers", 1, "mlp", "moe", "experts"),
    ("decoder", "layers", 1, "mlp", "moe", "ffn"), ("decoder", "layers", 1, "mlp", "moe", "router"),
    ("decoder", "layers", 1, "mlp", "moe", "router", "top_k"), ("decoder", "layers", 1, "mlp", "moe", "shared", "ffn"),
    ("decoder", "layers", 1, "latent_attention", "kv_rank"), ("decoder", "layers", 1, "latent_attention", "kv_norm"),
    ("decoder", "relative_bias", "buckets"), ("encoder", "positions", "count"),
    *(("decoder", "layers", 2, "delta", name) for name in ("key_heads", "value_heads", "key_dim", "value_dim", "conv", "head_norm")),
    *(("decoder", "layers", 3, "mamba", name) for name in ("heads", "head_dim", "groups", "state", "conv")),
]  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED, ids=spelled)
def test_a_missing_field_is_refused_by_its_path(path: tuple) -> None:
    changed = copy.deepcopy(FULL)
    del at(changed, path[:-1])[path[-1]]
    with pytest.raises(CkptError) as caught:
        from_json(changed)
    assert caught.value.problem == f"missing field {spelled(path)!r}"


@pytest.mark.parametrize("path", LEAVES, ids=spelled)
def test_a_wrong_type_is_refused_by_its_path(path: tuple) -> None:
    right = at(FULL, path)
    for wrong in ("7", True, 1.5, 7, [1], {"a": 1}, [[1.0]]):
        if type(wrong) is type(right) or (type(right) is float and type(wrong) is int):
            continue
        if isinstance(right, list) and isinstance(wrong, list):
            continue
        changed = copy.deepcopy(FULL)
        at(changed, path[:-1])[path[-1]] = wrong
        with pytest.raises(CkptError) as caught:
            from_json(changed)
        assert spelled(path) in caught.value.problem, (wrong, caught.value)


def test_a_wrong_type_inside_a_list_is_refused_by_its_index() -> None:
    path = ("decoder", "layers", 0, "attention", "rotary", "scaling", "long_factors")
    changed = copy.deepcopy(FULL)
    at(changed, path)[1] = "two"
    with pytest.raises(CkptError, match=r"long_factors\[1\]"):
        from_json(changed)


@pytest.mark.parametrize("version", [None, 0, 2, "1", 1.5])
def test_another_schema_is_refused(version: object) -> None:
    with pytest.raises(CkptError, match="unknown architecture schema"):
        from_json(FULL | {"schema": version})


# what is wrong, the path that is named: each change of the full architecture contradicts one sentence of the schema
A = ("decoder", "layers", 0, "attention")
CONTRADICTIONS = [
    (("hidden",), 0, "hidden"),
    (("tokens", "padded_vocabulary"), 12, "tokens.padded_vocabulary"),
    (("decoder", "layers"), [], "layers"),
    ((*A, "heads"), 5, "layers.0.attention"),
    ((*A, "groups"), 0, "layers.0.attention.groups"),
    ((*A, "window"), 0, "layers.0.attention.window"),
    ((*A, "chunk"), 0, "layers.0.attention.chunk"),
    ((*A, "temperature", "interval"), 0, "layers.0.attention.temperature.interval"),
    ((*A, "temperature", "scale"), -0.1, "layers.0.attention.temperature"),
    ((*A, "temperature", "shift"), -1, "layers.0.attention.temperature"),
    ((*A, "rotary", "theta"), -1.0, "layers.0.attention.rotary.theta"),
    ((*A, "rotary", "fraction"), 0.4, "layers.0.attention.rotary.fraction"),
    ((*A, "rotary", "scaling", "beta_fast"), 1.0, "layers.0.attention.rotary.scaling.beta_fast"),
    ((*A, "rotary", "scaling", "original_positions"), None, "layers.0.attention.rotary.scaling.original_positions"),
    (
        (*A, "rotary", "scaling"),
        {
            "kind": "llama3",
            "factor": 8.0,
            "original_positions": 32,
            "low_frequency_factor": 4.0,
            "high_frequency_factor": 1.0,
        },
        "layers.0.attention.rotary.scaling.low_frequency_factor: 4.0 is above high_frequency_factor=1.0",
    ),
    ((*A, "norm", "kind"), "batch", "layers.0.attention.norm.kind"),
    ((*A, "norm", "eps"), -1.0, "layers.0.attention.norm.eps"),
    ((*A[:-1], "mlp", "ffn"), None, "layers.0.mlp"),
    (("decoder", "layers", 1, "mlp", "moe", "router", "top_k"), 5, "layers.2.mlp.moe.router.top_k"),
    (("decoder", "layers", 1, "mlp", "moe", "router", "score"), "max", "layers.2.mlp.moe.router.score"),
    (("decoder", "layers", 2, "delta", "value_heads"), 5, "layers.3.delta"),
    (("decoder", "layers", 1, "latent_attention", "indexer", "top_k"), 0, "layers.2.latent_attention.indexer.top_k"),
    (
        ("decoder", "layers", 1, "latent_attention", "indexer", "head_dim"),
        3,
        "layers.2.latent_attention.indexer.head_dim",
    ),
    (("decoder", "layers", 1, "latent_attention", "q_rank"), None, "layers.2.latent_attention.indexer"),
    (
        ("decoder", "layers", 1, "latent_attention", "index_from_before"),
        True,
        "layers.2.latent_attention.index_from_before",
    ),
    (("decoder", "layers", 2, "delta", "decay_rank"), 0, "layers.3.delta.decay_rank"),
    (("decoder", "layers", 2, "delta", "conv"), 0, "layers.3.delta.conv"),
    (("decoder", "layers", 2, "delta", "head_norm", "eps"), -1.0, "layers.3.delta.head_norm.eps"),
    (("decoder", "layers", 3, "mamba"), None, "layers.4"),
    (("decoder", "layers", 3, "parallel"), True, "layers.4"),
    (("decoder", "layers", 5, "mamba", "norm"), {"kind": "rms", "eps": 1e-5}, "layers.6.mamba.norm"),
    (("decoder", "layers", 5, "layer_scale"), True, "layers.6.layer_scale"),
    (("decoder", "layers", 5, "norm_after_sum"), True, "layers.6.norm_after_sum"),
    (("decoder", "layers", 5, "mamba", "scales"), [1.0, 2.0], "layers.6.mamba.scales"),
    (
        ("decoder", "layers", 5, "delta"),
        {
            "key_heads": 2,
            "value_heads": 2,
            "key_dim": 3,
            "value_dim": 5,
            "conv": 6,
            "head_norm": {"kind": "rms", "eps": 1e-5},
        },
        "layers.6",
    ),
    (("decoder", "layers", 4, "shared_norm"), True, "layers.5"),
    (("decoder", "layers", 3, "attention"), {"heads": 2, "groups": 2, "head_dim": 4}, "layers.4"),
    (("decoder", "layers", 3, "mamba", "heads"), 7, "layers.4.mamba"),
    (("decoder", "layers", 3, "mamba", "norm_groups"), 5, "layers.4.mamba.norm_groups"),
    (("decoder", "layers", 3, "mamba", "state"), 0, "layers.4.mamba.state"),
    (("decoder", "layers", 3, "mamba", "gated_norm", "eps"), -1.0, "layers.4.mamba.gated_norm.eps"),
    (("decoder", "causal"), False, "layers.4.mamba"),
    (("decoder", "layers", 1, "mlp", "moe", "router", "margin"), 0.01, "layers.2.mlp.moe.router.margin"),
    (("decoder", "layers", 1, "mlp", "moe", "latent"), 0, "layers.2.mlp.moe.latent"),
    (("decoder", "causal"), False, "layers.3.delta"),
    ((*A[:-1], "mlp", "clamp"), -1.0, "layers.0.mlp.clamp"),
    (("decoder", "layers", 1, "mlp", "activation"), "xielu", "layers.2.mlp.activation"),
    (("decoder", "layers", 1, "mlp", "gated"), False, "layers.2.mlp.clamp"),
    (("decoder", "layers", 1, "mlp", "gated"), False, "layers.2.mlp.up_offset"),
    (("encoder",), None, "cross_attention"),
    ((*A[:-1], "cross_attention"), None, "decoder.cross_relative_bias"),
]


@pytest.mark.parametrize(
    ("path", "value", "named"), CONTRADICTIONS, ids=lambda value: spelled(value) if isinstance(value, tuple) else None
)
def test_a_contradiction_is_named(path: tuple, value: object, named: str) -> None:
    changed = copy.deepcopy(FULL)
    at(changed, path[:-1])[path[-1]] = value
    with pytest.raises(CkptError) as caught:
        from_json(changed)
    assert named in str(caught.value)


def test_all_contradictions_are_reported_together() -> None:
    changed = copy.deepcopy(FULL)
    changed["hidden"] = 0
    changed["tokens"]["padded_vocabulary"] = 1
    with pytest.raises(CkptError) as caught:
        from_json(changed)
    assert "hidden" in str(caught.value)
    assert "tokens.padded_vocabulary" in str(caught.value)


# --- facts that are wrong ----------------------------------------------------------------------------------------------------

# the fact, its value, what the error names
WRONG_FACTS = [
    ("attention.hedas", 3, "attention.hedas"),
    ("attention.heads", "many", "attention.heads"),
    ("attention.heads", True, "attention.heads"),
    ("mlp.activation", "sine", "mlp.activation"),
    ("layers", 0, "layers"),
    ("layers", 10**9, "layers"),
    ("kind", "recurrent", "kind"),
]


def small() -> Architecture:
    attention = Attention(heads=4, groups=2, head_dim=8, norm=Norm(kind="rms", eps=1e-5))
    layer = Layer(attention=attention, mlp=Mlp(activation=Activation.SILU, gated=True, ffn=10))
    return Architecture(
        hidden=16, tokens=Tokens(vocabulary=13, padded_vocabulary=16), decoder=Stack(layers=(layer, layer), causal=True)
    )


@pytest.mark.parametrize(("path", "value", "named"), WRONG_FACTS)
def test_a_wrong_fact_is_named(path: str, value: object, named: str) -> None:
    facts = facts_of(small())
    facts[path] = value
    with pytest.raises(CkptError) as caught:
        architecture_of(facts, "some.json")
    assert named in str(caught.value)
    assert caught.value.file == "some.json"


@pytest.mark.parametrize("path", ["hidden", "attention.heads", "attention.norm.eps", "mlp.gated", "causal"])
def test_a_missing_fact_is_named(path: str) -> None:
    facts = facts_of(small())
    del facts[path]
    with pytest.raises(CkptError) as caught:
        architecture_of(facts, "some.json")
    assert path.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(("fraction", "width"), [(None, 0), (1.0, 10), (0.5, 5), (0.45, 4), (0.25, 2)])
def test_the_rotated_width_is_the_integer_part(fraction: float | None, width: int) -> None:
    assert rotary_width(None if fraction is None else Rotary(theta=1e4, fraction=fraction), 10) == width


def test_a_yarn_that_says_what_is_usual_is_the_one_that_does_not() -> None:
    """As the reference forward takes it; another value is another model."""
    rotary = "attention.rotary.scaling"
    plain = Facts({f"{rotary}.kind": RotaryKind.YARN, f"{rotary}.factor": 4.0})
    usual = {f"{rotary}.beta_fast": 32.0, f"{rotary}.beta_slow": 1.0, f"{rotary}.truncate": True}
    assert differing(plain, Facts(plain | usual)) == []
    others = {f"{rotary}.beta_fast": 31.0, f"{rotary}.beta_slow": 2.0, f"{rotary}.truncate": False}
    assert differing(plain, Facts(plain | others)) == sorted(others)
    assert differing(plain, Facts(plain | {f"{rotary}.mscale": 0.7})) == [f"{rotary}.mscale"]
    fixed = Facts(plain | {f"{rotary}.attention_factor": 1.2})
    assert differing(fixed, Facts(fixed | {f"{rotary}.mscale": 0.7, f"{rotary}.mscale_all_dim": 0.8})) == []
