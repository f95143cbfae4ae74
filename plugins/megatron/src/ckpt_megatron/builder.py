"""A target of Megatron's GPTModel as it is decided."""

from __future__ import annotations

from ckpt_core.sdk import Checkpoint, TargetBuilder, dtypes, layouts, rewrites, schema
from ckpt_megatron import weights
from ckpt_megatron.config import decoder_of
from ckpt_megatron.layout import FileLayout


class GPTBuilder(TargetBuilder):
    """The files planned so far, in the `layout` that was asked for. `dtype` is that of all tensors, or None to keep each
    one's own. `tables` are those of the model, if it is not a GPTModel alone. `trained` and `masters` are those of a `TargetBuilder`.
    """

    def __init__(
        self,
        layout: FileLayout,
        model: rewrites.Rewritable,
        dtype: dtypes.DType | None,
        tables: layouts.Tables = weights.TABLES,
        trained: Checkpoint | None = None,
        masters: bool = False,
    ) -> None:
        super().__init__(model, tables, dtype, trained=trained, masters=masters)
        self.layout = layout
        self.layers: tuple[schema.Layer, ...] = decoder_of(model.architecture).layers
        self.latent = self.layers[0].latent_attention is not None
        self.sparse = any(layer.latent_attention and layer.latent_attention.indexer for layer in self.layers)

    def experts(self, native: layouts.Native) -> int:
        """How many experts the layer of a tensor has; 0 without any, and outside of layers."""
        if is_of_tower(native) or (native.layer is None and native.predictor is None):
            return 0
        moe = self.layers[-1 if native.layer is None else native.layer].moe
        return moe.experts if moe is not None else 0


def is_of_tower(native: layouts.Native) -> bool:
    """Whether a tensor is one of what a model sees with, whose layers are counted by themselves."""
    return bool(native.pieces) and all(piece.parameter.startswith("vision.") for piece in native.pieces)
