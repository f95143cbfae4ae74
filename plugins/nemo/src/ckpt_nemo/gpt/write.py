"""Writing a GPT model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    Config,
    Refusal,
    Target,
    WriteRequest,
    architecture_of,
    dtypes,
    errors,
    facts_of,
    ledgers,
    rewrites,
    schema,
)
from ckpt_megatron.sdk import DIVISIBLE, keeping_rows, padded
from ckpt_nemo.container.optimizer import Undecayed, is_bias, is_norm_or_bias
from ckpt_nemo.container.tokenizer import SECTION, Artifacts, artifacts_of, section_in
from ckpt_nemo.container.writing import STEP, Form, NemoBuilder, as_stepped, container_for
from ckpt_nemo.gpt.config import LEGACY, MCORE, TRAINING_KEYS
from ckpt_nemo.gpt.layout import FileLayout
from ckpt_nemo.gpt.rewrites import expressed_for
from ckpt_nemo.gpt.template import TARGET, TEMPLATE
from ckpt_nemo.gpt.versions import Since, by_version, needs, newer
from ckpt_nemo.gpt.weights import TABLES
from ckpt_nemo.gpt.write_distributed import add_distributed
from ckpt_nemo.gpt.write_ranks import add_ranks


def write_gpt(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The files of a GPT model's weights. Raises `Refusal` naming what NeMo's GPT cannot hold."""
    hints = checkpoint.hints_for("nemo")
    checkpoint = as_stepped(checkpoint, request, request.dtype)
    container = container_for(request.options.get("container"), request.destination)
    names = str(request.options.get("names") or hints.get("names") or _names_for(checkpoint, request))
    layout = FileLayout.of(names, request, hints)
    tokens = checkpoint.architecture.tokens
    if checkpoint.training is not None and tokens is not None and request.options.get(DIVISIBLE) is None:
        # the rows that a run was trained with, where a multiple says so many
        kept = keeping_rows(tokens.vocabulary, tokens.padded_vocabulary, layout.multiple, layout.tp)
        layout = replace(layout, multiple=kept or layout.multiple)
    model = expressed_for(rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors), layout, hints)
    layout.check(model.architecture)
    layout.stages(len(model.architecture.decoder.layers) if model.architecture.decoder else 0)
    said = _said(checkpoint, model, layout)
    artifacts = artifacts_of(
        checkpoint.sidecars, _section(hints), hints.get("tokenizer") or {}, request.options.get("tokenizer_name")
    )
    rows = _override(model, layout, artifacts, hints.get("config") or {})
    asked = {
        **said,
        "mcore_gpt": names == "mcore",
        "megatron_legacy": layout.megatron_legacy,
        "override_vocab_size": rows,
    }
    layout = layout.loading(needs(asked, layout.backend).values())
    config = _config(checkpoint, model, layout, artifacts, container, rows, request, said)
    needed = needs(config, layout.backend)
    losses = [*artifacts.losses, *_unread(needed)]
    if (layout.vpp > 1 or layout.ep > 1) and not config["megatron_amp_O2"]:
        why = "NeMo trains virtual stages and expert parallel ranks with megatron_amp_O2 alone: write them with --dtype bf16"
        losses.append(ledgers.Loss("unsaid", f"weights in {config['precision']} bits", why))
    form = Form(container, str(hints.get("step") or STEP), config)
    builder = NemoBuilder(model, TABLES, request.dtype, form, choices=layout.choices, trained=checkpoint)
    builder.continue_run(_undecayed(builder, layout), drops_empty=newer(layout.version, (2, 0)))
    if layout.backend == "ranks":
        add_ranks(builder, layout)
    else:
        add_distributed(builder, layout)
    return builder.packed(
        config,
        artifacts.files,
        {name: file for name, file in checkpoint.sidecars.items() if name not in artifacts.held},
        held=artifacts.held,
        losses=losses,
        parallel=layout.parallel,
        decisions={
            "model": _table(layout).name,
            "container": container,
            "names": names,
            "backend": layout.backend,
            **({"megatron_legacy": layout.megatron_legacy} if names == "legacy" else {}),
            DIVISIBLE: layout.multiple,
            "nemo_version": layout.version,
            "needs": by_version(needed),
        },
        said=_table(layout).said(config),
    )


def _undecayed(builder: NemoBuilder, layout: FileLayout) -> Undecayed:
    """Which parameters NeMo does not decay. `NotCarried` for files that it keeps no optimizer in, or another one."""
    if layout.names == "legacy":
        return is_norm_or_bias
    if builder.training is not None and layout.backend == "ranks":
        raise errors.NotCarried(
            "NeMo keeps the optimizer of a model of Megatron-Core in a distributed checkpoint, and in no files of ranks",
            fix="use -o backend=zarr",
        )
    if builder.training is not None and layout.ep > 1:
        raise errors.NotCarried(
            "experts that expert parallel ranks share out have a group of the optimizer to themselves, which is not written",
            found=f"ep={layout.ep}",
            fix="write it with --ep 1, or convert the weights alone, with --training-state drop",
        )
    layers = builder.architecture.decoder.layers if builder.architecture.decoder else ()
    fused = (".input_layernorm.", *(() if any(layer.moe for layer in layers) else (".pre_mlp_layernorm.",)))

    def undecayed(name: str, axes: int) -> bool:
        # TransformerEngine's linear layers call the bias of the norm in them layer_norm_bias, which NeMo 1 decays
        return is_bias(name, axes) and (newer(layout.version, (2, 0)) or not any(part in name for part in fused))

    return undecayed


def _unread(needed: Mapping[str, Since]) -> list[ledgers.Loss]:
    """The keys that no NeMo 1 reads. Weights that it cannot read are none of them: there it fails, and says so."""
    why = "an older one ignores it, and restores another model or fails: restore this with {}"
    return [
        ledgers.Loss("unsaid", f"{subject} before {line.release}", why.format(line))
        for subject, line in needed.items()
        if line.key and line.version >= (2, 0)
    ]


def _names_for(checkpoint: Checkpoint, request: WriteRequest) -> str:
    """Names that every version loads, those before Megatron-Core, where their code can compute the model."""
    try:
        layout = FileLayout.of("legacy", request, {})
        model = expressed_for(rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors), layout, {})
        LEGACY.write(facts_of(model.architecture), checkpoint.notes)
    except Refusal:
        return "mcore"
    except CkptError:  # several refusals at once
        return "mcore"
    return "legacy"


def _section(hints: Mapping[str, Any]) -> Mapping[str, Any]:
    section = (hints.get("config") or {}).get(SECTION)
    return section if isinstance(section, Mapping) else {}


# --- the config ----------------------------------------------------------------------------------------------------


def _table(layout: FileLayout) -> Config:
    return LEGACY if layout.names == "legacy" else MCORE


def _said(checkpoint: Checkpoint, model: rewrites.Rewritable, layout: FileLayout) -> dict[str, Any]:
    """The keys that describe the model; `Refusal`s for what none says."""
    notes = {**checkpoint.notes, **({"interleaved": True} if layout.rotary_interleaved else {})}
    said = _table(layout).write(facts_of(model.architecture), notes)
    if layout.separate_gate:
        said["activation"] = str(said["activation"]).removeprefix("fast-")
    return said


def _config(
    checkpoint: Checkpoint,
    model: rewrites.Rewritable,
    layout: FileLayout,
    artifacts: Artifacts,
    container: str,
    rows: int | None,
    request: WriteRequest,
    said: Mapping[str, Any],
) -> dict[str, Any]:
    """The config of the source where it says this very model, else a new one; with the layout of these files."""
    table = _table(layout)
    before: dict[str, Any] = checkpoint.hints_for("nemo").get("config") or {}
    if _says(table, before, model.architecture):
        config = dict(before)
    else:
        kept = {key: value for key, value in before.items() if key in TRAINING_KEYS}
        config = {**TEMPLATE, **kept, **said}
        config["data"] = (
            {**config["data"], "seq_length": config["encoder_seq_length"]}
            if isinstance(config["data"], dict)
            else config["data"]
        )
    kind = dtypes.commonest(request.dtype or assembly.dtype for assembly in model.tensors.values()).name
    config |= {
        "mcore_gpt": layout.names == "mcore",
        "transformer_engine": layout.names == "mcore" and layout.fused,
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        DIVISIBLE: layout.multiple,
        SECTION: section_in(artifacts, container, request.destination),
        "megatron_amp_O2": kind in ("bf16", "fp16"),
        "precision": {"bf16": "bf16", "fp16": 16}.get(kind, config.get("precision", 32)),
        "target": TARGET,
        "nemo_version": layout.version,
    }
    _set(config, "megatron_legacy", layout.megatron_legacy, False)
    _set(config, "expert_model_parallel_size", layout.ep, 1)
    _set(config, "override_vocab_size", rows, None)
    return config


def _says(table: Config, config: Mapping[str, Any], architecture: Architecture) -> bool:
    """Whether a config describes a model, the vocabulary aside."""
    if not config or architecture.tokens is None:
        return False
    try:
        facts, _ = table.read(config, "the config of the source")
        facts["tokens.vocabulary"] = architecture.tokens.vocabulary
        facts["tokens.padded_vocabulary"] = architecture.tokens.padded_vocabulary
        return not schema.differing(
            facts_of(architecture_of(facts, "the config of the source")), facts_of(architecture)
        )
    except CkptError:
        return False


def _set(config: dict[str, Any], key: str, value: object, usual: object) -> None:
    """Write a key that ordinary configs do not have only where it says something."""
    config.pop(key, None)
    if value != usual:
        config[key] = value


def _override(
    model: rewrites.Rewritable, layout: FileLayout, artifacts: Artifacts, before: Mapping[str, Any]
) -> int | None:
    """The number of rows, where the tokenizer does not lead NeMo to it."""
    tokens = model.architecture.tokens
    rows = tokens.padded_vocabulary if tokens else 0
    if artifacts.count is not None:
        return None if padded(artifacts.count, layout.multiple, layout.tp) == rows else rows
    as_before = before.get("tensor_model_parallel_size") == layout.tp
    return before.get("override_vocab_size") if as_before else rows
