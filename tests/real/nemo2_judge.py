"""The real NeMo 2 as a judge: it loads a folder by `ModelConnector.nemo_load`, and computes logits.

Every line of standard input is a case (see forked.py): {"archive", "inputs", "out", "world"}. `inputs` holds `input_ids`, `out`
gets the `logits`. Nothing of the folder's context is changed but kernels of a GPU: the fused rotation and permutation. See README.md for what has
to be on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import cpu
import forked
import torch
import torch._dynamo  # before a triton of nothing is there
from absent import absent
from safetensors.torch import load_file, save_file

cpu.without_cuda()
absent(
    "triton modelopt zarr youtokentome pangu opencc lhotse jieba nvidia_resiliency_ext megatron.energon "
    "pkg_resources faiss fasttext tiktoken leptonai onnx"
)

import huggingface_hub  # noqa: E402

# Names that NeMo 2.4 imports, and that huggingface_hub has no more.
for _name in ("ModelFilter", "HfFolder"):
    if not hasattr(huggingface_hub, _name):
        setattr(huggingface_hub, _name, type(_name, (), {}))

import nemo.lightning.io.pl  # noqa: E402
from megatron.core.tensor_parallel import layers, random  # noqa: E402
from megatron.core.transformer.moe import moe_utils  # noqa: E402
from nemo.collections import llm  # noqa: E402, F401  the classes that the context names
from nemo.lightning.io.connector import ModelConnector  # noqa: E402

nemo.lightning.io.pl._fix_tensors_device = lambda state: state  # it asks for a CUDA device
for _name in ("fused_permute", "fused_unpermute", "fused_sort_chunks_by_index"):
    for _kernel in (_name, f"{_name}_with_probs"):
        setattr(moe_utils, _kernel, _kernel)  # configs ask whether they are there; none is called
layers._grad_accum_fusion_available = True  # for gradients alone
random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()


def judge(case: forked.Case) -> None:
    """Write the logits [batch, sequence, padded vocabulary] of the model in a folder."""
    model, _ = ModelConnector().nemo_load(Path(case["archive"]))
    inner = cpu.unwrapped(model).eval().float()
    inner.config.apply_rope_fusion = inner.config.moe_permute_fusion = False
    tokens = load_file(case["inputs"])["input_ids"]
    length = tokens.shape[1]
    with torch.no_grad():
        logits = inner(
            input_ids=tokens,
            position_ids=torch.arange(length)[None].expand_as(tokens),
            attention_mask=torch.ones(1, 1, length, length).triu(1).bool(),
        )
    save_file({"logits": logits.float().contiguous()}, case["out"])


if __name__ == "__main__":
    forked.answer(judge)
