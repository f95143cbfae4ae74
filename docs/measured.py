"""Tables of what was measured, made of the results that benchmarks left in `benchmarks/results`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from bench import Measured, formats_table, table  # noqa: E402

_TABLES = {"quantised": formats_table, "others": table}


def measured(name: str) -> str:
    """The table of a benchmark, with the day and the machine."""
    kept = json.loads((BENCHMARKS / f"results/{name}.json").read_text())
    results = [Measured(**one) for one in kept["results"]]
    return f"*Measured on {kept['date']}; {kept['machine']}.*\n\n{_TABLES[name](results)}"
