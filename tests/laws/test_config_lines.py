"""Every line of a config table reads back what it writes, and writes back what it reads; and no line speaks for another's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.config import (
    LEFT_OUT,
    REQUIRED,
    Codec,
    Config,
    TableError,
    all_agree,
    by_layer,
    choice,
    custom,
    decided,
    derived,
    fact_is,
    ignore,
    in_other_layers,
    key,
    key_is,
    layers_of,
    nested,
    note,
    one_of,
    pairs_by_hand,
    repeats,
    rules,
    same_as,
    switched,
    tagged,
    value_of,
    values,
    where,
)
from ckpt_core.errors import CkptError, Refusal

HEADS = key("heads", "attention.heads", type=values.whole)
HIDDEN = key("hidden_size", "hidden", type=values.whole)
LAYERS = key("layers", "layers", type=values.layers)
WINDOW = key("window", "attention.window", default=None)


def read_gelu(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Two flags, of which the second counts only beside a bias."""
    if config.get("relu"):
        facts["mlp.activation"] = "relu"
    else:
        facts["mlp.activation"] = "gelu_tanh" if config.get("fused") and config.get("bias") else "gelu"


GELU = decided(
    ["relu", "fused"],
    ["mlp.activation"],
    read=read_gelu,
    values={"relu": (False, True), "fused": (True, LEFT_OUT)},
    uses=["bias"],
    why="two flags",
)


def read_crop(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """A size, or a list of height and width."""
    size = config["size"]
    height, width = size if isinstance(size, list) else (size, size)
    facts["patches.height"], facts["patches.width"] = int(height), int(width)


CROP = [
    decided(
        ["size"],
        ["patches.height", "patches.width"],
        read=read_crop,
        values={"size": [value_of("patches.height"), value_of("patches.height", "patches.width")]},
        why="a number of pixels, or a pair of them",
    )
]


def read_sliding(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Which layers have the window, by a list."""
    present = tuple(bool(one) for one in config["which"])
    if any(present) and config["sliding"]:
        facts["attention.window"] = config["window_size"]
        if not all(present):
            facts["attention.window?"] = PerLayer(present)


SLIDING = decided(
    ["sliding", "window_size", "which"],
    ["attention.window", "attention.window?"],
    read=read_sliding,
    values={
        ("sliding", "window_size"): [(True, value_of("attention.window")), (False, None)],
        "which": [layers_of("attention.window", rules.each())],
    },
    uses=["layers"],
    why="which layers have a window",
)


def read_root(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["tokens.scale"] = config["hidden_size"] ** 0.5 if config.get("scaled") else 1.0


ROOT = decided(
    ["scaled"],
    ["tokens.scale"],
    read=read_root,
    values={"scaled": (False, True)},
    uses=["hidden_size"],
    tolerance=1e-6,
    why="by the root",
)
BIAS = key("bias", "mlp.up_bias", "mlp.down_bias", type=values.flag)
NORMS = [
    choice(
        "norm",
        {
            "LayerNorm": {"attention.norm.kind": "layer", "attention.norm.bias": True},
            "RMSNorm": {"attention.norm.kind": "rms", "attention.norm.bias": False},
        },
        default="LayerNorm",
    ),
    all_agree("attention.norm", "mlp.norm", "final_norm", why="all norms of a model are of one kind"),
    switched("qk_norm", [all_agree("attention.norm", "attention.qk_norm", why="all norms of a model are of one kind")]),
]
SCALING = tagged(
    "rope_scaling",
    "attention.rotary.scaling.kind",
    tag=("rope_type", "type"),
    default="default",
    kinds={
        "default": [],
        "linear": [key("factor", "attention.rotary.scaling.factor")],
        "llama3": [
            key("factor", "attention.rotary.scaling.factor"),
            key("low", "attention.rotary.scaling.low_frequency_factor"),
        ],
    },
)
POSITIONS = tagged(
    None,
    tag="position_type",
    kinds={"learned": [key("count", "positions.count")], "rope": [key("base", "attention.rotary.theta")], "none": []},
    when={"learned": "positions.count", "rope": "attention.rotary"},
    rest={"base": 10000},
)
MOE = [
    nested(
        "moe",
        [key("experts", "mlp.moe.experts"), by_layer("layers_with", "mlp.moe", rules.indices(everywhere=-1))],
        optional=True,
    ),
    in_other_layers("ffn", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.experts"),
]


def norms(kind: str, qk: bool) -> dict[str, Any]:
    names = ["attention.norm", "mlp.norm", "final_norm", *["attention.qk_norm"] * qk]
    return {f"{name}.{part}": value for name in names for part, value in (("kind", kind), ("bias", kind == "layer"))}


def masked(path: str, mask: tuple[bool, ...], value: object) -> dict[str, Any]:
    """The facts of a thing that some layers have; in a model where none has it there are none."""
    if not any(mask):
        return {"layers": len(mask)}
    return {"layers": len(mask), path: value, **({} if all(mask) else {f"{path}?": PerLayer(mask)})}


MASKS = some.lists(some.booleans(), min_size=1, max_size=8).map(tuple)
SIZES = some.integers(1, 1 << 30)

# Lines, and the facts that they can say: a strategy of sets of facts.
LENSES: dict[str, tuple[list[Any], Any]] = {
    "key": ([HIDDEN], some.fixed_dictionaries({"hidden": SIZES})),
    "key of two facts": ([BIAS], some.booleans().map(lambda on: {"mlp.up_bias": on, "mlp.down_bias": on})),
    "key with a codec": ([key("act", "mlp.activation", via=one_of({"silu": "s", "swish": "s", "relu": "r"}))], some.sampled_from("sr").map(lambda one: {"mlp.activation": one})),
    "key under two names": ([key("eps", "final_norm.eps", also=["epsilon"], write_all=True)], some.floats(1e-9, 1).map(lambda eps: {"final_norm.eps": eps})),
    "same_as": ([HEADS, key("groups", "attention.groups", default=same_as("heads"))], some.fixed_dictionaries({"attention.heads": SIZES, "attention.groups": SIZES})),
    "fact_is": ([fact_is("causal", True)], some.just({"causal": True})),
    "derived with a key": ([HIDDEN, HEADS, derived("head_dim", "attention.head_dim", "hidden_size / heads", rounding="floor")], some.fixed_dictionaries({"hidden": SIZES, "attention.heads": SIZES, "attention.head_dim": SIZES})),
    "derived without": ([derived(None, "attention.head_dim", "hidden_size / heads"), HIDDEN, HEADS], some.tuples(some.integers(1, 99), some.integers(1, 99)).map(lambda pair: {"hidden": pair[0] * pair[1], "attention.heads": pair[0], "attention.head_dim": pair[1]})),
    "derived root": ([derived(None, "tokens.scale", "hidden_size ** 0.5", rounding="none", tolerance=1e-6), HIDDEN], SIZES.map(lambda size: {"hidden": size, "tokens.scale": size**0.5})),
    "choice and all_agree": (NORMS, some.tuples(some.sampled_from(["layer", "rms"]), some.booleans()).map(lambda pair: norms(*pair))),
    "decided": ([GELU, BIAS], some.sampled_from([("relu", True), ("relu", False), ("gelu", True), ("gelu", False), ("gelu_tanh", True)]).map(lambda pair: {"mlp.activation": pair[0], "mlp.up_bias": pair[1], "mlp.down_bias": pair[1]})),
    "decided by what facts are": (CROP, some.tuples(SIZES, SIZES).map(lambda pair: {"patches.height": pair[0], "patches.width": pair[1]})),
    "decided by layers": ([LAYERS, SLIDING], MASKS.map(lambda mask: masked("attention.window", mask, 9))),
    "derived from facts": ([key("size", "hidden", also=["width"], type=values.whole), derived(None, "mlp.ffn", "4 * hidden", of_facts=True)], SIZES.map(lambda size: {"hidden": size, "mlp.ffn": 4 * size})),
    "key in units of another": ([key("shared", "mlp.moe.shared.ffn", type=values.whole, times="width"), key("width", "mlp.moe.ffn", type=values.whole)], some.tuples(some.integers(1, 999), some.integers(1, 999)).map(lambda pair: {"mlp.moe.shared.ffn": pair[0] * pair[1], "mlp.moe.ffn": pair[1]})),
    "repeated": ([HEADS, repeats("kv_heads", "heads", default=16)], SIZES.map(lambda heads: {"attention.heads": heads})),
    "tagged object": ([SCALING], some.sampled_from([{}, {"kind": "linear", "factor": 2.0}, {"kind": "llama3", "factor": 8.0, "low_frequency_factor": 1.0}]).map(lambda said: {f"attention.rotary.scaling.{name}": value for name, value in said.items()})),
    "tagged config": ([POSITIONS], some.sampled_from([{}, {"positions.count": 7}, {"attention.rotary.theta": 500.0}])),
    "where": ([key("q", "latent_attention.q_rank", default=None), where("latent_attention.q_rank", [key("q_eps", "latent_attention.q_norm.eps")], otherwise={"q_eps": 0.0})], some.sampled_from([{}, {"latent_attention.q_rank": 3, "latent_attention.q_norm.eps": 1.0}])),
    "nested and other layers": ([LAYERS, *MOE], MASKS.map(lambda mask: {**masked("mlp.moe.experts", mask, 8), **({} if all(mask) else {"mlp.ffn": 5})}).map(lambda facts: {name.replace("mlp.moe.experts?", "mlp.moe?"): value for name, value in facts.items()}).map(lambda facts: facts | ({"mlp.ffn?": PerLayer(not one for one in facts["mlp.moe?"])} if "mlp.moe?" in facts else {}))),
}  # fmt: skip
RULES = {
    "each": rules.each(),
    "each of two names": rules.each(having="sliding", lacking="full"),
    "all but each": ~rules.each(),
    "indices": rules.indices(),
    "every n-th or each": rules.every_nth() | rules.each(),
}
for name, rule in RULES.items():
    LENSES[name] = ([LAYERS, WINDOW, by_layer("which", "attention.window", rule)], MASKS.map(lambda mask: masked("attention.window", mask, 9)))  # fmt: skip
LENSES["first n"] = (
    [LAYERS, WINDOW, by_layer("which", "attention.window", rules.first_layers())],
    some.tuples(some.integers(1, 6), some.integers(1, 6)).map(
        lambda pair: masked("attention.window", tuple(index < pair[0] for index in range(pair[1])), 9)
    ),
)


@pytest.mark.parametrize("name", LENSES)
def test_what_is_written_reads_back(name: str) -> None:
    """read(write(facts)) is the facts, and write(read(config)) the config, for every line on its domain."""
    lines, domain = LENSES[name]
    table = Config(name, lines)

    @given(facts=domain)
    def holds(facts: dict[str, Any]) -> None:
        config = table.write(Facts(facts), {})
        said, notes = table.read(config, "file")
        assert said == facts
        assert table.write(said, notes) == config

    holds()


@pytest.mark.parametrize("name", LENSES)
def test_every_line_says_itself_in_words(name: str) -> None:
    for entry in Config(name, LENSES[name][0]).entries:
        assert len(entry.words()) > 4
        assert all(f"`{claim.split('.')[0]}" in entry.words() for claim in entry.claims if not claim.endswith("*"))
        assert not entry.by_hand


@pytest.mark.parametrize("name", LENSES)
def test_no_value_crashes_a_line(name: str) -> None:
    """Any value of any key is read, or refused by the key's name."""
    lines, domain = LENSES[name]
    table = Config(name, lines)
    wrong: list[Any] = [None, -1, 0, 3, True, "x", [], [1], {"a": 1}, 1e99]

    @given(facts=domain, value=some.sampled_from(wrong), which=some.integers(0, 20))
    def holds(facts: dict[str, Any], value: Any, which: int) -> None:
        config = table.write(Facts(facts), {})
        if not config:
            return
        changed = list(config)[which % len(config)]
        try:
            table.read({**config, changed: value}, "file")
        except CkptError as problem:
            assert any(name in str(problem) for name in table.keys), str(problem)

    holds()


def test_names_of_one_key_agree_if_they_mean_the_same() -> None:
    act = key("act", "mlp.activation", also=["function"], via=one_of({"silu": "s", "swish": "s", "relu": "r"}))
    assert Config("table", [act]).read({"act": "silu", "function": "swish"}, "file")[0] == {"mlp.activation": "s"}


def test_what_is_near_enough_is_said() -> None:
    table = Config("table", [HIDDEN, ROOT])
    assert table.write(Facts({"hidden": 64, "tokens.scale": 8.000001}), {})["scaled"] is True


def read_tanh(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """A flag that the code reads since its version 2."""
    facts["mlp.activation"] = "gelu_tanh" if config.get("tanh") and config["version"] >= 2 else "gelu"


def tanh(**assumed: Any) -> Any:
    values = {"tanh": (LEFT_OUT, True)}
    return decided(["tanh"], ["mlp.activation"], read=read_tanh, values=values, why="a flag since version 2", **assumed)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_what_is_decided_by_a_key_of_no_line_is_searched_under_what_is_assumed(name: str) -> None:
    """The key itself is not written; a file that says another value of it is read by that one."""
    version = ignore("version", why="the writer of the format says it")
    table, facts = Config("table", [tanh(assuming={"version": 2}), version]), {"mlp.activation": name}
    config = table.write(Facts(facts), {})
    assert config == ({"tanh": True} if name == "gelu_tanh" else {})
    assert table.read({**config, "version": 2}, "file")[0] == facts
    assert table.read({**config, "version": 1}, "file")[0] == {"mlp.activation": "gelu"}


def test_a_key_that_is_not_assumed_is_not_known_to_the_search() -> None:
    with pytest.raises(Refusal, match="no value of tanh says this"):
        Config("table", [tanh(uses=["version"])]).write(Facts({"mlp.activation": "gelu_tanh"}), {})
    with pytest.raises(TableError, match="'version'"):  # it must be declared, as any key of another line
        Config("table", [tanh()]).read({"tanh": True, "version": 2}, "file")


def test_what_a_line_writes_is_not_assumed_otherwise() -> None:
    table = Config("table", [tanh(assuming={"version": 2}), key("version", "layers", type=values.layers)])
    assert table.write(Facts({"mlp.activation": "gelu_tanh", "layers": 2}), {}) == {"tanh": True, "version": 2}
    with pytest.raises(Refusal, match="no value of tanh says this"):
        table.write(Facts({"mlp.activation": "gelu_tanh", "layers": 1}), {})


def test_a_line_in_an_object_may_have_a_key_of_the_name_of_a_fact_that_it_uses() -> None:
    table = Config(
        "table",
        [LAYERS, nested("o", [key("experts", "mlp.moe.experts"), by_layer("layers", "mlp.moe", rules.indices())])],
    )
    config = {"layers": 3, "o": {"experts": 8, "layers": [0, 2]}}
    facts, _ = table.read(config, "file")
    assert facts["mlp.moe?"] == PerLayer((True, False, True))
    assert table.write(facts, {}) == config


def test_a_switch_that_is_not_written_is_read() -> None:
    pooler = switched("pooling", [fact_is("classifier.hidden", True)], default=True, written=False)
    table, facts = Config("table", [pooler]), {"classifier.hidden": True}
    assert table.write(Facts(facts), {}) == table.write(Facts(), {}) == {}
    assert (table.read({}, "file")[0], table.read({"pooling": False}, "file")[0]) == (facts, {})


# --- one line for a key, one for a fact ---------------------------------------------------------------------------------

CONTRADICTIONS: dict[str, Any] = {
    "one key, two notes": lambda: [note("tp", "a"), note("tp", "b")],
    "one key, left and noted": lambda: [ignore("tp", why="training"), note("tp", "a")],
    "one key, two facts": lambda: [key("a", "hidden"), key("a", "layers")],
    "one fact, two keys": lambda: [key("a", "hidden"), key("b", "hidden")],
    "one fact, two constants": lambda: [fact_is("mlp.gated", True), fact_is("mlp.gated", False)],
    "a fact below a claim": lambda: [key("eps", "final_norm.eps"), all_agree("mlp.norm", "final_norm", why="alike")],
    "inside an object": lambda: [nested("a", [key("b", "hidden"), key("b", "layers")])],
    "in a circle": lambda: [
        all_agree("mlp.norm", "final_norm", why="alike"),
        all_agree("final_norm", "mlp.norm", why="alike"),
    ],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradicting_lines_are_no_table(name: str) -> None:
    with pytest.raises(TableError, match=r"two lines (speak|say)|in a circle"):
        Config("table", CONTRADICTIONS[name]()).read({}, "file")  # a circle is found when the table is first used


def test_a_path_may_be_refined_and_a_note_may_give_way() -> None:
    window = key("window", "attention.window")
    refined = Config("refined", [LAYERS, window, by_layer("which", "attention.window", rules.each())])
    assert refined.keys == {"layers", "window", "which"}
    both = Config(
        "both", [note("length", "max_positions", gives_way=True), key("length", "positions.count", default=None)]
    )
    assert both.write(Facts({"positions.count": 5}), {"max_positions": 9}) == {"length": 5}
    facts, notes = both.read({"length": 7}, "file")
    assert (facts, notes) == ({"positions.count": 7}, {"max_positions": 7})
    replaced = both.replace("other", ignore("length", why="nothing"), without=["length"])
    assert [type(entry).__name__ for entry in replaced.entries] == ["Ignore"]


LEAVING = {
    "reads another key": ((lambda config, facts, notes: config["heads"]), None, "reads the key 'heads'"),
    "asks for another key": ((lambda config, facts, notes: config.get("heads")), None, "asks for the key 'heads'"),
    "reads another fact": ((lambda config, facts, notes: facts["attention.heads"]), None, "reads the fact 'attention.heads'"),
    "says another fact": ((lambda config, facts, notes: facts.update(layers=3)), None, "says the fact 'layers'"),
    "takes back another fact": ((lambda config, facts, notes: facts.pop("layers")), None, "'layers'"),
    "writes another key": (None, (lambda facts, notes, config: config.update(heads=3)), "writes the key 'heads'"),
    "removes another key": (None, (lambda facts, notes, config: config.pop("heads", None)), "'heads'"),
    "looks at another fact": (None, (lambda facts, notes, config: facts.get("attention.heads")), "reads the fact 'attention.heads'"),
    "changes a fact": (None, (lambda facts, notes, config: facts.update({"hidden": 3}) or facts.__setitem__("hidden", 3)), "changes the fact"),
}  # fmt: skip


def nothing(*_: object) -> None: ...


@pytest.mark.parametrize("name", LEAVING)
def test_a_line_that_leaves_its_own_is_a_mistake_in_the_table(name: str) -> None:
    read, write, words = LEAVING[name]
    line = custom(["hidden_size"], ["hidden"], read=read or nothing, write=write or nothing, why="a test", uses=[])
    table = Config("table", [HEADS, line])
    with pytest.raises(TableError, match=words.replace(".", r"\.")):
        if read:
            table.read({"heads": 4, "hidden_size": 8}, "file")
        table.write(Facts({"attention.heads": 4, "hidden": 8}), {})


def test_what_a_line_uses_is_read_and_written_before_it_and_stands_after() -> None:
    lines = [GELU, BIAS]
    for order in itertools.permutations(lines):
        table = Config("order", order)
        facts = Facts({"mlp.activation": "gelu_tanh", "mlp.up_bias": True, "mlp.down_bias": True})
        config = table.write(facts, {})
        assert table.read(config, "file")[0] == facts
        assert list(config) == [name for line in order for name in line.keys]


# --- what single lines refuse ---------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "an absent key is not its value": ([key_is("parallel", False)], {}, "'parallel' is missing"),
    "nor is a default that is another": ([key_is("parallel", False, default=True)], {}, "True, which is parallel where it is left out"),
    "False is not 0": ([key_is("n", 0)], {"n": False}, "not supported"),
    "0 is not False": ([key_is("n", False)], {"n": 0}, "not supported"),
    "null is not False": ([key_is("n", False, or_absent=True)], {"n": None}, "not supported"),
    "another value, and why": ([key_is("n", 1, why="it has no meaning here")], {"n": 2}, "it has no meaning here"),
    "a quotient that is not a whole number": ([HIDDEN, HEADS, derived(None, "attention.head_dim", "hidden_size / heads")], {"hidden_size": 100, "heads": 12}, "hidden_size / heads is not a whole number"),
    "a size of the wrong type": ([HIDDEN], {"hidden_size": 8.0}, "'hidden_size' is not a positive whole number"),
    "two names that mean different things": ([key("act", "mlp.activation", also=["function"], via=one_of({"silu": "s", "swish": "s", "relu": "r"}))], {"act": "silu", "function": "relu"}, "'act' and 'function' disagree"),
    "a repeated key that differs": ([HEADS, repeats("kv_heads", "heads")], {"heads": 4, "kv_heads": 2}, "'heads' and 'kv_heads' disagree"),
    "a repeated key whose default differs": ([HEADS, repeats("kv_heads", "heads", default=16)], {"heads": 4}, "which is kv_heads where it is left out"),
    "a name that is not read and differs": ([HEADS, repeats("n", "heads", written=False)], {"heads": 4, "n": 2}, "-o ignore_keys=n"),
    "no layer at all": ([LAYERS, WINDOW, by_layer("dense", "attention.window", rules.some(~rules.first_layers()))], {"layers": 3, "window": 4, "dense": 3}, "'dense' does not choose layers"),
    "null, which chooses no layers": ([LAYERS, WINDOW, by_layer("dense", "attention.window", rules.first_layers(), default=1, null=REQUIRED)], {"layers": 3, "window": 4, "dense": None}, "'dense' does not choose layers"),
    "two names that disagree": ([key("a", "hidden", also=["b"])], {"a": 1, "b": 2}, "'a' and 'b' disagree"),
    "an unknown kind": ([SCALING], {"rope_scaling": {"rope_type": "spiral"}}, "rope_scaling.rope_type"),
    "a key of another kind": ([SCALING], {"rope_scaling": {"rope_type": "linear", "factor": 2, "low": 1}}, "unknown config key 'rope_scaling.low' for rope_type=linear"),
    "a key that an object lacks": ([nested("o", [HEADS])], {"o": {}}, "'heads' is missing (in 'o')"),
    "and that stands beside it": ([nested("o", [HEADS]), note("heads", "heads", gives_way=True)], {"o": {}, "heads": 4}, "'heads' is missing (in 'o')"),
    "an unknown key inside": (MOE[:1], {"moe": {"experts": 2, "layers_with": [0], "exports": 3}}, "did you mean 'experts'"),
    "a list that is too short": ([LAYERS, WINDOW, by_layer("which", "attention.window", rules.each())], {"layers": 3, "window": 4, "which": [1]}, "'which' does not choose layers"),
    "an unknown value": (NORMS, {"norm": "BatchNorm"}, "'norm' has an unknown value"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_a_line_cannot_read_is_an_error(name: str) -> None:
    lines, config, words = WRONG[name]
    with pytest.raises(CkptError) as caught:
        Config("table", lines).read(config, "file")
    assert words in str(caught.value)
    assert "file" in str(caught.value)


UNSAID: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "layers that differ": ([HEADS], {"attention.heads": PerLayer((1, 2))}, "attention.heads"),
    "facts that differ": ([BIAS], {"mlp.up_bias": True, "mlp.down_bias": False}, "mlp.up_bias"),
    "another constant": ([fact_is("mlp.gated", True)], {"mlp.gated": False}, "mlp.gated"),
    "not the quotient": ([HIDDEN, HEADS, derived(None, "attention.head_dim", "hidden_size / heads")], {"hidden": 8, "attention.heads": 2, "attention.head_dim": 3}, "attention.head_dim"),
    "no combination of flags": ([GELU, BIAS], {"mlp.activation": "gelu_tanh", "mlp.up_bias": False, "mlp.down_bias": False}, "mlp.activation"),
    "not a multiple": ([key("shared", "mlp.moe.shared.ffn", times="width"), key("width", "mlp.moe.ffn")], {"mlp.moe.shared.ffn": 7, "mlp.moe.ffn": 3}, "mlp.moe.shared.ffn"),
    "near is not near enough": ([HIDDEN, ROOT], {"hidden": 64, "tokens.scale": 8.001}, "tokens.scale"),
    "not what the facts give": ([HIDDEN, derived(None, "mlp.ffn", "4 * hidden", of_facts=True)], {"hidden": 8, "mlp.ffn": 31}, "mlp.ffn"),
    "a norm of another kind": (NORMS, norms("rms", True) | {"final_norm.kind": "layer"}, "final_norm"),
    "two kinds at once": ([POSITIONS], {"positions.count": 3, "attention.rotary.theta": 1.0}, "attention.rotary.theta"),
    "a kind it does not have": ([SCALING], {"attention.rotary.scaling.kind": "yarn"}, "attention.rotary.scaling.kind"),
    "layers of a model without their number, by a rule": ([WINDOW, by_layer("which", "attention.window", rules.each())], {}, "layers"),
    "layers of a model without their number, decided": ([SLIDING], {}, "attention.window"),
    "layers no rule chooses": ([LAYERS, WINDOW, by_layer("which", "attention.window", rules.first_layers())], masked("attention.window", (False, True), 4), "attention.window?"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAID)
def test_a_refusal_carries_the_facts_that_it_is_about(name: str) -> None:
    lines, facts, about = UNSAID[name]
    with pytest.raises(Refusal) as caught:
        Config("table", lines).write(Facts(facts), {})
    assert any(about in fact or fact.removesuffix(".*") in about for fact in caught.value.facts), caught.value.facts
    assert about.removesuffix("?") in str(caught.value)


def test_a_line_without_its_keys_leaves_the_error_to_their_line() -> None:
    table = Config("table", [derived(None, "attention.head_dim", "hidden_size / heads"), HIDDEN, HEADS])
    with pytest.raises(CkptError, match="'heads' is missing") as caught:
        table.read({"hidden_size": 8}, "file")
    assert "head_dim" not in str(caught.value)


def test_pairs_that_a_person_wrote_are_counted_once_each() -> None:
    def read(value: object) -> object:
        return value

    codec = Codec(read, lambda value: value)
    line = custom(["a"], ["hidden"], read=nothing, write=nothing, why="a test", uses=[])
    held = [line, nested("o", [key("b", "layers", via=codec)]), key("c", "layers", via=one_of({"x": 1})), GELU]
    assert len(pairs_by_hand([*held, line])) == 2


def test_a_line_by_hand_says_what_for() -> None:
    with pytest.raises(TableError, match="line of `a` is written by hand"):
        custom(["a"], ["hidden"], read=nothing, write=nothing, why=" ", uses=[])


def test_a_refusal_of_all_agree_names_the_facts_that_differ() -> None:
    """Only those, by their paths; and a thing that does not exist as such."""
    line = all_agree("final_norm", "attention.norm", "mlp.norm", why="alike")
    alike = {
        f"{norm}.{part}": value
        for norm in ("final_norm", "mlp.norm")
        for part, value in (("kind", "rms"), ("eps", 1e-5))
    }
    with pytest.raises(Refusal) as refused:
        line.write(Facts({**alike, "mlp.norm.eps": 1e-6}), {}, {})
    assert refused.value.found == "no attention.norm, final_norm.eps = 1e-05, mlp.norm.eps = 1e-06"


@pytest.mark.parametrize("count", [1 << 40, 10**9, 0, -1, True, "6"])
def test_no_number_of_layers_makes_the_lines_count_without_end(count: object) -> None:
    """Lines that differ by layer are not read where the number of layers is none: a file may say any."""

    def every_fourth(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        raise AssertionError(f"counts {facts['layers']} layers")

    table = Config(
        "toy",
        [
            key("n_layer", "layers"),
            decided([], ["attention.rotary?"], read=every_fourth, values={}, uses=["layers"], why="every fourth layer"),
        ],
    )
    with pytest.raises(
        CkptError, match=r"(?s)'n_layer' is not a number of layers.*expected: a whole number from 1 to 100,000"
    ):
        table.read({"n_layer": count}, "config.json")


@pytest.mark.parametrize(
    "line",
    [
        ignore("patches", why="counted by the class", written=lambda facts: facts["hidden"] * 2, uses=["hidden"])[0],
        custom(["patches"], [], read=nothing, write=lambda facts, notes, config: config.update(patches=facts["hidden"]), uses=["hidden"], why="a test"),
    ],
)  # fmt: skip
def test_a_model_without_the_facts_of_a_kind_is_refused_and_no_crash(line: Any) -> None:
    with pytest.raises(Refusal, match="it cannot say 'patches' of this model") as caught:
        Config("table", [line]).write(Facts(), {})
    assert "hidden" in str(caught.value)
