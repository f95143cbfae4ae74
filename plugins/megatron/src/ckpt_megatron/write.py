"""Writing a Megatron checkpoint: torch files for one parallel layout, or torch_dist or fsdp_dtensor for any."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core.sdk import Checkpoint, Facts, Target, WriteRequest, company, dtypes, facts_of, ledgers, rewrites
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.config import table_for
from ckpt_megatron.files import FSDP_DTENSOR, SIDECARS, TRACKER
from ckpt_megatron.layout import DIVISIBLE, FileLayout, namespace
from ckpt_megatron.optimizer.progress import CONTINUED
from ckpt_megatron.optimizer.written import OptimizerChoice, WrittenState, continued, stepped, written_state
from ckpt_megatron.rewrites import biased_experts, check_ranks, expressed_for
from ckpt_megatron.stages import stages
from ckpt_megatron.write_dist import CONTENT, write_dist
from ckpt_megatron.write_fsdp import write_fsdp
from ckpt_megatron.write_torch import write_torch


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The checkpoint, with the state of its training where it has one. Raises `Refusal` naming what Megatron's GPTModel cannot hold."""
    hints = checkpoint.hints_for("megatron")
    layout = FileLayout.of(request, hints)
    dtype = dtypes.commonest(request.dtype or tensor.dtype for tensor in checkpoint.tensors.values())
    choice = OptimizerChoice.of(request, layout.container, dtype)
    if checkpoint.training is not None:
        layout = continued(layout, checkpoint, request)
        checkpoint = stepped(checkpoint, request, dtype)
    model = expressed_for(rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors), layout.multiple * layout.tp)
    config, facts = table_for(model.architecture), facts_of(model.architecture)
    args = config.write(facts, checkpoint.notes)
    check_ranks(model.architecture, layout)
    placed, split_args = stages(facts["layers"], layout.pp, layout.vpp, request.options, hints)
    tokenizer = f"{request.destination}/{SIDECARS}" if company.has_tokenizer(checkpoint.sidecars) else None
    args |= split_args | layout.args(dtype, tokenizer, moe=bool(facts.present("mlp.moe")))
    common: dict[str, object] = {"checkpoint_version": layout.version, "iteration": layout.iteration or 0}
    if layout.container == "torch_dist" and biased_experts(model.architecture):
        args["expert_tensor_parallel_size"] = 1
    builder = GPTBuilder(layout, model, layout.stored_in(request.dtype), trained=checkpoint, masters=choice.masters)
    state = written_state(builder, choice, apart=layout.ep > 1)
    args |= state.args if state else {}
    if layout.container == "torch":
        write_torch(builder, placed, args, common, state)
    else:
        common = {"args": namespace(args), **common, "num_floating_point_operations_so_far": 0}
        if layout.container == FSDP_DTENSOR:
            write_fsdp(builder, common)
        else:
            add_dist(builder, common, state, homogeneous=args["moe_layer_freq"] == 1)
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
            **(state.decisions if state else {}),
        },
        losses=[*_assumed(facts, layout), *(state.losses if state else [])],
        said=config.said(args),
        config={key: hints[key] for key in CONTINUED if key in hints} | args,
        says=("iterations", "consumed_samples", "clip_grad", "schedule.sample"),
    )


def add_dist(
    builder: GPTBuilder, common: Mapping[str, object], state: WrittenState | None, *, homogeneous: bool
) -> None:
    """Plan the files of torch_dist, with the state of a training where there is one."""
    if state is None:
        write_dist(builder, {**common, "content_metadata": CONTENT}, homogeneous)
        return
    said, data = state.common()
    content = {**state.content, **CONTENT}
    common = {**common, **said, "content_metadata": content}
    write_dist(builder, common, homogeneous, states=state.choice.dist_states, data=data)


def _assumed(facts: Facts, layout: FileLayout) -> list[ledgers.Loss]:
    """Names that older versions do not have."""
    if "predictors.count" not in facts or layout.container != "torch":
        return []
    why = "before, the block in a layer of multi-token prediction has another name in torch files"
    return [
        ledgers.Loss("assumed", "Megatron-Core 0.17 or later", f"{why}; container=torch_dist is read by all versions")
    ]
