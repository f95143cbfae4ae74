"""What `model_config.yaml` says about a vision transformer. Defaults are those of vit_backbone.py (1.23 to 2.4)."""

from __future__ import annotations

import math
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Config,
    Facts,
    Refusal,
    configs,
    custom,
    decided,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    one_of,
    schema,
    values,
)
from ckpt_nemo.activation import GATED, GELUS, WRITTEN, named_activation
from ckpt_nemo.gpt.config import TRAINING
from ckpt_nemo.values import Values, flag, given, whole
from ckpt_nemo.vit.weights import ABSOLUTE, PARAMETERS

LEFT_OUT, value_of = configs.LEFT_OUT, configs.value_of
CLASS_TOKENS = 8
POSITIONS = "position_embedding_type"
LEGACY = "megatron_legacy"
ACTIVATION = "activation"

# normalization: kind, bias, whether the stored weight is gamma - 1
_KINDS = {
    "layernorm": ("layer", True, False),
    "layernorm1p": ("layer", True, True),
    "rmsnorm": ("rms", False, False),
}
_NORMS = ("attention.norm", "mlp.norm", "final_norm")
_TRAINING = [entry for entry in TRAINING if entry.key not in {LEGACY}]


def choices_of(config: Values, patch_layer: str) -> dict[str, layouts.Value]:
    """The choices of the tables that a config makes, beside the layer for patches, which names alone say."""
    return {
        "patch_layer": patch_layer,
        POSITIONS: given(config, POSITIONS, ABSOLUTE),
        LEGACY: flag(config, LEGACY),
        "separate_gate": str(given(config, ACTIVATION, "gelu")) in GATED,
    }


# --- images ------------------------------------------------------------------------------------------------------------


def _images() -> configs.Custom:
    """Images in patches: a class token or more, a position for each of them and for each patch."""
    keys = ("img_h", "img_w", "patch_dim", "num_channels")
    fields = ("height", "width", "patch", "channels")

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        height, width, patch, channels = (whole(config, key) for key in keys)
        tokens = whole(config, "class_token_length", CLASS_TOKENS)
        if height % patch or width % patch:
            raise CkptError(
                "images are not made of whole patches", found=f"img_h = {height}, img_w = {width}, patch_dim = {patch}"
            )
        facts |= {
            f"patches.{name}": value for name, value in zip(fields, (height, width, patch, channels), strict=True)
        }
        facts |= {"patches.class_tokens": tokens, "positions.count": tokens + (height // patch) * (width // patch)}

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        height, width, patch, channels = (facts[f"patches.{name}"] for name in fields)
        tokens, count = facts["patches.class_tokens"], facts.get("positions.count")
        patches = (height // patch) * (width // patch)
        if height % patch or width % patch:
            raise Refusal(
                "images are made of whole patches",
                found=f"patches.height = {height}, patches.width = {width}, patches.patch = {patch}",
            )
        if tokens < 1:
            raise Refusal("there is a class token at least", found=f"patches.class_tokens = {tokens}")
        if count != tokens + patches:
            raise Refusal(
                "there is a learned position for each class token and patch",
                found=f"positions.count = {count}",
                expected=tokens + patches,
            )
        # vit_backbone.py asserts the first when it loads or runs a model, and by the second it would take the class tokens for patches
        if math.isqrt(patches) ** 2 != patches:
            raise Refusal(
                "NeMo loads a square number of patches alone",
                found=f"patches.height = {height}, patches.width = {width}: {patches} patches of {patch}",
            )
        if math.isqrt(count) ** 2 == count:
            raise Refusal(
                "NeMo would take class tokens for patches, as all positions together are a square number",
                found=f"patches.class_tokens = {tokens} before {patches} patches",
            )
        config |= dict(zip(keys, (height, width, patch, channels), strict=True))
        config["class_token_length"] = tokens

    claims = [*(f"patches.{name}" for name in (*fields, "class_tokens")), "positions.count"]
    why = "images are read of any whole number of patches, and written only of numbers that NeMo can load"
    return custom([*keys, "class_token_length"], claims, read=read, write=write, uses=[], why=why)


def _patches(facts: Facts) -> int:
    """How many patches an image has; `Refusal` for a model without images."""
    if "patches.patch" not in facts:
        raise Refusal("a vision transformer reads images", found="no patches", fact="patches.patch")
    return (facts["patches.height"] // facts["patches.patch"]) * (facts["patches.width"] // facts["patches.patch"])


# --- layers ------------------------------------------------------------------------------------------------------------


def _head_dim() -> configs.Entry:
    """`kv_channels`, the elements of a head; null means hidden size / heads."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        if config.get("kv_channels") is not None:
            facts["attention.head_dim"] = whole(config, "kv_channels")
        elif hidden % heads:
            raise CkptError(
                f"hidden_size={hidden} is not a multiple of num_attention_heads={heads}, and kv_channels is null"
            )
        else:
            facts["attention.head_dim"] = hidden // heads

    return decided(
        ["kv_channels"],
        ["attention.head_dim"],
        read=read,
        values={"kv_channels": [None, value_of("attention.head_dim")]},
        uses=["hidden_size", "num_attention_heads"],
        why="null means hidden_size / num_attention_heads, which must then be a whole number",
    )


def _norms() -> configs.Entry:
    """`normalization` of the layers and the end; a norm before the layers is always an ordinary LayerNorm."""
    keys = ["normalization", "layernorm_epsilon", "preprocess_layernorm"]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name = str(given(config, "normalization", "layernorm")).lower()
        if name not in _KINDS:
            raise CkptError(
                "key 'normalization' has an unknown value", found=repr(name)[:60], expected=", ".join(_KINDS)
            )
        eps = values.checked("layernorm_epsilon", given(config, "layernorm_epsilon", 1e-5), values.number)
        kinds = dict.fromkeys(_NORMS, _KINDS[name])
        if flag(config, "preprocess_layernorm"):
            kinds["input_norm"] = _KINDS["layernorm"]
        for norm, (kind, bias, centred) in kinds.items():
            facts |= {
                f"{norm}.kind": kind,
                f"{norm}.bias": bias,
                f"{norm}.zero_centred": centred,
                f"{norm}.eps": float(eps),
            }

    named = ("normalization", "layernorm_epsilon")
    return decided(
        keys,
        [f"{norm}.*" for norm in (*_NORMS, "input_norm")],
        read=read,
        values={
            named: [(name, value_of("attention.norm.eps")) for name in _KINDS],
            "preprocess_layernorm": [LEFT_OUT, True],
        },
        why="all norms are of one kind, with one epsilon, and a LayerNorm has a bias; one before the layers is a LayerNorm",
    )


def _activation() -> configs.Entry:
    """The function of the MLP (ParallelMLP): the fused kernel and openai_gelu are the tanh form of GELU, else gelu is the erf form.

    VitBackbone leaves bias_activation_fusion off unless the config says otherwise, and never reads bias_gelu_fusion.
    """
    keys = [ACTIVATION, "openai_gelu", "bias_activation_fusion", "onnx_safe"]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name, gated, function = named_activation(config)
        gelu, fused = name in GELUS, flag(config, "bias_activation_fusion")
        if fused and not gelu:
            raise CkptError(
                f"with bias_activation_fusion no {name} is applied",
                found=f"activation: {name}, bias_activation_fusion: true",
                expected="false",
            )
        if flag(config, "openai_gelu") or fused:
            function = Activation.GELU_TANH
        elif flag(config, "onnx_safe") and not gelu:
            raise CkptError(
                f"onnx_safe: true puts an approximate GELU in place of {name}",
                found=f"activation: {name}",
                expected="false",
            )
        facts["mlp.gated"], facts["mlp.activation"] = gated, function

    return decided(
        keys,
        ["mlp.activation", "mlp.gated"],
        read=read,
        values={
            ACTIVATION: WRITTEN,  # a GELU comes before the names that bias_activation_fusion does not take
            "bias_activation_fusion": [False, True],
            "openai_gelu": [False],
            "onnx_safe": [False],
        },
        why="the tanh form of GELU is the fused kernel, or openai_gelu, whatever activation says",
    )


def _unfused_name() -> configs.Entry:
    """The older name of bias_activation_fusion, which no VitBackbone of 1.23 or later reads."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        if config.get("bias_gelu_fusion") and "bias_activation_fusion" not in config:
            raise CkptError(
                "key 'bias_gelu_fusion' is true, by which NeMo before 1.23 computed the tanh form of GELU, and later ones ignore it",
                found="bias_gelu_fusion: true, no bias_activation_fusion",
                fix="say which: set bias_activation_fusion, or leave the key out with -o ignore_keys=bias_gelu_fusion (the erf form)",
            )

    return decided(
        ["bias_gelu_fusion"],
        [],
        read=read,
        values={},
        uses=["bias_activation_fusion"],
        why="not true without bias_activation_fusion: versions before 1.23 read it, and later ones do not",
    )


_BIASES = (
    "attention.q_bias",
    "attention.k_bias",
    "attention.v_bias",
    "attention.out_bias",
    "mlp.up_bias",
    "mlp.down_bias",
)

# fmt: off
VIT = Config("MegatronVitClassificationModel", [
    *_TRAINING,
    fact_is("kind", "encoder"),
    fact_is("causal", False),
    _images(),
    configs.elsewhere("patches.bias", why="the linear layer has a bias, the convolution has none: the names of the tensors say which"),
    # Both kinds are tables of positions, which have different names; the writer says which it takes.
    key_is(POSITIONS, ABSOLUTE, PARAMETERS, None, or_absent=True, written=False),
    key("num_layers", "layers"),
    key("hidden_size", "hidden"),
    key("ffn_hidden_size", "mlp.ffn"),
    key("num_attention_heads", "attention.heads", "attention.groups"),
    _head_dim(),
    *(fact_is(bias, True) for bias in _BIASES),
    _norms(),
    _activation(),
    _unfused_name(),
    key("layerscale", "layer_scale", default=False),
    # one linear layer; without finetune dense, tanh and linear, on the first class token
    key("num_classes", "classifier.classes", type=values.whole),
    key("finetune", "classifier.hidden", default=False, type=values.flag, via=one_of({False: True, True: False})),
    fact_is("classifier.pooling", schema.Pooling.FIRST),
    note("labels", "labels"),
    ignore(LEGACY, why="the order of q, k and v in fused tensors: read with them"),
    ignore("encoder_seq_length", "max_position_embeddings", why="VitBackbone counts the patches itself",
           written=_patches, uses=["patches.*"]),
    ignore("vision_pretraining_type", "classes_fraction", "data_per_class_fraction", "drop_path_rate", "drop_patch_rate",
           "restore_from_pretrained", why="training"),
])
# fmt: on


def explanations(config: Values) -> dict[str, str]:
    """What the config says about facts that a class of transformers may lack, and what can be done about them."""
    tokens = given(config, "class_token_length", CLASS_TOKENS)
    said = "" if "class_token_length" in config else " (the default, as the key is not there)"
    found = {
        "patches.class_tokens": f"class_token_length: {tokens}{said}. All of them take part in attention: a model with fewer computes something else",
        "layer_scale": "layerscale: true. -o fold_layer_scale=true multiplies it into the weights: the same outputs, but trained on it is another model",
        "input_norm": "preprocess_layernorm: true. A norm follows the positions",
    }
    if not given(config, "finetune", False):
        found["classifier.hidden"] = (
            "finetune: false. The head is dense, tanh and linear: -o headless=true leaves the last one out, and gives a ViTModel with the others as pooler"
        )
    return found
