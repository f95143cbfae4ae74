"""A short, always equal run of the fuzzer; `python tests/malice/fuzz.py --minutes N` runs it longer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def test_mutated_files_give_values_or_clear_errors(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("malice_fuzz", Path(__file__).with_name("fuzz.py"))
    sys.modules["malice_fuzz"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    done, lines, findings = module.fuzz(tmp_path, seed=0, inputs=1100)
    assert done == 1100 and lines > 900, "the readers were hardly reached"
    assert not findings, findings[0][2]
