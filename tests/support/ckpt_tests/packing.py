"""A second opinion on layout sentences: an interpreter that lists every element, one by one.

It shares nothing with the affine algebra under test. A node becomes the list of what it holds, in order:
(part, {axis: index}) per element, or None for padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ckpt_core.architecture import Parameter
from ckpt_core.layout import Native, Tile, parse
from ckpt_core.layout.sentence import Name, Node, One, Padding, Product, Sum

Element = tuple[str | None, dict[str, int]] | None


def elements(node: Node, sizes: Mapping[str, int], is_part: Callable[[str], bool]) -> list[Element]:
    """What a node of a sentence holds, in order."""
    match node:
        case One():
            return [(None, {})]
        case Padding(axis=axis):
            return [None] * sizes[axis]
        case Name(name=name, own=own) if is_part(name):
            inner = [(None, {})] if own is None else elements(own, sizes, is_part)
            return [None if one is None else (name, one[1]) for one in inner]
        case Name(name=name):
            return [(None, {name: index}) for index in range(sizes[name])]
        case Sum(terms=terms):
            return [one for term in terms for one in elements(term, sizes, is_part)]
        case Product(factors=factors):
            return [
                both(choice) for choice in itertools.product(*(elements(factor, sizes, is_part) for factor in factors))
            ]
    raise AssertionError(node)


def both(choice: Sequence[Element]) -> Element:
    """One element out of one of each factor."""
    if any(one is None for one in choice):
        return None
    parts = [part for part, _ in choice if part is not None]
    assert len(parts) <= 1
    indices: dict[str, int] = {}
    for _, some in choice:
        assert not indices.keys() & some.keys()
        indices |= some
    return (parts[0] if parts else None), indices


def canonical_index(parameter: Parameter, indices: Mapping[str, int], starts: Mapping[str, int]) -> tuple[int, ...]:
    """The place of an element in its parameter; `starts` says where this rank's share of an axis begins."""
    place = []
    for axis in parameter.axes:
        if axis.name in indices or not any(name in indices for term in axis.terms for name, _ in term):
            place.append(starts.get(axis.name, 0) + indices.get(axis.name, 0))
            continue
        base = 0
        for term in axis.terms:
            if any(name in indices for name, _ in term):
                index = 0
                for name, size in term:
                    index = index * size + indices.get(name, 0)
                place.append(base + index)
            base += math.prod(size for _, size in term)
    return tuple(place)


def pack(
    sentence: str,
    held: Mapping[str | None, tuple[Parameter, np.ndarray]],
    shares: Mapping[str, tuple[int, int]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> np.ndarray:
    """One rank's native tensor: parts (or None: the one parameter) laid out as the sentence says, -1 for padding.

    `shares` gives (start, size) of every divided axis; an axis that a native name runs over has size 1.
    """
    shares = shares or {}
    known = {axis.name: axis.size for parameter, _ in held.values() for axis in parameter.axes}
    known |= {
        name: size
        for parameter, _ in held.values()
        for axis in parameter.axes
        for term in axis.terms
        for name, size in term
    }
    known |= {axis: size for axis, (_, size) in shares.items()} | dict(sizes or {})
    starts = {axis: start for axis, (start, _) in shares.items()}
    dims = [elements(node, known, lambda name: name in held) for node in parse(sentence).dims]
    native = np.full([len(dim) for dim in dims], -1, np.int64)
    for place in np.ndindex(*native.shape):
        one = both([dim[index] for dim, index in zip(dims, place, strict=True)])
        if one is not None:
            part, indices = one
            parameter, values = held[part]
            native[place] = values[canonical_index(parameter, indices, starts)]
    return native


def points(tile: Tile) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (canonical index, native index) of a tile, counted out."""
    found = []
    for indices in itertools.product(*(range(link.size) for link in tile.links)):
        canonical, native = list(tile.canonical_base), list(tile.native_base)
        for index, link in zip(indices, tile.links, strict=True):
            canonical[link.axis] += link.step * index
            native[link.dim] += link.stride * index
        found.append((tuple(canonical), tuple(native)))
    return found


def numbered(parameters: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
    """Parameters whose elements are all different, across parameters too."""
    found, start = {}, 0
    for name, parameter in parameters.items():
        found[name] = np.arange(start, start + parameter.elements).reshape(parameter.shape)
        start += parameter.elements
    return found


def written(native: Native, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """A native tensor filled by its pieces, -1 where none writes; no element may be written twice."""
    out = np.full(native.shape, -1, np.int64)
    for piece in native.pieces:
        for canonical, place in points(piece.tile):
            assert out[place] == -1, f"{native.name}{place} is written twice"
            out[place] = tensors[piece.parameter][canonical]
    assert (out == -1).sum() == native.padding
    return out


def read_back(
    natives: Sequence[tuple[Native, np.ndarray]], parameters: Mapping[str, Parameter]
) -> dict[str, np.ndarray]:
    """The parameters that native tensors hold, -1 where none does; every copy of an element must be equal."""
    found = {name: np.full(parameter.shape, -1, np.int64) for name, parameter in parameters.items()}
    for native, values in natives:
        for piece in native.pieces:
            for canonical, place in points(piece.tile):
                before = found[piece.parameter][canonical]
                assert before in (-1, values[place]), f"two copies of {piece.parameter}{canonical} differ"
                found[piece.parameter][canonical] = values[place]
    return found
