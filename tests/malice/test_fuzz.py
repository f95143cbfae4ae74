"""A short, always equal run of the fuzzer; `python tools/fuzz.py --minutes N` runs it longer."""

from __future__ import annotations

from pathlib import Path

import fuzz


def test_mutated_files_give_values_or_clear_errors(tmp_path: Path) -> None:
    done, lines, findings = fuzz.fuzz(tmp_path, seed=0, inputs=1100)
    assert done == 1100 and lines > 900, "the readers were hardly reached"
    assert not findings, findings[0][2]
