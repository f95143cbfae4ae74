"""Writing a step that torchtitan starts from (`--checkpoint.initial_load_path`)."""

from __future__ import annotations

from ckpt_core.sdk import Checkpoint, Refusal, Target, TargetBuilder, WriteRequest, dtypes, facts_of, rewrites
from ckpt_fsdp.optimizer import OtherTensor
from ckpt_fsdp.titan.models import DEEPSEEK_V3, LLAMA3, QWEN3, model_of, rotary_of
from ckpt_fsdp.titan.weights import BIAS, RELEASES, TABLES
from ckpt_fsdp.write import add_distributed
from ckpt_hf.sdk import model_of_checkpoint

# The classes of transformers that torchtitan's own adapters map to its models.
_CLASSES = {
    "LlamaForCausalLM": LLAMA3,
    "Qwen2ForCausalLM": QWEN3,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
}
# What the classes of transformers have, and torchtitan's models have not.
_LACKS = (
    "attention.window",
    "attention.window?",
    "attention.out_bias",
    "mlp.up_bias",
    "mlp.down_bias",
    "mlp.moe.shared.gate",
)


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The step, with transformers' config of the model beside it. Raises `Refusal` naming what torchtitan has not."""
    model = model_of_checkpoint(checkpoint, among=_CLASSES)
    facts = facts_of(model.architecture)
    for path in _LACKS:
        if facts.get(path):
            raise Refusal(f"torchtitan's models have no {path}", found=f"{path} = {facts[path]}")
    options, hints = request.options, checkpoint.hints_for("torchtitan")
    asked = options.get("model") or hints.get("model") or _CLASSES[model.class_name]
    kind = model_of(model.architecture, asked, checkpoint.path)
    release = str(options.get("release") or hints.get("release") or "0.3")
    choices = {**RELEASES[release], **rotary_of(kind)}
    if kind == DEEPSEEK_V3:
        choices["qkv"] = "bare"
    builder = TargetBuilder(
        rewrites.Rewritable(model.architecture, model.tensors, tuple(model.rewrites)),
        TABLES,
        request.dtype,
        choices=choices,
    )
    natives = builder.natives()
    bias = BIAS[str(choices["experts"])]
    stack = model.architecture.decoder
    # Every mixture has this buffer, and torch's loader asks for it; zero is what it begins with.
    zeros = [
        OtherTensor(name, dtypes.FP32, (layer.moe.experts,))
        for number, layer in enumerate(stack.layers if stack else ())
        if layer.moe and (name := f"layers.{number}.{bias}") not in natives
    ]
    add_distributed(builder, natives, {}, "", str(options.get("max_shard_size") or "5GB"), zeros)
    builder.documents |= model.documents
    return builder.target(
        "torchtitan",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        decisions={"model": kind, "release": release, "hf_class": model.class_name},
        losses=model.losses,
        said=model.said,
    )
