"""Tensors that are computed while they are read: one value for each element, whatever is asked for, and every rewrite that knows of them."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ckpt_core.architecture import Axis, Parameter
from ckpt_core.errors import FormatError
from ckpt_core.layout import Link, Tile
from ckpt_core.rewrite import Rewritable, tied_head, untied_head
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.dtypes import BF16, FP32, decode, encode
from ckpt_core.storage.safetensors import read_header
from ckpt_core.storage.torch import read_state_dict
from ckpt_core.tensors.assembly import (
    Factor,
    LazyParameter,
    LowRank,
    Merged,
    StoredPart,
    WeightedRows,
    flat_tile,
    placed,
    resized,
)
from ckpt_core.tensors.box import boxes
from ckpt_core.tensors.merged import product, row_norms
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.testing import example

OUT, IN, RANK = 11, 9, 5


def fused(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The product with each sum rounded once: fractions are exact, and float32 of them is as good as rounded once here."""
    found = np.zeros((up.shape[0], down.shape[1]), np.float32)
    for (row, column), _ in np.ndenumerate(found):
        total = np.float32(0)
        for rank in range(up.shape[1]):
            exact = Fraction(float(total)) + Fraction(float(up[row, rank])) * Fraction(float(down[rank, column]))
            total = np.float32(exact.numerator / exact.denominator)
        found[row, column] = total
    return found


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def test_a_product_is_summed_in_the_order_of_the_rank_without_rounding_its_parts() -> None:
    up, down = random(OUT, RANK), random(RANK, IN)
    assert np.array_equal(product(up, down), fused(up, down))
    apart = product(up, down, fused=False)
    assert not np.array_equal(apart, product(up, down)) and np.allclose(apart, up @ down, rtol=1e-5)


@pytest.mark.parametrize("rank", [192, 193, 256, 384, 400, 600])
def test_long_ranks_are_summed_in_parts(rank: int) -> None:
    up, down = random(4, rank), random(rank, 5)
    step = 192 if rank > 384 else rank if rank <= 192 else rank // 2 // 4 * 4
    parts = [fused(up[:, start : start + step], down[start : start + step]) for start in range(0, rank, step)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert np.array_equal(product(up, down), total)


def test_no_element_of_a_product_depends_on_its_neighbours() -> None:
    up, down = random(300, 7), random(7, 4100)  # more than one tile each way
    whole = product(up, down)
    assert np.array_equal(whole[123:125, 2040:2060], product(up[123:125], down[:, 2040:2060]))
    assert np.allclose(whole, up @ down, rtol=1e-4, atol=1e-5)


def test_a_norm_is_summed_in_eight_lanes_or_one_after_the_other() -> None:
    matrix = random(3, 21)
    assert np.allclose(row_norms(matrix, turned=False), np.linalg.norm(matrix, axis=1), rtol=1e-6)
    squares = [np.float32(0)] * 3
    for column in range(21):
        squares = [total + value * value for total, value in zip(squares, matrix[:, column], strict=True)]
    assert np.array_equal(row_norms(matrix, turned=True), np.sqrt(np.array(squares, np.float32)))


def stored(path: Path, name: str, parameter: Parameter | None = None) -> LazyParameter:
    held = read_header(path).tensors[name]
    parameter = parameter or Parameter(name, tuple(Axis(f"a{n}", size) for n, size in enumerate(held.shape)))
    part = StoredPart(held.file, held.dtype, held.offset, flat_tile(placed(held.shape), held.strides))
    return LazyParameter(parameter, held.dtype, (part,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "adapter.safetensors"
    tensors = {"w": random(OUT, IN), "up": random(OUT, RANK), "down": random(RANK, IN), "m": np.abs(random(OUT)) + 1}
    turned = {"up of in": random(IN, RANK), "down of out": random(RANK, OUT), "m of in": np.abs(random(IN)) + 1}
    save_file(tensors | turned, file)
    return file


def linear(path: Path, **changes: object) -> LazyParameter:
    """W [out, in] with a product added."""
    base = stored(path, "w")
    update = LowRank(stored(path, "up"), stored(path, "down"), 1.5, placed((OUT, IN)))
    return LazyParameter(base.parameter, FP32, (), merged=Merged(base, (replace(update, **changes),), FP32))


def looked_up(path: Path, **changes: object) -> LazyParameter:
    """W as a table of rows that are looked up: the output of its product are the columns."""
    base = stored(path, "w")
    tile = Tile((Link(OUT, 0, 1, 1, 1), Link(IN, 1, 1, 0, 1)), (0, 0), (0, 0))
    update = LowRank(stored(path, "up of in"), stored(path, "down of out"), 1.5, tile, turned=True)
    return LazyParameter(base.parameter, FP32, (), merged=Merged(base, (replace(update, **changes),), FP32))


def read(path: Path, assembly: LazyParameter, box: tuple[tuple[int, int], ...] | None = None) -> np.ndarray:
    source = SourceFiles([FileState.of(path)])
    try:
        return source.floats(assembly, box or tuple((0, size) for size in assembly.parameter.shape))
    finally:
        source.close()


@pytest.mark.parametrize("kind", ["linear", "linear, DoRA", "looked up", "looked up, DoRA", "rounded"])
def test_each_element_is_the_same_in_every_box(path: Path, kind: str) -> None:
    made = looked_up if kind.startswith("looked") else linear
    magnitude = {"magnitude": stored(path, "m of in" if made is looked_up else "m")} if kind.endswith("DoRA") else {}
    assembly = made(path, **magnitude)
    if kind == "rounded":
        assembly = replace(assembly, dtype=BF16, merged=replace(assembly.merged, dtype=BF16))
    whole = read(path, assembly)
    for size in (1, 4, IN, 2 * IN + 1):
        for box in boxes(assembly.parameter.shape, size):
            assert np.array_equal(read(path, assembly, box), whole[tuple(slice(*span) for span in box)])
    up, down = (
        read(path, stored(path, name))
        for name in (("up of in", "down of out") if made is looked_up else ("up", "down"))
    )
    expected = (up @ down).T if made is looked_up else up @ down
    expected = read(path, stored(path, "w")) + 1.5 * expected
    if magnitude:
        axis = 0 if made is looked_up else 1
        scale = read(path, next(iter(magnitude.values()))) / np.linalg.norm(expected, axis=axis)
        expected = expected * (scale if axis == 0 else scale[:, None])
    assert np.allclose(whole, expected, rtol=1e-2 if kind == "rounded" else 1e-5, atol=1e-5)


def test_a_product_may_be_rounded_before_it_is_added(path: Path) -> None:
    once, twice = (linear(path, narrowed=narrowed) for narrowed in (False, True))
    once, twice = (replace(one, dtype=BF16, merged=replace(one.merged, dtype=BF16)) for one in (once, twice))
    delta = np.float32(1.5) * product(read(path, stored(path, "up")), read(path, stored(path, "down")))
    wanted = decode(encode(read(path, stored(path, "w")) + decode(encode(delta, BF16), BF16), BF16), BF16)
    assert np.array_equal(read(path, twice), wanted) and not np.array_equal(read(path, once), wanted)


def test_a_row_of_zeros_has_no_direction(path: Path) -> None:
    zero = LazyParameter(stored(path, "w").parameter, FP32, (), fill=0.0)
    assembly = linear(path, magnitude=stored(path, "m"), scale=0.0)
    assembly = replace(assembly, merged=replace(assembly.merged, base=zero))
    with pytest.raises(FormatError, match="is zero when it is merged"):
        read(path, assembly)


def test_rows_that_only_pad_get_nothing_added(path: Path) -> None:
    assembly = linear(path)
    longer = resized(assembly, Parameter("w", (Axis("v", OUT + 3), Axis("h", IN)), OUT))
    assert np.array_equal(read(path, longer)[:OUT], read(path, assembly)) and not read(path, longer)[OUT:].any()
    shorter = resized(assembly, Parameter("w", (Axis("v", OUT - 3), Axis("h", IN))))
    assert np.array_equal(read(path, shorter), read(path, assembly)[: OUT - 3])


def test_a_head_is_not_tied_by_what_lies_beneath_a_merge(path: Path) -> None:
    """The head is the base of the embedding: compared as they are stored they would be one."""
    architecture = example("llama-tied")
    tensors = {"embedding.tokens.weight": linear(path)}
    model = untied_head(Rewritable(architecture, {"embedding.tokens.weight": stored(path, "w")}))
    assert tied_head(model).architecture == architecture
    mixed = Rewritable(model.architecture, {**model.tensors, **tensors})
    assert tied_head(mixed) == mixed


def in_archive(path: Path, name: str) -> LazyParameter:
    """A tensor of a torch file, whose record has a CRC-32."""
    held = read_state_dict(str(path)).tensors[name]
    axes = tuple(Axis(f"a{n}", size) for n, size in enumerate(held.shape))
    part = StoredPart(held.file, held.dtype, held.offset, flat_tile(placed(held.shape), held.strides), held.record)
    return LazyParameter(Parameter(name, axes), held.dtype, (part,))


MADE_OF = {
    "a factor": lambda base, part: replace(base, factors=(Factor(part, (0, 1)),)),
    "rows that are added up": lambda base, part: replace(
        base, blocks=(), added=(WeightedRows(part, ((1,),) * OUT, ((0.5,),) * OUT),)
    ),
    "a product": lambda base, part: replace(
        base, blocks=(), merged=Merged(base, (LowRank(part, part, 1.0, placed((OUT, OUT))),), FP32)
    ),
}


@pytest.mark.parametrize("kind", MADE_OF)
def test_what_a_tensor_is_made_of_is_one_of_its_files_and_its_checksum_is_looked_at(kind: str, tmp_path: Path) -> None:
    for name in ("base", "part"):
        torch.save({name: torch.from_numpy(random(OUT, OUT))}, tmp_path / f"{name}.pt")
    base, part = (in_archive(tmp_path / f"{name}.pt", name) for name in ("base", "part"))
    made = MADE_OF[kind](base, part)
    assert str(tmp_path / "part.pt") in made.paths()
    read(tmp_path / "part.pt", made)
    record = part.blocks[0].record
    with open(record.file, "r+b") as stream:
        stream.seek(record.offset + 4)
        stream.write(b"\x7f")
    with pytest.raises(FormatError, match="checksum is wrong") as damaged:
        read(tmp_path / "part.pt", made)
    assert record.file in str(damaged.value)
