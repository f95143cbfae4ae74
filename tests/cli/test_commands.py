"""Every command, as a user sees it: exit codes, text, and one JSON document."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from ckpt_core.api import digests, fingerprint_of, read_checkpoint
from ckpt_core.cli.options import training_state
from ckpt_core.errors import NotCarried, ProblemsFound
from ckpt_core.receipt.checksum import with_checksum
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.verify.plot import check_plot


@pytest.fixture
def converted(ckpt, model, tmp_path):
    """`model` with its head untied and in bf16."""
    folder = tmp_path / "out"
    assert ckpt("convert", model, folder, "--to", "toy", "-o", "untie=true", "--dtype", "bf16").code == 0
    return folder


class TestConvert:
    def test_summary(self, ckpt, model, tmp_path):
        ran = ckpt("convert", model, tmp_path / "out", "--to", "toy")
        assert ran.code == 0
        for word in ("fingerprint", "ckpt-receipt.json", "dropped: nothing much", "B/s"):
            assert word in ran.out
        assert sorted(os.listdir(tmp_path / "out")) == [
            "architecture.json",
            "ckpt-receipt.json",
            "tokenizer.json",
            "toy.safetensors",
        ]

    def test_json_summary(self, ckpt, model, tmp_path):
        body = ckpt("convert", model, tmp_path / "out", "--to", "toy", "--json").json
        assert body["fingerprint"] == ckpt("fingerprint", model).out.split()[0]
        assert body["files"] == 3 and body["bytes_written"] > 20_000 and body["losses"][0]["kind"] == "dropped"

    def test_dry_run_writes_nothing(self, ckpt, model, tmp_path):
        before = sorted(os.listdir(tmp_path))
        ran = ckpt(
            "convert", model, tmp_path / "out", "--to", "toy", "--dry-run", "-o", "untie=true", "--dtype", "bf16"
        )
        assert ran.code == 0 and sorted(os.listdir(tmp_path)) == before
        for word in (
            "toy.safetensors",
            "architecture.json",
            "tokenizer.json",
            "head untied",
            "rounded: 21 tensors",
            "MiB",
        ):
            assert word in ran.out

    def test_json_plan_is_complete(self, ckpt, model, tmp_path):
        plan = ckpt("convert", model, tmp_path / "out", "--to", "toy", "--dry-run", "--json").json
        assert plan["files"] == [
            {"path": "toy.safetensors", "bytes": plan["bytes_written"] - plan["documents"]["architecture.json"] - 2}
        ]
        assert plan["sidecars"] == ["tokenizer.json"] and plan["tensors"] == 20 and plan["destination"].endswith("out")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--to", "toi"], "did you mean 'toy'?"),
            (["--to", "toy", "--pp", "2"], "has no --pp"),
            (["--to", "toy", "-o", "sugar=1"], "no write option 'sugar'"),
            (["--to", "toy", "-o", "sugar"], "-o takes KEY=VALUE"),
            (["--to", "toy", "-o", "untie=1", "-o", "untie=0"], "given twice"),
            (["--to", "toy", "-o", "crash=1"], "src.crash or dst.crash"),
            (["--to", "toy", "--max-memory", "much"], "--max-memory is no size"),
            (["--to", "toy", "--max-shard-size", "1MB", "-o", "max_shard_size=7"], "given twice"),
            (["--to", "toy", "--engine-address", "here"], "has no address"),
            (["--to", "toy", "--dtype", "int4"], "int4"),
            ([], "--to"),
        ],
    )
    def test_usage_errors(self, ckpt, model, tmp_path, arguments, words):
        ran = ckpt("convert", model, tmp_path / "out", *arguments)
        assert (ran.code, ran.out) == (2, "") and words in ran.err and "Traceback" not in ran.err
        body = ckpt("convert", model, tmp_path / "out", *arguments, "--json")
        assert body.code == 2 and body.json["error"]["problem"] and body.err == ""
        assert not (tmp_path / "out").exists()

    def test_refusal(self, ckpt, model, tmp_path):
        ran = ckpt("convert", model, tmp_path / "out", "--to", "toy", "-o", "refuse=yes")
        assert ran.code == 1 and "toy holds nothing today" in ran.err and "fix: ask tomorrow" in ran.err
        assert ckpt("convert", model, tmp_path / "out", "--to", "toy", "-o", "refuse=yes", "--json").json == {
            "schema": "error/1",
            "error": {"problem": "toy holds nothing today", "fix": "ask tomorrow", "anchor": "refusal"},
        }

    def test_existing_destination(self, ckpt, model, converted):
        again = ckpt("convert", model, converted, "--to", "toy", "--dtype", "bf16", "-o", "untie=true")
        assert again.code == 0 and "done before" in again.out
        other = ckpt("convert", model, converted, "--to", "toy").err
        assert "use --overwrite" in other and "--dtype bf16" in other
        assert ckpt("convert", model, converted, "--to", "toy", "--overwrite").code == 0

    def test_what_is_done_needs_no_cluster(self, ckpt, model, converted):
        """It may have ended with the job, before somebody repeats the command."""
        again = ["--to", "toy", "--dtype", "bf16", "-o", "untie=true", "--engine", "ray", "--engine-address", "here:1"]
        assert ckpt("convert", model.resolve(), converted, *again).code == 0

    def test_the_disk_is_waited_for_unless_that_is_not_wanted(self, ckpt, model, tmp_path, monkeypatch):
        synced = []
        monkeypatch.setattr("os.fsync", synced.append)
        assert ckpt("convert", model, tmp_path / "quick", "--to", "toy", "--no-sync").code == 0 and not synced
        assert ckpt("convert", model, tmp_path / "out", "--to", "toy").code == 0 and synced

    def test_shard_size_reaches_the_target(self, ckpt, model, tmp_path):
        assert ckpt("convert", model, tmp_path / "out", "--to", "toy", "--max-shard-size", "2GB").code == 0
        receipt = json.loads((tmp_path / "out" / "ckpt-receipt.json").read_text())
        assert receipt["options"]["options"] == {"dst.max_shard_size": "2000000000"}

    def test_processes(self, model, converted, tmp_path, installed, monkeypatch):
        """A program of its own: its server of processes would keep the toy formats for all later tests of this one."""
        from conftest import CORE, HERE

        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (installed, HERE, CORE))))
        again = ["--to", "toy", "-o", "untie=true", "--dtype", "bf16", "--engine", "processes", "--workers", "1"]
        program = [sys.executable, "-m", "ckpt_core", "convert", model, tmp_path / "again", *again]
        subprocess.run(program, check=True, capture_output=True)
        assert (tmp_path / "again" / "toy.safetensors").read_bytes() == (converted / "toy.safetensors").read_bytes()


class TestInspect:
    def test_text(self, ckpt, model):
        shown = (
            "toy.safetensors beside architecture.json",
            "vocabulary 13 padded to 16",
            "6 heads of 4, 2 key-value heads, window 5 in layer 1",
            "tied to the embedding",
            "4,944",
        )
        short, whole = ckpt("inspect", model), ckpt("inspect", model, "--all")
        assert short.code == whole.code == 0
        for words in (*shown, f"ckpt inspect --all {model}: what it can become"):
            assert words in short.out
        for words in (*shown, "eos: 2", "can become   toy: yes"):
            assert words in whole.out
        assert "eos" not in short.out and "toy: yes" not in short.out

    def test_a_command_that_is_proposed_reads_what_this_one_did(self, ckpt, model):
        asked = ("--from", "toy", "--weights", "model", "-o", "flavour=sour")
        line = next(line for line in ckpt("inspect", model, *asked).out.splitlines() if line.startswith("more"))
        command = shlex.split(line.removeprefix("more").partition(": ")[0])
        assert command == ["ckpt", "inspect", "--all", str(model), *asked]
        assert ckpt(*command[1:]).code == 0

    def test_json(self, ckpt, model):
        body = ckpt("inspect", model, "--json").json
        assert (
            body["parameters"]["total"]
            == 4944
            == sum(count for name, count in body["parameters"].items() if name != "total")
        )
        assert body["dtypes"] == {"fp32": {"tensors": 20, "bytes": 20064}}
        assert [(one["format"], one["possible"]) for one in body["can_become"]] == [("toy", True)]

    def test_unknown_path(self, ckpt, tmp_path):
        ran = ckpt("inspect", tmp_path / "nowhere")
        assert ran.code == 1 and "no such file or folder" in ran.err

    def test_unrecognised_path_names_broken_formats(self, ckpt, tmp_path):
        assert "broken formats: sick" in ckpt("inspect", tmp_path).err


class TestFingerprint:
    def test_one_line(self, ckpt, model):
        value, path = ckpt("fingerprint", model).out.split()
        assert len(value.removeprefix("v2-")) == 64 and path == str(model)
        document = ckpt("fingerprint", model, "--json").json
        assert (document["fingerprint"], document["version"]) == (value, 2)


class TestDiff:
    def test_equal(self, ckpt, model, make):
        ran = ckpt("diff", model, make("twin"))
        assert (ran.code, ran.out) == (0, "equal: architecture and 20 tensors\n")

    def test_different(self, ckpt, model, make):
        def change(tensors):
            tensors["layers.0.mlp.up.weight"][3, 2:4] += 1

        other = make("other", change)
        ran = ckpt("diff", model, other)
        assert (
            ran.code == 3 and "layers.0.mlp.up.weight  2 elements, by 1 at most" in ran.out and "at f=3 h=2" in ran.out
        )
        body = ckpt("diff", model, other, "--json")
        assert body.code == 3 and not body.json["equal"] and body.json["differences"][0]["elements"] == 2

    def test_nan_is_one_json_document(self, ckpt, model, make):
        def change(tensors):
            tensors["final_norm.weight"][:] = float("nan")

        body = ckpt("diff", model, make("nan", change), "--json").json
        assert body["differences"][0]["subject"] == "final_norm.weight"

    def test_options_go_to_the_side_that_is_named(self, ckpt, model):
        assert ckpt("diff", model, model, "-o", "flavour=sour").code == 0
        assert ckpt("diff", model, model, "-o", "b.flavour=bitter").code == 2
        ran = ckpt("diff", model, model, "-o", "untie=true")
        assert ran.code == 2 and "neither format has a read option 'untie'" in ran.err


class TestAdvice:
    """What an error proposes is done by the same command."""

    def test_of_a_state_that_is_compared(self, ckpt, model, converted):
        for words in (("fingerprint", model), ("diff", model, model), ("verify", model, converted)):
            ran = ckpt(*words, "--training-state")
            assert ran.code == 1 and "fix: leave --training-state out" in ran.err and " drop" not in ran.err, ran.err
            assert ckpt(*words).code == 0

    @pytest.mark.parametrize(
        ("said", "meant"),
        [
            ("convert the weights alone, with --training-state drop", "leave --training-state out"),
            ("leave it behind with --training-state drop", "leave --training-state out"),
            ("save it whole, or convert the weights alone with --training-state drop", "save it whole, or leave --training-state out"),
            ("write it with --ep 1, or convert the weights alone, with --training-state drop", "write it with --ep 1, or leave --training-state out"),
            ("the file is damaged, or of another kind; --training-state drop leaves it behind", "the file is damaged, or of another kind; leave --training-state out"),
            ("give the folder of a step", "give the folder of a step"),
        ],
    )  # fmt: skip
    def test_for_convert_is_not_that_for_a_comparison(self, said, meant):
        @training_state
        def command():
            raise ProblemsFound("several", [NotCarried("one", fix=said), NotCarried("two")])

        with pytest.raises(ProblemsFound) as found:
            command()
        assert [problem.fix for problem in found.value.problems] == [meant, None]


class TestVerify:
    def test_recorded_changes_are_explained(self, ckpt, model, converted):
        ran = ckpt("verify", model, converted)
        assert (
            ran.code == 0
            and "21 changed as the receipt records" in ran.out
            and "a recorded rewrite: head untied" in ran.out
        )
        body = ckpt("verify", model, converted, "--json").json
        assert body["passed"] and body["tensors"] == {"equal": 0, "as_recorded": 21} and body["differences"] == []

    def test_what_differs_may_be_read_with_other_options(self, ckpt, model, tmp_path):
        out = tmp_path / "out"
        assert ckpt("convert", model, out, "--to", "toy", "-o", "flavour=sour").code == 0
        assert "remark" not in ckpt("verify", model, out).out
        data = bytearray((out / "toy.safetensors").read_bytes())
        data[-1] ^= 1
        (out / "toy.safetensors").write_bytes(data)
        ran = ckpt("verify", model, out)
        assert ran.code == 3 and "the conversion read the source with -o src.flavour=sour" in ran.out
        assert "read the source with" not in ckpt("verify", model, out, "-o", "src.flavour=sour").out

    def test_changed_tensor(self, ckpt, model, converted):
        data = bytearray((converted / "toy.safetensors").read_bytes())
        data[-1] ^= 1
        (converted / "toy.safetensors").write_bytes(data)
        body = ckpt("verify", model, converted, "--json")
        assert body.code == 3
        (file, tensor), (different,) = body.json["changed_since_conversion"], body.json["differences"]
        assert file["subject"] == "toy.safetensors" and file["problem"].startswith("changed: CRC-32 ")
        assert tensor == {"subject": different["subject"], "problem": "values changed since the conversion"}

    def test_a_receipt_of_version_1(self, ckpt, model, converted):
        """As an older ckpt wrote it: digests of a tensor as one leaf, in hex alone."""
        sides = [read_checkpoint(str(path)) for path in (model, converted)]
        (read, written), path = (digests(side, version=1) for side in sides), converted / RECEIPT
        body = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
        body["fingerprint"] = fingerprint_of(sides[1], written)
        for name, entry in body["tensors"].items():
            before = read.get(name, read["embedding.tokens.weight"])  # the head is tied there
            entry.update(digest=written[name].digest, source_digest=before.digest)
        path.write_text(json.dumps(with_checksum(body)))
        assert len(body["fingerprint"]) == 64 and not any(
            "v2-" in entry["digest"] for entry in body["tensors"].values()
        )
        ran = ckpt("verify", model, converted)
        assert ran.code == 0 and "21 changed as the receipt records" in ran.out
        assert ckpt("diff", model, converted).code == ckpt("diff", converted, model).code
        data = bytearray((converted / "toy.safetensors").read_bytes())
        data[-1] ^= 1
        (converted / "toy.safetensors").write_bytes(data)
        _, tensor = ckpt("verify", model, converted, "--json").json["changed_since_conversion"]
        assert tensor["problem"] == "values changed since the conversion"
        path.write_text(json.dumps(with_checksum(body | {"fingerprint": "v3-" + 64 * "0"})))
        ran = ckpt("verify", model, converted)
        assert ran.code == 1 and "versions 1, 2" in ran.err and "a later ckpt may know it" in ran.err

    def test_a_receipt_whose_digests_do_not_agree(self, ckpt, model, converted):
        """Digests of two versions are never compared, and a fingerprint is that of its tensors."""
        path = converted / RECEIPT
        good = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
        name, entry = next(iter(good["tensors"].items()))
        for change, words in (
            ({"fingerprint": "v2-" + 64 * "0"}, "the receipt's fingerprint is not that of its tensors"),
            ({"fingerprint": "v02-" + good["fingerprint"][3:]}, "a digest that is not known"),
            ({"fingerprint": good["fingerprint"][3:]}, "of another version than the fingerprint"),
            ({"tensors": good["tensors"] | {name: entry | {"digest": 64 * "0"}}}, "of another version"),
            ({"tensors": good["tensors"] | {name: entry | {"source_digest": 64 * "0"}}}, "of another version"),
        ):
            path.write_text(json.dumps(with_checksum(good | change)))
            ran = ckpt("verify", model, converted)
            assert ran.code == 1 and words in ran.err and f"file: {path}" in ran.err, ran.err

    def test_changed_documents(self, ckpt, model, converted):
        (converted / "tokenizer.json").write_text("{ }")
        ran = ckpt("verify", model, converted)
        assert ran.code == 3 and "tokenizer.json: changed" in ran.out
        (converted / "tokenizer.json").unlink()
        assert "tokenizer.json: missing" in ckpt("verify", model, converted).out

    def test_another_source(self, ckpt, make, converted):
        def change(tensors):
            tensors["layers.1.attention.q.weight"][0] += 1

        ran = ckpt("verify", make("other", change), converted)
        assert ran.code == 3 and "layers.1.attention.q.weight" in ran.out

    def test_without_receipt(self, ckpt, model, make):
        ran = ckpt("verify", model, make("twin"))
        assert ran.code == 0 and "20 equal" in ran.out

    def test_hostile_receipts(self, ckpt, model, converted):
        path = converted / "ckpt-receipt.json"
        body = json.loads(path.read_text())
        body["target"]["documents"] = {"../../secret": "0"}
        path.write_text(json.dumps(with_checksum(body)))  # anyone can seal a receipt
        assert "outside its folder" in ckpt("verify", model, converted).err
        path.write_text(json.dumps(with_checksum({"tensors": 3})))
        ran = ckpt("verify", model, converted)
        assert ran.code == 1 and "not a receipt of ckpt" in ran.err
        path.write_text('{"tensors": 3}')
        ran = ckpt("verify", model, converted)
        assert ran.code == 1 and "not as it was written" in ran.err

    def test_logits(self, ckpt, model, tmp_path):
        assert ckpt("convert", model, tmp_path / "twin", "--to", "toy", "-o", "untie=true").code == 0
        ran = ckpt("verify", model, tmp_path / "twin", "--logits")
        assert ran.code == 0 and "0 apart at most" in ran.out and "96 positions" in ran.out

    def test_logits_see_what_bf16_rounded(self, ckpt, model, converted):
        logits = ckpt("verify", model, converted, "--logits", "--json").json["logits"]
        assert 0 < logits["mean"] < logits["largest"] and logits["first_apart"] == "embedding"

    def test_logits_name_the_block_where_models_part(self, ckpt, model, make, tmp_path):
        def nudge(tensors):
            tensors["layers.1.mlp.down.weight"] += 0.5

        other = make("other", nudge)
        logits = ckpt("verify", model, other, "--logits", "--json").json["logits"]
        assert logits["first_apart"] == "layers.1.mlp" and 0 < logits["mean"] < logits["largest"]
        assert [step["name"] for step in logits["steps"][:3]] == ["embedding", "layers.0.attention", "layers.0.mlp"]
        assert ckpt("verify", model, other, "--logits", "--plot", tmp_path / "apart.png").code == 3
        assert (tmp_path / "apart.png").read_bytes().startswith(b"\x89PNG")

    def test_a_plot_replaces_images_alone(self, ckpt, model, tmp_path, monkeypatch):
        """As a page of inspect --html replaces pages alone."""
        pytest.importorskip("matplotlib")
        image, notes = tmp_path / "x.png", tmp_path / "notes.png"
        image.write_bytes(b"\x89PNG\r\n and more")
        notes.write_text("mine")
        check_plot(str(image))
        monkeypatch.setattr("ckpt_core.verify.conversion.verify", None)
        ran = ckpt("verify", model, model, "--logits", "--plot", notes)
        assert ran.code == 2 and "would replace a file that is not an image" in ran.err and notes.read_text() == "mine"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--plot", "no/folder/x.png"], "the folder of the plot does not exist"),
            (["--plot", "x.safetensors"], "the suffix says which kind of image"),
            (["--plot", "x"], "the suffix says which kind of image"),
            (["--prompt", "Hello"], "--prompt takes token ids"),
        ],
    )
    def test_what_can_not_be_shown_is_said_before_anything_is_compared(self, ckpt, model, monkeypatch, words, said):
        monkeypatch.setattr("ckpt_core.verify.conversion.verify", None)
        ran = ckpt("verify", model, model, "--logits", *words)
        assert ran.code == 2 and said in ran.err

    @pytest.mark.parametrize(
        ("lacks", "words"),
        [("torch", ["--logits"]), ("torch", ["--row-parallel", "2"]), ("matplotlib", ["--plot", "x.png"])],
    )
    def test_nor_what_is_not_installed(self, ckpt, model, monkeypatch, lacks, words):
        monkeypatch.setattr("ckpt_core.verify.conversion.verify", None)
        for place in ("ckpt_core.cli.verify", "ckpt_core.verify.plot"):
            monkeypatch.setattr(f"{place}.find_spec", lambda name: None if name == lacks else name)
        ran = ckpt("verify", model, model, *words)
        assert ran.code == 1 and f"needs {lacks}" in ran.err and "pip install" in ran.err

    def test_an_engine_of_its_own_judges_the_config(self, ckpt, model, make, monkeypatch):
        twin = make("twin")
        monkeypatch.setenv("TOY_ENGINE", "1")  # it computes something else than the architecture says
        ran = ckpt("verify", model, twin, "--logits", "--json")
        assert ran.code == 3 and ran.json["logits"]["largest"] == 0
        judges = ran.json["logits"]["judges"].values()
        assert all(one["largest"] > 0.1 and one["framework"] == "toytorch 7.1" for one in judges) and len(judges) == 2
        assert f"{twin} loaded by its own framework, toytorch 7.1: " in ckpt("verify", model, twin, "--logits").out
        ran = ckpt("verify", model, twin, "--logits", "--max-memory", "1kB")
        assert ran.code == 0 and "was not asked" in ran.out

    @pytest.mark.parametrize(
        ("engine", "code", "said"),
        [
            ("", 0, "by the reference forward alone: no framework of toy is installed"),
            ("cannot", 0, "by the reference forward alone: toytorch 7.1: for want of toys"),
            ("broken", 0, "by the reference forward alone: its framework failed: ZeroDivisionError: on purpose"),
            ("refused", 3, "refused by its own framework, toytorch 7.1: for want of toys"),
        ],
    )
    def test_what_is_not_judged_by_its_framework_says_so(self, ckpt, model, make, monkeypatch, engine, code, said):
        twin = make("twin")
        monkeypatch.setenv("TOY_ENGINE", engine)
        ran = ckpt("verify", model, twin, "--logits")
        assert ran.code == code and f"{model} {said}" in ran.out and f"{twin} {said}" in ran.out
        found = ckpt("verify", model, twin, "--logits", "--json").json["logits"]
        assert set(found["refused" if code else "by_reference_alone"]) == {str(model), str(twin)}

    def test_a_prompt(self, ckpt, model, converted):
        assert "3 positions" in ckpt("verify", model, converted, "--prompt", "1,2,3").out
        assert "token that the model lacks" in ckpt("verify", model, converted, "--prompt", "1,2000000").err
        assert "--prompt takes token ids" in ckpt("verify", model, converted, "--prompt", "hello").err


class TestFormats:
    def test_table_has_a_broken_row(self, ckpt):
        ran = ckpt("formats")
        assert ran.code == 0
        sick, toy = ran.out.splitlines()[1:]
        assert sick.split()[0] == "sick" and "broken: ModuleNotFoundError" in sick
        assert toy.split() == ["toy", "ckpt-toy", "1.2", "yes", "yes", "a", "format", "for", "tests"]

    def test_one(self, ckpt):
        ran = ckpt("formats", "toy")
        for words in ("sweet | sour", "[sweet]", "reading", "--tp N", "tiny"):
            assert words in ran.out

    def test_json(self, ckpt):
        sick, toy = ckpt("formats", "--json").json["formats"]
        assert sick["broken"].startswith("ModuleNotFoundError") and toy["options"][0]["name"] == "untie"

    def test_broken_and_unknown(self, ckpt):
        assert ckpt("formats", "sick").code == 1
        assert ckpt("formats", "nothing", "--json").code == 2


def test_config(ckpt, model, tmp_path):
    assert ckpt("fingerprint", model, "--config", model / "architecture.json").code == 0
    (tmp_path / "config.json").write_text("[]")
    ran = ckpt("fingerprint", model, "--config", tmp_path / "config.json")
    assert ran.code == 1 and "config.json" in ran.err
