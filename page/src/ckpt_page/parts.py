"""The sections that are pictures: how large the parts of the model are, their dtypes, and which file holds them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping

from ckpt_core.cli.output import count_text, shortened
from ckpt_core.cli.survey import Survey, group_of
from ckpt_core.sizes import size_text
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.text import plural
from ckpt_page.markup import Markup, breakable, element, join
from ckpt_page.overview import dtype_text, section
from ckpt_page.sharding import FileShare, box_text, cut_text, shares_of
from ckpt_page.strips import Run, ranges_text, runs_of, strip
from ckpt_page.treemap import Leaf, treemap

_LISTED = 1000

_LAYER = re.compile(r"(.*?)layers\.(\d+)\.(.*)")


def place_of(name: str) -> str:
    """The place of a parameter in the model: a layer, or what comes before and after them.

    >>> place_of("encoder.layers.3.mlp.up.weight"), place_of("embedding.tokens.weight")
    ('encoder layer 3', 'embedding')
    """
    if match := _LAYER.fullmatch(name):
        return f"{match[1].replace('.', ' ')}layer {match[2]}"
    parts = name.split(".")
    return " ".join(parts[: 2 if parts[0] in ("encoder", "decoder") else 1]).replace("_", " ")


def kind_of(name: str) -> str:
    """A parameter's name with `{l}` for the layer's number: what it is, wherever it is.

    >>> kind_of("layers.3.mlp.up.weight")
    'layers.{l}.mlp.up.weight'
    """
    match = _LAYER.fullmatch(name)
    return f"{match[1]}layers.{{l}}.{match[3]}" if match else name


def within_place(name: str) -> str:
    """A parameter's name inside its layer.

    >>> within_place("layers.3.mlp.up.weight")
    'mlp.up.weight'
    """
    match = _LAYER.fullmatch(name)
    return match[3] if match else name


def anchors(names: Iterable[str]) -> dict[str, str]:
    """The id of every tensor's row, which the treemap links to."""
    return {name: f"t{number}" for number, name in enumerate(names)}


def shape_text(assembly: LazyParameter) -> str:
    """`g=8 d=128 h=8192`."""
    return " ".join(map(str, assembly.parameter.axes))


def parameters(survey: Survey) -> Markup:
    """A treemap of the parameters."""
    tensors = survey.checkpoint.tensors
    links = anchors(tensors)
    leaves = [
        Leaf(
            (place_of(name), group_of(name)),
            within_place(name).removesuffix(".weight"),
            math.prod(assembly.parameter.true_shape),
            group_of(name),
            f"{name}: {shape_text(assembly)}, {assembly.parameter.elements:,} elements, {assembly.dtype}",
            f"#{links[name]}",
        )
        for name, assembly in tensors.items()
    ]
    total = sum(survey.counts.values())
    picture, missing = treemap(leaves, _short, "Treemap of the parameters, by layer and part")
    small = sum(leaf.size for leaf in missing)
    note = f"Too small to be drawn: {plural(len(missing), 'tensor')} with {small:,} elements together."
    return section(
        "Parameters",
        element(
            "p",
            "Every rectangle is a tensor, as large as its elements are many; padding of the vocabulary is left out. ",
            "The numbers are those of the layers.",
        ),
        legend(
            (group, f"{group} {count_text(count)}, {100 * count / total:.3g} %")
            for group, count in survey.counts.items()
        ),
        picture,
        element("p", note if missing else "", id="pointed", class_="note"),
    )


def _short(place: str) -> str:
    return place.replace("layer ", "")


def legend(items: Iterable[tuple[str, str]]) -> Markup:
    """Colours and what they mean."""
    swatch = {"class_": "swatch", "width": 12, "height": 12, "aria_hidden": "true"}
    entries = [
        element("li", element("svg", element("rect", class_=kind, width="100%", height="100%"), **swatch), text)
        for kind, text in items
    ]
    return element("ul", *entries, class_="legend")


def dtypes(survey: Survey) -> Markup:
    """A map of dtypes: a row for every kind of tensor, a column for every place in the model."""
    tensors = survey.checkpoint.tensors
    places = list(dict.fromkeys(map(place_of, tensors)))
    kinds: dict[str, dict[str, str]] = {}
    for name, assembly in tensors.items():
        kinds.setdefault(kind_of(name), {})[place_of(name)] = assembly.dtype.name
    rows: list[list[object]] = []
    for kind, held in kinds.items():
        runs = runs_of([held.get(place) for place in places])
        drawn = [
            Run(start, stop, str(name), f"{kind}: {name} in {_between(places, start, stop)}")
            for start, stop, name in runs
        ]
        counts = {name: list(held.values()).count(name) for name in dict.fromkeys(held.values())}
        text = ", ".join(f"{name} × {count}" if len(held) > 1 else name for name, count in counts.items())
        rows.append([breakable(kind), strip(drawn, len(places)), text])
    return section(
        "Dtypes",
        legend((name, dtype_text(name, held)) for name, held in survey.stored.items()),
        maps(["tensor", ruler(places), "stored as"], rows),
    )


def _between(places: list[str], start: int, stop: int) -> str:
    return places[start] if stop == start + 1 else f"{places[start]} to {places[stop - 1]}"


def ruler(places: list[str]) -> Markup:
    """What the two ends of a strip are."""
    ends = [element("span", place) for place in dict.fromkeys((places[0], places[-1]))]
    return element("div", *ends, class_="ruler")


def maps(head: list[object], rows: Iterable[list[object]]) -> Markup:
    """A table of names, strips and words."""
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    return element(
        "div", element("table", element("thead", titles), element("tbody", *body), class_="maps"), class_="wide"
    )


class Files:
    """The files that hold a checkpoint's tensors, numbered from 1 in the order of their names, numbers in names as numbers.

    Where every rank has many files, or there are more than a page can list, those of one rank (as their names say it)
    have one number.
    """

    def __init__(self, survey: Survey) -> None:
        checkpoint = survey.checkpoint
        self._root = checkpoint.path
        self.shares = {name: shares_of(assembly) for name, assembly in checkpoint.tensors.items()}
        paths = {share.path for held in self.shares.values() for share in held}
        self.sizes = {state.path: state.size for state in checkpoint.files}
        self.others = [self._name(path) for path in sorted(self.sizes.keys() - paths, key=_by_number)]
        ranks = {path: rank_in(self._name(path)) for path in paths}
        of_rank = len(set(ranks.values()))
        self.by_rank = len(paths) > _LISTED or 1 < of_rank < len(paths) / 4
        labels = ranks if self.by_rank else {path: self._name(path) for path in paths}
        numbers = {label: number for number, label in enumerate(sorted(set(labels.values()), key=_by_number), 1)}
        self.numbers = {path: numbers[label] for path, label in labels.items()}
        self.labels = {number: label for label, number in numbers.items()}

    def _name(self, path: str) -> str:
        """A path as it is seen from the checkpoint's folder."""
        inside = os.path.relpath(path, self._root)
        return os.path.basename(path) if inside == os.curdir else path if inside.startswith(os.pardir) else inside

    def text(self, shares: Iterable[FileShare]) -> str:
        """The numbers of the files of shares, by role: `1–4; copies in 5–8`."""
        held: dict[str, list[int]] = {}
        for share in shares:
            held.setdefault(share.role, []).append(self.numbers[share.path])
        words = {"weights": "", "copy": "copies in ", "rounded": "rounded in ", "averaged": "mean with "}
        return "; ".join(f"{words[role]}{ranges_text(numbers)}" for role, numbers in held.items()) or "–"


def rank_in(path: str) -> str:
    """The ranks that a path names.

    >>> rank_in("model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors"), rank_in("mp_rank_00_001/model.pt")
    ('pp-rank-0 tp-rank-1', 'mp_rank_00_001')
    """
    return " ".join(re.findall(r"[a-z]+[-_]rank[-_]\d+(?:_\d+)*", path)) or "no rank in the name"


def _by_number(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in re.split(r"(\d+)", path)]


def sharding(survey: Survey) -> Markup:
    """A map of the files, then how every kind of tensor is cut."""
    files = Files(survey)
    tensors = survey.checkpoint.tensors
    places = list(dict.fromkeys(map(place_of, tensors)))
    what = "the files of a rank hold" if files.by_rank else "a file holds"
    return section(
        "Sharding",
        element("p", f"Which places of the model {what}; the paler, the smaller a part of them."),
        maps(["rank" if files.by_rank else "file", ruler(places), "holds"], _file_rows(files, tensors, places)),
        element("p", f"Without tensors: {', '.join(shortened(files.others))}" if files.others else "", class_="note"),
        element("h3", "How tensors are cut"),
        element("p", "A part from 0 to 2 of an axis has its indices 0 and 1."),
        maps(
            ["tensor", "axes", "cut", "in files of no." if files.by_rank else "in files no."], _cut_rows(files, tensors)
        ),
    )


def _file_rows(files: Files, tensors: Mapping[str, LazyParameter], places: list[str]) -> list[list[object]]:
    columns = {place: number for number, place in enumerate(places)}
    whole = [0] * len(places)
    held: dict[int, list[int]] = {number: [0] * len(places) for number in files.labels}
    names: dict[int, set[str]] = {number: set() for number in files.labels}
    for name, assembly in tensors.items():
        column = columns[place_of(name)]
        whole[column] += assembly.parameter.elements
        for share in files.shares[name]:
            held[files.numbers[share.path]][column] += share.elements
            names[files.numbers[share.path]].add(name)
    rows: list[list[object]] = []
    for number, text in files.labels.items():
        parts = [round(have / full, 3) if have else None for have, full in zip(held[number], whole, strict=True)]
        drawn = [
            Run(
                start,
                stop,
                "held",
                f"{100 * part:.3g} % of {_between(places, start, stop)}",
                min(1.0, 0.25 + 0.75 * part),
            )
            for start, stop, part in runs_of(parts)
            if isinstance(part, float)
        ]
        paths = [path for path, its in files.numbers.items() if its == number]
        size = size_text(sum(files.sizes.get(path, 0) for path in paths))
        count = f" in {plural(len(paths), 'file')}" if files.by_rank else ""
        label = join([element("span", number, class_="number"), breakable(text)])
        rows.append([label, strip(drawn, len(places)), f"{plural(len(names[number]), 'tensor')}, {size}{count}"])
    return rows


def _cut_rows(files: Files, tensors: Mapping[str, LazyParameter]) -> list[list[object]]:
    """A row for every kind of tensor that is cut in one way; the parts shown are those of the first of its layers."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, assembly in tensors.items():
        key = (kind_of(name), shape_text(assembly), cut_text(assembly.parameter, files.shares[name]))
        alike.setdefault(key, []).append(name)
    rows: list[list[object]] = []
    for (kind, axes, cut), names in alike.items():
        times = element("span", f" × {len(names)}", class_="quiet") if len(names) > 1 else ""
        held = files.text(share for name in names for share in files.shares[name])
        parts = [_part_text(files, tensors[names[0]], share) for share in files.shares[names[0]]]
        rows.append([join([breakable(kind), times]), axes, cut, _parts(parts, held, names)])
    return rows


def _part_text(files: Files, assembly: LazyParameter, share: FileShare) -> str:
    """`g 2 to 4 in no. 3`, the number of a file."""
    role = "" if share.role == "weights" else f" ({share.role})"
    return f"{box_text(assembly.parameter, share.box)} in no. {files.numbers[share.path]}{role}"


def _parts(parts: list[str], held: str, names: list[str]) -> Markup:
    """The files that hold some tensors; of the first one also which part each holds, folded."""
    if len(parts) < 2:
        return join([held])
    of = element("p", f"of {names[0]}", class_="quiet") if len(names) > 1 else join(())
    return element("details", element("summary", held), of, element("ul", *(element("li", part) for part in parts)))
