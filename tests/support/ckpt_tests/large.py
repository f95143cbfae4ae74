"""A model that is large, and takes no disk."""

from __future__ import annotations

import json
from pathlib import Path

from ckpt_core.storage.dtypes import BF16
from ckpt_core.storage.safetensors import plan_file


def large(folder: Path, layers: int) -> Path:
    """A Llama of sparse files: 78 MB of zeros in bf16 per layer, that occupy no disk. Transposing one takes 34 MB at least."""
    hidden, ffn, vocabulary = 2048, 8192, 16384
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": vocabulary,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (512, hidden),
                "self_attn.v_proj": (512, hidden), "self_attn.o_proj": (hidden, hidden), "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
            }.items()
        }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plan = plan_file({name: (BF16, shape) for name, shape in shapes.items()}, {"format": "pt"})
    with open(folder / "model.safetensors", "wb") as file:
        file.write(plan.header)
        file.truncate(plan.size)
    return folder
