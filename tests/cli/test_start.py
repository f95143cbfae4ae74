"""A command imports what it needs: start-up is most of the time of a small conversion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ckpt_tests import tiny

# What no conversion of a Llama on this machine to Nanotron needs, by the reason why it was once imported.
NOT_NEEDED = {
    "ssl": "ranges of files on other machines",
    "ckpt_hf.families.deepseek": "other families",
    "ckpt_megatron.weights": "other formats, asked whether the path is theirs",
    "ckpt_fsdp.read": "other formats, asked whether the path is theirs",
    "torch": "a framework",
}
SHOWN = "import sys; from ckpt_core.cli.main import main; code = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr); sys.exit(code)"


def test_a_conversion_imports_neither_other_families_nor_other_formats(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    words = ["convert", str(tmp_path / "hf"), str(tmp_path / "out"), "--to", "nanotron", "--tp", "2", "--dry-run"]
    done = subprocess.run([sys.executable, "-c", SHOWN, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.split())
    assert "ckpt_hf.families.llama" in imported
    assert not imported & NOT_NEEDED.keys()
