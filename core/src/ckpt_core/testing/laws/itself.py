"""What a format says of itself, and how it behaves beside others."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from ckpt_core.api import plan_conversion
from ckpt_core.architecture import Architecture
from ckpt_core.errors import CkptError
from ckpt_core.layout import Tables
from ckpt_core.plugins.discovery import all_plugins, detect, load, require
from ckpt_core.plugins.hookspecs import SDK
from ckpt_core.testing.laws.base import Law, no_crash
from ckpt_core.testing.quirks import HEAVY, Golden
from ckpt_core.testing.workshop import Workshop
from ckpt_core.verify.tracer import materialise


class Manners(Law):
    """It says what it is, has its hooks, imports no framework, and takes no other format's checkpoints for its own."""

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

    def test_options_offer_the_values_of_their_choices(self) -> None:
        """An `-o` option that is called as a choice of the tables is that choice, with the same values."""
        plugin = require(self.format)
        choices = {
            choice.name: choice.values
            for family in plugin.hooks.ckpt_tables() or ()
            if isinstance(family.tables, Tables)
            for choice in family.tables.choices
        }
        for option in plugin.info.options:
            if (values := choices.get(option.name)) is None:
                continue
            offered: tuple[str, ...]
            if option.kind is bool:
                offered = ("False", "True")
            elif isinstance(option.kind, tuple):
                offered = option.kind
            else:
                offered = tuple(str(value) for value in values if type(value) is option.kind)
            assert set(offered) == set(map(str, values)), (
                f"option {option.name} offers {', '.join(offered)}, and the choice of the tables {', '.join(map(str, values))}"
            )

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
                answer = no_crash(read_config)
                assert answer is None or isinstance(answer, CkptError), f"it takes {path.name} for a config of its own"
        for other in all_plugins():
            if other.broken is None and other.info.writes and other.name != self.format:
                foreign = _written_by(other.name, workshop)
                assert foreign is None or not hooks.ckpt_detect(path=foreign), (
                    f"it takes a checkpoint of format {other.name} for its own"
                )

    def test_a_golden_is_of_this_format_alone(self, golden: Golden) -> None:
        found = [plugin.name for plugin, _ in detect(golden.checkpoint)]
        assert found == [self.format], f"every installed format was asked, and it is {found}"


def _written_by(format: str, workshop: Workshop) -> str | None:
    """A checkpoint of another format, headers over holes; None if the format does not hold the model, or is broken, neither of
    which is the fault of the one under test. Written once for all formats that are tested on this model."""
    key = (format, workshop.base())
    if key not in _WRITTEN:
        try:
            plan = plan_conversion(workshop.source(workshop.base()), workshop.new(), to=format)
        except Exception:
            _WRITTEN[key] = None
        else:
            _WRITTEN[key] = materialise(plan.target, workshop.new())
    return _WRITTEN[key]


_WRITTEN: dict[tuple[str, Architecture], str | None] = {}
