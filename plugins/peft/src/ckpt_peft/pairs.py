"""An adapter by itself: its matrices as canonical tensors, which no format's names and no fused layer show in.

    layers.0.attention.q.weight.A    [rank, h]          of a parameter, the axes of its input
    layers.0.attention.q.weight.B    [g, r, d, rank]    and those of its output
    layers.0.mlp.experts.up.weight.A [x, rank, h]       of experts a pair for each, of one rank and scale

Fused layers have one A for several parameters. So parameters of one layer with equal A's have it once here too, under the name of the first
of them: a Megatron adapter and what it becomes in PEFT, where each module has its own, are then the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core.sdk import Adapter, Architecture, Checkpoint, Refusal, disk, dtypes, layouts, lazy, schema
from ckpt_hf.sdk import ModelInMemory
from ckpt_peft.keys import BIAS, DOWN, MAGNITUDE, UP, NamedTensor
from ckpt_peft.merge import Merger, Target

MERGE = "merge it: -o base=FOLDER, and a format of models in --to"
"""What to do with an adapter that is not one of another kind, too."""
_STEP = 1 << 20
_RANK, _EXPERTS = "rank", "x"
_SUFFIX = {DOWN: "A", UP: "B", MAGNITUDE: "magnitude"}


@schema.dataclass(frozen=True)
class Pair:
    """What is added to a parameter: `scale * up @ down`; with `magnitude`, DoRA's."""

    parameter: str
    down: lazy.LazyParameter
    up: lazy.LazyParameter
    scale: float
    magnitude: lazy.LazyParameter | None = None

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return rank_of(self.down)

    def widened(self, rank: int, start: int, down: str) -> Pair:
        """The same product with a larger rank: its own begins at `start`, and what is besides is zero. `down` is the name of the new A."""
        first = _shifted(self.down, _rank_axis(self.down), rank, start, down)
        return replace(self, down=first, up=_shifted(self.up, -1, rank, start, self.up.parameter.name))


def _rank_axis(down: lazy.LazyParameter) -> int:
    return next(number for number, axis in enumerate(down.parameter.axes) if axis.name == _RANK)


def rank_of(down: lazy.LazyParameter) -> int:
    """The rank of the pair that an A is of."""
    return down.parameter.shape[_rank_axis(down)]


def _shifted(held: lazy.LazyParameter, axis: int, rank: int, start: int, name: str) -> lazy.LazyParameter:
    axes = list(held.parameter.axes)
    axes[axis] = schema.Axis(_RANK, rank)
    blocks = []
    for block in held.blocks:
        base = list(block.tile.canonical_base)
        base[axis] += start
        blocks.append(replace(block, tile=block.tile._replace(canonical_base=tuple(base))))
    return replace(held, parameter=schema.Parameter(name, tuple(axes)), blocks=tuple(blocks))


# --- reading ---------------------------------------------------------------------------------------------------------


def pairs_of(merger: Merger, states: Sequence[disk.FileState]) -> dict[str, Pair]:
    """The pairs of an adapter whose modules a merger has found, by the parameters they change.

    Raises `Refusal` for what only a merge can do: embeddings, tied heads, biases, experts that are not alike.
    """
    known = schema.parameters(merger.model.architecture)
    wanted: dict[str, schema.Parameter] = {}
    places: list[tuple[layouts.Native, NamedTensor]] = []
    for target in merger.adapted:
        _check(target, merger.file)
    _check_alike(merger)
    for target in merger.adapted:
        for role, native in factors_of(target.native, target.out, target.into, target.rank, known).items():
            if (named := target.adapted.tensors.get(role)) is not None:
                places.append((native, named))
                wanted |= {piece.parameter: _parameter(piece, role, target, known) for piece in native.pieces}
    builder = lazy.ParameterBuilder(wanted, merger.file)
    for native, named in places:
        builder.add(native, named.shards)
    held = builder.finish()
    found = {
        piece.parameter: Pair(
            piece.parameter,
            held[f"{piece.parameter}.A"],
            held[f"{piece.parameter}.B"],
            merger.settings.scale(target.looked_up),
            held.get(f"{piece.parameter}.magnitude"),
        )
        for target in merger.adapted
        for piece in target.native.pieces
    }
    check_same_weights(merger.model, found)
    return _shared(found, states)


def check_same_weights(model: ModelInMemory, pairs: Iterable[str]) -> None:
    """Raise a `Refusal` for a parameter whose weight is another in the class of a framework than canonically: its pair would be, too."""
    for name in pairs:
        held = model.tensors[name]
        if held.fill is None or held.maps or held.factors:
            raise Refusal(
                f"{name} is another tensor in a {model.class_name}, and so its adapter would be",
                found="; ".join(model.rewrites) or None,
                fix=MERGE,
            )


def _check(target: Target, file: str) -> None:
    said = None
    if target.adapted.embedding:
        said = "an embedding"
    elif target.native.row.copy:
        said = "a head that is tied to the embedding"
    elif BIAS in target.adapted.tensors:
        said = "a bias"
    elif target.crossed:
        said = "experts whose A runs over their output"
    if said is not None:
        raise Refusal(
            f"an adapter of {said} is merged into its base, and not turned into one of another kind",
            file=file,
            found=target.adapted.path,
            fix=MERGE,
        )


def _check_alike(merger: Merger) -> None:
    """Raise a `Refusal` for experts whose pairs differ in rank or scale, or of which some have none: they are one parameter here."""
    alike: dict[str, tuple[int, float, str]] = {}
    experts: dict[str, int] = {}
    for target in merger.adapted:
        scale = merger.settings.scale(target.looked_up)
        for piece in target.native.pieces:
            rank, own, first = alike.setdefault(piece.parameter, (target.rank, scale, target.adapted.path))
            experts[piece.parameter] = experts.get(piece.parameter, 0) + target.experts
            if (rank, own) != (target.rank, scale):
                raise Refusal(
                    "the pairs of a layer's experts differ in rank or scale",
                    file=merger.file,
                    found=f"{first}: {rank} and {own:.6g}; {target.adapted.path}: {target.rank} and {scale:.6g}",
                    expected="one rank and one scale",
                    fix=MERGE,
                )
    for name, count in experts.items():
        axis = merger.model.tensors[name].parameter.axes[0]
        if axis.name == _EXPERTS and count < axis.size:
            raise Refusal(
                f"some experts of {name} have a pair, and some have none",
                file=merger.file,
                found=f"{count} of {axis.size}, the first of them {alike[name][2]}",
                expected="a pair for each, or for none",
                fix=MERGE,
            )


def factors_of(
    native: layouts.Native, out: int, into: int, rank: int, known: Mapping[str, schema.Parameter]
) -> dict[str, layouts.Native]:
    """The matrices on a weight, by their role, with the place of each element: B has the rows of its output, A the columns of its input.

    A weight of all experts has one A, with the matrices of the experts one below the other, and one B, in whose columns the expert runs
    fastest (peft 0.21.2, `ParamWrapper`).
    """
    experts = native.shape[0] if len(native.shape) == 3 else 1
    shapes = {
        DOWN: (experts * rank, native.shape[into]),
        UP: (native.shape[out], experts * rank),
        MAGNITUDE: (native.shape[out],),
    }
    return {
        role: replace(
            native,
            name=f"{native.name} {role}",
            shape=shape,
            pieces=tuple(
                layouts.Part(
                    f"{piece.parameter}.{_SUFFIX[role]}",
                    _tile(piece.tile, role, out, into, rank, experts, _split(piece, into, known)),
                )
                for piece in native.pieces
            ),
            padding=0,
        )
        for role, shape in shapes.items()
    }


def _split(piece: layouts.Part, into: int, known: Mapping[str, schema.Parameter]) -> tuple[int, int]:
    """How many axes of a parameter count its experts, and where those of its input begin: those of its output lie between them."""
    axes = [link.axis for link in piece.tile.links if link.dim == into and link.size > 1]
    held = known[piece.parameter].axes
    return int(held[0].name == _EXPERTS), min(axes, default=len(held) - 1)


def _tile(
    tile: layouts.Tile, role: str, out: int, into: int, rank: int, experts: int, split: tuple[int, int]
) -> layouts.Tile:
    """The part of a weight's tile along one of its dimensions, with the rank beside it."""
    first, second = split
    slots = [link for link in tile.links if link.axis < first]
    before, slot = tile.canonical_base[:first], tile.native_base[0] if experts > 1 else 0
    if role == DOWN:
        own = (link for link in tile.links if link.dim == into and link.axis >= second)
        links = [
            *(link._replace(dim=0, stride=link.stride * rank) for link in slots),
            layouts.Link(rank, first, 1, 0, 1),
            *(link._replace(axis=link.axis - second + first + 1, dim=1) for link in own),
        ]
        base = (*before, 0, *tile.canonical_base[second:])
        return layouts.Tile(tuple(links), base, (slot * rank, tile.native_base[into]))
    own = (link for link in tile.links if link.dim == out and first <= link.axis < second)
    links = [link._replace(dim=0) for link in own]
    if role == MAGNITUDE:
        return layouts.Tile(tuple(links), tile.canonical_base[:second], (tile.native_base[out],))
    links += [*(link._replace(dim=1) for link in slots), layouts.Link(rank, second, 1, 1, experts)]
    return layouts.Tile(tuple(links), (*tile.canonical_base[:second], 0), (tile.native_base[out], slot))


def _parameter(
    piece: layouts.Part, role: str, target: Target, known: Mapping[str, schema.Parameter]
) -> schema.Parameter:
    name = piece.parameter.removesuffix(f".{_SUFFIX[role]}")
    whole = next(one for one in target.native.pieces if one.parameter == name)
    first, second = _split(whole, target.into, known)
    axes, rank = known[name].axes, schema.Axis(_RANK, target.rank)
    of_role = {DOWN: (*axes[:first], rank, *axes[second:]), UP: (*axes[:second], rank), MAGNITUDE: axes[:second]}
    return schema.Parameter(piece.parameter, of_role[role])


def _shared(pairs: Mapping[str, Pair], states: Sequence[disk.FileState]) -> dict[str, Pair]:
    """The pairs, those of one layer's parts with one A where theirs are equal. A's that lie in different places are read."""
    firsts: dict[tuple[object, ...], list[lazy.LazyParameter]] = {}
    found = {}
    source = lazy.SourceFiles(states)
    try:
        for name, pair in sorted(pairs.items()):
            part = name.removesuffix(".weight").rpartition(".")[0]
            candidates = firsts.setdefault((part, pair.down.parameter.axes, pair.down.dtype), [])
            equal = (one for one in candidates if one.blocks == pair.down.blocks or _equal(one, pair.down, source))
            down = next(equal, None)
            if down is None:
                candidates.append(down := pair.down)
            found[name] = replace(pair, down=down)
    finally:
        source.close()
    return found


def _equal(one: lazy.LazyParameter, other: lazy.LazyParameter, source: lazy.SourceFiles) -> bool:
    return all(
        bool((source.read(one, box) == source.read(other, box)).all()) for box in lazy.boxes(one.parameter.shape, _STEP)
    )


def adapter_of(pairs: Mapping[str, Pair], base: str | None) -> tuple[Adapter, dict[str, lazy.LazyParameter]]:
    """What pairs are as an adapter, and its tensors."""
    tensors: dict[str, lazy.LazyParameter] = {}
    for pair in pairs.values():
        for held in (pair.down, pair.up, pair.magnitude):
            if held is not None:
                tensors[held.parameter.name] = held
    settings = {
        name: {"A": pair.down.parameter.name, "scale": pair.scale, "dora": pair.magnitude is not None}
        for name, pair in sorted(pairs.items())
    }
    return Adapter({name: held.parameter for name, held in tensors.items()}, settings, base), tensors


def pairs_in(checkpoint: Checkpoint) -> dict[str, Pair]:
    """The pairs of an adapter that was read by itself."""
    assert checkpoint.adapter is not None
    tensors = checkpoint.tensors
    return {
        name: Pair(name, tensors[said["A"]], tensors[f"{name}.B"], said["scale"], tensors.get(f"{name}.magnitude"))
        for name, said in checkpoint.adapter.settings.items()
    }


# --- writing ---------------------------------------------------------------------------------------------------------


def without_weights(architecture: Architecture, format: str, path: str) -> Checkpoint:
    """A model that is asked for the names and shapes of its tensors alone: it has no values."""
    tensors = {
        name: lazy.LazyParameter(parameter, dtypes.FP32, (), fill=1.0)
        for name, parameter in schema.parameters(architecture).items()
    }
    return Checkpoint(format, path, architecture, tensors, [])


def joined(
    native: layouts.Native, pairs: Mapping[str, Pair], known: Mapping[str, schema.Parameter]
) -> tuple[list[Pair], str | None]:
    """The pairs of all parameters in one tensor of a model as a single one, and what was done for that in words.

    Where their A's differ, the new A is all of them one below the other, and each B is zero beside its own columns; a parameter without a pair has
    a B of zeros. Raises `Refusal` where their scales differ.
    """
    names = list(dict.fromkeys(piece.parameter for piece in native.pieces))
    held = [pairs[name] for name in names if name in pairs]
    downs = {pair.down.parameter.name: pair.down for pair in held}
    if len({pair.scale for pair in held}) > 1 or len({pair.magnitude is None for pair in held}) > 1:
        raise Refusal(
            f"{native.name} is one tensor there, and its parts have pairs of different scales or kinds",
            found=", ".join(f"{pair.parameter}: {pair.scale:.6g}" for pair in held),
            expected="one scale",
            fix=MERGE,
        )
    absent = [name for name in names if name not in pairs]
    if absent and held[0].magnitude is not None:
        raise Refusal(
            f"{native.name} is one tensor there, and DoRA changes a part of it",
            found=f"nothing for {absent[0]}",
            fix=MERGE,
        )
    if len(downs) == 1 and not absent:
        return held, None
    rank, starts = 0, {}
    for name, down in downs.items():
        starts[name], rank = rank, rank + rank_of(down)
    first = held[0]
    if len({one.dtype for pair in held for one in (pair.down, pair.up)}) > 1:
        raise Refusal(
            f"the pairs of {native.name} are of several dtypes", expected="one", fix="save the adapter in one dtype"
        )
    name = f"{min(names)}.A"  # as it is called when it is read
    wide = [pair.widened(rank, starts[pair.down.parameter.name], name) for pair in held]
    blocks = {block: None for pair in wide for block in pair.down.blocks}
    down = replace(wide[0].down, blocks=tuple(blocks))
    found = [replace(pair, down=down) for pair in wide]
    inputs = len(down.parameter.axes) - 1 - _rank_axis(down)
    for name in absent:
        axes = (*known[name].axes[:-inputs], schema.Axis(_RANK, rank))
        zeros = lazy.LazyParameter(schema.Parameter(f"{name}.B", axes), first.up.dtype, (), fill=0.0)
        found.append(Pair(name, down, zeros, first.scale))
    said = f"{native.name.removesuffix('.weight')} has one pair of rank {rank}, made of those of {', '.join(pair.parameter for pair in held)}"
    return found, said


def places_of(
    native: layouts.Native, out: int, into: int, pairs: Sequence[Pair], known: Mapping[str, schema.Parameter]
) -> Iterator[tuple[str, layouts.Native]]:
    """The matrices of one tensor of a model, by their roles, as they are written: A once for all of its parameters."""
    by_name = {pair.parameter: pair for pair in pairs}
    for role, factor in factors_of(native, out, into, pairs[0].rank, known).items():
        if role == MAGNITUDE and pairs[0].magnitude is None:
            continue
        pieces = factor.pieces
        if role == DOWN:
            owner = pieces[0].parameter.removesuffix(".A")
            pieces = (replace(pieces[0], parameter=by_name[owner].down.parameter.name),)
        yield role, replace(factor, pieces=pieces)


def alpha_of(scale: float, rank: int) -> float | int:
    """The alpha whose quotient by the rank is the scale, exactly; `Refusal` if there is none."""
    near = scale * rank
    for alpha in (round(near), near):
        if alpha / rank == scale:
            return alpha
    raise Refusal(f"no alpha gives the scale {scale!r} at rank {rank}")


def all_of(natives: Iterable[layouts.Native], pairs: Mapping[str, Pair]) -> Iterator[layouts.Native]:
    """The tensors of a model in which a parameter with a pair lies: one for each matrix, and no copies."""
    done: set[tuple[str, int]] = set()
    for native in natives:
        own = {(piece.parameter, _matrix(native, piece)) for piece in native.pieces}
        if any(parameter in pairs for parameter, _ in own) and not own & done and not native.row.copy:
            done |= own
            yield native


def _matrix(native: layouts.Native, piece: layouts.Part) -> int:
    """Which of its parameter's matrices a part of a tensor is of: the number of its expert, where each has a tensor."""
    return piece.tile.canonical_base[0] if "{x}" in native.row.native else 0
