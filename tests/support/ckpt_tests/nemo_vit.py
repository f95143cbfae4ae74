"""NeMo's vision transformer in a few lines of torch: its state dict, how ranks share it, and what it computes.

Written from the framework's own code (vit_backbone.py, vision_transformer.py), and sharing nothing with ckpt.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch.nn import functional

LAYER = "model.backbone.transformer.layers"
CONFIG = {
    "num_layers": 2,
    "hidden_size": 24,
    "ffn_hidden_size": 40,
    "num_attention_heads": 4,
    "kv_channels": None,
    "img_h": 8,
    "img_w": 32,
    "patch_dim": 4,
    "num_channels": 3,
    "num_classes": 5,
    "class_token_length": 1,
    "finetune": True,
    "layernorm_epsilon": 1e-6,
    "normalization": "layernorm",
    "openai_gelu": False,
    "target": "nemo.collections.vision.models.megatron_vit_classification_models.MegatronVitClassificationModel",
    "nemo_version": "1.23.0",
}
State = dict[str, torch.Tensor]


def config(**changes: object) -> dict:
    """A config with keys changed; `...` removes one."""
    return {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}


def _sizes(config: dict) -> tuple[int, int, int, int]:
    """Hidden size, heads, head dim, class tokens."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return hidden, heads, config.get("kv_channels") or hidden // heads, config.get("class_token_length", 8)


def state(config: dict, patches: str = "linear_encoder", seed: int = 0) -> State:
    """The random state dict of a single rank, in the order of the modules."""
    generator = torch.Generator().manual_seed(seed)
    hidden, heads, width, tokens = _sizes(config)
    ffn, patch, channels, classes = (
        config[key] for key in ("ffn_hidden_size", "patch_dim", "num_channels", "num_classes")
    )
    gated = config.get("activation", "gelu")
    shapes: dict[str, tuple[int, ...]] = {"model.backbone.cls_token": (1, tokens, hidden)}
    if patches == "linear_encoder":
        shapes |= linear("model.backbone.linear_encoder", hidden, patch * patch * channels)
    else:
        shapes["model.backbone.conv1.weight"] = (hidden, channels, patch, patch)
    bare = config.get("position_embedding_type") == "learned_parameters"
    count = tokens + (config["img_h"] // patch) * (config["img_w"] // patch)
    shapes["model.backbone.position_embeddings" + ("" if bare else ".weight")] = (count, hidden)
    if config.get("preprocess_layernorm"):
        shapes |= norm("model.backbone.preprocess_layernorm", hidden)
    for index in range(config["num_layers"]):
        layer = f"{LAYER}.{index}"
        shapes |= norm(f"{layer}.input_layernorm", hidden)
        shapes |= linear(f"{layer}.self_attention.query_key_value", 3 * heads * width, hidden)
        shapes |= linear(f"{layer}.self_attention.dense", hidden, heads * width)
        if config.get("layerscale"):
            shapes[f"{layer}.post_attention_layerscale.gamma"] = (hidden,)
        shapes |= norm(f"{layer}.post_attention_layernorm", hidden)
        shapes |= linear(f"{layer}.mlp.dense_h_to_4h", 2 * ffn if gated.startswith("fast-") else ffn, hidden)
        if gated == "swiglu":
            shapes |= linear(f"{layer}.mlp.dense_h_to_4h_2", ffn, hidden)
        shapes |= linear(f"{layer}.mlp.dense_4h_to_h", hidden, ffn)
        if config.get("layerscale"):
            shapes[f"{layer}.post_mlp_layerscale.gamma"] = (hidden,)
    shapes |= norm("model.backbone.transformer.final_layernorm", hidden)
    if config.get("finetune"):
        shapes |= linear("model.head", classes, hidden)
    else:
        shapes |= linear("model.head.dense_in", hidden, hidden) | linear("model.head.dense_out", classes, hidden)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def rank(state: State, config: dict, t: int, tp: int) -> State:
    """What tensor parallel rank `t` of `tp` holds."""
    found = {}
    for name, tensor in state.items():
        module = name.rpartition(".")[0].rpartition(".")[2]
        if module == "query_key_value":
            heads = tensor.unflatten(0, (config["num_attention_heads"], 3, -1)).chunk(tp)[t]
            tensor = (heads.transpose(0, 1) if config.get("megatron_legacy") else heads).flatten(0, 2)
        elif module.startswith("dense_h_to_4h") and config.get("activation", "").startswith("fast-"):
            tensor = torch.cat([half.chunk(tp)[t] for half in tensor.chunk(2)])
        elif module.startswith("dense_h_to_4h"):
            tensor = tensor.chunk(tp)[t]
        elif module in ("dense", "dense_4h_to_h") and name.endswith(".weight"):
            tensor = tensor.chunk(tp, dim=1)[t]
        found[name] = tensor.clone()
    return found


def save(folder: Path, state: State, config: dict, tp: int = 1) -> Path:
    """The files of an unpacked `.nemo`."""
    folder.mkdir()
    said = {**config, "tensor_model_parallel_size": tp, "pipeline_model_parallel_size": 1}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(said))
    for t in range(tp):
        place = folder if tp == 1 else folder / f"mp_rank_{t:02d}"
        place.mkdir(exist_ok=True)
        torch.save(rank(state, config, t, tp), place / "model_weights.ckpt")
    return folder


def pixels(config: dict, seed: int = 1) -> torch.Tensor:
    size = (2, config["num_channels"], config["img_h"], config["img_w"])
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def logits(state: State, config: dict, pixels: torch.Tensor) -> torch.Tensor:
    """The forward pass of MegatronVitClassificationModel, in eval mode."""
    x = torch.cat([state["model.backbone.cls_token"].expand(len(pixels), -1, -1), _patches(state, config, pixels)], 1)
    x = x + state.get("model.backbone.position_embeddings", state.get("model.backbone.position_embeddings.weight"))
    if config.get("preprocess_layernorm"):
        x = _norm(state, "model.backbone.preprocess_layernorm", x, {**config, "normalization": "layernorm"})
    for index in range(config["num_layers"]):
        layer = f"{LAYER}.{index}"
        y = _attention(state, f"{layer}.self_attention", _norm(state, f"{layer}.input_layernorm", x, config), config)
        x = x + y * state.get(f"{layer}.post_attention_layerscale.gamma", 1.0)
        y = _mlp(state, f"{layer}.mlp", _norm(state, f"{layer}.post_attention_layernorm", x, config), config)
        x = x + y * state.get(f"{layer}.post_mlp_layerscale.gamma", 1.0)
    x = _norm(state, "model.backbone.transformer.final_layernorm", x, config)[:, 0]
    if config.get("finetune"):
        return _linear(state, "model.head", x)
    return _linear(state, "model.head.dense_out", torch.tanh(_linear(state, "model.head.dense_in", x)))


def _patches(state: State, config: dict, pixels: torch.Tensor) -> torch.Tensor:
    size = config["patch_dim"]
    if "model.backbone.conv1.weight" in state:
        return functional.conv2d(pixels, state["model.backbone.conv1.weight"], stride=size).flatten(2).transpose(1, 2)
    squares = pixels.unfold(2, size, size).unfold(3, size, size)  # b c h w p1 p2
    return _linear(state, "model.backbone.linear_encoder", squares.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))


def _linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: torch.Tensor, config: dict) -> torch.Tensor:
    weight = state[f"{name}.weight"] + (config["normalization"] == "layernorm1p")
    return functional.layer_norm(x, x.shape[-1:], weight, state[f"{name}.bias"], config["layernorm_epsilon"])


def _attention(state: State, name: str, x: torch.Tensor, config: dict) -> torch.Tensor:
    _, heads, width, _ = _sizes(config)
    fused = _linear(state, f"{name}.query_key_value", x).unflatten(-1, (heads, 3, width)).transpose(1, 2)
    q, k, v = fused.unbind(-2)
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return _linear(state, f"{name}.dense", mixed.transpose(1, 2).flatten(2))


def _mlp(state: State, name: str, x: torch.Tensor, config: dict) -> torch.Tensor:
    x = _linear(state, f"{name}.dense_h_to_4h", x) if config.get("activation") != "swiglu" else x
    if config.get("activation") == "swiglu":
        x = functional.silu(_linear(state, f"{name}.dense_h_to_4h", x)) * _linear(state, f"{name}.dense_h_to_4h_2", x)
    elif config.get("activation") == "fast-swiglu":
        first, second = x.chunk(2, -1)
        x = functional.silu(first) * second
    else:
        tanh = config.get("openai_gelu") or config.get("bias_activation_fusion")
        x = functional.gelu(x, approximate="tanh" if tanh else "none")
    return _linear(state, f"{name}.dense_4h_to_h", x)
