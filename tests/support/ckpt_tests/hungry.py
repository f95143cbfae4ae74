"""A conversion that watches its own private memory. Prints JSON: bytes before, and the peak. Run: python -m ckpt_tests.hungry JSON."""

from __future__ import annotations

import json
import sys

from ckpt_core import convert
from ckpt_tests.memory import watched

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    with watched() as seen:
        receipt = convert(asked["source"], asked["destination"], **asked["arguments"])
    print(json.dumps({"before": seen[0], "peak": max(seen), "samples": len(seen), "fingerprint": receipt.fingerprint}))
