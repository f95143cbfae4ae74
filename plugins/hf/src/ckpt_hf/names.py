"""How the names of tensors in files differ from the names of the class: by a prefix that all have, or by one that all lack.

`torch.compile` puts `_orig_mod.` before every name, DDP `module.`, accelerate `_forward_module.`, peft `base_model.model.`;
a bare model saves its tensors without the `model.` that they have in the class with a head. Nothing is known of such
prefixes beforehand: a spelling is right if with it every name of the class is found, and every name found is explained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ckpt_core.sdk import Architecture, CkptError, Table, layouts, schema
from ckpt_hf.common import TableSet

_MOST_PREFIXES = 4
_PROBES = 2
NOTHING = Table()


@schema.dataclass(frozen=True)
class Spelling:
    """`added` stands before every name; `left_out` is missing from those that begin with it."""

    added: str = ""
    left_out: str = ""

    def of(self, name: str) -> str:
        return self.added + name.removeprefix(self.left_out)

    def __str__(self) -> str:
        said = [f"behind {self.added!r}"] if self.added else []
        return " and ".join([*said, *([f"without the {self.left_out!r} of the class"] if self.left_out else [])])

    def hints(self) -> dict[str, str]:
        """What a writer of the same names needs to know; empty for the names of the class itself."""
        return {key: prefix for key, prefix in (("added", self.added), ("left_out", self.left_out)) if prefix}


@schema.dataclass(frozen=True)
class Match:
    """The tables that fit the names found, spelt as those are, and what they say of an architecture. `number` counts the spellings of
    the class up to the one that they are of. `complete`: every tensor is explained, and none is missing.
    """

    number: int
    spelling: Spelling
    layout: layouts.BoundTables
    leftovers: Table
    natives: dict[str, layouts.Native]
    complete: bool = True

    @property
    def tables(self) -> list[Table]:
        """The tables of the model, and what may lie beside it."""
        return [*self.layout.tables, self.leftovers]


def matching(
    spellings: Sequence[TableSet], names: Collection[str], architecture: Architecture, leftovers: Table = NOTHING
) -> Match:
    """The tables that explain all of `names` and miss none; where none do, those that explain most.

    `spellings` are those of the class: experts are saved one by one, or fused by a bare state dict. `leftovers` drops
    what may lie beside the model. Raises an error where two readings differ and both are complete, and where several models are there.
    """
    found = set(names)
    leftovers = leftovers.counted(sum(len(stack.layers) for stack in architecture.stacks.values()))
    best: tuple[int, TableSet, Spelling] | None = None
    complete: dict[frozenset[tuple[str, ...]], tuple[TableSet, Spelling]] = {}
    of_class = [layouts.BoundTables(tables, architecture) for tables in spellings]
    bound = [(tables, layout.natives()) for tables, layout in zip(spellings, of_class, strict=True)]
    whole: dict[Spelling, set[str]] = {}
    for spelling in _candidates(bound, found):
        for tables, natives in bound:
            spelt = {spelling.of(name): name for name in natives}
            known = found & spelt.keys()
            if not _lacking(spelling, natives, found):
                whole[spelling] = known
            if best is None or len(known) > best[0]:
                best = len(known), tables, spelling
            if len(spelt) == len(natives) and _explains(spelling, tables, natives, found, leftovers):
                complete.setdefault(_reading({name: natives[spelt[name]] for name in known}), (tables, spelling))
        if complete and not spelling.hints():
            break  # the names of the class itself leave nothing to decide
    if len(complete) > 1:
        raise CkptError(
            "the names of the tensors can be read in several ways",
            found="; or ".join(str(spelling) or "as the class has them" for _, spelling in complete.values()),
            fix="rename the tensors as transformers saves them",
        )
    if not complete:
        _check_one(whole)
    tables, spelling = next(iter(complete.values())) if complete else best[1:] if best else (spellings[0], Spelling())
    number = next(number for number, one in enumerate(spellings) if one is tables)
    layout, natives = of_class[number], bound[number][1]
    if spelling.hints():
        layout = layouts.BoundTables([table.renamed(spelling.of) for table in tables], architecture)
        natives = layout.natives()
    return Match(number, spelling, layout, leftovers.renamed(spelling.of), natives, bool(complete))


def _reading(natives: Mapping[str, layouts.Native]) -> frozenset[tuple[str, ...]]:
    """What tensors are read as, by the parameters in each and their arrangement: two spellings may say the same."""
    return frozenset(
        (name, native.row.sentence, *(piece.parameter for piece in native.pieces)) for name, native in natives.items()
    )


def _candidates(bound: Sequence[tuple[TableSet, dict[str, layouts.Native]]], found: set[str]) -> Iterator[Spelling]:
    """The spellings that may be: the class's own, then those under which one of its first names is found."""
    yield Spelling()
    tried = {Spelling()}
    for tables, natives in bound:
        required = [name for name, native in natives.items() if not native.row.copy][:_PROBES]
        bases = {f"{table.native.partition('.')[0]}." for table in tables if "." in table.native}
        for left_out in ("", *(base for base in bases if required and required[0].startswith(base))):
            for probe in (name.removeprefix(left_out) for name in required):
                for added in _before(probe, found):
                    if (spelling := Spelling(added, left_out)) not in tried:
                        tried.add(spelling)
                        yield spelling


def _before(probe: str, found: set[str]) -> list[str]:
    """What stands before `probe` in the names that end in it."""
    prefixes = {name.removesuffix(probe) for name in found if name == probe or name.endswith(f".{probe}")}
    return sorted(prefixes)[:_MOST_PREFIXES]


def _lacking(spelling: Spelling, natives: dict[str, layouts.Native], found: set[str]) -> bool:
    return any(spelling.of(name) not in found for name, native in natives.items() if not native.row.copy)


def _check_one(whole: Mapping[Spelling, set[str]]) -> None:
    """Raise an error where two spellings find a whole model each, and none of its tensors is the other's: a model and its average
    (EMA), a policy and its reference."""
    apart: dict[Spelling, set[str]] = {}
    for spelling, tensors in whole.items():
        if all(tensors.isdisjoint(others) for others in apart.values()):
            apart[spelling] = tensors
    if len(apart) > 1:
        raise CkptError(
            "several models of this architecture lie side by side",
            found="; ".join(f"one {spelling}" if spelling.hints() else "one as the class has it" for spelling in apart),
            expected="one model",
            fix="say which one with -o prefix=..., where the format has that option, or save it by itself",
        )


def _explains(
    spelling: Spelling, tables: TableSet, natives: dict[str, layouts.Native], found: set[str], leftovers: Table
) -> bool:
    if _lacking(spelling, natives, found):
        return False
    dropped = [table.renamed(spelling.of) for table in (*tables, leftovers)]
    known = {spelling.of(name) for name in natives}
    return all(any(table.drops_name(name) for table in dropped) for name in found - known)
