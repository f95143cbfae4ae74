"""Vision transformers of NeMo 1 (`MegatronVitClassificationModel`)."""

from ckpt_nemo.vit.read import read
from ckpt_nemo.vit.write import write

__all__ = ["read", "write"]
