"""Reading an adapter of Megatron-Bridge or NeMo 2: the checkpoint of its base, with the adapter merged into it.

Both add `alpha / dim * linear_out @ linear_in` to the weight of a module, which is the fused one (`linear_qkv`, `linear_fc1`): the rows of its
product are arranged as those of the weight. In bf16 their own merges (`LoRAMerge`) multiply in bf16; this one computes in float32 and rounds
once, as PEFT does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ckpt_core.sdk import Checkpoint, CkptError, FormatError, ReadRequest, Refusal, errors, reading
from ckpt_peft.keys import MAGNITUDE
from ckpt_peft.megatron import nemo
from ckpt_peft.megatron.alone import model_of, read_alone
from ckpt_peft.megatron.canonical import LORA as CANONICAL
from ckpt_peft.megatron.canonical import SHARED
from ckpt_peft.megatron.files import SECTION, Files, of_model, open_files
from ckpt_peft.merge import Merger
from ckpt_peft.read import merged_checkpoint
from ckpt_peft.settings import Settings

_LORA = "megatron.bridge.peft.lora.LoRA"
_DORA = "megatron.bridge.peft.dora.DoRA"
_METHODS = {SECTION: (_LORA, _DORA, CANONICAL), nemo.SECTION: (nemo.LORA,)}
_OF_EXPERTS, _TOPK, _EXPERT_TP, _TP = (
    "normalize_moe_lora", "moe_router_topk", "expert_tensor_parallel_size", "tensor_model_parallel_size",
)  # fmt: skip
# What changes the product, or the modules it belongs to, at the value at which it does not.
_NEUTRAL = {"experts_shared_outer_loras": False}
_SILENT = (
    "_target_", "a2a_experimental", "dropout", "dropout_position", "exclude_modules", "lora_A_init_method", "lora_B_init_method", "lora_dtype",
    "sequence_parallel_input_regather", "target_modules", "dim", "alpha", "canonical_mapping", "params_to_save",
    "dropout_recompute", SHARED, _OF_EXPERTS,
)  # fmt: skip


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The merged model of the adapter at `path` and of `-o base`; without a base the adapter, where it is wanted alone, or a `UsageError`."""
    if request.weights == "master":
        raise errors.NotCarried("an adapter has no fp32 masters", file=path, fix="use --weights model")
    files = open_files(path).with_alpha(request.options.get("lora_alpha"))
    base = request.options.get("base")
    if not isinstance(base, Checkpoint):
        found = read_alone(files, _settings(files), path, request.architecture) if request.alone else None
        if found is None:
            raise _lacks_base(files, request.alone)
        return found
    settings = _settings(files)
    exact = request.options.get("merge") == "fp32"
    merger = Merger(model_of(files, base), settings, files.folder, files.states, exact=exact)
    merger.add_all(of_model(files, merger.model))
    merger.check_whole()
    return merged_checkpoint("megatron-lora", path, base, merger, files.states, base.sidecars, files.ledger)


def _settings(files: Files) -> Settings:
    """What the section of the config says of the merge. Raises everything in it that is not done."""
    section, problems = files.peft, errors.Problems(f"reading {files.config_file}")
    for problem in _problems(files):
        problem.file = files.config_file
        problems.add(problem)
    problems.raise_any()
    targets = section.get("target_modules")
    named = isinstance(targets, list) and all(isinstance(one, str) and "*" not in one for one in targets)
    return Settings(
        base=files.base,
        revision=None,
        default_rank=section["dim"],
        default_alpha=section["alpha"],
        rank_pattern=_ranks_of_experts(files),
        alpha_pattern={},
        rslora=False,
        dora=section["_target_"] == _DORA,
        bias="none",
        lora_bias=False,
        saved_modules=(),
        targets=tuple(targets) if named and targets else None,
        target_parameters=(),
        excluded=tuple(section.get("exclude_modules") or ()),
        layers=None,
        layers_pattern=(),
        tied=False,
    )


def _ranks_of_experts(files: Files) -> dict[str, int]:
    """The ranks of experts' pairs where the run asks for smaller ones: `dim` by the number of experts that a token visits, and for
    linear_fc1, whose A is divided over ranks by its rows, as many more as divide over them (0.6.0, `align_expert_dim_for_tp`)."""
    section, name = files.peft, files.section
    if not section.get(_OF_EXPERTS):
        return {}
    run = files.run.get("model")
    said = run if isinstance(run, dict) else {}
    topk, ranks = said.get(_TOPK), said.get(_EXPERT_TP) or said.get(_TP) or 1
    if type(topk) is not int or topk < 1 or type(ranks) is not int or ranks < 1 or section["dim"] % topk:
        raise FormatError(
            f"key '{name}.{_OF_EXPERTS}' divides the rank by the number of experts that a token visits",
            file=files.config_file,
            found=f"dim {section['dim']}, {_TOPK} {topk!r:.40}, {_EXPERT_TP} {ranks!r:.40}",
            expected="numbers of at least 1, of which the second divides the first",
        )
    rank = section["dim"] // topk
    return {
        r"mlp\.experts\.local_experts\.\d+\.linear_fc1": -(-rank // ranks) * ranks,
        r"mlp\.experts\.local_experts\.\d+\.linear_fc2": rank,
    }


def _problems(files: Files) -> Iterator[CkptError]:
    section, name = files.peft, files.section
    kind, known = section.get("_target_"), _METHODS[name]
    if kind not in known:
        yield Refusal(f"adapters of {kind!r:.80} are not merged", expected=" or ".join(known))
    for key, value in section.items():
        if key in _NEUTRAL and value != _NEUTRAL[key]:
            yield Refusal(
                f"key '{name}.{key}' asks for what is not done", found=str(value)[:60], expected=str(_NEUTRAL[key])
            )
        elif key not in (*_NEUTRAL, *_SILENT):
            yield CkptError(f"unknown config key '{name}.{key}'", found=str(value)[:60])
    dim, alpha = section.get("dim"), section.get("alpha")
    if type(dim) is not int or dim < 1:
        yield CkptError(f"key '{name}.dim' is not a rank", found=repr(dim)[:60], expected="a number of at least 1")
    if alpha is None:
        yield CkptError(
            "nothing says by how much the adapter counts",
            expected=f"key '{name}.alpha'",
            fix="give -o lora_alpha=NUMBER, by which the training was started",
        )
    elif type(alpha) not in (int, float) or not math.isfinite(alpha):
        yield CkptError(f"key '{name}.alpha' is not a number", found=repr(alpha)[:60])


def _lacks_base(files: Files, alone: bool = False) -> errors.UsageError:
    """What to give, where no base is given; `alone`: only what the base is, and none of its weights, is needed."""
    return errors.UsageError(
        "this is an adapter, which is not a model without its base",
        file=files.folder,
        found=f"an adapter of {files.base!r}" if files.base else "an adapter that names no base",
        fix="give the config.json of the base with --config: its weights are not needed"
        if alone
        else "give the folder of the base, in any format: -o base=FOLDER",
    )


def fragment(path: str, request: ReadRequest) -> reading.Fragment | None:
    """The adapter at `path`; None where its base is given, so that there is a model."""
    if isinstance(request.options.get("base"), Checkpoint):
        return None
    files = open_files(path).with_alpha(request.options.get("lora_alpha"))
    refused = [problem.problem for problem in _problems(files)]
    count = sum(named.elements for one in files.adapted for named in one.tensors.values())
    kinds: dict[str, int] = {}
    for one in files.adapted:
        module = ".".join("*" if part.isdigit() else part for part in one.path.split("."))
        said = f"{module}: A {list(one.down.shape)}, B {list(one.up.shape)}{', magnitudes' if MAGNITUDE in one.tensors else ''}"
        kinds[said] = kinds.get(said, 0) + 1
    lines = {
        "adapter": [f"{files.peft.get('_target_')}: {errors.plural(len(files.adapted), 'module')} adapted"],
        "rank": [f"{files.peft.get('dim')}, alpha {files.peft.get('alpha', 'not said')}"],
        "targets": [f"{said}, {number} of them" if number > 1 else said for said, number in kinds.items()],
        "base": [files.base or "not named"],
        "parameters": [f"{count:,}"],
        "refused": refused,
    }
    facts = {
        "peft": dict(files.peft),
        "base": files.base,
        "parameters": count,
        "adapted": sorted(one.path for one in files.adapted),
        "refused": refused,
    }
    return reading.Fragment({label: said for label, said in lines.items() if said}, facts, _lacks_base(files))
