"""Tiny encoder-decoders of transformers: pairwise different sizes, every number random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM, PreTrainedModel

_T5 = {
    "vocab_size": 61, "d_model": 36, "d_kv": 10, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 12, "relative_attention_max_distance": 9, "decoder_start_token_id": 5,
}  # fmt: skip
_BLENDERBOT = {
    "vocab_size": 61, "d_model": 36, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 6,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 28, "max_position_embeddings": 22, "decoder_start_token_id": 5,
}  # fmt: skip
_OWN = {"tie_word_embeddings": False}

# name: (model_type, config, whether the head has a tensor of its own)
CASES: dict[str, tuple[str, dict[str, object], bool]] = {
    "t5_v1.0": ("t5", _T5, False),
    "t5_v1.1": ("t5", {**_T5, **_OWN, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-5}, True),
    "ul2": ("t5", {**_T5, **_OWN, "feed_forward_proj": "gated-silu"}, True),
    "mt5": ("mt5", {**_T5, **_OWN}, True),
    "umt5": ("umt5", _T5, False),
    "umt5_own_head": ("umt5", {**_T5, **_OWN}, True),
    "blenderbot": ("blenderbot", _BLENDERBOT, False),
    "blenderbot_own_head": (
        "blenderbot",
        {**_BLENDERBOT, **_OWN, "scale_embedding": True, "activation_function": "gelu_new"},
        True,
    ),
}


def build(name: str, folder: Path, **changes: object) -> PreTrainedModel:
    """A random model of a case, saved at `folder` by transformers."""
    kind, config, own_head = CASES[name]
    torch.manual_seed(5)
    model = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[kind](**{**config, **changes}), dtype=torch.float32).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + ("norm" in key and key.endswith("weight")))
        for stack in (
            model.get_encoder(),
            model.get_decoder(),
        ):  # of a Blenderbot with a head of its own, nothing is tied
            stack.embed_tokens.weight.copy_(model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    return model


def inputs() -> dict[str, torch.Tensor]:
    """Two sources of 20 and two targets of 13 tokens, some of them padding; longer than the buckets reach."""
    draw = torch.Generator().manual_seed(7)
    return {
        "input_ids": torch.randint(0, 61, (2, 20), generator=draw),
        "attention_mask": (torch.arange(20) < torch.tensor([[20], [14]])).long(),
        "decoder_input_ids": torch.randint(0, 61, (2, 13), generator=draw),
    }


def logits_of(model: PreTrainedModel, given: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(**(given or inputs())).logits


def load(folder: Path) -> PreTrainedModel:
    """The model in fp32, every weight accounted for by transformers."""
    model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {kind: names for kind, names in report.items() if names}
    assert not problems, f"transformers complains about {folder.name}: {problems}"
    return model.eval()


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def change_config(folder: Path, **changes: object) -> None:
    """Change keys of a folder's config; None removes one."""
    config = {
        key: value for key, value in {**config_of(folder), **changes}.items() if key not in changes or value is not None
    }
    (folder / "config.json").write_text(json.dumps(config))
