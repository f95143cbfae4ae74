"""Reading a GPT model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    RankTensors,
    ReadRequest,
    architecture_of,
    errors,
    layouts,
    reading,
    schema,
)
from ckpt_megatron.sdk import padded, te
from ckpt_nemo.container.omegaconf import check_resolved
from ckpt_nemo.container.optimizer import distributed_optimizer, moments_by_key, rank_optimizers, saved_training
from ckpt_nemo.container.places import SUFFIX
from ckpt_nemo.container.saved import SavedCheckpoint
from ckpt_nemo.container.tokenizer import Tokenizer, find_tokenizer, multiple_in
from ckpt_nemo.gpt.config import LEGACY, MCORE, TRAINING_KEYS
from ckpt_nemo.gpt.files import GptContents, bias_blocks, is_gated_bias, stepped_parameters, tensors_of
from ckpt_nemo.gpt.rotary import check_frequencies
from ckpt_nemo.gpt.weights import OUTPUT, TABLES, legacy


def read_gpt(saved: SavedCheckpoint, request: ReadRequest) -> Description:
    """A GPT model that was opened as `saved`."""
    found = tensors_of(saved, request.weights)
    described = _described(saved, found, request)
    architecture = described.architecture
    _check_parts(saved, found, architecture)
    tokenizer = find_tokenizer(saved.config, saved.artifacts, request.options.get("tokenizer"))
    if request.weights == "master":
        described.evidence.append("weights: fp32 masters of the optimizer")
        saved.ledger.read_masters()
    tp, pp = saved.parallel
    sidecars = saved.companions | tokenizer.files
    return Description(
        architecture=architecture,
        tables=TABLES,
        choices=described.choices,
        ranks=_rank_tensors(saved, found, architecture),
        where=saved.place,
        root=saved.root,
        files=saved.states,
        config=saved.config_file if saved.config else None,
        # override_vocab_size says how many rows there are, and not how many of them are tokens
        vocabulary=reading.Vocabulary(
            rows=lambda tokens: padded(tokens, multiple_in(saved.config), tp), tokenizer=tokenizer.count
        ),
        notes=described.notes,
        sidecars=sidecars,
        parallel={"tp": tp, "pp": pp} | ({"vpp": found.vpp} if found.vpp > 1 else {}),
        ledger=saved.close(sidecars),
        hints=_hints(saved, found, described, tokenizer),
        evidence=described.evidence,
        losses=[*check_frequencies(found.rotary, architecture, saved.states), *tokenizer.losses],
        masters=found.masters,
        training=lambda: _training(saved, found, architecture),
    )


def _training(saved: SavedCheckpoint, found: GptContents, architecture: Architecture) -> reading.SavedTraining | None:
    """The state of the training, whose tensors lie as the weights do."""
    optimizer = rank_optimizers(saved, stepped_parameters) if saved.backend == "ranks" else distributed_optimizer(saved)
    if optimizer is None:
        return None
    places: dict[reading.Kind, SavedCheckpoint]
    if saved.backend == "ranks":
        evidence = "moments by the order of the modules, in the groups of the optimizer"
        places = {kind: replace(saved, ranks=ranks) for kind, ranks in optimizer.ranks.items()}
    else:
        evidence = "moments by the keys of the weights"
        places = {kind: replace(saved, tensors=tensors) for kind, tensors in moments_by_key(saved).items()}
    ranks = {}
    for kind, place in places.items():
        held = tensors_of(place, "model")
        held.bias_ranks = found.bias_ranks
        ranks[kind] = list(_rank_tensors(place, held, architecture))
    return saved_training(saved, optimizer, ranks, evidence)


def _check_parts(saved: SavedCheckpoint, found: GptContents, architecture: Architecture) -> None:
    """As many layers as the config says, and no copy of an embedding to which the head is not tied."""
    layers = len(architecture.decoder.layers) if architecture.decoder else 0
    if found.layers != layers:
        raise CkptError(
            "the files hold another number of layers than the config says",
            file=saved.place,
            found=found.layers,
            expected=layers,
            fix="files of a pipeline stage are missing, or stale",
        )
    if found.tied_copy and not (architecture.head and architecture.head.tied):
        raise CkptError(
            "the last stage holds a copy of the embedding, but the head is not tied to it",
            file=saved.place,
            found="model.word_embeddings.weight",
            expected="share_embeddings_and_output_weights = True",
        )


@schema.dataclass
class _Described:
    """What the config (or `--config`) says, and what that rests on. `choices` are those of the tables."""

    architecture: Architecture
    config: dict[str, Any]
    choices: dict[str, layouts.Value] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)


def _described(saved: SavedCheckpoint, found: GptContents, request: ReadRequest) -> _Described:
    if not saved.config:
        return _described_by_user(saved, found, request)
    table = LEGACY if found.legacy else MCORE
    config = reading.without_ignored(saved.config, request, saved.ledger, saved.config_file, saved.section)
    version = request.options.get("nemo_version")
    if version is not None:
        config["nemo_version"] = version
    check_resolved(config, TRAINING_KEYS, saved.config_file)
    facts, notes = table.read(config, saved.config_file)
    facts["tokens.padded_vocabulary"] = facts["tokens.vocabulary"] = found.rows(saved.place)
    described = _Described(architecture_of(facts, saved.config_file), config)
    saved.enter_config(table, config)
    described.choices = {
        "megatron_legacy": bool(found.legacy and config.get("megatron_legacy")),
        "rotary_interleaved": bool(notes.pop("interleaved", False)),
        "separate_gate": _is_gate_separate(found),
    }
    described.notes = notes
    described.evidence += _evidence(saved, found, described)
    return described


def _is_gate_separate(found: GptContents) -> bool:
    return any(name.endswith(".mlp.dense_h_to_4h_2.weight") for name in found.names)


def _evidence(saved: SavedCheckpoint, found: GptContents, described: _Described) -> Iterator[str]:
    said = described.config.get("mcore_gpt", False)
    kind = "before Megatron-Core" if found.legacy else "of Megatron-Core"
    yield f"names {kind}" + ("" if bool(said) != found.legacy else f" (though mcore_gpt is {said})")
    yield f"weights: {saved.backend}" + (f", {errors.plural(len(saved.ranks), 'file')}" if saved.ranks else "")
    if found.legacy:
        order = (
            "[3, heads, head_dim] on each rank (megatron_legacy)"
            if described.choices["megatron_legacy"]
            else "[heads, 3, head_dim]"
        )
        yield f"q, k and v in the order {order}"
    if found.bias_ranks > 1:
        yield f"gate and up biases of {found.bias_ranks} ranks one after the other, as Megatron-Core stored them before 0.8"


def _described_by_user(saved: SavedCheckpoint, found: GptContents, request: ReadRequest) -> _Described:
    """A checkpoint without config: the architecture from `--config`, the order of q, k, v from the user."""
    architecture = reading.given(
        request,
        saved.place,
        rows=found.rows(saved.place),
        problem="the checkpoint holds no config",
        expected="hyper_parameters or hparams.yaml",
    )
    blocks = request.options.get("megatron_legacy")
    if found.legacy and blocks is None:
        raise CkptError(
            "nothing says in which order q, k and v are",
            file=saved.place,
            fix="say whether the model was trained with megatron_legacy: -o megatron_legacy=true or false (the default of NeMo)",
        )
    choices: dict[str, layouts.Value] = {"megatron_legacy": bool(blocks), "separate_gate": _is_gate_separate(found)}
    described = _Described(architecture, {}, choices)
    described.evidence = [
        "architecture: given with --config, as no config is stored",
        *_evidence(saved, found, described),
    ]
    return described


# --- tensors -------------------------------------------------------------------------------------------------------


def _rank_tensors(saved: SavedCheckpoint, found: GptContents, architecture: Architecture) -> Iterator[RankTensors]:
    """The tensors of all ranks; the copies of one that several files of a rank hold, one after the other."""
    spelled = _Spelling(found, architecture)
    for share in found.shares:
        where = saved.place + _ranks(share.ranks)
        for copy in range(max(map(len, share.tensors.values()), default=1)):
            held = {name: copies[copy] for name, copies in share.tensors.items() if copy < len(copies)}
            tensors = {spelled.of(name): shards for name, shards in held.items() if not spelled.is_by_rank(name)}
            yield RankTensors(share.ranks, tensors, where, spelled.called)
            biases = {
                name: list(bias_blocks(held[name], found.bias_ranks)) for name in filter(spelled.is_by_rank, held)
            }
            for rank in range(found.bias_ranks if biases else 0):
                blocks = {spelled.of(name): parts[rank] for name, parts in biases.items()}
                ranks = {"tp": (rank, found.bias_ranks)}
                yield RankTensors(ranks, blocks, saved.place + _ranks(ranks), spelled.called_by_rank)


class _Spelling:
    """Names of the tables as the files have them, so that errors speak of what is there; layers have global numbers."""

    def __init__(self, found: GptContents, architecture: Architecture) -> None:
        self._found = found
        layers = architecture.decoder.layers if architecture.decoder else ()
        self._moe = any(layer.moe for layer in layers)
        self._tied = architecture.head is not None and architecture.head.tied

    def of(self, name: str) -> str:
        if self._found.legacy:
            return f"model.{legacy(name, self._tied and name == OUTPUT)}"
        return "model." + (te(name, latent=False, moe=self._moe, grouped=False) if self._found.fused_names else name)

    def is_by_rank(self, name: str) -> bool:
        """Whether a tensor holds what several ranks had, one after the other; see `bias_blocks`."""
        return self._found.bias_ranks > 1 and is_gated_bias(name)

    def called(self, native: layouts.Native) -> str | None:
        return None if self.is_by_rank(native.name) else self.of(native.name)

    def called_by_rank(self, native: layouts.Native) -> str | None:
        return self.of(native.name) if self.is_by_rank(native.name) else None


def _ranks(ranks: layouts.Ranks) -> str:
    several = " ".join(f"{dimension}={rank}" for dimension, (rank, count) in ranks.items() if count > 1)
    return f" ({several})" if several else ""


# --- what goes along -----------------------------------------------------------------------------------------------


def _hints(saved: SavedCheckpoint, found: GptContents, described: _Described, tokenizer: Tokenizer) -> dict[str, Any]:
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
