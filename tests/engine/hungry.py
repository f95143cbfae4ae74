"""A conversion that watches its own private memory. Prints JSON: bytes before, and the peak. Run: hungry.py JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ckpt_core import convert

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.memory import watched

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    with watched() as seen:
        receipt = convert(asked["source"], asked["destination"], **asked["arguments"])
    print(json.dumps({"before": seen[0], "peak": max(seen), "samples": len(seen), "fingerprint": receipt.fingerprint}))
