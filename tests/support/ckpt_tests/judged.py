"""Tiny models of transformers of every class that is read, with the logits that transformers computes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertModel,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    Data2VecTextConfig,
    Data2VecTextForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ErnieConfig,
    ErnieForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    GPT2Config,
    GPT2ForTokenClassification,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from ckpt_core.reference import Inputs
from ckpt_tests import tiny
from ckpt_tests.families import CASES, Case
from ckpt_tests.families import build as build_family

_T5 = {"vocab_size": 61, "d_model": 72, "d_kv": 10, "d_ff": 56, "num_heads": 12, "num_layers": 3, "num_decoder_layers": 2,
       "relative_attention_num_buckets": 14, "relative_attention_max_distance": 20}  # fmt: skip
_VIT = {"image_size": 24, "patch_size": 8, "hidden_size": 72, "num_attention_heads": 12, "num_hidden_layers": 2, "intermediate_size": 56,
        "num_labels": 7}  # fmt: skip
_CASES = CASES | {
    "deepseek_v3_lite": Case("deepseek_v3", CASES["deepseek_v3_halves"].config | {"rope_interleave": True}),
}
_QWEN3 = CASES["qwen3"].config | {"pad_token_id": 7, "num_labels": 3}
_BERT = {"vocab_size": 61, "hidden_size": 72, "num_attention_heads": 12, "num_hidden_layers": 2, "intermediate_size": 56, "pad_token_id": 1,
         "max_position_embeddings": 44, "num_labels": 3}  # fmt: skip
_MODERN = {key: value for key, value in _BERT.items() if key != "num_hidden_layers"} | {"num_hidden_layers": 4, "local_attention": 10,
           "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}  # fmt: skip
_BIASED = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
_DISTILLED = {
    "vocab_size": 61,
    "dim": 72,
    "n_heads": 12,
    "n_layers": 2,
    "hidden_dim": 56,
    "max_position_embeddings": 44,
}
OTHERS: dict[str, tuple[type[PreTrainedModel], object]] = {
    "t5": (T5ForConditionalGeneration, T5Config(**_T5)),
    "t5_gated": (T5ForConditionalGeneration, T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "umt5": (UMT5ForConditionalGeneration, UMT5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "blenderbot": (
        BlenderbotForConditionalGeneration,
        BlenderbotConfig(
            vocab_size=61, d_model=72, encoder_layers=3, decoder_layers=2, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=56, decoder_ffn_dim=56, max_position_embeddings=40,
        ),
    ),
    "qwen3_bare": (Qwen3Model, Qwen3Config(**_QWEN3)),
    "qwen3_scored": (Qwen3ForSequenceClassification, Qwen3Config(**_QWEN3)),
    "qwen3_tagged": (Qwen3ForTokenClassification, Qwen3Config(**_QWEN3)),
    "gpt2_tagged": (GPT2ForTokenClassification, GPT2Config(**CASES["gpt2"].config, num_labels=3)),
    "bert": (BertForMaskedLM, BertConfig(**_BERT)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**_BERT)),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(**_DISTILLED)),
    "eurobert": (EuroBertForMaskedLM, EuroBertConfig(**_BERT, mlp_bias=True)),
    "roberta_classes": (RobertaForSequenceClassification, RobertaConfig(**_BERT)),
    "bert_pooled": (BertModel, BertConfig(**_BERT)),
    "bert_pretrained": (BertForPreTraining, BertConfig(**_BERT)),
    "bert_answers": (BertForQuestionAnswering, BertConfig(**{**_BERT, "num_labels": 2})),
    "megatron_bert": (MegatronBertForPreTraining, MegatronBertConfig(**_BERT)),
    "ernie": (ErnieForMaskedLM, ErnieConfig(**_BERT)),
    "data2vec_text": (Data2VecTextForMaskedLM, Data2VecTextConfig(**_BERT)),
    "roberta_prelayernorm": (RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormConfig(**_BERT)),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**_MODERN)),
    "modernbert_biased": (ModernBertForMaskedLM, ModernBertConfig(**_MODERN, **_BIASED, tie_word_embeddings=False)),
    "modernbert_classes": (ModernBertForSequenceClassification, ModernBertConfig(**_MODERN, **_BIASED, classifier_pooling="mean")),
    "vit": (ViTForImageClassification, ViTConfig(**_VIT)),
    "vit_headless": (ViTModel, ViTConfig(**_VIT, pooler_output_size=72)),
}  # fmt: skip
NAMES = [*tiny.CONFIGS, *(name for name in _CASES if name not in tiny.CONFIGS), *OTHERS]


def build(name: str, folder: Path) -> PreTrainedModel:
    """One of `NAMES`, every number random, saved at `folder`."""
    if name in tiny.CONFIGS:
        return tiny.build(folder, name)
    if name in _CASES:
        return build_family(_CASES[name], folder)
    cls, config = OTHERS[name]
    torch.manual_seed(5)
    model = cls(config).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * (1.0 if "norm" in key else 0.15))
    model.tie_weights()
    model.save_pretrained(folder)
    return model


_OUTPUTS = ("logits", "prediction_logits", "pooler_output", "last_hidden_state")


def computed(model: PreTrainedModel) -> tuple[Inputs, torch.Tensor]:
    """Inputs longer than every window, and what the model makes of them."""
    random = torch.Generator().manual_seed(11)
    tokens, source = (torch.randint(1, 61, (2, length), generator=random) for length in (37, 29))
    if hasattr(model.config, "image_size"):
        pixels = torch.randn(2, 3, 24, 24, generator=random)
        with torch.no_grad():
            found = model(pixel_values=pixels)
        return Inputs(pixels=pixels), found.logits if "logits" in found else found.pooler_output
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return Inputs(tokens=tokens, source=source), model(input_ids=source, decoder_input_ids=tokens).logits
        if model.config.pad_token_id is not None:
            tokens[0, -5:] = model.config.pad_token_id
        # a mask of ones, as old classes make one of their own where they find padding
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        if "start_logits" in found:
            return Inputs(tokens=tokens), torch.cat([found.start_logits, found.end_logits], -1)
        return Inputs(tokens=tokens), next(found[name] for name in _OUTPUTS if name in found)
