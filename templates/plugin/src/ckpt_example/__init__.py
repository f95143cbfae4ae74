"""Checkpoints of the Example framework: one safetensors file per tensor parallel rank, and model.json."""

from ckpt_core.sdk import Folder, Format, FormatInfo
from ckpt_example.config import EXAMPLE
from ckpt_example.weights import TABLES

FORMAT = Format(
    FormatInfo("example", "the Example framework: a safetensors file per rank"),
    Folder(config="model.json", weights="rank-{tp}.safetensors", counts={"tp": "ranks"}),
    EXAMPLE,
    TABLES,
)
