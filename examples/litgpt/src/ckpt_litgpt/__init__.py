"""Checkpoints of LitGPT: `model_config.yaml`, and `lit_model.pth` beside it."""

from ckpt_core.sdk import Folder, Format, FormatInfo, rewrites
from ckpt_litgpt.config import GPT
from ckpt_litgpt.weights import TABLES

FORMAT = Format(
    FormatInfo("litgpt", "LitGPT: lit_model.pth beside model_config.yaml"),
    Folder(config="model_config.yaml", weights="lit_model.pth"),
    GPT,
    TABLES,
    rewrite=lambda model, request: rewrites.untied_head(model),  # its GPT has no shared matrix
)
