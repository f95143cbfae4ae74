"""Writing a Neuron checkpoint that a job starts from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    containers,
    documents,
    dtypes,
    errors,
    facts_of,
    layouts,
    ledgers,
    rewrites,
)
from ckpt_megatron.sdk import DIVISIBLE, keeping_rows, lightning, padded
from ckpt_nxdt.config import CONFIG, table_for, write_config
from ckpt_nxdt.contents import USER_CONTENT
from ckpt_nxdt.continuing import WrittenOptimizer, optimizer_of
from ckpt_nxdt.detect import attention_of
from ckpt_nxdt.job import FRAGMENT, Ranks, job_lines
from ckpt_nxdt.places import BEGUN, DONE, MODEL
from ckpt_nxdt.stages import given_cuts, pipeline_ranks
from ckpt_nxdt.weights import TABLES, Arrangement
from ckpt_nxdt.xser import plan_xser


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The files of one parallel layout. Raises `Refusal` naming what no job can have."""
    hints, options = checkpoint.hints_for("nxdt"), request.options
    style = str(_chosen("model_style", options, hints) or "hf")
    checkpoint = _as_stepped(checkpoint, request, pads=style == "megatron")
    model = rewrites.folded_attention_scale(rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors))
    config = write_config(model.architecture, checkpoint.notes, style)
    multiple = _counted(DIVISIBLE, options) or _kept(checkpoint, request.tp or 1)
    # The rows that an output of ours has are those that were asked for: `ckpt launch` writes it as it lies.
    there = (
        model.architecture.tokens.padded_vocabulary
        if checkpoint.format == "nxdt" and model.architecture.tokens
        else None
    )
    model, rows = _padded(model, style, request.tp or 1, multiple, there, asked=options.get(DIVISIBLE) is not None)
    if style == "hf":  # the job builds its embedding from this
        config["vocab_size"] = rows
    arrangement = _arrangement(style, model.architecture, options, hints)
    copies = _copies(arrangement, model.architecture, request.tp or 1, options, hints)
    ranks = _ranks(request, copies, config)
    # AWS's converter calls a plain file beside an empty folder xser (--save_xser).
    xser = bool(_chosen("xser", options, hints)) and arrangement.layout == "native"
    kind = _commonest(checkpoint, request)
    builder = TargetBuilder(
        model,
        TABLES,
        request.dtype,
        choices=arrangement.choices,
        trained=checkpoint,
        masters=kind.size < dtypes.FP32.size,
    )
    optimizer = optimizer_of(builder, arrangement, options)
    for tp in range(ranks.tp):
        for ep in range(ranks.ep):
            _add_rank(builder, ranks, tp, ep, xser, optimizer)
    folder = request.destination or "."
    job = job_lines(folder, f"{folder}/{CONFIG}", config, arrangement, ranks, multiple, resumes=optimizer is not None)
    if optimizer is not None:
        builder.documents[USER_CONTENT] = optimizer.account
    builder.documents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    builder.documents[FRAGMENT] = documents.dump_yaml(job).encode()
    if arrangement.layout == "native":
        builder.documents |= {BEGUN: b"1", DONE: b"1"}
    return builder.target(
        "nxdt",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        parallel=ranks.parallel,
        decisions=_decisions(arrangement, ranks, xser) | (optimizer.decisions if optimizer is not None else {}),
        losses=[*_losses(checkpoint), *(optimizer.losses if optimizer is not None else [])],
        said=table_for(str(config["model_type"])).said(config),
        config={"job": job, "model": config},
        says=lightning.SAID,
    )


def _commonest(checkpoint: Checkpoint, request: WriteRequest) -> dtypes.DType:
    """The dtype of most weights that are written."""
    return dtypes.commonest(request.dtype or assembly.dtype for assembly in checkpoint.tensors.values())


def _as_stepped(checkpoint: Checkpoint, request: WriteRequest, pads: bool) -> Checkpoint:
    """The checkpoint with the weights that its optimizer steps, where they are written in float32 and are the masters themselves. Without padding
    in the target (`pads`), the rows of it are tokens."""
    state = checkpoint.training
    if state is None:
        return checkpoint
    beside = state.own_masters and _commonest(checkpoint, request).size < dtypes.FP32.size
    stepped = TargetBuilder.stepped(
        replace(checkpoint, training=replace(state, own_masters=False)) if beside else checkpoint, request, pads=pads
    )
    return (
        replace(stepped, training=replace(stepped.training, own_masters=True))
        if beside and stepped.training
        else stepped
    )


def _kept(checkpoint: Checkpoint, tp: int) -> int:
    """What the vocabulary is padded to a multiple of: nothing, but where a run goes on, to as many rows as it was trained with."""
    tokens = checkpoint.architecture.tokens
    if checkpoint.training is None or tokens is None:
        return 1
    return keeping_rows(tokens.vocabulary, tokens.padded_vocabulary, 1, tp) or 1


def _chosen(name: str, options: Mapping[str, Any], hints: Mapping[str, Any]) -> Any:
    """What the user asks for, or how the source was written."""
    return hints.get(name) if options.get(name) is None else options[name]


def _counted(name: str, options: Mapping[str, Any]) -> int | None:
    """The value of an option that counts something."""
    value = options.get(name)
    if value is not None and int(value) < 1:
        raise errors.UsageError(f"{name} is at least 1", found=value)
    return None if value is None else int(value)


def _padded(
    model: rewrites.Rewritable, style: str, tp: int, multiple: int, there: int | None, asked: bool
) -> tuple[rewrites.Rewritable, int]:
    """A vocabulary that all ranks get alike, and its rows: `there` are those of a source that is a job's already. The hf style has no
    padding: there its rows would be tokens."""
    tokens = model.architecture.tokens
    if tokens is None:
        raise Refusal("a job's model reads tokens", found="no token embedding")
    rows = padded(tokens.vocabulary, multiple, tp)
    if style == "hf" and rows not in (tokens.vocabulary, there) and not asked:
        raise Refusal(
            f"tp={tp} does not divide the vocabulary of {tokens.vocabulary}",
            expected="a vocabulary that it divides; the hf style knows no padding",
            fix=f"-o {DIVISIBLE}=1 adds rows up to {rows}, which are tokens there and whose logits are 0",
        )
    return rewrites.vocabulary_rows(model, rows), rows


def _ranks(request: WriteRequest, copies: int, config: Mapping[str, Any]) -> Ranks:
    """The parallel layout, with the pipeline rank of every layer."""
    text = request.options.get("pipeline_cuts")
    pp, ep, vpp = request.pp or 1, request.ep or 1, _counted("virtual_pp", request.options) or 1
    given = None if text is None else given_cuts(str(text))
    stages = pipeline_ranks(int(config["num_hidden_layers"]), pp, vpp, given)
    if ep > 1 and "num_local_experts" not in config:
        raise Refusal("expert parallel ranks need experts", found=f"ep={ep}", fix="leave --ep out")
    return Ranks(request.tp or 1, pp, ep, vpp, copies, tuple(stages), tuple(given or ()))


def _arrangement(
    style: str, architecture: Architecture, options: Mapping[str, Any], hints: Mapping[str, Any]
) -> Arrangement:
    attention = attention_of(architecture)
    multi_head = attention.heads == attention.groups
    layout = str(options.get("layout") or "native")
    hardware = str(_chosen("hw_backend", options, hints) or "trn1")
    if style == "megatron":
        return Arrangement(style, "separate", hardware, layout)
    qkv = str(_chosen("qkv", options, hints) or ("coalesced" if multi_head else "fused"))
    if qkv == "coalesced" and not multi_head:
        found = f"{attention.heads} heads, {attention.groups} key-value heads"
        fix = "use -o qkv=fused or linear"
        raise Refusal("qkv=coalesced is for as many key-value heads as heads", found=found, fix=fix)
    if qkv == "linear" and facts_of(architecture).present("mlp.moe"):
        # modeling_mixtral_moe_nxd.py builds its attention without passing fuse_qkv on
        fix = "use -o qkv=fused"
        raise Refusal("a Mixtral job with qkv_linear always has weight_qkv", found="qkv=linear", fix=fix)
    return Arrangement(style, qkv, hardware, layout)


def _copies(
    arrangement: Arrangement, architecture: Architecture, tp: int, options: Mapping[str, Any], hints: Mapping[str, Any]
) -> int:
    """kv_size_multiplier: given, or what it takes for every rank to have one key-value head."""
    groups = attention_of(architecture).groups
    replicating = arrangement.qkv in ("linear", "fused")
    given = _counted("kv_size_multiplier", options)
    needed = tp // groups if replicating and tp > groups and tp % groups == 0 else 1
    copies = needed if given is None else given
    if copies > 1 and not replicating:
        found = f"kv_size_multiplier={copies} with model_style={arrangement.style} qkv={arrangement.qkv}"
        raise Refusal("only the hf style with qkv=linear or fused has copies of key-value heads", found=found)
    if copies > 1 and tp != groups * copies:
        found, expected = f"tp={tp}, {groups} key-value heads, kv_size_multiplier={copies}", f"tp={groups * copies}"
        raise Refusal("copies of key-value heads must give every rank exactly one", found=found, expected=expected)
    if copies == 1 and groups % tp:
        fix = f"leave out kv_size_multiplier, or give {tp // groups}" if tp % groups == 0 else None
        raise Refusal(f"tp={tp} does not divide the {groups} key-value heads", found=f"qkv={arrangement.qkv}", fix=fix)
    if copies > 1 and groups > 1 and _chosen("hw_backend", options, hints) is None:
        raise errors.UsageError(
            "trn1 and trn2 put the copies of key-value heads on different ranks",
            found=f"kv_size_multiplier={copies}, no hw_backend",
            expected="-o hw_backend=trn1 or -o hw_backend=trn2: where the job will run",
        )
    return copies


def _decisions(arrangement: Arrangement, ranks: Ranks, xser: bool) -> dict[str, object]:
    found: dict[str, object] = {"model_style": arrangement.style, "layout": arrangement.layout, "xser": xser}
    if arrangement.style == "hf":
        found["qkv"] = arrangement.qkv
    if ranks.copies > 1:
        found |= {"kv_size_multiplier": ranks.copies, "hw_backend": arrangement.hardware}
    if ranks.cuts:
        found["pipeline_cuts"] = list(ranks.cuts)
    return found


def _losses(checkpoint: Checkpoint) -> Iterator[ledgers.Loss]:
    head = checkpoint.architecture.head
    if head is not None and head.tied:
        yield ledgers.Loss(
            "unsaid", "a tied head", "NxDT never ties: embedding and head are written as two equal matrices"
        )


# --- the files -----------------------------------------------------------------------------------------------------


def _add_rank(
    builder: TargetBuilder, ranks: Ranks, tp: int, ep: int, xser: bool, optimizer: WrittenOptimizer | None
) -> None:
    """The files of all pipeline stages of one tensor and expert parallel rank."""
    natives = builder.natives({"tp": (tp, ranks.tp), "ep": (ep, ranks.ep)})
    experts = {name for name, native in natives.items() if "ep" in dict(native.row.splits)}
    absent = natives.keys() - experts if ep else set()  # these lie with expert rank 0 alone
    number = f"ep_rank_{ep:02d}_" if ranks.ep > 1 else ""
    for pp in range(ranks.pp):
        rank = f"{number}tp_rank_{tp:02d}_pp_rank_{pp:02d}.pt"
        path = f"{MODEL}/dp_rank_00_{rank}"
        stage = {native.name: native for native in _of_stage(list(natives.values()), ranks, pp)}
        if xser:
            _add_xser(builder, path, stage, experts & stage.keys(), absent & stage.keys())
        else:
            builder.add_file(
                path, {name: native for name, native in stage.items() if name not in absent}, containers.TORCH
            )
        if optimizer is not None:
            optimizer.add_rank(builder, rank, stage, xser)


def _of_stage(natives: Sequence[layouts.Native], ranks: Ranks, pp: int) -> Iterator[layouts.Native]:
    """The tensors of one pipeline rank, in the order of the modules."""
    ends = [native for native in natives if native.layer is None]
    first = [native for native in ends if native.row.canonical.startswith("embedding.") and not native.row.copy]
    if pp == 0:
        yield from first
    inside = [native for native in natives if native.layer is not None and ranks.stages[native.layer] == pp]
    yield from sorted(inside, key=lambda native: native.layer or 0)
    if pp == ranks.pp - 1:
        yield from (native for native in ends if native not in first)


def _add_xser(
    builder: TargetBuilder, path: str, natives: Mapping[str, layouts.Native], experts: set[str], absent: set[str]
) -> None:
    specs = {name: (builder.dtype_of(native), native.shape) for name, native in natives.items()}
    plan = plan_xser(path, specs, experts=experts, absent=absent)
    builder.files += plan.files
    builder.documents |= plan.documents
    for (name,), (file, offset) in plan.places.items():
        builder.place(natives[str(name)], file, offset)
