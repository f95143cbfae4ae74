"""The project of `ckpt plugin new`: it passes its own tests at once, converts, and the kit catches it when it is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_core.errors import UsageError
from ckpt_core.template import CONFIGS, CONTAINERS, project
from ckpt_tests.program import ckpt

CASES = [(container, config) for container in CONTAINERS for config in CONFIGS]


def installed(folder: Path, *, name: str = "example", container: str = "safetensors", config: str = "json") -> Path:
    """The project of a plugin below `folder`, as an installed distribution in its `site`."""
    for path, text in project(name, container, config).items():
        place = folder / (f"site/{path.removeprefix('src/')}" if path.startswith("src/") else path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    info = folder / "site" / f"ckpt_{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ckpt-{name}\nVersion: 0.1.0\n")
    entries = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["ckpt.formats"]
    lines = "".join(f"{format} = {module}\n" for format, module in entries.items())
    (info / "entry_points.txt").write_text(f"[ckpt.formats]\n{lines}")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command that sees the plugin."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "site"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CKPT_PLUGINS": f"example,{','.join(f'm{number}' for number in range(len(MISTAKES)))},hf,ir",
    }
    return subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)


def conformance(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    quick = ("-p", "no:cacheprovider", "-p", "ckpt_tests.quick")
    return run(folder, "-m", "pytest", "-q", *quick, "--rootdir", str(folder), "tests", *arguments)


def test_the_command_writes_a_whole_project(tmp_path: Path) -> None:
    code, text = ckpt("plugin", "new", "my-format", tmp_path / "new", "--container", "torch", "--config", "yaml")
    assert code == 0 and "pip install" in text
    files = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert files >= {
        "pyproject.toml", "README.md", "LICENSE", ".github/workflows/tests.yml", "tests/test_conformance.py",
        "src/ckpt_my_format/__init__.py", "src/ckpt_my_format/sentences.txt",
    }  # fmt: skip
    whole = "".join((tmp_path / "new" / name).read_text() for name in files)
    assert "model.yaml" in whole and "rank-{tp}.pt" in whole and "safetensors" not in whole
    assert "@name@" not in whole and "#:" not in whole
    for name in (path for path in files if path.endswith(".py")):
        compile((tmp_path / "new" / name).read_text(), name, "exec")
    code, text = ckpt("plugin", "new", "my-format", tmp_path / "new")
    assert code == 2 and "the folder of the new plugin exists" in text


@pytest.mark.parametrize("name", ["", "My", "a_b", "-a", "a/b", "3d"])
def test_a_name_that_no_format_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="can't be the name of a format"):
        project(name)


@pytest.mark.parametrize(("container", "config"), CASES)
def test_it_passes_its_own_tests(container: str, config: str, tmp_path: Path) -> None:
    """The first project all of them, the others those that depend on where its bytes are."""
    folder = installed(tmp_path, container=container, config=config)
    depends = "named or crash or refused or reads_back or detects" if (container, config) != CASES[0] else "test"
    variation = "not a_fact_is_expressed" if (container, config) != CASES[0] else "test"
    done = conformance(folder, "-k", f"({depends}) and ({variation})")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]


def test_it_converts_from_and_to_hf(tmp_path: Path) -> None:
    pytest.importorskip("ckpt_hf")
    script = """
from ckpt_core import convert, fingerprint
from ckpt_core.testing import example, write_ir
write_ir("ir", example("llama-padded"))
convert("ir", "hf", to="hf")
convert("hf", "example", to="example", tp=4)
convert("example", "back", to="hf")
assert fingerprint("hf") == fingerprint("example") == fingerprint("back")
for name in ("model.safetensors", "config.json"):
    assert open(f"hf/{name}", "rb").read() == open(f"back/{name}", "rb").read(), name
"""
    folder = installed(tmp_path)
    done = run(folder, "-c", script)
    assert done.returncode == 0, done.stderr
    listed = run(folder, "-m", "ckpt_core", "formats")
    assert "ckpt-example 0.1.0" in listed.stdout


# What an author may get wrong: the changes of a file (right text, wrong text), the law that notices, and words of the failure.
CONFIG, WEIGHTS, HOOKS, SENTENCES = "config.py", "weights.py", "__init__.py", "sentences.txt"
IN_CONFIG = ("sdk import Activation, Config,", "sdk import Activation, Config, custom, ignore,")
IN_HOOKS = ("sdk import Folder, Format,", "sdk import Folder, Format, hookimpl, rewrites,")
EAGER = "a detection that is too eager"
# The line above what pytest says of one failure, and the one above its summary: how much of a message that has depends on the terminal.
_SECTION = re.compile(r"^(?:_+ .* _+|=+ short test summary info =+)$", re.MULTILINE)
Changes = tuple[str, list[tuple[str, str]], str, str]
# fmt: off
MISTAKES: dict[str, Changes] = {
    "a tensor that nobody accounts for": (WEIGHTS, [
        ("TABLES = (MODEL, LAYER)", 'TABLES = (MODEL.extend(drop("*", "wrong")), LAYER)'), ("sdk import Table, row", "sdk import Table, drop, row"),
    ], "test_a_tensor_too_many_is_named", "nobody noticed"),
    "a fact that nobody writes": (CONFIG, [IN_CONFIG, (
        'key("rope_base", "attention.rotary.theta", default=10000.0),',
        'ignore("rope_base", why="wrong"), fact_is("attention.rotary.theta", 10000.0),',
    )], "test_a_fact_is_expressed_or_refused_by_name and theta", "expresses"),
    "a fact that is written and not read": (CONFIG, [IN_CONFIG, (
        'key("tied", "head.tied", default=False),',
        'key("tied", "head.tied", default=False), ignore("softcap", why="wrong"), fact_is("attention.sinks", False),'
        ' custom([], ["attention.softcap"], read=lambda *_: None, write=lambda *_: None, why="a test", uses=[]),',
    )], "test_a_fact_is_expressed_or_refused_by_name and softcap", ""),
    "a rewrite that is another function": (HOOKS, [IN_HOOKS, (
        "    TABLES,\n)",
        "    TABLES,\n    rewrite=lambda model, _: rewrites.Rewritable(\n"
        "        rewrites.folded_attention_scale(model).architecture, model.tensors, ('folded',)\n    ),\n)",
    )], "test_a_fact_is_expressed_or_refused_by_name and attention.scale", ""),
    "a vocabulary that is cut short": (CONFIG, [IN_CONFIG, (
        'key("vocabulary", "tokens.vocabulary"),',
        'custom(["vocabulary"], ["tokens.vocabulary"],'
        ' read=lambda config, facts, notes: facts.update({"tokens.vocabulary": config["vocabulary"] - 1}),'
        ' write=lambda facts, notes, config: config.update(vocabulary=facts["tokens.vocabulary"]), why="a test", uses=[]),',
    )], "test_what_is_written_reads_back", ""),
    "a file that is named without its rank": (HOOKS, [
        ('weights="rank-{tp}.safetensors", counts={"tp": "ranks"}', 'weights="rank-0.safetensors"'),
    ], "test_every_layout_leads_to_every_other", ""),
    "a row that is forgotten": (CONFIG, [
        ('key("activation", ', 'key("bias", "mlp.up_bias", "mlp.down_bias", default=False), key("activation", '),
    ], "test_a_wrong_config_is_an_error_and_never_a_crash", "mlp.up.bias"),
    "a row that nothing reaches": (WEIGHTS, [
        ('row("norm2", ', 'row("up_bias", "f", "mlp.up.bias"), row("norm2", '),
    ], "test_every_row_and_key_is_reached", "up_bias (mlp.up.bias)"),
    "a sentence of a golden that is not there": (SENTENCES, [
        ("norm1 | attention.norm.weight | h |  |  |  |", "norm1 | attention.norm.weight | h |  |  |  | 1: nonsense"),
    ], "test_what_bears_a_sentence_out_exists", "sentences.txt says that nonsense shows norm1, and there is no such golden"),
    "a table that departs from its sentences": (WEIGHTS, [
        ('"h ((gate + up) f)"', '"h ((up + gate) f)"'),
    ], "test_what_it_writes_is_declared", "mlp.up.weight"),
    "keys that are exchanged": (CONFIG, [
        ('key("layers", "layers")', 'key("layers", "attention.heads")'), ('key("heads", "attention.heads")', 'key("heads", "layers")'),
    ], "test_no_two_names_are_exchanged", "exchanged? layers is attention.heads, and heads is layers"),
    "tensors that are exchanged": (WEIGHTS, [
        ('row("norm1",   "h",                          "attention.norm.weight")', 'row("mlp_norm", "h", "attention.norm.weight")'),
        ('row("norm2",   "h",                          "mlp.norm.weight")', 'row("attention_norm", "h", "mlp.norm.weight")'),
    ], "test_no_two_names_are_exchanged", "exchanged? mlp_norm is attention.norm.weight, and attention_norm is mlp.norm.weight"),
    "an eps that is ignored": (CONFIG, [IN_CONFIG, (
        'key("norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),',
        'ignore("norm_eps", why="wrong"), *(fact_is(f"{norm}.eps", 1e-5) for norm in NORMS),',
    )], "test_what_is_ignored_is_not_fixed", "norm_eps is ignored, and attention.norm.eps is always 1e-05"),
    "a framework that is imported": (HOOKS, [
        ("from ckpt_core.sdk import", "import torch\n\nfrom ckpt_core.sdk import"),
    ], "test_it_imports_no_framework", "importing the plugin imports"),
    "an option that is another choice than that of the tables": (HOOKS, [
        ("sdk import Folder, Format, FormatInfo", "sdk import Folder, Format, FormatInfo, Option, layouts"),
        ("a file for each rank\"),", "a file for each rank\", options=(Option('names', 'old or new names', ('old', 'new')),)),"),
        ("    TABLES,\n)", "    layouts.Tables(TABLES, [layouts.Choice('names', ('new', 'older'), default='new')]),\n)"),
    ], "test_options_offer_the_values_of_their_choices", "option names offers old, new, and the choice of the tables new, older"),
    EAGER: (HOOKS, [IN_HOOKS, (
        "FORMAT = Format(",
        "class Eager(Format):\n"
        "    @hookimpl\n"
        "    def ckpt_detect(self, path):\n"
        "        return 'a folder' if os.path.isdir(path) and '__init__.py' not in os.listdir(path) else None\n\n\n"
        "FORMAT = Eager(",
    ), ("from ckpt_core.sdk import", "import os\n\nfrom ckpt_core.sdk import")], "test_it_detects_its_own_and_nothing_else", ""),
}
# fmt: on


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the kit says of a plugin for each mistake: all of them in one run, but for a detector that would take the others' folders."""
    apart = [EAGER]
    runs = [[mistake for mistake in MISTAKES if mistake not in apart], apart]
    return "".join(kit_on(tmp_path_factory.mktemp("mistakes"), mistakes) for mistakes in runs)


def kit_on(folder: Path, mistakes: list[str]) -> str:
    laws = []
    for mistake in mistakes:
        name, law = f"m{[*MISTAKES].index(mistake)}", MISTAKES[mistake][2]
        installed(folder, name=name)
        spoil(folder / "site" / f"ckpt_{name}", mistake)
        test = folder / "tests" / "test_conformance.py"
        test.rename(folder / "tests" / f"test_{name}.py")
        laws.append(f"(test_{name}.py and {law})")
    done = conformance(folder, "--import-mode=importlib", "-k", " or ".join(laws))
    assert done.returncode == 1, done.stdout[-3000:]
    return done.stdout


def spoil(package: Path, mistake: str) -> None:
    file, changes, *_ = MISTAKES[mistake]
    text = (package / file).read_text()
    for right, wrong in changes:
        assert right in text, f"{file} no longer has {right!r}"
        text = text.replace(right, wrong)
    (package / file).write_text(text)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_kit_notices(mistake: str, judged: str) -> None:
    name, (*_, law, words) = f"m{[*MISTAKES].index(mistake)}", MISTAKES[mistake]
    failed = [line for line in judged.splitlines() if line.startswith(f"FAILED tests/test_{name}.py")]
    assert failed and all(law.split()[0] in line for line in failed), judged[-3000:]
    own = [section for section in _SECTION.split(judged) if f"<tests.test_{name}.TestConformance" in section]
    assert own and all(words in section for section in own), judged[-3000:]


def test_its_detector_decides_by_what_the_config_says(tmp_path: Path) -> None:
    folder = installed(tmp_path)
    (folder / "other").mkdir()
    (folder / "other" / "model.json").write_text(json.dumps({"layers": 3}))
    save_file({"weight": torch.zeros(2)}, folder / "other" / "rank-0.safetensors")
    asked = run(folder, "-c", "from ckpt_core.plugins.discovery import detect; print(detect('other'))")
    assert asked.stdout == "[]\n", asked.stderr


def test_a_plugin_is_not_judged_by_the_sentences_of_another(tmp_path: Path) -> None:
    """ckpt-hf declares `mlp.down_proj.weight`; a format that declares nothing has none, and that is what selftest says."""
    folder = installed(tmp_path)
    site = folder / "site" / "ckpt_example"
    (site / SENTENCES).unlink()
    weights = (site / WEIGHTS).read_text()
    (site / WEIGHTS).write_text(
        weights.replace('row("down", ', 'row("mlp.down_proj.weight", ').replace('"h f", ', '"f h", ')
    )
    script = "from ckpt_core.testing import example, write_ir; write_ir('ir', example('llama'))"
    assert run(folder, "-c", script).returncode == 0
    done = run(folder, "-m", "ckpt_core", "selftest", "example", "--like", "ir", "--json")
    seen = json.loads(done.stdout)
    assert done.returncode == 0 and seen["sentences"] == [] and len(seen["undeclared"]) > 9
    said = run(folder, "-m", "ckpt_core", "selftest", "example", "--like", "ir").stdout
    assert f"of {len(seen['undeclared'])} tensors nothing declares where that is" in said, said
