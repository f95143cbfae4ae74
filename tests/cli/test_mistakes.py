"""Mistakes on the command line: every error has the same parts, whoever found it, and says what was meant."""

from __future__ import annotations

import json
import os

import pytest

from ckpt_core.architecture import Facts
from ckpt_core.architecture.facts import architecture_of, facts_of
from ckpt_core.errors import CkptError
from ckpt_core.testing import example


class TestWords:
    @pytest.mark.parametrize(
        ("arguments", "problem", "rest"),
        [
            (["conver"], "there is no command 'conver'", "did you mean 'ckpt convert'?"),
            (["version"], "there is no command 'version'", "did you mean 'ckpt --version'?"),
            (["--jsn", "inspect"], "ckpt has no option --jsn", "options stand after the command"),
            (["--hepl", "inspect"], "ckpt has no option --hepl", "'--help'"),
            (["inspect"], "SRC is missing", "ckpt inspect [OPTIONS] SRC"),
            (["inspect", "a", "b"], "got unexpected extra argument (b)", "ckpt inspect [OPTIONS] SRC"),
            (["convert", "a", "b"], "--to is missing", "toy"),
            (["convert", "--to", "--", "b"], "--to: '--' is no format", None),
            (["convert", "a", "b", "--to", "toy", "--tpp", "2"], "ckpt convert has no option --tpp", "'--tp'"),
            (["convert", "a", "b", "-to", "toy"], "ckpt convert has no option -to", "'--to'"),
            (["convert", "a", "b", "--tensor-model-parallel-size", "2"], "has no option --tensor-model", "'--tp'"),
            (
                ["convert", "a", "b", "--to", "toy", "--dtype", "torch.half"],
                "can't be written in dtype",
                "mean 'fp16'?",
            ),
            (["convert", "a", "b", "--to", "toy", "--tp", "two"], "--tp: 'two' is not a valid integer", None),
            (["convert", "a", "b", "--to", "toy", "--workers", "0"], "--workers: 0 is not in the range x>=1", None),
            (["convert", "a", "b", "--to", "toy", "--max-memory", "2 cows"], "--max-memory is no size", "256MiB"),
            (["convert", "a", "b", "--to", "toy", "--dtype", "bfloat61"], "can't be written in dtype", "mean 'bf16'?"),
            (
                ["convert", "a", "b", "--to", "toy", "--dtype", "float8"],
                "can't be written in dtype",
                "keep, fp64, fp32",
            ),
            (["convert", "a", "b", "--to"], "--to wants a value behind it", "--help lists"),
            (["convert", "a", "b", "--to", "--tp", "2"], "--to: '--tp' is no format", None),
            (
                ["convert", "a", "b", "--to", "toy", "--overwrite=yes"],
                "--overwrite is a switch",
                "say --overwrite alone",
            ),
            (
                ["convert", "a", "b", "--to", "toy", "--flavour", "sour"],
                "no option --flavour",
                "-o flavour=... is an option of toy",
            ),
            (["convert", "", "b", "--to", "toy"], "src is empty", "a variable of the shell"),
            (["convert", "a", "", "--to", "toy"], "dst is empty", "a variable of the shell"),
            (["inspect", ""], "path is empty", "a variable of the shell"),
            (["verify", "", "b"], "path is empty", "a variable of the shell"),
            (["diff", "", "b"], "path is empty", "a variable of the shell"),
            (["fingerprint", ""], "path is empty", "a variable of the shell"),
            (["launch", ""], "src is empty", "a variable of the shell"),
            (["convert", "--input", "a", "b"], "has no option --input", "SRC has no option: ckpt convert SRC DST"),
            (["convert", "a", "--output", "b"], "has no option --output", "DST has no option: ckpt convert SRC DST"),
            (["convert", "a", "b", "--to", "toy", "--engine", "dusk"], "--engine has no value 'dusk'", "'dask'"),
            (["convert", "a", "b", "--to", "toy", "--engine-address", "x"], "engine local has no address", "--engine"),
            (
                ["convert", "a", "b", "--to", "toy", "--engine", "dask", "--engine-address", "localhost"],
                "the address of the cluster has no port",
                "expected: tcp://HOST:8786",
            ),
            (["convert", "a", "b", "--to", "toy", "--spool", "x"], "--spool is for a destination in a store", "leave"),
            (
                ["convert", "a", "s3://b/c", "--to", "toy", "--cache", "x"],
                "--cache is for a source in a store",
                "leave",
            ),
            (["convert", "--help", "--to", "toi"], "unknown format 'toi'", "did you mean 'toy'?"),
            (["verify", "a", "b", "--cache", "x"], "--cache is for a source in a store", "leave --cache out"),
            (["plugin", "new", "toy"], "a format toy is installed", "a name of its own"),
            (["plugin", "new", "x", "--container", "troch"], "--container has no value 'troch'", "'torch'"),
        ],
    )
    def test_each_has_the_parts_of_every_error(self, ckpt, arguments, problem, rest):
        ran = ckpt(*arguments)
        first, *others, last = ran.err.splitlines()
        assert ran.code == 2 and ran.out == "" and first.startswith("error: ") and problem in first
        assert last == "  see: docs/troubleshooting.md#usage-error" and (rest or "") in "\n".join(others)
        if arguments[0] == "plugin":  # which has no --json
            return
        error = ckpt(arguments[0], "--json", *arguments[1:]).json["error"]
        assert problem in error["problem"] and error["anchor"] == "usage-error"

    def test_help_is_a_word_too(self, ckpt):
        assert ckpt("help", "convert").out == ckpt("convert", "--help").out != ""
        assert ckpt("help").out == ckpt("--help").out
        bare = ckpt()
        assert bare.code == 2 and "Commands:" in bare.err and bare.out == ""

    @pytest.mark.parametrize("said", ["bfloat16", "BF16", "bf16"])
    def test_the_names_that_frameworks_have_for_a_dtype(self, ckpt, model, tmp_path, said):
        """One dtype, one plan: the same as from Python."""
        from ckpt_core import plan_conversion

        plan = plan_conversion(model, tmp_path / "out", to="toy", dtype=said)
        ran = ckpt("convert", model, tmp_path / "out", "--to", "toy", "--dtype", said, "--dry-run", "--json").json
        assert ran["plan"] == plan.hash and plan.options["dtype"] == "bf16"

    def test_an_argument_is_no_option_of_a_format(self, ckpt, model, tmp_path):
        ran = ckpt("convert", model, tmp_path / "out", "--to", "toy", "-o", "tp=2")
        assert ran.code == 2 and "has no write option 'tp'" in ran.err and "--tp, in Python tp=" in ran.err


class TestPaths:
    def test_a_file_of_a_checkpoint(self, ckpt, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for file in ("model/tokenizer.json", model / "tokenizer.json"):
            ran = ckpt("inspect", file)
            folder = os.path.dirname(file)
            assert ran.code == 1 and "this is a file of a checkpoint" in ran.err
            assert f"give the folder: {folder} (toy)" in ran.err

    def test_an_empty_file(self, ckpt, tmp_path):
        (tmp_path / "x.safetensors").touch()
        assert "the file is empty" in ckpt("inspect", tmp_path / "x.safetensors").err

    @pytest.mark.parametrize("words", [["convert"], ["convert", "-p"], ["follow"]])
    def test_no_folder_is_called_as_a_home_that_was_not_expanded(self, ckpt, make, tmp_path, monkeypatch, words):
        (tmp_path / "run").mkdir()
        make("run/step-1")
        monkeypatch.chdir(tmp_path)
        source = "run" if words == ["follow"] else "run/step-1"
        ran = ckpt(*words, source, "~/out", "--to", "toy")
        assert ran.code == 1 and "parent folder does not exist" in ran.err and "does not expand ~" in ran.err
        assert not (tmp_path / "~").exists()

    def test_a_folder_in_a_checkpoint(self, ckpt, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (model / "inner").mkdir()
        (model / "inner" / "file").touch()
        ran = ckpt("inspect", "model/inner")
        assert ran.code == 1 and "part of the checkpoint around it: model (toy)" in ran.err

    @pytest.mark.parametrize(
        ("path", "fix"),
        [
            ("modle", "did you mean 'model'?"),
            ("model/tokeniser.json", "did you mean 'model/tokenizer.json'?"),
            ("~/model", "does not expand ~ in quotes"),
            ("a/b/c", "as far as"),
            ("modle/tokenizer.json", "where 'model' is; did you mean that?"),
            ("link", "a link to gone"),
            ("owner/name", "hf://owner/name"),
        ],
    )
    def test_where_nothing_is(self, ckpt, model, tmp_path, monkeypatch, path, fix):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link").symlink_to("gone")
        ran = ckpt("inspect", path)
        assert ran.code == 1 and "there is no such file or folder" in ran.err and fix in ran.err

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="where nobody can write, root included")
    def test_where_nothing_can_be_written(self, ckpt, model):
        ran = ckpt("convert", model, "/proc/out", "--to", "toy")
        assert ran.code == 1 and "nothing can be written beside the destination" in ran.err and "/proc" in ran.err

    @pytest.mark.parametrize("name", ["two\nlines", "two words", "größer", "-dash", "~"])
    def test_names_of_all_kinds(self, ckpt, model, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        model.rename(name)
        ran = ckpt("convert", "--to", "toy", "--", name, f"{name}-2")
        assert ran.code == 0 and (tmp_path / f"{name}-2").is_dir()
        assert ckpt("verify", "--json", "--", name, f"{name}-2").json["source"]
        assert "\nlines" not in ran.out

    def test_what_is_there_already(self, ckpt, model, tmp_path):
        """An empty folder is a destination; a file and a dangling link are not. With --overwrite a link is replaced, and a file is not."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to("gone")
        assert ckpt("convert", model, tmp_path / "empty", "--to", "toy").code == 0
        for name in ("file", "link"):
            ran = ckpt("convert", model, tmp_path / name, "--to", "toy")
            assert ran.code == 1 and "the destination exists" in ran.err
        ran = ckpt("convert", model, tmp_path / "file", "--to", "toy", "--overwrite")
        assert ran.code == 1 and "is not a checkpoint" in ran.err and (tmp_path / "file").read_text() == "mine"
        assert ckpt("convert", model, tmp_path / "link", "--to", "toy", "--overwrite").code == 0
        assert (tmp_path / "link").is_dir() and not (tmp_path / "link").is_symlink()

    def test_a_working_folder_that_is_gone(self, ckpt, model, tmp_path, monkeypatch):
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        ran = ckpt("inspect", "model")
        assert ran.code == 1 and "the current folder has been removed" in ran.err and "cd" in ran.err
        assert ckpt("formats").code == 0


def test_a_misspelled_fact_of_a_plugins_table():
    facts = Facts(facts_of(example("llama")))
    facts["attention.haeds"] = facts.pop("attention.heads")
    with pytest.raises(CkptError) as raised:
        architecture_of(facts, "config.json")
    assert raised.value.found == "attention.haeds" and raised.value.fix == "did you mean 'attention.heads'?"


def test_an_error_of_another_kind_has_the_same_keys(ckpt, tmp_path):
    error = json.loads(ckpt("inspect", tmp_path / "nothing", "--json").out)["error"]
    assert error["anchor"] == "ckpt-error" and {*error} <= {"problem", "file", "found", "expected", "fix", "anchor"}
