"""Show the logits of an HF folder beside those that the training framework recorded."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main(folder: str, recorded: str) -> int:
    """Print the first logits of both and their largest difference; 1 if it exceeds 1e-4."""
    expected = load_file(recorded)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    theirs = expected["logits"][..., : logits.shape[-1]]
    difference = (logits - theirs).abs().max().item()
    for position in range(3):
        ours = " ".join(f"{value:9.5f}" for value in logits[0, position, :5])
        framework = " ".join(f"{value:9.5f}" for value in theirs[0, position, :5])
        print(
            f"position {position}   transformers on the converted model {ours}\n             nanotron on the original           {framework}"
        )
    print(f"largest difference over {tuple(logits.shape)} logits: {difference:.2e}")
    return int(difference > 1e-4)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
