"""Writing a Megatron-Bridge checkpoint: what `load_megatron_model` and a training run load, with the state of a training where there is one."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    Refusal,
    Target,
    WriteRequest,
    company,
    documents,
    dtypes,
    facts_of,
    ledgers,
    rewrites,
    schema,
    torch_files,
)
from ckpt_megatron.bridge.config import OLD, SEEING, VERSIONS, needs, newest_for, table_of, tables_of, written_fields
from ckpt_megatron.bridge.files import LATEST, RUN_CONFIG, TOKENIZER, TRAIN_STATE
from ckpt_megatron.bridge.seeing import check_tower, other_activation
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.files import FSDP_DTENSOR, TRACKER
from ckpt_megatron.layout import DIVISIBLE, FileLayout
from ckpt_megatron.optimizer.progress import CONSUMED
from ckpt_megatron.optimizer.written import OptimizerChoice, continued, stepped, written_state
from ckpt_megatron.rewrites import biased_experts, expressed_for
from ckpt_megatron.transformer_config.gemma import another_epsilon, post_norms
from ckpt_megatron.transformer_config.targets import named
from ckpt_megatron.transformer_config.writing import FUNCTIONS, check_layout, number_layers, running
from ckpt_megatron.write import add_dist
from ckpt_megatron.write_fsdp import write_fsdp

POST_NORM_EPS = "post_norm_eps"
_TRAINING = "megatron.bridge.training"
_SAMPLES = (CONSUMED, "skipped_train_samples", "consumed_valid_samples")
_DONE = ("do_train", "do_valid", "do_test")


@schema.dataclass(frozen=True)
class Run:
    """A run as its config says it: the files' `layout`, the `model` as Bridge holds it, and the fields of its class `target`.

    `asked`: somebody wants this version. `numbered`: layers are of several kinds. `pads`: the vocabulary is padded.
    """

    layout: FileLayout
    model: rewrites.Rewritable
    target: str
    version: str
    fields: dict[str, Any]
    asked: bool
    numbered: bool
    pads: bool

    def documents(
        self,
        destination: str,
        tokenizer: bool,
        sections: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        samples: int = 0,
    ) -> dict[str, bytes]:
        """The config and the trackers. `tokenizer`: there is one in the folder. `sections` are more of the config, or more of one that is there.
        `samples` are those that the run has consumed."""
        folder, step = self.layout.folder, self.layout.iteration or 0
        place = f"{destination}/{folder}/{TOKENIZER}" if tokenizer else None
        config = _run_config(self.target, self.fields, place, self.layout.container)
        config |= {name: {**config.get(name, {}), **section} for name, section in sections.items()}
        state = _train_state(step, samples)
        return {
            f"{folder}/{RUN_CONFIG}": documents.dump_yaml(config).encode(),
            f"{folder}/{TRAIN_STATE}": state,
            LATEST: state,
            TRACKER: str(step).encode(),
        }


def run_of(checkpoint: Checkpoint, request: WriteRequest) -> Run:
    """The run that a model is written as. Raises `Refusal` naming what no provider of Megatron-Bridge can hold."""
    hints, options = checkpoint.hints_for("megatron-bridge"), request.options
    layout = replace(FileLayout.of(request, hints), grouped=True)  # as moe_grouped_gemm says (`written_fields`)
    tokens = checkpoint.architecture.tokens
    if checkpoint.training is not None:
        layout = continued(layout, checkpoint, request)
    if layout.iteration is None:
        layout = replace(layout, iteration=hints.get("iteration", 0))
    said = options.get("should_pad_vocab")
    said = hints.get("should_pad_vocab") if said is None else said
    if said is None and checkpoint.training is not None and tokens is not None:
        said = tokens.padded_vocabulary != tokens.vocabulary or None  # its rows were trained
    # without padding, tensor parallel ranks must divide the vocabulary itself
    pads = bool(tokens is not None and tokens.vocabulary % layout.tp) if said is None else bool(said)
    model = expressed_for(
        rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors),
        layout.multiple * layout.tp if pads else 1,
        by_fields=True,
    )
    facts = facts_of(model.architecture)
    asked = options.get("bridge_version") or hints.get("bridge_version")
    version = str(asked or newest_for(facts))
    target, fields = written_fields(facts, checkpoint.notes, version, hints.get("class"), layout.names)
    check_layout(model, facts, layout)
    eps = another_epsilon(facts)
    if eps is not None and options.get(POST_NORM_EPS) is None:
        raise Refusal(
            "Bridge computes norms on the outputs of blocks with the epsilon 1e-05, whatever layernorm_epsilon says: another function",
            found=f"attention.out_norm.eps = {eps}",
            fix=f"-o {POST_NORM_EPS}=1e-5 writes it all the same",
            fact="attention.out_norm.*",
        )
    if target in SEEING:
        check_tower(SEEING[target], model.architecture, layout.tp, layout.pp)
    numbered = number_layers(fields, facts, hints)
    fields |= {DIVISIBLE: layout.multiple, "vocab_size": facts["tokens.vocabulary"], "should_pad_vocab": pads}
    fields |= running(layout, model, request.dtype)
    if layout.tp > 1 and facts.present("latent_attention.indexer") is not False:
        fields["sequence_parallel"] = True  # without which AbsorbedMLASelfAttention (core 0.19) is not built
    if layout.tp > 1 and biased_experts(model.architecture):
        fields["expert_tensor_parallel_size"] = 1
    return Run(layout, model, target, version, fields, bool(asked), numbered, pads)


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The folder. Raises `Refusal` naming what no provider of Megatron-Bridge can hold."""
    dtype = dtypes.commonest(request.dtype or tensor.dtype for tensor in checkpoint.tensors.values())
    checkpoint = stepped(checkpoint, request, dtype)
    run = run_of(checkpoint, request)
    layout = run.layout
    choice = OptimizerChoice.of(request, layout.container, dtype)
    if run.target in SEEING and layout.container == FSDP_DTENSOR:
        raise Refusal(
            "models that see are written as torch_dist alone", found=f"-o container={layout.container}", fact="vision.*"
        )
    builder = GPTBuilder(
        layout, run.model, layout.stored_in(request.dtype), tables_of(run.target), trained=checkpoint, masters=True
    )
    state = written_state(builder, choice, apart=layout.ep > 1)
    common: dict[str, object] = {"checkpoint_version": 3.0, "iteration": layout.iteration}
    if layout.container == FSDP_DTENSOR:
        write_fsdp(builder, common)
    else:
        add_dist(builder, common, state, homogeneous=not run.numbered)
    builder.documents |= run.documents(
        request.destination,
        company.has_tokenizer(checkpoint.sidecars),
        {"checkpoint": {"save_optim": True}} if state else {},
        state.args[CONSUMED] if state else 0,
    )
    return builder.target(
        "megatron-bridge",
        sidecars={f"{layout.folder}/{TOKENIZER}/{name}": sidecar for name, sidecar in checkpoint.sidecars.items()},
        parallel=layout.parallel,
        decisions={
            "class": run.target,
            "bridge_version": run.version,
            "container": layout.container,
            "names": layout.names,
            "should_pad_vocab": run.pads,
            DIVISIBLE: layout.multiple,
            **(state.decisions if state else {}),
        },
        said=table_of(run.target, run.fields).said(run.fields),
        config=run.fields,
        losses=[
            *([] if run.asked else _assumed(run.target, run.fields, run.version)),
            *post_norms(facts_of(run.model.architecture), "Bridge"),
            *(other_activation(SEEING[run.target]) if run.target in SEEING else []),
            *(state.losses if state else []),
        ],
        says=("iterations", "consumed_samples", "schedule.sample"),
    )


def _assumed(target: str, fields: dict[str, Any], version: str) -> list[ledgers.Loss]:
    """A class or field that older versions stop at, and a newest version that is not the newest, where nobody asked for one."""
    needed = needs(target, fields)
    if needed is None:
        return []
    way = "which has no other" if needed.startswith("yarn") else f"for which -o bridge_version={OLD} writes"
    range_ = "0.4 or later" if version == VERSIONS[-1] else f"{version} to 0.5, as 0.6 computes something else"
    return [ledgers.Loss("assumed", f"Megatron-Bridge {range_}", f"there is no {needed} in {OLD}, {way}")]


def _run_config(target: str, fields: dict[str, Any], tokenizer: str | None, container: str) -> dict[str, Any]:
    """The sections that a loader asks for. A training run has its own of the others."""
    model = {key: named(value) if key in FUNCTIONS else value for key, value in sorted(fields.items())}
    found: dict[str, Any] = {
        "_target_": f"{_TRAINING}.config.ConfigContainer",
        "checkpoint": {
            "_target_": f"{_TRAINING}.config.CheckpointConfig",
            "ckpt_format": container,
            "fully_parallel_save": True,
            "save_optim": False,
            "save_rng": False,
        },
        "model": {"_target_": target, **model},
    }
    if tokenizer is not None:
        found["tokenizer"] = {
            "_target_": f"{_TRAINING}.tokenizers.config.TokenizerConfig",
            "tokenizer_model": tokenizer,
            "tokenizer_type": "HuggingFaceTokenizer",
        }
    return found


def _train_state(step: int, samples: int) -> bytes:
    """A dict of tensors of one element: how far the run got."""
    values = {"step": step, **dict.fromkeys(_SAMPLES, 0), CONSUMED: samples}
    body: dict[str, torch_files.TensorSpec] = {
        name: torch_files.TensorSpec(dtypes.BY_NAME["int32"], ()) for name in values
    }
    data = {(name,): struct.pack("<i", value) for name, value in values.items()}
    body["floating_point_operations_so_far"] = torch_files.TensorSpec(dtypes.BY_NAME["fp32"], ())
    data["floating_point_operations_so_far",] = struct.pack("<f", 0.0)
    for name in _DONE:
        body[name], data[name,] = torch_files.TensorSpec(dtypes.BY_NAME["bool"], ()), b"\0"
    return torch_files.torch_bytes(body, TRAIN_STATE, data)
