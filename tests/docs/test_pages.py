"""Every page: its links resolve, its generated sections are fresh, its code runs, its commands print what it shows."""

from __future__ import annotations

import doctest
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import console
import generate
import plots
import pytest
import warm
import yaml

from ckpt_core.errors import CkptError
from ckpt_core.plugins import hookspecs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EXECUTED = [
    DOCS / name
    for name in ("layout-sentence.md", "intermediate-representation.md", "tasks/evaluate.md", "reference/python.md")
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def outside_code(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^(```+)[^`].*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.*)$", outside_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.is_file(), f"{name_of(page)} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{name_of(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_generated_sections_are_fresh(page: Path) -> None:
    if generate.MISSING and "generated: format" in page.read_text():
        pytest.skip(f"install every plugin to check this page: {', '.join(generate.MISSING)}")
    assert generate.rendered(page.read_text()) == page.read_text(), "stale: run python docs/generate.py"


def test_plots_are_fresh() -> None:
    for path, palette in plots.PLOTS.items():
        assert path.read_text() == plots.compared(palette), "stale: run python docs/generate.py"


def errors(kind: type[CkptError] = CkptError) -> list[type[CkptError]]:
    """A class of errors and all that are made from it, but for those of tests."""
    below = [one for made in kind.__subclasses__() for one in errors(made)]
    return [kind, *below] if kind.__module__.startswith("ckpt_") else below


def test_every_error_has_its_section() -> None:
    """The program's last line about an error names it; a plugin's own errors have that of the class they are made from."""
    import ckpt_core.cli.output
    import ckpt_core.cli.stand_in
    import ckpt_core.layout

    known = anchors(DOCS / "troubleshooting.md")
    assert {kind.section() for kind in errors()} <= known
    said = re.findall(r'about = "([\w-]+)"', inspect.getsource(ckpt_core.cli.main))
    assert len(said) == 4 and {*said} <= known


def test_every_message_of_the_troubleshooting_page_is_one() -> None:
    text = (DOCS / "troubleshooting.md").read_text().partition("## By message")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    sources = [*(ROOT / "core/src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
    code = re.sub(r"\{[^{}]*\}", "hf", "\n".join(path.read_text() for path in sources))
    assert len(messages) > 15 and [message for message in messages if message not in code] == []


def test_what_was_judged_is_by_sessions_that_exist() -> None:
    sessions = re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    for entry in tomllib.loads((ROOT / "tests/real/judged.toml").read_text())["judged"]:
        assert entry["session"] in ("", *sessions), f"{entry['framework']} names a session that noxfile.py has not"
        assert all(len(row) == 5 for row in entry["rows"]), f"{entry['framework']}: a row has five cells"


@pytest.mark.parametrize("page", EXECUTED, ids=name_of)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a page, in order and in one namespace; those with prompts print what is shown."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else torch, once imported, keeps one in that folder
    text, namespace = page.read_text(), {}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: match.start(1)].count("\n")
        if ">>>" not in match[1]:
            exec(compile("\n" * line + match[1], name_of(page), "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(match[1], namespace, name_of(page), str(page), line)
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        assert not said, "".join(said)
        namespace.update(test.globs)


@pytest.fixture(scope="module")
def programs() -> Iterator[str]:
    with warm.programs() as folder:
        yield folder


@pytest.mark.parametrize("page", console.PAGES, ids=name_of)
def test_commands_print_what_is_shown(page: Path, programs: str) -> None:
    text = page.read_text()
    assert console.normalised(console.executed(text, programs)) == console.normalised(text), (
        "stale: run python docs/console.py --write"
    )


def test_pages_show_the_memory_of_a_command_by_itself() -> None:
    """The commands of the test above begin with what `warm` has imported; this one begins with nothing."""
    command = "ckpt convert tests/data/golden/nanotron/main_llama_tp2_pp1_bf16/checkpoint model --to hf"
    (alone,) = console.memories(console.executed(f"```console\n$ {command}\n```"))
    shown = {name_of(page): console.memories(page.read_text()) for page in console.PAGES}
    assert sum(map(len, shown.values())) > 20
    assert {name: found for name, found in shown.items() if any(abs(one - alone) * 2 > alone for one in found)} == {}


def test_python_blocks_parse() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            if ">>>" not in block:
                compile(block, name_of(page), "exec")


def test_every_format_has_its_page() -> None:
    folders = {page.parent.name for page in (DOCS / "formats").glob("*/index.md")}
    assert {page.stem for page in (DOCS / "formats").glob("*.md")} | folders == {"ir", *generate.IN_REPOSITORY}


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])))
    assert {str(page.relative_to(DOCS)) for page in PAGES} == listed


def test_every_hook_is_documented_with_its_signature() -> None:
    text = (DOCS / "plugin-author.md").read_text()
    hooks = {name: value for name, value in vars(hookspecs).items() if name.startswith("ckpt_")}
    assert hooks
    for name, hook in hooks.items():
        signature = inspect.signature(hook)
        arguments = ", ".join(
            f"{parameter.name}: {parameter.annotation}" for parameter in signature.parameters.values()
        )
        assert f"def {name}({arguments}) -> {signature.return_annotation}: ...\n" in text, (
            f"plugin-author.md lacks the signature of {name}"
        )
    assert set(re.findall(r"^def (ckpt_\w+)", text, re.MULTILINE)) >= hooks.keys()


def test_every_quirk_is_documented() -> None:
    from ckpt_core.testing import Quirks

    text = (DOCS / "plugin-author.md").read_text()
    missing = [name for name in Quirks.__dataclass_fields__ if f"`{name}`" not in text]
    assert not missing, f"plugin-author.md does not explain Quirks: {missing}"
