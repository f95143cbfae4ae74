"""`ckpt doctor`: what is wrong with an installation is said, and fails."""

from __future__ import annotations

from ckpt_core.cli import doctor
from ckpt_core.errors import Refusal
from ckpt_core.plugins import discovery
from ckpt_core.plugins.installed import entry_points


class TestDoctor:
    def test_a_broken_plugin(self, ckpt):
        ran = ckpt("doctor")
        assert ran.code == 1 and "not well: 1 plugin with a problem" in ran.out
        for words in ("No module named 'toy_that_is_missing'", "self-check", "libraries", "free at"):
            assert words.lower() in ran.out.lower()

    def test_all_is_well(self, ckpt, monkeypatch):
        monkeypatch.setenv("CKPT_PLUGINS", "toy")
        entry_points.cache_clear()
        ran = ckpt("doctor")
        assert ran.code == 0 and "all is well" in ran.out
        (toy,) = ckpt("doctor", "--json").json["plugins"]
        assert (toy["selfcheck"], toy["by"]) == ("passed", "llama")

    def test_a_plugin_that_fails_or_refuses_everything(self, installed, monkeypatch):
        import toy

        def fails(architecture):
            raise ZeroDivisionError("on purpose")

        def refuses(architecture):
            raise Refusal("toy holds nothing")

        for table, outcome, said in ((fails, "failed", "llama: ZeroDivisionError"), (refuses, "not run", "holds none")):
            monkeypatch.setattr(toy, "table", table)
            found = doctor.examination(discovery.require("toy"))
            assert found.outcome == outcome and said in found.by and found.healthy is (outcome != "failed")

    def test_no_folder_for_temporary_files(self, ckpt, monkeypatch):
        """It is said once what is wrong, and not that every plugin fails."""
        import tempfile

        def none():
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setenv("CKPT_PLUGINS", "toy")
        entry_points.cache_clear()
        monkeypatch.setattr(tempfile, "gettempdir", none)
        ran = ckpt("doctor")
        assert ran.code == 1 and "not well: no folder for temporary files (set TMPDIR" in ran.out
        (toy,) = ckpt("doctor", "--json").json["plugins"]
        assert toy["selfcheck"] == "not run" and "TMPDIR" in toy["by"]

    def test_a_distribution_of_another_version(self, ckpt, monkeypatch):
        monkeypatch.setenv("CKPT_PLUGINS", "toy")
        entry_points.cache_clear()
        monkeypatch.setattr(doctor, "_of_ours", lambda plugin: True)
        ran = ckpt("doctor")
        assert (
            ran.code == 1
            and "ckpt-toy 1.2, where ckpt-core is" in ran.out
            and "not well: versions that differ" in ran.out
        )
        assert ckpt("doctor", "--json").json["mismatched"] == ["ckpt-toy 1.2"]

    def test_what_libraries_would_unlock(self, ckpt, monkeypatch):
        monkeypatch.setattr(doctor, "LIBRARIES", (doctor.Library("no-such-library", "flying", "pip install wings"),))
        text = ckpt("doctor").out
        assert "flying" in text and "pip install wings" in text
