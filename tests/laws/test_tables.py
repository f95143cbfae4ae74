"""Tables are data: a row is for facts (`when`) and for choices (`under`), and choosing is leaving rows out."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator

import pytest

from ckpt_core.architecture import Architecture, Layer
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.layout import BoundTables, Choice, Native, Row, Table, Tables, fragment, row
from ckpt_core.layout.conditions import check_paths, conditions
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.installed import format_names
from ckpt_core.testing import example
from ckpt_core.verify.declared import Declared, Sentences

LLAMA, GPT2, MOE, LATENT = (example(name) for name in ("llama", "gpt2", "moe", "latent"))


def first_layer(architecture: Architecture) -> Layer:
    assert architecture.decoder is not None
    return architecture.decoder.layers[0]


# --- when ------------------------------------------------------------------------------------------------------------

GROUPS = first_layer(LLAMA).attention.groups  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("when", "architecture", "tp", "holds"),
    [
        ("", LLAMA, 1, True),
        ("mlp.gated", LLAMA, 1, True),
        ("mlp.gated", GPT2, 1, False),
        ("!mlp.gated", GPT2, 1, True),
        ("latent_attention", LLAMA, 1, False),
        ("attention", LATENT, 1, False),
        ("!latent_attention.q_rank", LLAMA, 1, True),
        ("mlp.gated latent_attention", LLAMA, 1, False),
        ("mlp.gated !latent_attention", LLAMA, 1, True),
        (f"attention.groups={GROUPS}", LLAMA, 1, True),
        (f"attention.groups!={GROUPS}", LLAMA, 1, False),
        (f"attention.groups>{GROUPS}", LLAMA, 1, False),
        (f"attention.groups>={GROUPS}", LLAMA, 1, True),
        ("attention.heads=attention.groups", LLAMA, 1, False),
        ("attention.heads=attention.groups", GPT2, 1, True),
        ("attention.groups%tp=0", LLAMA, GROUPS, True),
        ("attention.groups%tp=0", LLAMA, 2 * GROUPS, False),
        ("attention.groups%tp!=0", LLAMA, 2 * GROUPS, True),
        ("tp>attention.groups", LLAMA, GROUPS + 1, True),
        ("tp<=attention.groups", LLAMA, GROUPS, True),
        # what is not there compares with nothing
        ("attention.groups%tp=0", LATENT, 1, False),
        ("attention.groups%tp!=0", LATENT, 1, False),
    ],
)
def test_a_row_is_for_the_layers_that_its_conditions_name(
    when: str, architecture: Architecture, tp: int, holds: bool
) -> None:
    assert row("up", "f h", "mlp.up.weight", when=when).applies_to(first_layer(architecture), {"tp": (0, tp)}) is holds


@pytest.mark.parametrize("text", ["mlp.gated =1", "mlp gated?", "a==b", "!a=1", "mlp..gated"])
def test_what_is_no_condition_is_refused_where_it_is_written(text: str) -> None:
    with pytest.raises(CkptError, match="a condition that cannot be read"):
        row("up", "f h", "mlp.up.weight", when=text)


def test_a_path_that_leads_nowhere_is_refused_where_it_is_written() -> None:
    with pytest.raises(CkptError, match="there is no 'gatd' in Mlp") as caught:
        Table("layers.{l}", to="layers.{l}", rows=[row("up", "f h", "mlp.up.weight", when="mlp.gatd")])
    assert "gated" in str(caught.value)
    # outside of layers a path begins at the architecture
    with pytest.raises(CkptError, match="there is no 'mlp' in Architecture"):
        Table(rows=[row("head", "v h", "head.weight", when="mlp.gated")])


def test_conditions_are_read_once_and_name_their_paths() -> None:
    (divides,) = conditions("attention.groups%tp=0")
    assert divides.paths() == ["attention.groups"]
    check_paths("attention.rotary mlp.moe.shared !mlp.gated", Layer)


# --- under -----------------------------------------------------------------------------------------------------------

ORDER = Choice("order", ("blocks", "heads"), default="heads", help="how q, k and v lie")
OLD = Choice("old", (False, True), default=False, help="the names of old files")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Tables([Table(rows=[row("a", "h", "final_norm.weight", under={"ordr": "heads"})])], [ORDER]),
            "row 'a' is under a choice that is not declared\n  found: ordr\n  expected: order",
        ),
        (
            lambda: Tables([Table(rows=[row("a", "h", "final_norm.weight", under={"order": "head"})])], [ORDER]),
            "choice order has no value 'head'\n  expected: 'blocks' or 'heads'",
        ),
        (
            lambda: Tables([Table(rows=[row("a", "h", "final_norm.weight", under={"old": 1})])], [OLD]),
            "choice old has no value 1\n  expected: False or True",
        ),
        (
            lambda: Tables([Table(under={"order": "all"}, rows=[row("a", "h", "final_norm.weight")])], [ORDER]),
            "choice order has no value 'all'",
        ),
        (
            lambda: Tables(
                [
                    Table(
                        rows=[
                            row("a", "h", "final_norm.weight"),
                            row("a", "h", "final_norm.weight", under={"old": True}),
                        ]
                    )
                ],
                [OLD],
            ),
            "two rows claim the native tensor 'a' under the same choices",
        ),
        (
            lambda: Tables([Table(rows=[row("a", "<side>", "final_norm.weight")])], [ORDER]),
            "fragment <side> is not declared",
        ),
        (
            lambda: Tables(
                [Table(under={"old": True}, rows=[row("a", "h", "final_norm.weight", under={"old": False})])], [OLD]
            ),
            "row 'a' is under other choices than its table",
        ),
        (lambda: Choice("order", ("blocks", "heads"), default="rows"), "choice order has no value 'rows'"),
        (lambda: Tables([], [ORDER, ORDER]), "a choice is declared twice"),
        (lambda: BoundTables(Tables([], [ORDER]), LLAMA, {"odrer": "heads"}), "there is no choice odrer"),
        (lambda: BoundTables(Tables([], [ORDER]), LLAMA, {"order": "head"}), "choice order has no value 'head'"),
        (lambda: BoundTables(Tables([], [Choice("style", ("a", "b"))]), LLAMA), "choice style has to be made"),
        (
            lambda: BoundTables([Table(rows=[row("a", "h", "final_norm.weight", under={"old": True})])], LLAMA),
            "row 'a' is under a choice that is not declared",
        ),
    ],
)
def test_what_was_not_declared_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(CkptError) as caught:
        make()
    assert says in str(caught.value)


def test_a_parameter_that_only_other_choices_hold_is_refused_with_them() -> None:
    rows = [row("up", "f h", "mlp.up.weight", under={"old": True})]
    tables = Tables([Table("layers.{l}", to="layers.{l}", rows=rows)], [OLD])
    with pytest.raises(CkptError) as caught:
        BoundTables(tables, LLAMA).natives()
    assert "layers.0.mlp.up.weight: f=" in str(caught.value) and "it has one under old=True" in str(caught.value)


def drawn(seed: int) -> tuple[Tables, list[Row]]:
    """Tables of three choices, in which every parameter of a Llama's layer has a row for each value of one of these."""
    randomly = random.Random(seed)
    choices = [Choice(name, tuple(range(count)), default=0) for name, count in (("x", 2), ("y", 3), ("z", 2))]
    kinds = {"gate": "mlp.gate.weight", "up": "mlp.up.weight", "down": "mlp.down.weight", "norm": "mlp.norm.weight"}
    rows = []
    for kind, canonical in kinds.items():
        choice = randomly.choice(choices)
        for value in choice.values:
            axes = ["h"] if kind == "norm" else randomly.choice((["f", "h"], ["h", "f"]))
            when = randomly.choice(("", "mlp.gated"))
            rows.append(row(f"{kind}{value}", " ".join(axes), canonical, when=when, under={choice.name: value}))
    randomly.shuffle(rows)
    return Tables([Table("block.{l}", to="layers.{l}", rows=rows)], choices), rows


@pytest.mark.parametrize("seed", range(20))
def test_binding_with_choices_is_binding_the_rows_that_were_picked_by_hand(seed: int) -> None:
    tables, rows = drawn(seed)
    seen = 0
    for made in tables.combinations():
        picked = [one for one in rows if all(made[name] in values for name, values in one.under)]
        plain = [row(one.native, one.sentence, one.canonical, when=one.when) for one in picked]
        chosen = BoundTables(tables, LLAMA, made)
        assert chosen.tables == (Table("block.{l}", to="layers.{l}", rows=plain),)
        # the rest of the model has no rows here: only what these rows hold is compared
        by_hand = BoundTables([Table("block.{l}", to="layers.{l}", rows=plain)], LLAMA)
        for bound in (chosen, by_hand):
            bound.parameters = {name: one for name, one in bound.parameters.items() if ".mlp." in name}
        assert shown(chosen.natives()) == shown(by_hand.natives()) != []
        seen += 1
    assert seen == 12


def shown(natives: dict[str, Native]) -> list[object]:
    return [(name, native.shape, native.pieces) for name, native in natives.items()]


def test_a_fragment_stands_for_a_row_for_each_of_its_texts() -> None:
    order = fragment("order", [("f h", {"order": "heads"}), ("h f", {"order": "blocks", "old": True})])
    tables = Tables([Table(rows=[row("up", "<order>", "mlp.up.weight", tp="<cut>")])], [ORDER, OLD],
                    [order, fragment("cut", [("f", {"old": False}), ("h", {"old": True})])])  # fmt: skip
    expected = [
        row("up", "f h", "mlp.up.weight", tp="f", under={"order": "heads", "old": False}),
        row("up", "f h", "mlp.up.weight", tp="h", under={"order": "heads", "old": True}),
        row("up", "h f", "mlp.up.weight", tp="h", under={"order": "blocks", "old": True}),
    ]
    assert list(tables.tables[0].rows) == expected


def test_a_decided_choice_is_no_choice_any_more() -> None:
    rows = [
        row("a", "h", "final_norm.weight", under={"old": True}),
        row("b", "h", "final_norm.weight", under={"old": False}),
    ]
    tables = Tables([Table(rows=rows)], decided={"old": False})
    assert [one.native for one in tables.tables[0].rows] == ["b"] and tables.combinations and not tables.choices
    assert list(tables.combinations()) == [{}]


# --- blocks of rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_blocks_of_rows_are_the_whole_tensor_cut(tp: int) -> None:
    """Whatever the rows are: the blocks of all ranks, one after the other, have every element once, and in its place."""

    def bound(split: str | None) -> BoundTables:
        rows = [row("qkv", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp=split)]
        found = BoundTables([Table("layers.{l}", to="layers.{l}", rows=rows)], LLAMA)
        found.parameters = {
            name: one for name, one in found.parameters.items() if name.rsplit(".", 2)[1] in ("q", "k", "v")
        }
        return found

    whole = bound(None).natives()["layers.0.qkv"]
    blocks = [bound("rows").natives({"tp": (rank, tp)})["layers.0.qkv"] for rank in range(tp)]
    height = whole.shape[0] // tp
    assert {block.shape for block in blocks} == {(height, whole.shape[1])}
    cells = {
        (piece.parameter, *place): rank * height + native_row
        for rank, block in enumerate(blocks)
        for piece in block.pieces
        for place, native_row in first_column(piece)
    }
    assert cells == {(piece.parameter, *place): at for piece in whole.pieces for place, at in first_column(piece)}
    assert sum(piece.tile.elements for block in blocks for piece in block.pieces) == whole.shape[0] * whole.shape[1]


def first_column(piece) -> Iterator[tuple[tuple[int, ...], int]]:
    """Canonical index and native row of every element whose links over the second dimension are at their first index."""
    places = [(tuple(piece.tile.canonical_base), piece.tile.native_base[0])]
    for link in (link for link in piece.tile.links if link.dim == 0):
        places = [
            (tuple(c + step * link.step * (axis == link.axis) for axis, c in enumerate(place)), at + step * link.stride)
            for place, at in places
            for step in range(link.size)
        ]
    yield from places


def test_blocks_of_rows_that_are_not_equal_are_refused() -> None:
    rows = [row("qkv", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="rows")]
    found = BoundTables([Table("layers.{l}", to="layers.{l}", rows=rows)], LLAMA)
    found.parameters = {
        name: one for name, one in found.parameters.items() if name.rsplit(".", 2)[1] in ("q", "k", "v")
    }
    with pytest.raises(CkptError, match="tp=7 does not divide the"):
        found.natives({"tp": (0, 7)})
    assert issubclass(Refusal, CkptError)


# --- the tables of every format --------------------------------------------------------------------------------------


def tables_of(package: str) -> Iterator[tuple[str, Tables]]:
    """The tables in the modules below a package, with the names of their variables."""
    root = importlib.import_module(package)
    for module in [root.__name__, *(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))]:
        for variable, value in vars(importlib.import_module(module)).items():
            if isinstance(value, Tables):
                yield f"{module}.{variable}", value
            for family in value if variable == "FAMILIES" else ():
                yield f"{module}.{family.class_name}", family.tables
            for name, one in value.items() if variable == "SEEING" else ():
                yield f"{module}.{name}", one.tables


# Those that stand on the tables of another plugin have the sentences of its rows.
OWNERS = {
    "hf": "ckpt_hf", "megatron": "ckpt_megatron", "megatron-bridge": "ckpt_megatron", "nemo": "ckpt_nemo",
    "nemo2": "ckpt_megatron", "nanotron": "ckpt_nanotron", "nxdt": "ckpt_nxdt", "megatron-deepspeed": "ckpt_deepspeed",
}  # fmt: skip


@pytest.mark.parametrize("format", [name for name in format_names() if name in OWNERS])
def test_every_declared_sentence_is_a_row_under_the_choices_it_names(format: str) -> None:
    """`sentences.txt` speaks of the choices of the tables: a line that names one is a row under its values."""
    tables = dict(tables_of(OWNERS[format]))
    choices = {choice.name: choice for one in tables.values() for choice in one.choices}
    rows = [
        (Declared.of(one), dict((*table.under, *one.under)))
        for each in tables.values()
        for table in each
        for one in table.rows
    ]
    lines = list(Sentences.beside(require(format).module))
    assert lines and tables
    for line in lines:
        alike = [under for said, under in rows if said.native == line.native and said.says_the_same(line)]
        assert alike, f"no row says {line}"
        name, _, values = line.under.partition("=")
        if name in choices:
            known = {str(value) for value in choices[name].values} | {"None"}
            assert set(values.split(", ")) <= known, line
            assert any({str(value) for value in under.get(name, ())} & set(values.split(", ")) for under in alike), line
