"""The page of `ckpt inspect --html`: what is on it, what can't get onto it, and how it reaches its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ckpt_core.api import convert, read_checkpoint
from ckpt_core.checkpoint import Loss, Provenance, Sidecar
from ckpt_core.cli.survey import GROUPS, Future, Survey
from ckpt_core.verify.statistics import Statistics
from ckpt_page import page_of
from ckpt_tests.folders import contents
from ckpt_tests.goldens import goldens
from ckpt_tests.pages import large_llama, tiny_llama, tiny_values
from ckpt_tests.program import ckpt

HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=\"alert('2')\">&lt;"


class Parsed(HTMLParser):
    """What a browser would make of a page: its elements, and the text outside of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._within = "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within not in ("style", "script"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("page") / "tiny", tiny_values())


@pytest.fixture(scope="module")
def page(source, tmp_path_factory):
    file = tmp_path_factory.mktemp("pages") / "page.html"
    code, text = ckpt("inspect", source, "--stats", "--html", file)
    assert code == 0 and text.endswith(f"page         {file}\n")
    return file.read_text()


def survey(source, **changes) -> Survey:
    return surveyed(replace(read_checkpoint(source), **changes), str(source), [])


def surveyed(checkpoint, src: str, futures: list[Future], statistics: dict[str, Statistics] | None = None) -> Survey:
    """A survey whose answers are given, so that no format is asked."""
    survey = Survey(checkpoint, src, statistics)
    vars(survey)["futures"] = futures
    return survey


@pytest.fixture(scope="module")
def hostile(source):
    asked = survey(
        source,
        format=HOSTILE,
        provenance=Provenance(evidence=(HOSTILE,), losses=(Loss("dropped", HOSTILE, HOSTILE),)),
        parallel={HOSTILE: 2},
        notes={HOSTILE: HOSTILE},
        sidecars={HOSTILE: Sidecar(HOSTILE, 3)},
    )
    first, *others = asked.checkpoint.tensors.values()
    first = replace(first, blocks=tuple(replace(block, path=f"{HOSTILE}/{HOSTILE}") for block in first.blocks))
    tensors = {HOSTILE: first, **{one.parameter.name: one for one in others}}
    held = replace(asked.checkpoint, tensors=tensors)
    bad = Statistics(5, 5, 0, 0, None, None, None, None)
    return page_of(surveyed(held, HOSTILE, [Future(HOSTILE, [HOSTILE], [])], dict.fromkeys(held.tensors, bad)))


class TestContent:
    def test_everything_that_inspect_says_is_on_it(self, page, source):
        text = Parsed(page).text
        for line in ckpt("inspect", source, "--all")[1].splitlines():
            said = line[13:].strip()
            if not said.startswith("...") and ": yes" not in said and ": no" not in said:
                for word in said.split("  "):
                    assert word.strip().replace(": ", "") in text.replace(": ", ""), f"{word!r} of {line!r}"

    def test_every_tensor_has_a_row_that_the_treemap_leads_to(self, page, source):
        parsed = Parsed(page)
        rows = {attributes["id"] for tag, attributes in parsed.elements if tag == "tr" and "id" in attributes}
        links = {str(attributes["href"]) for tag, attributes in parsed.elements if tag == "a"}
        assert len(rows) == 30 and links == {f"#{row}" for row in rows}

    def test_dtypes_and_their_places(self, page):
        assert "bf16 × 3" in page and "fp32 × 3" in page
        assert "layers.{l}.mlp.norm.weight: fp32 in layer 0 to layer 2" in page

    def test_bad_values_are_pointed_out(self, page):
        text = Parsed(page).text
        assert "2 tensors with values that are not finite" in text
        assert "layers.1.mlp.up.weight: 3 NaN" in text and "layers.2.attention.q.weight: 1 infinite" in text
        assert page.count('class="bad"') == 2

    def test_without_statistics(self, source):
        text = Parsed(page_of(survey(source))).text
        assert "Values were not read" in text and "not finite" not in text and "norm" in text

    def test_what_it_can_become(self, source):
        futures = [
            Future("good", [], [Loss("dropped", "a thing", "why")]),
            Future("bad", [f"reason {n}" for n in range(20)], []),
        ]
        text = Parsed(page_of(surveyed(read_checkpoint(source), str(source), futures))).text
        assert "dropped: a thing (why)" in text
        assert all(f"reason {n}" in text for n in range(20)), "a folded reason is there too"

    def test_a_large_model(self, tmp_path):
        code, _ = ckpt("inspect", large_llama(tmp_path / "large"), "--html", tmp_path / "page.html")
        parsed = Parsed((tmp_path / "page.html").read_text())
        assert code == 0 and os.path.getsize(tmp_path / "page.html") < 1_000_000
        assert sum(tag == "tr" and "id" in attributes for tag, attributes in parsed.elements) == 723
        assert (
            "70,553,706,496 (70.6 B)" in parsed.text
            and "Too small to be drawn: 161 tensors with 1,318,912 elements" in parsed.text
        )


class TestSharding:
    def test_ranks(self, source, tmp_path):
        convert(source, tmp_path / "ranks", to="megatron", tp=2, options={"container": "torch"})
        text = Parsed(page_of(survey(tmp_path / "ranks"))).text
        for words in (
            "tp 2",
            "mp_rank_00/",
            "mp_rank_01/",
            "g in 2 parts",
            "g 1 to 2 in no. 2",
            "f 0 to 20 in no. 1",
            "v 128 to 256 in no. 2",
        ):
            assert words in text, words

    def test_files_of_a_rank_are_put_together(self):
        (golden,) = [one for one in goldens("nanotron") if str(one) == "main_llama_tied_tp2_pp2"]
        text = Parsed(page_of(survey(golden.checkpoint))).text
        for words in ("pp-rank-0 tp-rank-0", "pp-rank-1 tp-rank-1", "no rank in the name", "f in 2 parts"):
            assert words in text, words

    def test_one_file(self, page):
        text = Parsed(page).text
        assert "1model.safetensors" in text and "100 % of embedding to head" in text
        assert "Without tensors: config.json" in text and " parts" not in text


class TestHostileNames:
    def test_are_text(self, hostile):
        parsed = Parsed(hostile)
        assert parsed.count("script") == 1 and parsed.count("img") == 0 and parsed.count("title") > 1
        assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
        assert parsed.text.count(HOSTILE) > 10

    def test_the_policy_allows_the_page_s_own_script_and_no_network(self, page, hostile):
        policies = {
            attributes["content"]
            for one in (page, hostile)
            for tag, attributes in Parsed(one).elements
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
        }
        (policy,) = policies
        assert str(policy).startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in str(policy)

    def test_what_has_no_shape_is_spelled_out(self, source):
        name = "a\u202eb\udcff\x00\n"
        page = page_of(replace(survey(source), src=name))
        assert "a\\u202eb\\udcff\\x00\\n" in Parsed(page).text
        page.encode()

    def test_nothing_is_loaded(self, page):
        parsed = Parsed(page)
        links = [
            value for _, attributes in parsed.elements for name, value in attributes.items() if name in ("src", "href")
        ]
        assert all(str(link).startswith("#") for link in links)
        assert not {"link", "iframe", "object", "embed", "image", "use"} & {tag for tag, _ in parsed.elements}
        assert "url(" not in page and "@import" not in page


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_a_colour(page, group):
    """In light and in dark; a browser makes a tile without one black."""
    assert page.count(f"--{group}: #") == 2
    assert f".{group} {{ fill: var(--{group}); }}" in page


def test_same_checkpoint_same_page(page, source, tmp_path):
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.html"
        subprocess.run(
            [sys.executable, "-m", "ckpt_core", "inspect", str(source), "--stats", "--html", str(file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        assert file.read_text() == page


class TestFile:
    def test_json_beside_it(self, source, tmp_path):
        code, text = ckpt("inspect", source, "--json", "--html", tmp_path / "page.html")
        assert code == 0 and json.loads(text)["page"] == str(tmp_path / "page.html")
        assert os.listdir(tmp_path) == ["page.html"]

    @pytest.mark.parametrize("before", ["", "<!DOCTYPE html><p>an older page"])
    def test_a_page_is_replaced(self, source, tmp_path, before):
        (tmp_path / "page.html").write_text(before)
        assert ckpt("inspect", source, "--html", tmp_path / "page.html")[0] == 0
        assert (tmp_path / "page.html").read_text().startswith("<!doctype html>\n<html")

    @pytest.mark.parametrize(
        ("file", "words"),
        [
            ("tiny/page.html", "in the checkpoint itself"),
            ("tiny/model.safetensors", "in the checkpoint itself"),
            ("link/page.html", "in the checkpoint itself"),
            ("other.safetensors", "not an HTML page"),
            ("folder", "this is a folder"),
            ("missing/page.html", "does not exist"),
        ],
    )
    def test_never_over_anything_else(self, tmp_path, file, words):
        tiny_llama(tmp_path / "tiny", tiny_values())
        (tmp_path / "link").symlink_to(tmp_path / "tiny")
        (tmp_path / "other.safetensors").write_bytes(b"weights")
        (tmp_path / "folder").mkdir()
        before = contents(tmp_path)
        code, text = ckpt("inspect", tmp_path / "tiny", "--html", tmp_path / file)
        assert code == 2 and words in text and contents(tmp_path) == before

    def test_without_the_package_it_says_what_to_install(self, source, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ckpt_page", None)
        code, text = ckpt("inspect", source, "--html", tmp_path / "page.html")
        assert code == 2 and "pip install 'ckpt-core[page]'" in text and not os.listdir(tmp_path)

    @pytest.mark.parametrize("failing", ["fsync", "rename"])
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_nothing_half_written(self, source, tmp_path, monkeypatch, failing, error):
        (tmp_path / "page.html").write_text("<!doctype html>older")

        def fail(*_):
            raise error

        monkeypatch.setattr(f"ckpt_page.file.os.{failing}", fail)
        code, text = ckpt("inspect", source, "--html", tmp_path / "page.html")
        assert code == (1 if isinstance(error, OSError) else 130) and "Traceback" not in text
        assert os.listdir(tmp_path) == ["page.html"] and (tmp_path / "page.html").read_text() == "<!doctype html>older"
