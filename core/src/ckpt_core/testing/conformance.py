"""The laws every format obeys, as a class to inherit; `Quirks` says what the format is like.

Three laws: what is written reads back bit for bit, and what is read writes back byte for byte; every tensor and
every config key is accounted for; what the format cannot say is refused by name. And two manners: a plan fits its
memory, and nothing imports a framework.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core.api import (
    OpenCheckpoint,
    convert,
    digests,
    fingerprint,
    fingerprint_of,
    plan_conversion,
    read_checkpoint,
)
from ckpt_core.architecture import Architecture, architecture_of, facts_of
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.plan import Plan
from ckpt_core.engine.run import run_plan
from ckpt_core.engine.staging import SUFFIX
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.plugins import SDK
from ckpt_core.plugins.discovery import all_plugins, detect, load, require
from ckpt_core.receipt.places import receipt_path
from ckpt_core.storage.bytes.files import read_small
from ckpt_core.testing.entries import Entry, one_of_each
from ckpt_core.testing.examples import Values, calm_numbers, write_ir
from ckpt_core.testing.functions import apart, outputs
from ckpt_core.testing.quirks import HEAVY, Golden, Quirks, Ranks
from ckpt_core.testing.variations import Variation, names_a_fact, variations
from ckpt_core.verify.declared import FILE, Declared, Sentences
from ckpt_core.verify.difference import compare
from ckpt_core.verify.tracer import Trace, hold_against_declared

_SIDECARS = {"tokenizer.json": b'{"model": {"vocab": {}}}', "chat_template.jinja": b"{{ messages }}"}
_WRONG_VALUES: tuple[object, ...] = (None, "x", -1, 0, True, [], {}, 1e99, [None], {"rope_type": "x"})
_NONE = {
    "config": "Quirks.configs is empty: no JSON file whose keys are checked",
    "golden": "Quirks.goldens is empty: no checkpoint of the framework's own",
}
_BUDGET = 256 << 20
_LOGITS = 1e-4


@dataclass
class Workshop:
    """A folder to work in, and the `ir` sources of a format's example models, each made once."""

    format: str
    quirks: Quirks
    folder: Path
    tried: set[str] = field(default_factory=set)
    _sources: dict[tuple, str] = field(default_factory=dict)
    _converted: dict[tuple, str] = field(default_factory=dict)
    _count: int = 0

    def new(self, name: str = "out") -> str:
        """A path that does not exist yet; its parent does."""
        self._count += 1
        parent = self.folder / str(self._count)
        parent.mkdir()
        return str(parent / name)

    def source(
        self,
        architecture: Architecture,
        dtype: str = "fp32",
        *,
        sidecars: bool = False,
        sparse: bool = False,
        values: Values | None = None,
    ) -> str:
        """The `ir` checkpoint of an architecture; `values` are those of the quirks, or given."""
        key = (architecture, dtype, sidecars, sparse, values)
        if key not in self._sources:
            notes = {"bos": 3, "eos": 5, "max_positions": 64}
            files = _SIDECARS if sidecars else None
            self._sources[key] = write_ir(
                self.new("ir"),
                architecture,
                dtype=dtype,
                values=values or self.quirks.values,
                notes=notes,
                sidecars=files,
                sparse=sparse,
            )
        return self._sources[key]

    def write(self, src: str, layout: Ranks | None = None, /, to: str | None = None, **options: str) -> str:
        """`src` converted to the format under test (or `to`), at a new place."""
        dst = self.new()
        convert(src, dst, **self.arguments(layout, to, **options))
        return dst

    def converted(self, src: str, layout: Ranks | None = None) -> str:
        """As `write`, but made once, for laws that only read it."""
        key = (src, layout)
        if key not in self._converted:
            self._converted[key] = self.write(src, layout)
        return self._converted[key]

    def arguments(self, layout: Ranks | None = None, /, to: str | None = None, **options: str) -> dict[str, Any]:
        """What `convert` is called with."""
        to = to or self.format
        given = {**(self.quirks.write_options if to == self.format else {}), **options}
        return {
            "to": to,
            "options": {f"dst.{name}": value for name, value in given.items()},
            **(layout or Ranks()).asked(),
        }

    def base(self) -> Architecture:
        """The model that is varied and damaged."""
        return next(iter(self.quirks.models.values()))


class FormatConformance:
    """Inherit, name the `format`, and describe it in `quirks`."""

    format: str
    quirks: Quirks = Quirks()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        quirks = self.quirks
        cases: dict[str, Callable[[], dict[str, object]]] = {
            "model": lambda: dict(quirks.models),
            "layout": lambda: {str(layout): layout for layout in quirks.layouts()},
            "dtype": lambda: {dtype: dtype for dtype in quirks.dtypes},
            "variation": lambda: {
                name: variation
                for name, variation in variations(next(iter(quirks.models.values()))).items()
                if name.startswith(quirks.varied)
            },
            "config": lambda: {config: config for config in quirks.configs},
            "golden": lambda: {golden.name: golden for golden in quirks.golden_cases()},
        }
        names = [name for name in cases if name in metafunc.fixturenames]
        if {"model", "layout"} <= {*names}:
            pairs = [
                pytest.param(model, layout, id=f"{name}-{layout}")
                for number, (name, model) in enumerate(quirks.models.items())
                for layout in quirks.layouts_of(number)
            ]
            metafunc.parametrize(("model", "layout"), pairs)
            names = [name for name in names if name not in ("model", "layout")]
        for name in names:
            values = cases[name]()
            none = pytest.param(None, id="none", marks=pytest.mark.skip(reason=_NONE.get(name, f"there is no {name}")))
            metafunc.parametrize(name, list(values.values()) or [none], ids=list(values) or None)

    @pytest.fixture(scope="class")
    @classmethod
    def workshop(cls, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
        return Workshop(cls.format, cls.quirks, tmp_path_factory.mktemp(cls.format))

    # What it says of itself

    def test_it_loads_and_describes_itself(self) -> None:
        plugin = load(self.format)
        assert plugin.broken is None, f"the plugin does not load: {plugin.broken}"
        info = plugin.info
        assert (info.name, info.sdk) == (self.format, SDK)
        assert info.summary and "\n" not in info.summary, "ckpt_info().summary is one line"
        assert info.families, "ckpt_info().families says which models it holds"
        for option in info.options:
            assert option.help and option.side in ("read", "write", "both"), (
                f"option {option.name} needs a help text and a side"
            )
            assert not isinstance(option.kind, tuple) or option.default is None or option.default in option.kind
        for name in ("tp", "pp", "ep"):
            sizes = getattr(self.quirks, name)
            assert sizes == (1,) or name in info.parallel, f"ckpt_info().parallel lacks {name!r}"
            assert name not in info.parallel or len(sizes) > 1, f"give Quirks({name}=(1, 2, ...)) to test --{name}"

    def test_it_has_the_hooks(self) -> None:
        plugin = require(self.format)
        needed = [
            "ckpt_detect",
            *(["ckpt_read"] if plugin.info.reads else []),
            *(["ckpt_write"] if plugin.info.writes else []),
        ]
        missing = [name for name in needed if not getattr(plugin.hooks, name).get_hookimpls()]
        assert not missing, f"hooks that are missing: {', '.join(missing)}"

    def test_it_imports_no_framework(self, workshop: Workshop) -> None:
        source, out, back = workshop.source(workshop.base()), workshop.new(), workshop.new()
        arguments = workshop.arguments()
        script = (
            "import sys\n"
            "from ckpt_core.plugins.discovery import require\n"
            f"require({self.format!r})\n"
            f"heavy = {sorted({*HEAVY, *self.quirks.frameworks})!r}\n"
            "found = [name for name in heavy if name in sys.modules]\n"
            "assert not found, f'importing the plugin imports {found}'\n"
            "from ckpt_core import convert\n"
            f"convert({source!r}, {out!r}, **{arguments!r})\n"
            f"convert({out!r}, {back!r}, to='ir', format={self.format!r})\n"
            "found = [name for name in heavy if name in sys.modules]\n"
            "assert not found, f'converting imports {found}'\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_it_detects_its_own_and_nothing_else(self, workshop: Workshop, tmp_path: Path) -> None:
        hooks = require(self.format).hooks
        out = workshop.write(workshop.source(workshop.base()))
        found = [plugin.name for plugin, _ in detect(out)]
        assert found == [self.format], f"its own output is detected as {found}"
        (tmp_path / "note.txt").write_text("hello")
        (tmp_path / "config.json").write_text("[]")
        for path in (tmp_path, tmp_path / "note.txt", tmp_path / "config.json", tmp_path / "absent"):
            assert not hooks.ckpt_detect(path=str(path)), f"it takes {path.name} for its own"
            if path.is_file():
                read_config = functools.partial(hooks.ckpt_architecture, path=str(path))
                assert _no_crash(read_config) is None, f"it takes {path.name} for a config of its own"
        for other in all_plugins():
            if other.info is not None and other.info.writes and other.name != self.format:
                try:
                    foreign = workshop.write(workshop.source(workshop.base()), to=other.name)
                except Exception:
                    continue  # it does not hold this model, or is broken: neither is this format's fault
                assert not hooks.ckpt_detect(path=foreign), f"it takes a checkpoint of format {other.name} for its own"

    # The lens laws

    def test_what_is_written_reads_back(self, workshop: Workshop, model: Architecture, layout: Ranks) -> None:
        source = workshop.source(model)
        out = workshop.converted(source, layout)
        assert fingerprint(out, format=self.format, options=self.quirks.read_options) == fingerprint(source)
        with OpenCheckpoint(read_checkpoint(source)) as before, OpenCheckpoint(self._read(out)) as after:
            assert list(compare(before.checkpoint, after.checkpoint)) == []
            for name in before:
                rows = slice(before.checkpoint.tensors[name].parameter.true_rows)
                assert after[name].dtype == before[name].dtype
                assert np.array_equal(_bits(before[name].raw()[rows]), _bits(after[name].raw()[rows])), (
                    f"{name} differs"
                )

    def test_what_is_read_writes_back(self, workshop: Workshop, model: Architecture, layout: Ranks) -> None:
        first = workshop.converted(workshop.source(model), layout)
        second = workshop.write(first, layout)
        assert_same_weights(first, second, self._weight_files(workshop, first, layout))

    def test_a_receipt_is_not_needed(self, workshop: Workshop, model: Architecture) -> None:
        source = workshop.source(model)
        out = _bare(workshop.write(source))
        found = [difference.subject for difference in compare(read_checkpoint(source), self._read(out))]
        assert set(found) <= {"tokens.vocabulary"}, "a reader may miss the true vocabulary, and nothing else"

    def test_every_layout_leads_to_every_other(self, workshop: Workshop) -> None:
        """Changing the layout gives the very files that writing in that layout gives."""
        source, layouts = workshop.source(workshop.base()), self.quirks.layouts()
        direct = {layout: workshop.converted(source, layout) for layout in layouts}
        for one, two in zip(layouts, [*layouts[1:], layouts[0]], strict=True):
            again = workshop.write(direct[one], two)
            assert_same_weights(direct[two], again, self._weight_files(workshop, source, two))

    def test_every_dtype_is_kept(self, workshop: Workshop, dtype: str) -> None:
        source = workshop.source(workshop.base(), dtype)
        out = workshop.write(source, self.quirks.layouts()[-1])
        checkpoint = self._read(out)
        assert list(compare(read_checkpoint(source), checkpoint)) == []
        assert dtype in {assembly.dtype.name for assembly in checkpoint.tensors.values()}

    def test_every_choice_of_an_option(self, workshop: Workshop) -> None:
        """It leaves the model as it is, or the receipt tells of the rewrite."""
        source = workshop.source(workshop.base())
        for option in require(self.format).info.options:
            values = option.kind if isinstance(option.kind, tuple) else ("true", "false") if option.kind is bool else ()
            for value in values if option.side != "read" else ():
                try:
                    out = workshop.write(source, None, None, **{option.name: value})
                except Refusal:
                    continue
                found = list(compare(read_checkpoint(source), self._read(out)))
                assert found == [] or _rewrites(out), (
                    f"-o {option.name}={value} changes the model, and no receipt says so"
                )

    def test_notes_travel_or_are_named(self, workshop: Workshop) -> None:
        source = workshop.source(workshop.base())
        known = read_checkpoint(source).notes
        dst = workshop.new()
        plan = plan_conversion(source, dst, **workshop.arguments())
        named = ", ".join(loss.subject for loss in plan.losses)
        run_plan(plan, dst)
        found = self._read(dst).notes
        lost = [name for name, value in known.items() if found.get(name) != value and name not in named]
        assert lost == [], f"{', '.join(lost)} did not arrive, and no loss says so: give `said` to the Target"

    def test_sidecars_travel(self, workshop: Workshop) -> None:
        if not self.quirks.sidecars:
            pytest.skip("this format carries no other files")
        out = workshop.write(workshop.source(workshop.base(), sidecars=True))
        carried = self._read(out).sidecars
        found = {path: read_small(sidecar.path) for path, sidecar in carried.items()}
        assert {path: found.get(path) for path in _SIDECARS} == _SIDECARS

    # Total accounting

    def test_a_missing_tensor_is_named(self, workshop: Workshop) -> None:
        for entry, folder in self._damaged(workshop, "remove"):
            self._assert_refused(workshop, folder, f"{entry.name} was removed", entry)

    def test_a_tensor_too_many_is_named(self, workshop: Workshop) -> None:
        folder = _bare(workshop.write(workshop.source(workshop.base())))
        entries = self._entries()
        name = entries.add(entries.find(folder)[0])
        message = self._assert_refused(workshop, folder, f"{name} was added")
        assert name in message, f"the error does not name {name}:\n{message}"

    def test_a_wrong_shape_is_named(self, workshop: Workshop) -> None:
        for entry, folder in self._damaged(workshop, "reshape"):
            self._assert_refused(workshop, folder, f"{entry.name} was reshaped", entry)

    def test_integer_weights_are_refused(self, workshop: Workshop) -> None:
        for entry, folder in self._damaged(workshop, "retype"):
            self._assert_refused(workshop, folder, f"{entry.name} became integers")

    def test_a_truncated_file_is_named(self, workshop: Workshop) -> None:
        folder = _bare(workshop.write(workshop.source(workshop.base())))
        file = self._entries().find(folder)[-1].file
        os.truncate(file, os.path.getsize(file) - 3)
        message = self._assert_refused(workshop, folder, "a file was truncated")
        assert os.path.basename(file) in message, f"the error does not name {file}:\n{message}"

    def test_an_unknown_config_key_is_named(self, workshop: Workshop, config: str) -> None:
        folder, path, body = self._config(workshop, config)
        path.write_text(json.dumps({**body, "surprising_key": 3}))
        message = self._assert_refused(workshop, folder, f"{config} got a key that nobody knows")
        assert "surprising_key" in message and path.name in message, (
            f"the error does not name the key and its file:\n{message}"
        )

    def test_a_wrong_config_is_an_error_and_never_a_crash(
        self, workshop: Workshop, model: Architecture, config: str
    ) -> None:
        folder, path, body = self._config(workshop, config, model)
        crashes = []
        for said, wrong in _wrong_configs(body):
            if said in workshop.tried:
                continue  # with another model
            workshop.tried.add(said)
            path.write_text(json.dumps(wrong))
            try:
                _no_crash(lambda: self._read(folder), said)
            except AssertionError as crash:
                crashes.append(str(crash))
        assert not crashes, "\n".join(crashes)

    # Never silently wrong

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop: Workshop, variation: Variation) -> None:
        """Written as it is; or as another model, which the plan tells of and which computes the same; or refused."""
        source = workshop.source(variation.architecture, values=calm_numbers)
        plan, out = None, workshop.new()
        try:
            plan = plan_conversion(source, out, **workshop.arguments())
            run_plan(plan, out)
        except CkptError as refusal:
            assert variation.fact not in self.quirks.expresses, (
                f"Quirks.expresses has {variation.fact!r}, but:\n{refusal}"
            )
            assert plan is None, "what cannot be written must be refused by the plan"
            # Of several families, the nearest one may lack something else.
            nearest = len(require(self.format).info.families) > 1 and names_a_fact(str(refusal))
            assert nearest or variation.named_in(str(refusal)), f"it does not name {variation.fact}:\n{refusal}"
            return
        before, after = read_checkpoint(source), self._read(_bare(out))
        found = [
            difference
            for difference in compare(before, after)
            if difference.subject != "tokens.vocabulary" or variation.fact == "tokens.vocabulary"
        ]
        if found:
            base = workshop.source(workshop.base(), values=calm_numbers)
            told = _told(plan) - _told(plan_conversion(base, workshop.new(), **workshop.arguments()))
            assert told, f"{variation.fact} is written, and lost: {found}"
            assert_same_function(variation, read_checkpoint(base), before, after, told)

    def test_what_it_expresses_is_known(self) -> None:
        known = variations(next(iter(self.quirks.models.values())))
        unknown = [name for name in self.quirks.expresses if name not in known]
        assert not unknown, f"Quirks.expresses names no variation: {unknown}; there are: {', '.join(known)}"

    def test_what_it_writes_is_declared(self, workshop: Workshop, model: Architecture) -> None:
        """Every tensor lies where a line of `sentences.txt` puts it; a line that is missing is printed, to be read and added."""
        plugin = require(self.format)
        if not Sentences.beside(plugin.module):
            pytest.skip(
                "the format ships no sentences.txt, by which `ckpt selftest` could know what its tables must say"
            )
        for layout in self.quirks.layouts():
            try:
                plan = plan_conversion(workshop.source(model), workshop.new(), **workshop.arguments(layout))
            except CkptError:
                assert layout.asked(), "the whole model can always be written"
                continue
            seen, target = Trace(), plan.target
            hold_against_declared(seen, plugin, target)
            assert not seen.departed, f"tables and {FILE} differ: {seen.departed[0]}"
            undeclared = {*seen.undeclared}
            lines = {str(Declared.of(one.native.row)) for one in target.placements if one.native.name in undeclared}
            assert not lines, f"lines for {FILE}:\n" + "\n".join(sorted(lines))

    # Manners

    def test_memory_is_bounded(self, workshop: Workshop) -> None:
        small = plan_conversion(
            workshop.source(workshop.base()), workshop.new(), **workshop.arguments(), max_memory=_BUDGET
        )
        large = enlarged(workshop.base(), 24)
        for layout in self.quirks.layouts():
            source = workshop.source(large, sparse=True)
            plan = plan_conversion(source, workshop.new(), **workshop.arguments(layout), max_memory=_BUDGET)
            assert plan.bytes_written > 400 * small.bytes_written
            assert plan.peak_memory <= _BUDGET, (
                f"{plan.bytes_written >> 20} MiB need {plan.peak_memory >> 20} MiB of memory"
            )

    # Goldens

    def test_a_golden_survives(self, workshop: Workshop, golden: Golden) -> None:
        """Through the format itself in its own layout, and through every other layout, with an equal fingerprint."""
        if "refused" in golden.case:
            with pytest.raises(CkptError) as refusal:
                self._read(golden.checkpoint)
            assert str(golden.case["refused"]) in str(refusal.value)
            return
        checkpoint = self._read(golden.checkpoint)
        expected = fingerprint_of(checkpoint, digests(checkpoint))
        assert fingerprint(workshop.write(golden.checkpoint, golden.layout), format=self.format) == expected
        for layout in self.quirks.layouts():
            try:
                out = workshop.write(golden.checkpoint, layout)
            except CkptError:
                assert layout.asked(), "the whole model can always be written"
                continue
            assert fingerprint(out, format=self.format) == expected

    def test_a_golden_computes_the_same(self, golden: Golden) -> None:
        """The reference forward on what was read, against the logits that the framework itself computed."""
        torch = pytest.importorskip("torch")
        load_file = pytest.importorskip("safetensors.torch").load_file
        from ckpt_core.reference import Inputs, forward

        file = golden.folder / "expected.safetensors"
        if "refused" in golden.case or not file.is_file():
            pytest.skip("this case has no logits")
        expected = load_file(file)
        checkpoint = self._read(golden.checkpoint)
        with OpenCheckpoint(checkpoint) as model:
            *_, last = forward(model, Inputs(tokens=expected["input_ids"]))
        vocabulary = checkpoint.architecture.tokens.vocabulary
        assert torch.abs(last.values[..., :vocabulary] - expected["logits"][..., :vocabulary]).max() <= _LOGITS

    # What the tests are made of

    def _read(self, path: str):
        return read_checkpoint(path, format=self.format, options=self.quirks.read_options)

    def _entries(self):
        if self.quirks.entries is None:
            pytest.skip("Quirks.entries is None: nothing to damage")
        return self.quirks.entries

    def _weight_files(self, workshop: Workshop, source: str, layout: Ranks) -> list[str]:
        plan = plan_conversion(source, workshop.new(), **workshop.arguments(layout))
        return [file.path for file in plan.target.files]

    def _damaged(self, workshop: Workshop, how: str) -> Iterator[tuple[Entry, str]]:
        """Copies of a checkpoint, each with one tensor of one kind damaged, in its widest layout."""
        entries = self._entries()
        whole = _bare(workshop.write(workshop.source(workshop.base()), self.quirks.layouts()[-1]))
        for entry in one_of_each(entries.find(whole)):
            copy = workshop.new()
            shutil.copytree(whole, copy)
            there = Entry(entry.file.replace(whole, copy, 1), entry.key, entry.name)
            getattr(entries, how)(there)
            yield there, copy
            shutil.rmtree(copy)

    def _assert_refused(self, workshop: Workshop, folder: str, what: str, entry: Entry | None = None) -> str:
        """Converting `folder` must fail with an error of ours that names `entry`, and leave nothing behind."""
        out = workshop.new()
        try:
            convert(
                folder,
                out,
                to="ir",
                format=self.format,
                options={f"src.{k}": v for k, v in self.quirks.read_options.items()},
            )
        except CkptError as error:
            message = str(error)
        else:
            raise AssertionError(f"{what}, and nobody noticed")
        assert not os.path.exists(out) and not os.path.exists(out + SUFFIX), (
            f"{what}: the output of a refused conversion is left behind"
        )
        if entry is not None:
            assert entry.name in message or entry.file in message, f"{what}, but the error does not name it:\n{message}"
        return message

    def _config(self, workshop: Workshop, config: str, model: Architecture | None = None) -> tuple[str, Path, dict]:
        folder = _bare(workshop.write(workshop.source(model or workshop.base())))
        path = Path(folder, config)
        return folder, path, json.loads(path.read_text())


def assert_same_weights(one: str, two: str, files: list[str]) -> None:
    """Two outputs hold the same bytes in their weight files."""
    assert files
    different = [file for file in files if Path(one, file).read_bytes() != Path(two, file).read_bytes()]
    assert not different, f"files that differ: {different}"


def assert_same_function(
    variation: Variation, base: Checkpoint, before: Checkpoint, after: Checkpoint, told: set[str]
) -> None:
    """`after`, the variation written as another model, computes what `before` does, and `base` does not.

    What is inert must be there, bit for bit.
    """
    pytest.importorskip("torch", reason="a rewritten model is judged by what it computes, and that takes torch")
    with OpenCheckpoint(base) as one, OpenCheckpoint(before) as two, OpenCheckpoint(after) as three:
        plain, wanted, written = outputs(one, two, three)
    error, moved = apart(written, wanted), apart(plain, wanted)
    assert error <= _LOGITS, f"{told} is not exact with {variation.fact}: the output differs by {error:.2g}"
    if variation.inert:
        lost = [difference for difference in compare(before, after) if difference.subject in before.tensors]
        assert not lost, f"{told} loses what no output shows: {lost}"
    else:
        assert moved > 10 * _LOGITS, f"{variation.fact} moves the output by {moved:.2g} at most: that proves nothing"


def enlarged(architecture: Architecture, factor: int) -> Architecture:
    """The same model with every width `factor` times as large."""
    wide = (
        "hidden",
        "vocabulary",
        "padded_vocabulary",
        "ffn",
        "head_dim",
        "kv_rank",
        "q_rank",
        "nope_dim",
        "rope_dim",
        "value_dim",
    )
    facts = facts_of(architecture)
    for path, value in facts.items():
        if path.rpartition(".")[2] in wide and type(value) is int:
            facts[path] = value * factor
    return architecture_of(facts, "an enlarged model")


def _bits(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).reshape(-1).view(np.uint8)


def _rewrites(output: str) -> list[str]:
    """The rewrites that a receipt tells of."""
    decisions = json.loads(Path(receipt_path(output)).read_text())["target"]["decisions"]
    return decisions.get("rewrites", [])


def _told(plan: Plan) -> set[str]:
    """How a plan says that what it writes is another model: rewrites, but for rows of padding, and losses."""
    rewrites = [str(text) for text in plan.target.decisions.get("rewrites", [])]
    return {text for text in rewrites if not text.startswith("vocabulary")} | {str(loss) for loss in plan.target.losses}


def _bare(folder: str) -> str:
    """An output without its receipt: what the format itself says, and no more."""
    Path(receipt_path(folder)).unlink()
    return folder


def _wrong_configs(body: dict[str, object], prefix: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """A config with each key, at any depth, left out or given a value of another type; and what was done."""
    for key, value in body.items():
        yield f"without {prefix}{key}", {k: v for k, v in body.items() if k != key}
        for wrong in _WRONG_VALUES:
            yield f"{prefix}{key} = {wrong!r}", {**body, key: wrong}
        if isinstance(value, dict):
            for said, inner in _wrong_configs(value, f"{prefix}{key}."):
                yield said, {**body, key: inner}


def _no_crash(read: Callable[[], object], said: str = "a foreign file") -> object:
    """What `read` returns; None where it raises an error of ours. Any other error is a failure."""
    try:
        return read()
    except CkptError:
        return None
    except Exception as error:
        raise AssertionError(f"{said} crashes the reader: {type(error).__name__}: {error}") from error
