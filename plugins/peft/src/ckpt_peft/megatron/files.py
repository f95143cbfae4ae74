"""The files of an adapter of Megatron-Bridge or of NeMo 2: a distributed checkpoint of adapter tensors alone, and what its run says of it.

    latest_train_state.pt                     or  latest_checkpointed_iteration.txt
    iter_0000100/.metadata, *.distcp          decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight  [layers, rank, in]
    iter_0000100/common.pt                    or common_state in the checkpoint: what is not a tensor
    iter_0000100/run_config.yaml              peft: {_target_: ...LoRA, dim, alpha, ...}, checkpoint.pretrained_checkpoint

Tensors of all layers lie in one, as those of the base do; where layers differ each has its own (`decoder.layers.3.`). The state of the
optimizer may lie beside them. An adapter of NeMo 2 is the same in folders of its own: see `nemo`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from ckpt_core.sdk import CkptError, FormatError, Refusal, chunked, disk, documents, ledgers, schema, torch_files
from ckpt_megatron.sdk import DIST_METADATA, bridge_folder, contents
from ckpt_peft.keys import DOWN, MAGNITUDE, UP, AdaptedModule, NamedTensor
from ckpt_peft.megatron import nemo

if TYPE_CHECKING:
    from ckpt_hf.sdk import ModelInMemory

RUN_CONFIG = "run_config.yaml"
COMMON, _PROGRESS = "common.pt", "train_state.pt"
_TRACKERS = ("latest_train_state.pt", "latest_checkpointed_iteration.txt")
SECTION = "peft"
_OF_SWIFT, _RANK_OF_SWIFT = "args.json", "lora_rank"
_PARTS_OF_SWIFT = (".lora_A.", ".lora_B.", ".modules_to_save.")
_ROLES = {"linear_in.weight": DOWN, "linear_out.weight": UP, "weight_magnitude": MAGNITUDE}
_EXPERTS, _ONE_EXPERT = ".mlp.experts.experts.", re.compile(r"\.mlp\.experts\.experts\.\d+\.")
_STACKED = re.compile(r"^decoder\.layers\.\D")
_SHARED = re.compile(r"(.+\.mlp\.experts)\.(linear_fc[12])")
_EXPERT_RANKS = "expert_model_parallel_size"
_KEY = re.compile(
    r"(decoder\.layers\.\d+\..+)\.adapter(?:\.adapter_(q|k|v|gate|up))?\.(linear_in\.weight|linear_out\.weight|weight_magnitude)"
)


@schema.dataclass(frozen=True)
class Files:
    """An adapter as its files have it: `peft` is the section of `config_file` that says how it is scaled, `base` where the base lay when it
    was trained, and `run` are all sections of a run of Megatron-Bridge."""

    folder: str
    config_file: str
    section: str
    peft: Mapping[str, Any]
    base: str | None
    adapted: tuple[AdaptedModule, ...]
    states: tuple[disk.FileState, ...]
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_nemo(self) -> bool:
        """Whether NeMo 2 trained it."""
        return self.section == nemo.SECTION

    def with_alpha(self, asked: float | None) -> Files:
        """With the alpha that the user gives where the files say none; a `CkptError` where they say another."""
        said = self.peft.get("alpha")
        if asked is not None and said is not None and asked != said:
            raise CkptError(
                "-o lora_alpha and the files differ", file=self.config_file, found=f"{asked:g}", expected=str(said)[:60]
            )
        return self if asked is None else replace(self, peft={**self.peft, "alpha": asked if said is None else said})


def of_swift(path: str) -> str | None:
    """The file by which a path is an adapter of Megatron-SWIFT in Megatron's format: args.json of its run, beside adapter tensors alone."""
    above = os.path.dirname(os.path.abspath(path))
    file = next((one for place in (path, above) if os.path.isfile(one := os.path.join(place, _OF_SWIFT))), None)
    if file is None or not os.path.isdir(path):
        return None
    try:
        if _RANK_OF_SWIFT not in documents.read_json_object(file):
            return None
        iterations = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.startswith("iter_")]
        for folder in (path, *iterations):
            if os.path.isfile(os.path.join(folder, chunked.METADATA)):
                names = _of_model(chunked.read_distributed(folder))
                # a whole model is trained with the same arguments
                if names and all(any(part in name for part in _PARTS_OF_SWIFT) for name in names):
                    return file
    except (CkptError, OSError):
        pass
    return None


def looks_like(path: str) -> str | None:
    """The fact by which a path is an adapter: `peft` in the config of a run beside a distributed checkpoint of adapter tensors."""
    if nemo.place_of(path) is not None:
        return f"{nemo.METADATA} of NeMo 2 beside a distributed checkpoint"
    if of_swift(path) is not None:
        return f"{_OF_SWIFT} of Megatron-SWIFT, and tensors of adapters alone"
    try:
        if not os.path.isdir(path):
            return None
        folder = bridge_folder(path)
        config = documents.parse_yaml(disk.read_small(os.path.join(folder, RUN_CONFIG)), RUN_CONFIG)
        if not isinstance(config, dict) or not isinstance(config.get(SECTION), dict):
            return None
        names = _of_model(chunked.read_distributed(folder))
    except (CkptError, OSError):
        return None
    alone = names and all(".adapter." in name for name in names)
    return f"{SECTION} in {RUN_CONFIG}, and tensors of adapters alone" if alone else None


def _of_model(held: chunked.DistributedCheckpoint) -> dict[str, chunked.ChunkedTensor]:
    """The tensors that are neither of an optimizer nor of another part of a training."""
    return {name: tensor for name, tensor in held.tensors.items() if contents.NAMES.of(name) is ledgers.UNKNOWN_KEY}


def open_files(path: str) -> Files:
    """The adapter at a path; `FormatError` for a damaged file, or for a tensor that is nothing known, or there twice; `Refusal` for one of
    Megatron-SWIFT."""
    if (place := nemo.place_of(path)) is not None:
        return _open_nemo(place)
    if (arguments := of_swift(path)) is not None:
        raise Refusal(
            "adapters of Megatron-SWIFT under Megatron's names are not read",
            file=arguments,
            fix="export it with ms-swift as safetensors, which is a folder of PEFT, and give that folder",
        )
    folder = bridge_folder(path)
    file, ledger = os.path.join(folder, RUN_CONFIG), ledgers.Ledger()
    sections = documents.parse_yaml(disk.read_small(file), file)
    if not isinstance(sections, dict) or not isinstance(sections.get(SECTION), dict):
        raise FormatError(f"the config has no section {SECTION}", file=file)
    section = sections.get("checkpoint")
    base = section.get("pretrained_checkpoint") if isinstance(section, dict) else None
    held = chunked.read_distributed(folder)
    adapted = _adapted(_of_model(held), folder)
    ledger.used("the merge", file, SECTION)
    ledger.left(ledgers.SETTINGS, file, *(key for key in sections if key != SECTION))
    contents.enter_names(ledger, held, set(_of_model(held)))
    read = [*held.files, file, *_enter_beside(ledger, folder, path)]
    return Files(
        folder,
        file,
        SECTION,
        sections[SECTION],
        base if isinstance(base, str) and base else None,
        tuple(adapted.values()),
        tuple(map(disk.FileState.of, read)),
        ledger,
        sections,
    )


def _open_nemo(place: nemo.Place) -> Files:
    """An adapter of NeMo 2. Where its context says nothing of it, the rank is that of its first matrix, and the alpha is missing."""
    nemo.check_finished(place)
    ledger = ledgers.Ledger()
    transform = nemo.read_transform(place, ledger)
    held = chunked.read_distributed(place.weights)
    names = _of_model(held)
    adapted = _adapted(names, place.weights)
    if not adapted:
        raise FormatError("the adapter has no tensors", file=place.weights)
    contents.enter_names(ledger, held, set(names))
    ledger.used("the base that it is of", place.metadata)
    peft = transform.call
    if peft is None:
        peft = {"_target_": nemo.LORA, "dim": next(iter(adapted.values())).down.shape[0]}
    read = [*held.files, place.metadata, *transform.read, *_enter_beside(ledger, place.weights, place.weights)]
    states = tuple(map(disk.FileState.of, read))
    modules = tuple(adapted.values())
    return Files(place.weights, transform.file, nemo.SECTION, peft, place.base, modules, states, ledger)


def of_model(files: Files, model: ModelInMemory) -> tuple[AdaptedModule, ...]:
    """The adapted modules as the model has them: a pair that all experts of a layer share is that of each.

    Raises a `Refusal` where the ranks of expert parallelism had a pair each: they were stored under one name, and all but one are lost
    (Megatron-Bridge before 0.6, `ParallelLinearAdapter.sharded_state_dict`).
    """
    found: list[AdaptedModule] = []
    for one in files.adapted:
        if (match := _SHARED.fullmatch(one.path)) is None:
            found.append(one)
            continue
        each = re.compile(re.escape(match[1]) + r"\.local_experts\.\d+\." + re.escape(match[2]) + r"\.weight")
        names = [name.removesuffix(".weight") for name in model.names if each.fullmatch(name)]
        section = files.run.get("model")
        ranks = section.get(_EXPERT_RANKS) if isinstance(section, dict) else None
        if names and ranks != 1:
            raise Refusal(
                f"{one.down.key} is one pair for the experts of all ranks, and each rank of expert parallelism trained its own",
                file=files.config_file,
                found="nothing that says how many there were" if ranks is None else f"{_EXPERT_RANKS}: {ranks}",
                expected=f"{_EXPERT_RANKS}: 1, or a pair for each expert, as Megatron-Bridge stores them since 0.6",
                fix="merge it with the framework of its training, and convert the model",
            )
        found += [AdaptedModule(name, one.embedding, one.tensors) for name in names] or [one]
    return tuple(found)


def _adapted(tensors: Mapping[str, chunked.ChunkedTensor], folder: str) -> dict[str, AdaptedModule]:
    """The adapted modules, each with its tensors in one layer."""
    from ckpt_megatron.sdk import dist_tensors
    from ckpt_peft.megatron.canonical import module_of

    adapted: dict[str, AdaptedModule] = {}
    for stored_as, tensor in tensors.items():
        for name, shards in dist_tensors(_named(stored_as.removeprefix("module."), tensor), tensor, {}):
            match = _KEY.fullmatch(name)
            if match is None:
                raise FormatError(
                    f"tensor {stored_as!r} is not read as one of an adapter",
                    file=folder,
                    expected="decoder.layers....adapter.linear_in.weight or linear_out.weight",
                )
            module, role = module_of(match[1], match[2]), _ROLES[match[3]]
            one = adapted.setdefault(module, AdaptedModule(module))
            if role in one.tensors:
                raise FormatError(
                    f"{name!r} is there twice",
                    file=folder,
                    found=f"{stored_as} and {one.tensors[role].key}",
                    expected="one tensor for each module of a layer",
                    fix="copy the checkpoint again",
                )
            dims = len(shards[0].origin)  # those of layers and experts are gone
            one.tensors[role] = NamedTensor(stored_as, tensor.shape[len(tensor.shape) - dims :], tuple(shards))
    for one in adapted.values():
        for role in (DOWN, UP):
            if role not in one.tensors:
                raise FormatError(f"the matrix {role} of {one.path} is missing", file=folder)
    return adapted


def _named(stored_as: str, tensor: chunked.ChunkedTensor) -> str:
    """The name of a tensor; without the part that means an axis of experts, where it has none: one pair for all of a layer."""
    dims = len(tensor.shape) - bool(_STACKED.match(stored_as))
    return (
        stored_as.replace(_EXPERTS, ".mlp.experts.") if dims == 2 and not _ONE_EXPERT.search(stored_as) else stored_as
    )


def _enter_beside(ledger: ledgers.Ledger, folder: str, path: str) -> list[str]:
    """Enter the small files of the checkpoint: how its tensors are kept, and what the run was at. Those that are read."""
    read = []
    if os.path.isfile(container := os.path.join(folder, DIST_METADATA)):
        ledger.used("how tensors are kept", container)
        ledger.contents(container, documents.read_json_object(container), contents.DIST)
        read.append(container)
    if os.path.isfile(common := os.path.join(folder, COMMON)):
        state = torch_files.read_torch_file(common)
        if not isinstance(state, dict):
            raise FormatError("the common state is not a dict", file=common, found=torch_files.brief(state))
        of_lightning = "pytorch-lightning_version" in state
        contents.enter_state(ledger, common, state, contents.LIGHTNING if of_lightning else contents.STATE)
        read.append(common)
    if os.path.isfile(progress := os.path.join(folder, _PROGRESS)):
        ledger.left(ledgers.PROGRESS, progress, size=os.path.getsize(progress))
    for name in _TRACKERS:
        if folder != path and os.path.isfile(tracker := os.path.join(path, name)):
            ledger.used("the iteration to read", tracker)
    return read
