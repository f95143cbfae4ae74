"""`ckpt follow`: each whole checkpoint once, a half-written one never."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from ckpt_core.cli import follow
from ckpt_core.errors import CkptError, ProblemsFound, UsageError


def times(folder: Path) -> dict[Path, int]:
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(make, tmp_path: Path):
    """A run with three checkpoints, as a training leaves them, and a way to look at it once."""
    (tmp_path / "run").mkdir()
    for number in (5, 10, 100):
        old(make(f"run/step-{number}"))
    return tmp_path / "run"


def old(folder: Path, seconds: int = 3600) -> Path:
    """The folder as it would be some time after it was written."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, times=(time.time() - seconds,) * 2)
    return folder


@pytest.fixture
def once(ckpt, run, tmp_path):
    def look(*more: object):
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy", "--once", "--json", *more)
        steps = ran.json["steps"]
        return ran.code, {step["step"]: step["state"] for step in steps}, {step["step"]: step for step in steps}

    return look


class TestFollow:
    def test_each_once_in_order(self, once, ckpt, run, tmp_path, make):
        code, states, steps = once()
        assert code == 0 and states == dict.fromkeys(["step-5", "step-10", "step-100"], "converted")
        assert steps["step-5"]["fingerprint"] == ckpt("fingerprint", run / "step-5").out.split()[0]
        before = times(tmp_path / "out")
        old(make("run/step-200"))
        code, states, _ = once()
        assert [*states.values()] == ["done before"] * 3 + ["converted"]
        assert before.items() <= times(tmp_path / "out").items()

    def test_what_is_being_written_waits(self, once, run, monkeypatch):
        opened = []
        monkeypatch.setattr(
            follow.Follower,
            "_converted",
            lambda self, source, destination: (
                opened.append(source) or {"state": "converted", "seconds": 0, "bytes_written": 0, "fingerprint": ""}
            ),
        )
        os.utime(run / "step-5" / "tokenizer.json")  # just now
        (run / "step-10-unfinished").touch()
        (run / "step-100" / "weights.tmp").touch()
        old(run / "step-100")
        _, states, steps = once()
        assert [*states.values()] == ["waiting"] * 3 and opened == []
        assert (
            "s ago" in steps["step-5"]["why"]
            and "lies beside" in steps["step-10"]["why"]
            and "weights.tmp" in steps["step-100"]["why"]
        )

    @pytest.mark.parametrize(
        ("file", "text"), [("latest", "global_step10"), ("latest_checkpointed_iteration.txt", "10\n")]
    )
    def test_the_runs_own_pointer_is_believed(self, once, run, file, text):
        (run / file).write_text(text)
        _, states, steps = once()
        assert [*states.values()] == ["converted", "converted", "waiting"] and steps["step-100"][
            "why"
        ] == f"{file} names 10"

    def test_a_damaged_one_fails_and_the_others_do_not(self, once, run):
        path = run / "step-10" / "toy.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        old(run)
        code, states, steps = once()
        assert code == 1 and [*states.values()] == ["converted", "failed", "converted"]
        assert steps["step-10"]["error"]["anchor"] == "format-error"

    def test_one_that_is_removed_meanwhile_fails_and_the_others_do_not(self, once, run, monkeypatch):
        from ckpt_core import api

        known = api.plan_conversion

        def removing(source, destination, **asked):
            if source.endswith("step-10"):
                shutil.rmtree(source)
            return known(source, destination, **asked)

        monkeypatch.setattr(api, "plan_conversion", removing)
        code, states, steps = once()
        assert code == 1 and [*states.values()] == ["converted", "failed", "converted"]
        assert steps["step-10"]["error"]["problem"] == "it was removed meanwhile"

    def test_two_at_a_time(self, once, ckpt, run, tmp_path, monkeypatch):
        """Neither fails: what the other is writing waits, and what it has finished meanwhile was done before."""
        from ckpt_core import api
        from ckpt_core.engine import run as engine
        from ckpt_core.engine.staging import Staging

        known, plans = engine.run_plan, []

        def beside_another(plan, destination, **asked):
            plans.append(plan)
            if destination.endswith("step-5"):  # it holds the lock
                with Staging(destination, plan):
                    return known(plan, destination, **asked)
            if destination.endswith("step-10"):  # it has just finished
                known(plan, destination, **asked)
            if destination.endswith("step-100"):  # it has finished, with other options
                other = api.plan_conversion(
                    plan.source.path, destination, to="toy", options={"dst.max_shard_size": "9"}
                )
                known(other, destination)
            return known(plan, destination, **asked)

        with monkeypatch.context() as patch:
            patch.setattr(engine, "run_plan", beside_another)
            code, states, steps = once()
        assert code == 0 and len(plans) == 3
        assert states == {"step-5": "waiting", "step-10": "done before", "step-100": "done before"}
        assert steps["step-5"]["why"] == "another run is writing it"
        assert once()[1] == {"step-5": "converted", "step-10": "done before", "step-100": "failed"}  # other options

    def test_one_that_is_saved_again_is_not_taken_for_done(self, once, run, tmp_path, make):
        """A run that was started anew from an earlier step saves the later ones again, with other values."""
        once()
        shutil.rmtree(run / "step-100")
        old(make("run/step-100", lambda tensors: tensors["final_norm.weight"].__imul__(2)), 1800)
        code, states, steps = once()
        assert code == 1 and [*states.values()] == ["done before", "done before", "failed"]
        error = steps["step-100"]["error"]
        assert (
            "saved again after it was converted" in error["problem"]
            and str(tmp_path / "out" / "step-100") in error["fix"]
        )
        shutil.rmtree(tmp_path / "out" / "step-100")
        assert [*once()[1].values()] == ["done before", "done before", "converted"]
        shutil.rmtree(run / "step-5")  # what is converted may go
        assert once()[0] == 0

    def test_a_follower_sees_that_too_while_it_runs(self, run, tmp_path, ckpt):
        follower = follow.Follower(str(run), str(tmp_path / "out"), 0, {"to": "toy"})
        assert [step["state"] for step in follower.look()] == ["converted"] * 3
        assert [*follower.look()] == []
        os.utime(run / "step-10" / "toy.safetensors")
        os.utime(run / "step-10")
        assert [(step["step"], step["state"]) for step in follower.look()] == [("step-10", "failed")]
        assert [*follower.look()] == [], "it is said once"

    def test_a_full_disk_is_tried_again(self, run, tmp_path, ckpt, monkeypatch):
        """Neither a full disk nor a destination that is gone says anything of the checkpoint."""
        import errno

        from ckpt_core.engine import run as engine

        def full(plan, destination, **asked):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full")

        out = tmp_path / "out"
        follower = follow.Follower(str(run), str(out), 0, {"to": "toy"})
        with monkeypatch.context() as patch:
            patch.setattr(engine, "run_plan", full)
            steps = [*follower.look()]
            assert [step["state"] for step in steps] == ["failed"] * 3 and steps[0]["error"]["file"] == "/full"
            assert steps[0]["error"]["anchor"] == "errors-of-the-system"
            assert [*follower.look()] == []
        shutil.rmtree(out)
        assert [step["state"] for step in follower.look()] == ["converted"] * 3

    def test_a_disk_without_room_is_tried_again(self, run, tmp_path, ckpt, monkeypatch):
        from ckpt_core.engine import destination

        follower = follow.Follower(str(run), str(tmp_path / "out"), 0, {"to": "toy"})
        with monkeypatch.context() as patch:
            patch.setattr(destination, "free_space", lambda path: (10, "/full"))
            steps = [*follower.look()]
            assert [step["state"] for step in steps] == ["failed"] * 3 and "no room" in steps[0]["error"]["problem"]
        assert [step["state"] for step in follower.look()] == ["converted"] * 3

    def test_clocks_that_differ(self, run, tmp_path, ckpt):
        """The clock of a file server is ahead of ours, or behind it: a follower that goes on believes its own."""
        now = [0.0]
        names = {"step-5": -7200, "step-10": 600, "step-100": 7200}  # seconds ago
        for name, seconds in names.items():
            old(run / name, seconds)

        def look(patient):
            follower = follow.Follower(
                str(run), str(tmp_path / "out"), 30, {"to": "toy"}, patient=patient, clock=lambda: now[0]
            )
            yield {step["step"]: step.get("why", step["state"]) for step in follower.look()}
            now[0] += 31
            yield {step["step"]: step.get("why", step["state"]) for step in follower.look()}

        first, second = look(patient=True)
        assert (
            "is ahead" in first["step-5"] and first["step-10"] == "it is new here" and first["step-100"] == "converted"
        )
        assert second == {"step-5": "converted", "step-10": "converted"}

    def test_a_damaged_receipt_stops_no_other(self, once, run, tmp_path):
        once()
        (tmp_path / "out" / "step-10" / "ckpt-receipt.json").write_text("{")
        code, states, steps = once()
        assert code == 1 and [*states.values()] == ["done before", "failed", "done before"]
        assert "ckpt-receipt.json" in steps["step-10"]["error"]["file"]

    def test_a_run_that_is_away_for_a_while(self, ckpt, run, tmp_path, monkeypatch):
        looks = []

        def away(seconds):
            looks.append(seconds)
            run.rename(tmp_path / "elsewhere") if len(looks) == 1 else None
            if len(looks) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(follow.time, "sleep", away)
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy")
        assert ran.code == 130 and ran.err.count("can't be looked at") == 2 and "bug" not in ran.err

    def test_an_address_that_is_no_destination_is_refused_at_once(self, ckpt, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        ran = ckpt("follow", run, "https://example.org/out", "--to", "toy", "--once")
        assert ran.code == 2 and "is no destination" in ran.err and not (tmp_path / "https:").exists()

    def test_another_format_in_the_place_of_the_outputs(self, once, run, ckpt, tmp_path, monkeypatch):
        assert ckpt("convert", run / "step-5", tmp_path / "out" / "step-5", "--to", "toy", "-p").code == 0
        assert once()[1]["step-5"] == "done before"
        monkeypatch.setattr("ckpt_core.receipt.Receipt.format", "toi")
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy", "--once")
        assert ran.code == 1 and "the outputs in this folder are of another format" in ran.err

    def test_other_options_for_the_outputs_that_are_there(self, once, ckpt, run, tmp_path):
        """Otherwise a folder would hold outputs of two dtypes, or a command that asks for another would do nothing, in silence."""
        assert once("--dtype", "bfloat16")[0] == 0 == once("--dtype", "bf16")[0]
        shutil.rmtree(tmp_path / "out" / "step-10")
        code, states, steps = once()
        assert code == 1 and states == {"step-5": "failed", "step-10": "converted", "step-100": "failed"}
        error = steps["step-5"]["error"]
        assert error["problem"] == "it was converted with other options: dtype bf16"
        assert error["expected"] == "dtype keep" and "name another folder" in error["fix"]

    def test_ranks_that_the_format_has_not_are_a_wrong_command_line(self, ckpt, run, tmp_path):
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy", "--ep", "2", "--once")
        assert ran.code == 2 and "format toy has no --ep" in ran.err and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["-o", "nothing=1"], "format toy has no write option 'nothing'"),
            (["-o", "src.nothing=1"], "no format has a read option 'nothing'"),
        ],
    )
    def test_an_option_that_nothing_takes_is_refused_before_a_checkpoint_is(self, words, text, ckpt, run, tmp_path):
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy", "--once", *words)
        assert ran.code == 2 and text in ran.err and not ran.out and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("dst", "text"),
        [
            (".", "would be taken for checkpoints of the run"),
            ("step-200", "would be taken for checkpoints of the run"),
            ("step-5/out", "or for a part of one"),
            ("mp_rank_00/out", "or for a part of one"),
            ("step-5/tokenizer.json", "the outputs lie in a folder, and this is a file"),
        ],
    )
    def test_no_place_where_outputs_can_not_lie(self, dst, text, ckpt, run):
        before = times(run)
        ran = ckpt("follow", run, run / dst, "--to", "toy", "--once", "--quiet", "0")
        assert ran.code == 2 and text in ran.err and times(run) == before and not (run / "step-200").exists()

    def test_a_folder_in_the_run_that_is_no_checkpoint_is_a_place(self, ckpt, run):
        """The run looks into no folder without a number, and neither does its follower."""
        for _ in range(2):
            ran = ckpt("follow", run, run / "out", "--to", "toy", "--once", "--quiet", "0")
            assert ran.code == 0, ran.err
        assert sorted(path.name for path in (run / "out").iterdir()) == ["step-10", "step-100", "step-5"]

    def test_what_is_wrong_with_the_first_is_wrong_with_the_command(self, ckpt, once, run, tmp_path, make, monkeypatch):
        def refused(*_, **__):
            raise UsageError("--dtype and -o type say different things")

        monkeypatch.setattr("ckpt_core.api.plan_conversion", refused)
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy", "--once")
        assert ran.code == 2 and "say different things" in ran.err and not ran.out
        monkeypatch.undo()
        once()
        old(make("run/step-200"))
        monkeypatch.setattr("ckpt_core.api.plan_conversion", refused)
        assert once()[:2] == (
            1,
            dict.fromkeys(["step-5", "step-10", "step-100"], "done before") | {"step-200": "failed"},
        )

    def test_of_several_problems_the_first_is_named(self, capsys):
        problems = ProblemsFound("tp=4", [CkptError("a is odd", file="x", fix="take b"), CkptError("c is even")])
        follow.show({"step": "5"} | follow._failed(problems))
        assert capsys.readouterr().out == "5  failed  tp=4: 2 problems, first: a is odd  x  take b\n"

    def test_one_line_a_checkpoint_until_it_is_stopped(self, ckpt, run, tmp_path, monkeypatch):
        def stop(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(follow.time, "sleep", stop)
        ran = ckpt("follow", run, tmp_path / "out", "--to", "toy")
        assert ran.code == 130 and [line.split()[:2] for line in ran.out.splitlines()] == [
            ["step-5", "converted"], ["step-10", "converted"], ["step-100", "converted"]
        ]  # fmt: skip
        again = ckpt("follow", run, tmp_path / "out", "--to", "toy")
        assert again.code == 130 and again.out == ""

    def test_a_stop_in_the_middle_loses_nothing(self, once, run, tmp_path, monkeypatch):
        from ckpt_core.engine import run as engine

        known = engine.run_plan

        def interrupted(plan, destination, **asked):
            return known(plan, destination, listener=lambda event: signal.raise_signal(signal.SIGINT))

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with monkeypatch.context() as patch, pytest.raises((KeyError, KeyboardInterrupt)):
                patch.setattr(engine, "run_plan", interrupted)
                once()
        finally:
            signal.signal(signal.SIGINT, before)
        assert not (tmp_path / "out" / "step-5").exists()
        assert [*once()[1].values()] == ["converted"] * 3

    def test_a_file_for_each_rank(self, ckpt, tmp_path):
        """NeMo 1 in training: a checkpoint lies in every folder of ranks, and is looked at in all of them."""
        run, name = tmp_path / "nemo", "megatron_gpt--val_loss=5.43-step=7-consumed_samples=56.0.ckpt"
        for rank in ("tp_rank_00_pp_rank_000", "tp_rank_01_pp_rank_000"):
            (run / rank).mkdir(parents=True)
        (run / "tp_rank_01_pp_rank_000" / name).write_bytes(b"1")
        follower = follow.Follower(str(run), str(tmp_path / "out"), 0, {"to": "toy"})
        assert [step["why"] for step in follower.look()] == ["tp_rank_00_pp_rank_000 has no file of it"]
        (run / "tp_rank_00_pp_rank_000" / name).write_bytes(b"0")
        (step,) = follower.look()
        assert step["state"] == "failed" and step["source"] == str(run / "tp_rank_00_pp_rank_000" / name)
        (run / f"{name.removesuffix('.ckpt')}-unfinished").touch()
        (run / "tp_rank_01_pp_rank_000" / name).write_bytes(b"11")
        assert ["lies beside it" in step["why"] for step in follower.look()] == [True]

    @pytest.mark.parametrize(
        ("name", "number"),
        [
            ("iter_0000100", 100),
            ("checkpoint-6", 6),
            ("global_step2", 2),
            ("m--val_loss=2.54-step=7000-consumed_samples=14.0.ckpt", 7000),
            ("30", 30),
        ],
    )
    def test_names_of_checkpoints(self, name, number, tmp_path):
        (tmp_path / name).mkdir()
        for other in ("logs", "latest", "tmp-checkpoint-7", "wandb", "final"):
            (tmp_path / other).mkdir()
        assert follow.steps_in(str(tmp_path)) == [name] and follow.number_of(name) == number

    def test_a_run_that_is_none(self, ckpt, tmp_path):
        assert ckpt("follow", tmp_path / "nothing", tmp_path / "out", "--to", "toy", "--once").code == 2
        (tmp_path / "other").mkdir()
        ran = ckpt("follow", tmp_path / "other", tmp_path / "out", "--to", "toy", "--once")
        assert ran.code == 0 and not ran.out and "no checkpoint is in" in ran.err
        assert "is a checkpoint itself" not in ran.err

    def test_a_checkpoint_in_the_place_of_the_run(self, ckpt, run, tmp_path):
        ran = ckpt("follow", run / "step-5", tmp_path / "out", "--to", "toy", "--once")
        assert ran.code == 0 and "step-5 is a checkpoint itself (toy): RUN is the folder around it" in ran.err
