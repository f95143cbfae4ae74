"""On PYTHONPATH, lets nanotron run on a CPU in the processes in which `ckpt verify --logits` asks it, and in no other."""

import sys
from pathlib import Path

if "ckpt_nanotron.own" in sys.orig_argv:
    sys.path.append(str(Path(__file__).parents[1]))
    import nanotron_stubs

    nanotron_stubs.install()
