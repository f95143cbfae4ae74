"""A target as it grows."""

from __future__ import annotations

from ckpt_core.sdk import DType, Native, Placement, disk, rewrites, schema, storage_dtype
from ckpt_megatron.config import decoder_of
from ckpt_megatron.layout import FileLayout


class Written:
    """The files planned so far, and what is in them. `dtype` is that of all tensors, or None to keep each one's own."""

    def __init__(self, layout: FileLayout, model: rewrites.Rewritable, dtype: DType | None) -> None:
        self.layout, self.model, self.dtype = layout, model, dtype
        self.architecture = model.architecture
        self.layers: tuple[schema.Layer, ...] = decoder_of(model.architecture).layers
        self.latent = self.layers[0].latent_attention is not None
        self.files: list[disk.OutputFile] = []
        self.placements: list[Placement] = []
        self.documents: dict[str, bytes] = {}

    def dtype_of(self, native: Native) -> DType:
        return storage_dtype(native, self.model.tensors, self.dtype)

    def experts(self, layer: int | None) -> int:
        """How many experts a layer has; 0 without any, and outside of layers."""
        moe = self.layers[layer].mlp.moe if layer is not None else None
        return moe.experts if moe is not None else 0
