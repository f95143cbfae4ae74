"""Checkpoints of Meta's own Llama code: `params.json`, and one torch file for each model parallel rank."""

from ckpt_core.sdk import Folder, Format, FormatInfo, rewrites
from ckpt_meta_llama.config import LLAMA
from ckpt_meta_llama.weights import TABLES

FORMAT = Format(
    FormatInfo("meta-llama", "Meta's own Llama code: params.json and consolidated.NN.pth, one for each rank"),
    Folder(config="params.json", weights="consolidated.{tp:02}.pth"),
    LLAMA,
    TABLES,
    rewrite=lambda model, request: rewrites.untied_head(model),  # it has no shared matrix
)
