"""Reading a Megatron checkpoint."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    FormatError,
    RankTensors,
    ReadRequest,
    architecture_of,
    chunked,
    company,
    errors,
    layouts,
    reading,
    schema,
)
from ckpt_megatron import weights
from ckpt_megatron.args.predictors import COUNT
from ckpt_megatron.args.vocabulary import is_said
from ckpt_megatron.config import decoder_of, read_args, table_of
from ckpt_megatron.contents import enter_args
from ckpt_megatron.files import FSDP_DTENSOR, SIDECARS, TRACKER, container_of, find_folder
from ckpt_megatron.found import DescribedModel, FolderContents, RankShare, check_kind, height, predicts
from ckpt_megatron.layout import DIVISIBLE
from ckpt_megatron.names import PREDICTORS
from ckpt_megatron.optimizer.progress import CONTINUED
from ckpt_megatron.read_dist import read_dist

_EMBEDDING = "embedding.word_embeddings.weight"


def read(path: str, request: ReadRequest) -> Description:
    """What lies at the folder of an iteration, or at the run folder that holds it."""
    folder = find_folder(path)
    container = container_of(folder)
    if container == "torch":
        from ckpt_megatron.read_torch import read_torch

        found = read_torch(folder, request.weights)
    else:
        kind = FSDP_DTENSOR if container == FSDP_DTENSOR else "torch_dist"
        found = read_dist(folder, request.weights, _reader_of(container), container=kind)
        check_kind(found.names, folder)
    _check_iteration(found)
    model = _model(found, request)
    if request.weights == "master":
        model.evidence.append("weights: fp32 masters of the optimizer")
        found.ledger.read_masters()
    root = path if folder != path else os.path.dirname(os.path.abspath(folder))
    if os.path.isfile(tracker := os.path.join(root, TRACKER)):
        found.ledger.used("the iteration to read", tracker)
    multiple = _multiple(found)
    choices = {**model.choices, **choices_of_tensors(found, model.architecture)}
    return Description(
        architecture=model.architecture,
        tables=weights.TABLES,
        choices=choices,
        ranks=rank_tensors(found, model.architecture),
        where=found.folder,
        root=root,
        files=found.states,
        config=None if found.args is None else found.args_file,
        vocabulary=reading.Vocabulary(rows=lambda tokens: -(-tokens // multiple) * multiple, said=model.counted),
        notes=model.notes,
        sidecars=company.files_below(os.path.join(root, SIDECARS)),
        parallel=found.parallel,
        ledger=found.ledger,
        hints=_hints(found),
        evidence=model.evidence,
        losses=found.left(model.architecture),
        masters=found.masters,
        training=None if found.training is None else lambda: training_of(found, model.architecture, choices),
    )


def _reader_of(container: str) -> Callable[[str], chunked.DistributedCheckpoint]:
    """What reads the tensors of all ranks, by how they are kept."""
    if container == FSDP_DTENSOR:
        from ckpt_megatron.megatron_fsdp import read_fsdp

        return read_fsdp
    return chunked.read_zarr if container == "zarr" else chunked.read_distributed


def training_of(
    found: FolderContents,
    architecture: Architecture,
    choices: Mapping[str, layouts.Value],
    args: Mapping[str, Any] | None = None,
) -> reading.SavedTraining | None:
    """The state of the training, whose tensors lie on the ranks of the weights; None where no optimizer was saved.

    `choices` are those of the tables. `args` say how it was run, by the names of Megatron-LM's, where no args are stored.
    """
    if found.training is None:
        return None

    def gathered(shares: list[RankShare]) -> list[RankTensors]:
        return list(rank_tensors(dataclasses.replace(found, shares=shares), architecture))

    return found.training(gathered, DescribedModel(architecture, choices, args or found.args or {}))


def _multiple(found: FolderContents) -> int:
    """What Megatron pads the vocabulary to a multiple of (training/tokenizer, _vocab_size_with_padding)."""
    args: Mapping[str, object] = found.args or {}
    sizes = args.get(DIVISIBLE, 128), args.get("tensor_model_parallel_size", 1)
    return math.prod(size if type(size) is int and size > 0 else 1 for size in sizes)


def _check_iteration(found: FolderContents) -> None:
    """A folder of iteration N holds files of iteration N; those of a release may be of any."""
    name = os.path.basename(os.path.abspath(found.folder))
    if name.startswith("iter_") and type(found.iteration) is int and int(name.removeprefix("iter_")) != found.iteration:
        raise FormatError(
            "the files are of another iteration than the folder",
            file=found.folder,
            found=found.iteration,
            fix=f"name the folder iter_{found.iteration:07d} if it was renamed",
        )


@schema.dataclass
class _Model:
    """The model that the args (or `--config`) describe, and what that rests on. `choices` are those of the tables;
    `counted`: it says how many tokens there are."""

    architecture: Architecture
    choices: dict[str, layouts.Value]
    notes: dict[str, object] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    counted: bool = False


def _model(found: FolderContents, request: ReadRequest) -> _Model:
    # Megatron reorders q, k and v only in tensors of legacy names, so no others are of an old version.
    version = 3.0 if found.legacy is None else weights.VERSION.until(found.version)
    choices: dict[str, layouts.Value] = {"checkpoint_version": version}
    if found.args is None:
        lacks = "the checkpoint holds no args, so nothing says what the model is"
        architecture = reading.given(request, found.folder, rows=found.rows(_EMBEDDING), problem=lacks)
        model = _Model(architecture, choices, evidence=["architecture: given with --config, as no args are stored"])
    else:
        args = dict(found.args)
        if args.get("padded_vocab_size") is None:
            args["padded_vocab_size"] = found.rows(_EMBEDDING)
        if found.legacy:  # the flag is younger than the models it brings back
            args["use_legacy_models"] = True
        left_out = () if found.predicts and not reading.drops_predictors(request) else (COUNT,)
        facts, notes = read_args({key: args[key] for key in args if key not in left_out}, found.args_file)
        # Since core 0.14 a router has a bias where linear layers have one; before it had none.
        if any(name.endswith(".mlp.router.bias") for name in found.names):
            facts["mlp.moe.router.bias"] = True
        choices["rotary_interleaved"] = bool(notes.pop("interleaved", False))
        enter_args(found.ledger, found.args_file, found.args, table_of(args))
        model = _Model(architecture_of(facts, found.args_file), choices, notes)
        model.counted = is_said(args)
        model.evidence.append(f"architecture: the {len(args)} args of {os.path.basename(found.args_file)}")
    kind = "legacy" if found.legacy else "TransformerEngine" if found.fused_names else "local"
    model.evidence.append(f"container {found.container}, {kind} layer names")
    if found.legacy:
        model.evidence.append(f"q, k and v in the order of checkpoint_version {found.version:g}")
    return model


def rank_tensors(found: FolderContents, architecture: Architecture) -> Iterator[RankTensors]:
    """The tensors of all ranks; those of experts, which have ranks of their own in torch files, by themselves.

    Raises `CkptError` if files of layers or of experts are missing.
    """
    layers = decoder_of(architecture).layers
    if found.layers != len(layers):
        raise CkptError(
            "the files hold another number of layers than the model has",
            file=found.folder,
            found=found.layers,
            expected=len(layers),
            fix="files of a pipeline stage are missing, or stale",
        )
    _check_experts(found, architecture)
    keeps = predicts(architecture)
    for share in found.shares:
        called = None if found.container != "torch" else _if_expert if share.expert else _if_shared
        for copy in range(max(map(len, share.tensors.values()), default=1)):
            tensors = {
                name: copies[copy]
                for name, copies in share.tensors.items()
                if copy < len(copies) and (keeps or not name.startswith(PREDICTORS))
            }
            yield RankTensors(share.ranks, tensors, _where(found, share), called)


def _if_expert(native: layouts.Native) -> str | None:
    return native.name if weights.is_expert(native) else None


def _if_shared(native: layouts.Native) -> str | None:
    return None if weights.is_expert(native) else native.name


def choices_of_tensors(found: FolderContents, architecture: Architecture) -> dict[str, layouts.Value]:
    """What the names and sizes of the tensors say of how they are arranged."""
    down = next((name for name in sorted(found.names) if name.endswith("kv_down_proj.weight")), "")
    fused, whole = down.endswith("qkv_down_proj.weight"), True
    if found.container == "torch" and decoder_of(architecture).layers[0].latent_attention is not None:
        natives = layouts.BoundTables(weights.TABLES, architecture, {"mla_down_proj_fusion": fused}).natives()
        held = [share.tensors[down][0] for share in found.shares if down in share.tensors and down in natives]
        whole = all(height(shards) == natives[down].shape[0] for shards in held)
    return {
        "experts": "grouped" if found.grouped else "sequential",
        "mla_down_proj": "whole" if whole else "rows",
        "mla_down_proj_fusion": fused,
    }


def _check_experts(found: FolderContents, architecture: Architecture) -> None:
    """Every pair of expert ranks must have been found: Megatron writes not all files where etp is less than tp."""
    if found.container != "torch" or not any(layer.moe for layer in decoder_of(architecture).layers):
        return
    etp, ep = found.parallel.get("etp", found.parallel["tp"]), found.parallel["ep"]
    held = {(share.ranks["tp"][0], share.ranks["ep"][0]) for share in found.shares if share.expert}
    problems = errors.Problems(f"reading {found.folder}")
    for t in range(etp):
        for e in range(ep):
            if (t, e) not in held:
                problems.add(
                    FormatError(f"no file holds the experts of tensor rank {t}, expert rank {e}", file=found.folder)
                )
    problems.raise_any()


def _where(found: FolderContents, share: RankShare) -> str:
    ranks = " ".join(f"{dimension}={rank}" for dimension, (rank, count) in share.ranks.items() if count > 1)
    return f"{found.folder} ({ranks})" if ranks else found.folder


def _hints(found: FolderContents) -> dict[str, object]:
    """The choices by which the same files can be written again."""
    args: Mapping[str, object] = found.args or {}
    hints: dict[str, object] = {"container": found.container, "names": "te" if found.fused_names else "local"}
    if found.legacy is not None:
        hints |= {"names": "legacy", "checkpoint_version": found.version, "spelling": dataclasses.asdict(found.legacy)}
    if args.get("num_experts") is not None:
        hints["experts"] = "grouped" if found.grouped or args.get("moe_grouped_gemm") else "sequential"
    for key in (
        "make_vocab_size_divisible_by",
        "decoder_first_pipeline_num_layers",
        "decoder_last_pipeline_num_layers",
    ):
        if isinstance(args.get(key), int):
            hints[key] = args[key]
    # for `ckpt launch`: how a run goes on from its own state
    hints |= {key: args[key] for key in CONTINUED if isinstance(args.get(key), bool)}
    name = os.path.basename(found.folder)
    if name.startswith("iter_"):
        hints["iteration"] = int(name.removeprefix("iter_"))  # for `ckpt launch`; another one is written unless asked
    return hints
