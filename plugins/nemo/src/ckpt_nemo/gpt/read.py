"""Reading a GPT model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    Loss,
    ParameterBuilder,
    Problems,
    Provenance,
    ReadRequest,
    architecture_of,
    check_agreement,
    company,
    layouts,
    lazy,
    original_of,
)
from ckpt_megatron.sdk import padded, te
from ckpt_nemo.container.lightning import SUFFIX
from ckpt_nemo.container.omegaconf import unresolved
from ckpt_nemo.container.saved import Saved
from ckpt_nemo.container.tokenizer import Tokenizer, find_tokenizer, multiple_in
from ckpt_nemo.gpt.config import LEGACY, MCORE, TRAINING
from ckpt_nemo.gpt.files import Found, bias_blocks, is_gated_bias, tensors_of
from ckpt_nemo.gpt.rotary import check_frequencies
from ckpt_nemo.gpt.weights import TABLES, legacy

_IGNORED = frozenset(entry.key for entry in TRAINING)


def read_gpt(saved: Saved, request: ReadRequest) -> Checkpoint:
    """The checkpoint of a GPT model that was opened as `saved`."""
    found = tensors_of(saved, request.weights)
    described = _described(saved, found, request)
    architecture = described.architecture
    layers = len(architecture.decoder.layers) if architecture.decoder else 0
    if found.layers != layers:
        fix = "files of a pipeline stage are missing, or stale"
        raise CkptError(
            "the files hold another number of layers than the config says",
            file=saved.place,
            found=found.layers,
            expected=layers,
            fix=fix,
        )
    if found.tied_copy and not (architecture.head and architecture.head.tied):
        raise CkptError(
            "the last stage holds a copy of the embedding, but the head is not tied to it",
            file=saved.place,
            found="model.word_embeddings.weight",
            expected="share_embeddings_and_output_weights = True",
        )
    tensors = _assembled(saved, found, described)
    losses = [*described.losses, *check_frequencies(found.rotary, architecture, saved.states)]
    tokenizer = find_tokenizer(saved.config, saved.artifacts, request.options.get("tokenizer"))
    if request.weights == "master":
        described.evidence.append("weights: fp32 masters of the optimizer")
        saved.ledger.read_masters()
    tp, pp = saved.parallel
    checkpoint = Checkpoint(
        "nemo",
        saved.path,
        architecture,
        tensors,
        saved.states,
        notes=described.notes,
        sidecars=saved.companions | tokenizer.files,
        parallel={"tp": tp, "pp": pp} | ({"vpp": found.vpp} if found.vpp > 1 else {}),
        ledger=saved.close(saved.companions | tokenizer.files),
        provenance=Provenance(
            hints=_hints(saved, found, described, tokenizer),
            evidence=described.evidence,
            losses=[*losses, *tokenizer.losses],
            masters=found.masters,
        ),
    )
    checkpoint = original_of(checkpoint, saved.root)
    return _with_true_vocabulary(checkpoint, saved, tokenizer, request)


@dataclass
class _Described:
    """What the config (or `--config`) says, and what that rests on. `choices` are those of the tables."""

    architecture: Architecture
    config: dict[str, Any]
    choices: dict[str, layouts.Value] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


def _described(saved: Saved, found: Found, request: ReadRequest) -> _Described:
    table = LEGACY if found.legacy else MCORE
    if not saved.config:
        return _described_by_user(saved, found, request)
    config = {key: value for key, value in saved.config.items() if key not in _left_out(request)}
    version = request.options.get("nemo_version")
    if version is not None:
        config["nemo_version"] = version
    _check_resolved(config, saved.config_file)
    facts, notes = table.read(config, saved.config_file)
    facts["tokens.padded_vocabulary"] = facts["tokens.vocabulary"] = found.rows(saved.place)
    described = _Described(architecture_of(facts, saved.config_file), config)
    saved.enter_config(table, config, _left_out(request) & saved.config.keys())
    described.choices = {
        "megatron_legacy": bool(found.legacy and config.get("megatron_legacy")),
        "rotary_interleaved": bool(notes.pop("interleaved", False)),
        "separate_gate": _is_gate_separate(found),
    }
    described.notes = notes
    described.evidence += _evidence(saved, found, described)
    if request.architecture is not None:
        check_agreement(request.architecture, described.architecture, saved.config_file)
    return described


def _is_gate_separate(found: Found) -> bool:
    return any(name.endswith(".mlp.dense_h_to_4h_2.weight") for name in found.names)


def _left_out(request: ReadRequest) -> set[str]:
    return set(filter(None, str(request.options.get("ignore_keys") or "").split(",")))


def _check_resolved(config: Mapping[str, Any], file: str) -> None:
    problems = Problems(f"reading {file}")
    for key, value in config.items():
        if key not in _IGNORED and unresolved(value):
            problems.add(
                CkptError(f"key {key!r} refers to a value that is not stored", file=file, found=str(value)[:80])
            )
    problems.raise_any()


def _evidence(saved: Saved, found: Found, described: _Described) -> Iterator[str]:
    said = described.config.get("mcore_gpt", False)
    kind = "before Megatron-Core" if found.legacy else "of Megatron-Core"
    yield f"names {kind}" + ("" if bool(said) != found.legacy else f" (though mcore_gpt is {said})")
    yield f"weights: {saved.backend}" + (f", {len(saved.ranks)} files" if saved.ranks else "")
    if found.legacy:
        order = (
            "[3, heads, head_dim] on each rank (megatron_legacy)"
            if described.choices["megatron_legacy"]
            else "[heads, 3, head_dim]"
        )
        yield f"q, k and v in the order {order}"
    if found.bias_ranks > 1:
        yield f"gate and up biases of {found.bias_ranks} ranks one after the other, as Megatron-Core stored them before 0.8"


def _described_by_user(saved: Saved, found: Found, request: ReadRequest) -> _Described:
    """A checkpoint without config: the architecture from `--config`, the order of q, k, v from the user."""
    architecture = request.architecture
    if architecture is None or architecture.tokens is None:
        raise CkptError(
            "the checkpoint holds no config",
            file=saved.place,
            expected="hyper_parameters or hparams.yaml",
            fix="give one with --config",
        )
    blocks = request.options.get("megatron_legacy")
    if found.legacy and blocks is None:
        raise CkptError(
            "nothing says in which order q, k and v are",
            file=saved.place,
            fix="say whether the model was trained with megatron_legacy: -o megatron_legacy=true or false (the default of NeMo)",
        )
    rows = found.rows(saved.place)
    tokens = replace(architecture.tokens, vocabulary=rows, padded_vocabulary=rows)
    choices: dict[str, layouts.Value] = {"megatron_legacy": bool(blocks), "separate_gate": _is_gate_separate(found)}
    described = _Described(replace(architecture, tokens=tokens), {}, choices)
    described.evidence = [
        "architecture: given with --config, as no config is stored",
        *_evidence(saved, found, described),
    ]
    return described


# --- tensors -------------------------------------------------------------------------------------------------------


def _assembled(saved: Saved, found: Found, described: _Described) -> dict[str, lazy.LazyParameter]:
    """The canonical tensors, put together from the shares of all ranks; what several ranks hold is compared."""
    architecture = described.architecture
    layout = layouts.BoundTables(TABLES, architecture, described.choices)
    assembler = ParameterBuilder(layout.parameters, saved.place)
    spelled = _Spelling(found, architecture)
    for share in found.shares:
        natives = layout.natives(share.ranks)
        names = {
            name: spelled.of(name, copy=name in natives and natives[name].row.copy)
            for name in natives.keys() | share.tensors.keys()
        }
        where = saved.place + _ranks(share.ranks)
        renamed = {names[name]: native for name, native in natives.items()}
        for problem in layouts.account(renamed, layout.tables, [names[name] for name in share.tensors], where):
            assembler.problems.add(problem)
        for name, native in natives.items():
            for shards in share.tensors.get(name, []):
                if found.bias_ranks > 1 and is_gated_bias(name):
                    for rank, block in enumerate(bias_blocks(shards, found.bias_ranks)):
                        assembler.add(layout.natives({"tp": (rank, found.bias_ranks)})[name], block)
                else:
                    assembler.add(replace(native, name=names[name]), shards)
    return assembler.finish()


class _Spelling:
    """Names of the tables as the files have them, so that errors speak of what is there; layers have global numbers."""

    def __init__(self, found: Found, architecture: Architecture) -> None:
        self._found = found
        layers = architecture.decoder.layers if architecture.decoder else ()
        self._moe = any(layer.mlp.moe for layer in layers)

    def of(self, name: str, copy: bool) -> str:
        if self._found.legacy:
            return f"model.{legacy(name, copy)}"
        return "model." + (te(name, latent=False, moe=self._moe, grouped=False) if self._found.fused_names else name)


def _ranks(ranks: layouts.Ranks) -> str:
    several = " ".join(f"{dimension}={rank}" for dimension, (rank, count) in ranks.items() if count > 1)
    return f" ({several})" if several else ""


# --- what goes along -----------------------------------------------------------------------------------------------


def _hints(saved: Saved, found: Found, described: _Described, tokenizer: Tokenizer) -> dict[str, Any]:
    """The choices by which the same files can be written again, the config among them."""
    tp, pp = saved.parallel
    hints: dict[str, Any] = {
        "names": "legacy" if found.legacy else "mcore",
        "backend": saved.backend,
        "container": saved.container,
        "megatron_legacy": described.choices["megatron_legacy"],
        "tp": tp,
        "pp": pp,
        "config": described.config,
        "tokenizer": tokenizer.names,
    }
    if described.choices["separate_gate"]:
        hints["separate_gate"] = True
    if not found.legacy and not found.fused_names and saved.backend == "ranks":
        hints["local_names"] = True
    if saved.container == "ckpt":
        hints["step"] = os.path.basename(saved.place).removesuffix(SUFFIX)
    return hints


def _with_true_vocabulary(
    checkpoint: Checkpoint, saved: Saved, tokenizer: Tokenizer, request: ReadRequest
) -> Checkpoint:
    """The vocabulary that the user gives, else that of the tokenizer, where the embedding has the rows it leads to."""
    # override_vocab_size says how many rows there are, and not how many of them are tokens
    return company.settled(
        checkpoint,
        request,
        padded=lambda count: padded(count, multiple_in(saved.config), saved.parallel[0]),
        tokenizer=tokenizer.count,
    )
