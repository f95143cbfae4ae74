"""Every document of `--json` is one that `ckpt schema` describes, key by key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ckpt_core.cli.output import SCHEMA_VERSION
from ckpt_core.cli.schemas import SCHEMAS

_TYPES = {
    "string": str, "boolean": bool, "integer": int, "number": int | float, "array": list, "object": dict, "null": type(None),
}  # fmt: skip


def complaints(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """What is wrong with a document, by the keywords that our schemas have; an unknown keyword is an error of this test."""
    assert {*schema} <= {
        "$schema", "title", "description", "type", "const", "anyOf", "items", "minimum",
        "properties", "required", "additionalProperties",
    }, schema  # fmt: skip
    if "anyOf" in schema:
        tried = [complaints(value, one, at) for one in schema["anyOf"]]
        return [] if any(not found for found in tried) else tried[0]
    if "const" in schema:
        return [] if value == schema["const"] else [f"{at}: {value!r}"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(
        isinstance(value, _TYPES[kind]) and (kind in ("boolean", "number") or value is not True) for kind in kinds
    ):
        return [f"{at}: {value!r:.60} is no {kinds}"]
    if isinstance(value, list):
        return [
            one
            for number, item in enumerate(value)
            for one in complaints(item, schema.get("items", {}), f"{at}[{number}]")
        ]
    if not isinstance(value, dict):
        return [f"{at}: {value} is too small"] if "minimum" in schema and value < schema["minimum"] else []
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    found = [f"{at}.{key} is missing" for key in schema.get("required", ()) if key not in value]
    for key, item in value.items():
        inner = known.get(key, others)
        found += [f"{at}.{key} is not described"] if inner is False else complaints(item, inner, f"{at}.{key}")
    return found


def check(document: dict[str, Any], name: str) -> None:
    assert document["schema"] == f"{name}/{SCHEMA_VERSION}" and next(iter(document)) == "schema"
    assert complaints(document, SCHEMAS[name]) == []


class TestDocuments:
    def test_of_a_conversion(self, ckpt, model, tmp_path):
        out = tmp_path / "out"
        check(ckpt("convert", model, out, "--to", "toy", "--dry-run", "--json").json, "plan")
        check(ckpt("convert", model, out, "--to", "toy", "-o", "untie=1", "--json").json, "convert")
        check(ckpt("verify", model, out, "--json").json, "verify")
        check(ckpt("verify", model, out, "--logits", "--json").json, "verify")
        check(ckpt("diff", model, out, "--json").json, "diff")
        check(ckpt("fingerprint", model, "--json").json, "fingerprint")

    def test_of_looking(self, ckpt, model):
        check(ckpt("inspect", model, "--json").json, "inspect")
        check(ckpt("inspect", model, "--stats", "--json").json, "inspect")
        check(ckpt("formats", "--json").json, "formats")
        check(ckpt("formats", "toy", "--json").json, "format")
        check(ckpt("selftest", "toy", "--like", model, "--json").json, "selftest")
        check(ckpt("doctor", "--json").json, "doctor")

    def test_of_failing(self, ckpt, model, tmp_path):
        (tmp_path / "empty").mkdir()
        for arguments in (
            ["inspect", tmp_path / "empty"],
            ["convert", model, "x", "--to", "toi"],
            ["convrt"],
            ["verify", model],
        ):
            ran = ckpt(*arguments, "--json")
            check(ran.json, "error")
            assert ran.code in (1, 2) and ran.json["error"]["anchor"]

    def test_of_following(self, ckpt, make, tmp_path):
        (tmp_path / "run").mkdir()
        make("run/step-1")
        arguments = ["follow", tmp_path / "run", tmp_path / "out", "--to", "toy", "--once", "--quiet", "0", "--json"]
        for state in ("converted", "done before"):
            document = ckpt(*arguments).json
            check(document, "follow")
            assert [step["state"] for step in document["steps"]] == [state]

    def test_of_following_on(self, ckpt, make, tmp_path, monkeypatch):
        """Without an end, each line is a document; a failure is one, too."""
        from ckpt_core.cli import follow

        def stop(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(follow.time, "sleep", stop)
        (tmp_path / "run").mkdir()
        make("run/step-1")
        (tmp_path / "run" / "step-2").mkdir()
        (tmp_path / "run" / "step-2" / "toy.safetensors").write_text("no model")
        ran = ckpt("follow", tmp_path / "run", tmp_path / "out", "--to", "toy", "--quiet", "0", "--json")
        *lines, last = map(json.loads, ran.out.split("\n{\n", 1)[0].splitlines())
        assert ran.code == 130 and [one["state"] for one in (*lines, last)] == ["converted", "failed"]
        for line in (*lines, last):
            check(line, "step")

    def test_of_other_formats(self, capsys, tmp_path):
        """What the toy has not: a launch, an explanation, the state of a training, an adapter."""
        pytest.importorskip("ckpt_megatron")
        from ckpt_core.cli.main import main
        from ckpt_core.testing import example, write_ir

        write_ir(tmp_path / "m", example("llama"))
        for name, arguments in {
            "launch": ["launch", str(tmp_path / "m"), "--to", "megatron"],
            "explain": ["explain", "hf", "megatron", "--family", "llama"],
            "names": ["explain", "--parameter", "attention.q.weight"],
        }.items():
            assert main([*arguments, "--json"]) == 0
            check(json.loads(capsys.readouterr().out), name)


class TestSchemas:
    def test_the_command(self, ckpt):
        assert ckpt("schema").out.split() == [f"{name}/{SCHEMA_VERSION}" for name in SCHEMAS]
        assert ckpt("schema", "diff").json == ckpt("schema", f"diff/{SCHEMA_VERSION}").json == SCHEMAS["diff"]
        ran = ckpt("schema", "dif")
        assert ran.code == 2 and "did you mean 'diff'?" in ran.err

    def test_the_validator_complains(self):
        good = {"schema": "fingerprint/1", "fingerprint": "", "version": 2, "path": "", "format": "", "tensors": 1}
        schema = SCHEMAS["fingerprint"]
        assert complaints(good, schema) == []
        for wrong in (
            {**good, "new": 1},
            {**good, "tensors": "1"},
            {**good, "tensors": True},
            {**good, "tensors": -1},
            {"schema": "x"},
        ):
            assert complaints(wrong, schema)
