"""What a GGUF file holds beside the model, and what becomes of it."""

from __future__ import annotations

from ckpt_core.sdk import ledgers

TOKENIZER = ledgers.Reason(
    "the tokenizer of the file", "it is not one that can be told exactly from what the file says"
)

GENERAL = ledgers.Contents(
    {
        "general.architecture": "architecture",
        "general.alignment": "places of tensors",
        "general.file_type": "kinds of tensors",
        "general.quantization_version": "kinds of tensors",
        "general.type": "architecture",
        "general.*": ledgers.PROVENANCE,
        "split.*": "parts of the model",
        "xielu.*": "weights",
        "quantize.*": ledgers.PROVENANCE,
    }
)
"""The keys of a file that no architecture owns."""
