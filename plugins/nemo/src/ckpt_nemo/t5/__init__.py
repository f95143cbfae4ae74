"""T5 and UL2 models of NeMo 1 (`MegatronT5Model` and its relatives)."""

from ckpt_nemo.t5.read import read
from ckpt_nemo.t5.write import write

__all__ = ["read", "write"]
