"""One import path for the helpers of these tests, and for those of the NeMo container's."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "nemo"):
    sys.path.insert(0, str(folder))
