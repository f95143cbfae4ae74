"""A command imports what it needs: start-up is most of the time of a small conversion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckpt_tests import tiny

# What no conversion of a Llama on this machine to Nanotron needs, by the reason why it was once imported.
NOT_NEEDED = {
    "ssl": "ranges of files on other machines",
    "_hashlib": "what is sent to other machines",
    "multiprocessing.reduction": "workers that are processes",
    "ckpt_hf.families.deepseek": "other families",
    "ckpt_hf.quantised.schemes": "codes and scales",
    "ckpt_hf.write": "other formats, which keep models of transformers",
    "ckpt_megatron.weights": "other formats, asked whether the path is theirs",
    "ckpt_fsdp.read": "other formats, asked whether the path is theirs",
    "ckpt_peft.files": "other formats, asked whether the path is theirs",
    "ckpt_nxdt.files": "other formats, asked whether the path is theirs",
    "ckpt_gguf.container": "other formats, asked whether the path is theirs",
    "ckpt_gguf.architectures": "the families of other formats",
    "torch": "a framework",
}
SHOWN = "import sys; from ckpt_core.cli.main import main; code = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr); sys.exit(code)"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("start") / "hf"
    tiny.build(folder, "llama")
    return str(folder)


def imported(*words: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", SHOWN, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_a_conversion_imports_neither_other_families_nor_other_formats(llama: str, tmp_path: Path) -> None:
    modules = imported("convert", llama, str(tmp_path / "out"), "--to", "nanotron", "--tp", "2", "--dry-run")
    assert "ckpt_hf.families.llama" in modules
    of_numpy = {"_hashlib"} if np.__version__ < "2" else set()  # NumPy 1 draws random bits with `secrets`
    assert not modules & NOT_NEEDED.keys() - of_numpy


def test_a_conversion_to_hf_imports_no_family_after_the_one_that_holds_the_model(llama: str, tmp_path: Path) -> None:
    modules = imported("convert", llama, str(tmp_path / "out"), "--to", "hf", "--dry-run")
    assert {name for name in modules if name.startswith("ckpt_hf.families.")} == {"ckpt_hf.families.llama"}


def test_inspect_asks_no_format_what_it_would_write(llama: str) -> None:
    writers = {"ckpt_hf.write", "ckpt_nanotron.write", "ckpt_megatron.write", "ckpt_core.cli.stand_in"}
    assert not imported("inspect", llama) & writers
    assert imported("inspect", llama, "--all") > writers


def test_names_are_completed_from_metadata_alone() -> None:
    asking = {"_CKPT_COMPLETE": "bash_complete", "COMP_WORDS": "ckpt convert a b --to n", "COMP_CWORD": "5"}
    program = [sys.executable, "-X", "importtime", "-m", "ckpt_core"]
    done = subprocess.run(program, env=os.environ | asking, capture_output=True, text=True, check=True)
    assert "plain,nanotron" in done.stdout.split()
    assert not [
        line for line in done.stderr.splitlines() if line.endswith((" numpy", " ckpt_core.api", " ckpt_nanotron"))
    ]
