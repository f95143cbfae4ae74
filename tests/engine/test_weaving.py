"""Tensors whose elements take turns in a file are written together: the same bytes as if each were written by itself, in long runs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core import convert, plan_conversion
from ckpt_core.api import target_of
from ckpt_core.architecture import Axis, Parameter
from ckpt_core.engine import pages, plan
from ckpt_core.engine.pages import runs_of
from ckpt_core.engine.parts import Parts
from ckpt_core.engine.pieces import Write, pieces, uncut
from ckpt_core.engine.transfer import TargetFiles, run_transfer
from ckpt_core.engine.weaving import SHORT, strands
from ckpt_core.errors import CkptError
from ckpt_core.layout import Link, Part, Tile, ValueMap, plus_one, scale
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.request import WriteRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.dtypes import BF16, DType, dtype_named, encode
from ckpt_core.storage.tensor import contiguous_strides
from ckpt_core.tensors.assembly import LazyParameter, StoredPart, flat_tile, placed
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import calm_numbers
from ckpt_core.verify.holes import model_of_holes
from ckpt_tests import victim
from ckpt_tests.cutting import pieces_of
from ckpt_tests.formats import written
from ckpt_tests.gguf import MODELS
from ckpt_tests.program import ckpt

# --- any tensors that take turns ----------------------------------------------------------------------------------------


@st.composite
def alike(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Tile], int]:
    """A shape, flat tiles of several tensors of it that take turns in a file, and the elements of the file.

    Their axes come in any order there, some of them within a turn, and there may be gaps between the rows.
    """
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    turns = draw(st.integers(2, 4))
    order = draw(st.permutations(range(len(shape))))
    inner = draw(st.integers(0, len(shape) - 1))
    step, links = 1, []
    for number, axis in enumerate(order):
        if number == inner:
            turn, step = step, step * turns
        links.append(Link(shape[axis], axis, 1, 0, step))
        step *= shape[axis]
        if number >= inner and shape[axis] > 1:  # behind a single turn a gap would be room for one more tensor
            step += draw(st.sampled_from([0, 0, turn * turns]))
    first = draw(st.integers(0, 3))
    bases = [first + turn * number for number in draw(st.permutations(range(turns)))]
    tiles = [Tile(tuple(links), (0,) * len(shape), (base,)) for base in bases]
    return shape, tiles, first + step


def tensors_of(
    folder: Path, shape: tuple[int, ...], kinds: list[DType]
) -> tuple[dict[str, LazyParameter], SourceFiles]:
    axes = tuple(Axis(f"a{number}", size) for number, size in enumerate(shape))
    tile, found, states = flat_tile(placed(shape), contiguous_strides(shape)), {}, []
    for number, dtype in enumerate(kinds):
        path = folder / f"t{number}"
        path.write_bytes(encode(np.random.default_rng(number).standard_normal(shape, np.float32), dtype).tobytes())
        states.append(FileState.of(str(path)))
        parameter = Parameter(path.name, axes)
        found[path.name] = LazyParameter(parameter, dtype, (StoredPart(str(path), dtype, 0, tile),))
    return found, SourceFiles(states)


@settings(max_examples=60)
@given(
    placed=alike(),
    kinds=st.lists(st.sampled_from(["bf16", "fp16", "fp32"]), min_size=4, max_size=4),
    stored=st.sampled_from(["bf16", "fp16", "fp32"]),
    maps=st.sampled_from([(), (plus_one,), (scale(0.5),)]),
    chunk=st.integers(1, 50),
    leaf=st.integers(1, 60),
)
def test_what_is_written_together_is_what_each_writes(
    tmp_path_factory: pytest.TempPathFactory,
    placed: tuple[tuple[int, ...], list[Tile], int],
    kinds: list[str],
    stored: str,
    maps: tuple[ValueMap, ...],
    chunk: int,
    leaf: int,
) -> None:
    """The bytes, their checksum, the digests, and what is counted, in pieces and chunks of any size."""
    shape, tiles, elements = placed
    folder = tmp_path_factory.mktemp("woven")
    dtype = dtype_named(stored)
    tensors, source = tensors_of(folder, shape, [dtype_named(kind) for kind in kinds[: len(tiles)]])
    parts = [(Part(name, tile), tile) for name, tile in zip(tensors, tiles, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckpt_core.engine.weaving._FEW", 0)
        together = strands(parts, tensors, dtype.size)
    checksum = Checksum(0, elements * dtype.size, ())
    seen = []
    for name, held in (("each", {}), ("together", together)):
        out = folder / name
        (out / "out").mkdir(parents=True)
        (out / "out" / "file").write_bytes(bytes(checksum.length))
        sink, results, moved = TargetFiles(str(out / "out"), sync=False), [], []
        with pieces_of(leaf):
            for number, (assembly, tile) in enumerate(zip(tensors.values(), tiles, strict=True)):
                block = StoredPart("file", dtype, 0, tile)
                write = Write(block, maps, False, checksum, strand=held.get(number))
                moved += pieces(uncut(assembly, [write], chunk))
            results = [run_transfer(one, source, sink) for one in moved[:: -1 if name == "each" else 1]]
        sink.close()
        total = Counter[str]()
        for one in results:
            for key, remainder in one.remainders.items():
                total[key] ^= remainder
        assert sum(one.bytes_written for one in results) == sum(one.bytes_written for one in moved)
        digests = {one.key: (one.leaves, one.source_leaves) for one in results}
        seen.append(((out / "out" / "file").read_bytes(), total["0-" + f"{checksum.stop} file"], digests))
    assert seen[0] == seen[1]
    assert crc32.of_remainder(seen[0][1], checksum.length) == crc32.of_remainder(
        crc32.remainder(memoryview(seen[0][0])), checksum.length
    )
    writers = [one for one in together.values() if one.others]
    first, second = sorted(tile.native_base[0] for tile in tiles)[:2]
    if tiles[0].elements > second - first:
        assert [len(one.others) for one in writers] == [len(tiles) - 1]
    source.close()


def test_tensors_that_differ_are_written_by_themselves() -> None:
    """Another order of axes, a hole where a third one would be, long runs, and few of them."""
    links = Link(9, 0, 1, 0, 18), Link(9, 1, 1, 0, 2)
    parts = {name: Tile(links, (0, 0), (base,)) for name, base in (("a", 0), ("b", 1))}
    tensors = {
        name: LazyParameter(Parameter(name, (Axis("x", 9), Axis("y", 9))), BF16, ()) for name in (*parts, "c", "d")
    }

    def found(tiles: dict[str, Tile], itemsize: int = 2) -> dict[str, list[str]]:
        ordered = [(Part(name, tile), tile) for name, tile in tiles.items()]
        woven = strands(ordered, tensors, itemsize)
        return {
            ordered[number][0].parameter: [other.parameter.name for other in one.others]
            for number, one in woven.items()
        }

    assert found(parts) == {"a": ["b"], "b": []}
    assert found({"b": parts["b"], "a": parts["a"]}) == {"a": ["b"], "b": []}, "in the order of the file"
    assert found({"a": parts["a"]}) == {}
    assert found({"a": parts["a"], "c": parts["a"]}) == {}, "both begin at one place"
    turned = Link(9, 1, 1, 0, 18), Link(9, 0, 1, 0, 2)
    assert found({"a": parts["a"], "b": parts["b"]._replace(links=turned)}) == {}
    three = Link(9, 0, 1, 0, 27), Link(9, 1, 1, 0, 3)
    assert found({name: tile._replace(links=three) for name, tile in parts.items()}) == {}, (
        "of three only two are there"
    )
    assert found(parts, SHORT) == {}, "no run is short"
    few = Link(8, 0, 1, 0, 16), Link(8, 1, 1, 0, 2)
    assert found({name: tile._replace(links=few) for name, tile in parts.items()}) == {}


# --- every writer ---------------------------------------------------------------------------------------------------------

# A head of an example has 18 elements, a row of experts 20: a run that is shorter has no whole axis, and is short in any model.
ROW = 18
LAW = {
    **{name: example(name) for name in ("moe", "gpt2", "bloom", "latent", "delta", "mamba", "t5", "vit", "predicting")},
    "llama": example("llama", hidden=216),  # that of heads times head_dim, for frameworks that have no size of a head
    "gpt-oss": MODELS["gpt-oss"],
}
OPTIONS = {"nxdt": {"hw_backend": "trn1"}}


@pytest.mark.parametrize("format", written())
def test_no_large_tensor_is_written_in_short_runs(format: str) -> None:
    """Of every kind of model that a format holds; hf has the most kinds."""
    plugin, held = require(format), 0
    for name, architecture in (LAW | MODELS if format == "hf" else LAW).items():
        request = WriteRequest(
            typed_options(plugin.info, {**plugin.info.bare, **OPTIONS.get(format, {})}, "write"),
            BF16,
            destination="/nowhere",
        )
        checkpoint = model_of_holes(architecture, BF16)
        with contextlib.suppress(CkptError):
            made = plan.make_plan(checkpoint, target_of(plugin, checkpoint, request))
            held += 1
            for one, delivery in [(tensor, delivery) for tensor in made.tensors for delivery in tensor.deliveries]:
                for tile in one.written(delivery) if delivery.encoded is None else ():
                    runs = runs_of(tile, 0, 1)
                    assert runs is not None and (len(runs) <= 64 or (runs[:, 1] - runs[:, 0]).min() >= ROW), (
                        f"{name}: {one.name} is written in {len(runs)} runs of {tile}"
                    )
    assert held


# --- gpt-oss, whose gate and up take turns --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "ir"
    write_ir(folder, MODELS["gpt-oss"], values=calm_numbers)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file but the receipt, each tensor written by itself."""
    out = tmp_path_factory.mktemp("expected") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "strands", lambda *_: {})
        convert(model, out, to="hf")
    return data(out)


def data(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "receipt" not in path.name}


LAYERS = 6
WOVEN = 2  # tensors of each layer whose transfers write for two: weight and bias of gate


def test_gate_and_up_are_planned_to_be_written_together(model: Path, tmp_path: Path) -> None:
    made = plan_conversion(model, tmp_path / "out", to="hf")
    by_name = {one.name: one for one in made.tensors}
    writing = [one for one in made.tensors if one.others]
    assert len(writing) == WOVEN * LAYERS
    for one in writing:
        assert list(one.others) == [one.name.replace(".gate.", ".up.")]
        other = by_name[one.name.replace(".gate.", ".up.")]
        assert other.files == {} and other.bytes_written == 0
        assert one.paths == one.assembly.paths() | other.assembly.paths()
        assert one.bytes_read == 2 * other.bytes_read
        assert 2 * one.chunk * other.assembly.dtype.size * made.workers * 6 <= made.memory
    assert sum(one.bytes_written for one in made.tensors) == sum(
        delivery.block.stored_bytes for one in made.tensors for delivery in one.deliveries
    )


def test_parts_for_a_store_wait_for_the_transfer_that_writes(model: Path, tmp_path: Path) -> None:
    """And the others come with it, and not before everything else."""
    made = plan_conversion(model, tmp_path / "out", to="hf")
    parts = Parts(made.target.files, 1)
    order = [one.name for one in parts.in_order(made.transfers)]
    for one in (one for one in made.transfers if one.others):
        (other,) = (found for found in made.transfers if found.name in one.others)
        assert parts.of(one) and not parts.of(other)
        assert abs(order.index(one.name) - order.index(other.name)) == 1


@pytest.mark.parametrize("leaf", [0, 999])
@pytest.mark.parametrize("apart", [False, True], ids=["threads", "an executor"])
def test_the_files_are_those_of_tensors_written_by_themselves(
    model: Path, expected: dict[str, bytes], tmp_path: Path, leaf: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lengths = tmp_path / "out", []
    put = TargetFiles._put

    def counted(sink: TargetFiles, path: str, descriptor: int, view: memoryview, offset: int) -> None:
        lengths.append(len(view))
        put(sink, path, descriptor, view, offset)

    monkeypatch.setattr(TargetFiles, "_put", counted)
    monkeypatch.setattr(pages, "PAGE", 64)
    with pieces_of(leaf or 1 << 20), ThreadPoolExecutor(3) as executor:
        convert(model, out, to="hf", **({"executor": executor} if apart else {}))
        assert ckpt("verify", model, out)[0] == 0
    assert data(out) == expected
    assert min(lengths) > 8 or apart


@pytest.mark.parametrize("number", [3, 20, 41])
def test_killed_it_continues(model: Path, expected: dict[str, bytes], tmp_path: Path, number: int) -> None:
    process = victim.started(model, tmp_path / "out", "after finishing", number, to="hf")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    convert(model, tmp_path / "out", to="hf")
    assert data(tmp_path / "out") == expected


def test_in_processes(model: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    said = subprocess.run(
        ["ckpt", "convert", str(model), str(tmp_path / "out"), "--to=hf", "--engine=processes", "--workers=2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert data(tmp_path / "out") == expected
