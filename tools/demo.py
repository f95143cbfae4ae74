"""The demo: a real Nanotron checkpoint to HF and back in another layout, proved equal, and its logits beside the recorded ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASE = "tests/data/golden/nanotron/main_llama_tied_tp2_pp2"
SOURCE, HF, OTHER = f"{CASE}/checkpoint", "build/demo/hf", "build/demo/nanotron-tp1"
STEPS = (
    ("What is it? A Llama that Nanotron itself saved, two tensor parallel ranks by two stages", f"ckpt inspect {SOURCE}"),
    ("To Hugging Face transformers", f"ckpt convert {SOURCE} {HF} --to hf"),
    ("And back to Nanotron, in another layout", f"ckpt convert {HF} {OTHER} --to nanotron --tp 1 --pp 1"),
    ("All three are the same model: one fingerprint", f"ckpt fingerprint {SOURCE}"),
    ("", f"ckpt fingerprint {HF}"),
    ("", f"ckpt fingerprint {OTHER}"),
    ("Tensor by tensor", f"ckpt diff {SOURCE} {OTHER}"),
    ("Run: our reference, and transformers itself", f"ckpt verify {SOURCE} {HF} --logits"),
    ("And against the logits that Nanotron computed when it saved it", f"python benchmarks/show_logits.py {HF} {CASE}/expected.safetensors"),
)  # fmt: skip


def main(program: str = "ckpt") -> int:
    """Run every step; `program` is the `ckpt` to run. Ends with the code of the first that fails."""
    os.chdir(ROOT)
    shutil.rmtree("build/demo", ignore_errors=True)
    os.makedirs("build/demo")
    began = time.monotonic()
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    for number, (what, line) in enumerate(STEPS):
        say(f"\n# {what}" if what else "", f"$ {line}")
        name, *arguments = line.split()
        command = [program if name == "ckpt" else sys.executable, *arguments]
        done = subprocess.run(command, env={**os.environ, **quiet})
        if done.returncode:
            say(f"step {number + 1} failed")
            return done.returncode
    say(f"\nDone in {time.monotonic() - began:.0f} s. What was written: {HF}, {OTHER}")
    return 0


def say(*lines: str) -> None:
    for line in filter(None, lines):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
