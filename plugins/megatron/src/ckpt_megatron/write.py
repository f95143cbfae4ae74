"""Writing a Megatron checkpoint: torch files for one parallel layout, or torch_dist or fsdp_dtensor for any."""

from __future__ import annotations

from ckpt_core.sdk import Checkpoint, Facts, Target, WriteRequest, company, dtypes, facts_of, ledgers, rewrites
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.config import table_for
from ckpt_megatron.files import FSDP_DTENSOR, SIDECARS, TRACKER
from ckpt_megatron.layout import DIVISIBLE, FileLayout, namespace
from ckpt_megatron.rewrites import biased_experts, check_ranks, expressed_for
from ckpt_megatron.stages import stages
from ckpt_megatron.write_dist import CONTENT, write_dist
from ckpt_megatron.write_fsdp import write_fsdp
from ckpt_megatron.write_torch import write_torch


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A checkpoint of weights alone. Raises `Refusal` naming what Megatron's GPTModel cannot hold."""
    hints = checkpoint.hints_for("megatron")
    layout = FileLayout.of(request, hints)
    model = expressed_for(rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors), layout.multiple * layout.tp)
    config, facts = table_for(model.architecture), facts_of(model.architecture)
    args = config.write(facts, checkpoint.notes)
    check_ranks(model.architecture, layout)
    placed, split_args = stages(facts["layers"], layout.pp, layout.vpp, request.options, hints)
    dtype = dtypes.commonest(request.dtype or assembly.dtype for assembly in model.tensors.values())
    tokenizer = f"{request.destination}/{SIDECARS}" if company.has_tokenizer(checkpoint.sidecars) else None
    args |= split_args | layout.args(dtype, tokenizer)
    common: dict[str, object] = {"checkpoint_version": layout.version, "iteration": layout.iteration or 0}
    if layout.container == "torch_dist" and biased_experts(model.architecture):
        args["expert_tensor_parallel_size"] = 1
    builder = GPTBuilder(layout, model, layout.stored_in(request.dtype))
    if layout.container == "torch":
        write_torch(builder, placed, args, common)
    else:
        common = {"args": namespace(args), **common, "num_floating_point_operations_so_far": 0}
        if layout.container == FSDP_DTENSOR:
            write_fsdp(builder, common)
        else:
            write_dist(builder, common | {"content_metadata": CONTENT}, homogeneous=args["moe_layer_freq"] == 1)
    builder.documents[TRACKER] = ("release" if layout.iteration is None else str(layout.iteration)).encode()
    return builder.target(
        "megatron",
        sidecars={f"{SIDECARS}/{path}": sidecar for path, sidecar in checkpoint.sidecars.items()},
        parallel=layout.parallel,
        decisions={
            "model": config.name,
            "container": layout.container,
            "names": layout.names,
            **({"experts": "grouped" if layout.grouped else "sequential"} if facts.present("mlp.moe") else {}),
            "checkpoint_version": layout.version,
            DIVISIBLE: layout.multiple,
        },
        losses=_assumed(facts, layout),
        said=config.said(args),
        config=args,
    )


def _assumed(facts: Facts, layout: FileLayout) -> list[ledgers.Loss]:
    """Names that older versions do not have."""
    if "predictors.count" not in facts or layout.container != "torch":
        return []
    why = "before, the block in a layer of multi-token prediction has another name in torch files"
    return [
        ledgers.Loss("assumed", "Megatron-Core 0.17 or later", f"{why}; container=torch_dist is read by all versions")
    ]
