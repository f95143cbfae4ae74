"""GPT and Llama-like models of NeMo 1: before Megatron-Core ("legacy") and with it ("mcore")."""

from ckpt_nemo.gpt.read import read_gpt as read
from ckpt_nemo.gpt.write import write_gpt as write

__all__ = ["read", "write"]
