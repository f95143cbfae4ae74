"""On PYTHONPATH, lets nanotron run on a CPU in the processes in which `ckpt verify --logits` asks it, and in no other."""

import sys

if "ckpt_nanotron.own" in sys.orig_argv:
    import nanotron_stubs

    nanotron_stubs.install()
