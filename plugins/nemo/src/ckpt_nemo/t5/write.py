"""Writing a T5 or UL2 model for any number of tensor and pipeline parallel ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    CkptError,
    Refusal,
    Target,
    WriteRequest,
    architecture_of,
    company,
    dtypes,
    facts_of,
    layouts,
    ledgers,
    rewrites,
    schema,
)
from ckpt_megatron.sdk import DIVISIBLE, padded
from ckpt_nemo.container.optimizer import is_norm_or_bias
from ckpt_nemo.container.tokenizer import SECTION as TOKENIZER
from ckpt_nemo.container.tokenizer import Artifacts, artifacts_of, content, section_in
from ckpt_nemo.container.writing import STEP, Form, NemoBuilder, State, as_stepped, container_for
from ckpt_nemo.t5.config import SECTIONS, T5, nested, sections
from ckpt_nemo.t5.files import SPLIT, Stages
from ckpt_nemo.t5.rewrites import expressed_for
from ckpt_nemo.t5.template import SENTINELS_OF_T5, TARGET, TEMPLATE, VERSION
from ckpt_nemo.t5.tokens import like_t5, special_tokens, tokens_of
from ckpt_nemo.t5.weights import LAYERS, ROOT, TABLES, Blocks

_NATIVE, _SCRIPT = "native", "script"
_SOURCE = "the config of the source"


@schema.dataclass(frozen=True)
class _Files:
    """What was decided about the files."""

    tp: int
    stages: Stages
    blocks: Blocks
    multiple: int
    dtype: dtypes.DType | None


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The files of an encoder-decoder's weights. Raises `Refusal` naming what NeMo's T5 cannot hold."""
    hints = checkpoint.hints_for("nemo")
    hints = hints if hints.get("kind") == "t5" else {}
    checkpoint = as_stepped(checkpoint, request, _dtype(request, hints))
    before: Mapping[str, Any] = hints.get("config") or {}
    container = container_for(request.options.get("container"), request.destination)
    tp, pp = request.tp or 1, request.pp or 1
    model, said = expressed_for(
        rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors, files=checkpoint.files),
        checkpoint.notes,
        before,
        pp,
    )
    files = _Files(
        tp,
        _stages(model, request, hints, pp),
        _blocks(request, hints),
        _multiple(request, before),
        _dtype(request, hints),
    )
    tokens = model.architecture.tokens
    if tokens is None:
        raise Refusal("NeMo's T5 reads tokens", found="a model without")
    artifacts = _artifacts(checkpoint, before, hints, request)
    # NeMo adds special tokens to those of the tokenizer's model, and wants a row for each
    rows = padded(max(tokens.vocabulary, artifacts.count or 0), files.multiple, tp)
    model = rewrites.vocabulary_rows(model, rows)
    section = section_in(artifacts, container, request.destination)
    config = _config(model, said, checkpoint, before, files, artifacts, section, rows)
    form = Form(container, str(hints.get("step") or STEP), config)
    builder = NemoBuilder(model, TABLES, files.dtype, form, choices=files.blocks.choices, trained=checkpoint)
    builder.continue_run(is_norm_or_bias)
    shared = config.get("share_token_embeddings") is not False and pp == 1
    for t in range(tp):
        natives = builder.natives({"tp": (t, tp)})
        for stage in range(pp):
            state = _state(natives, files.stages, stage)
            apart = [name for name in state if shared and name.startswith(f"{ROOT}.decoder_embedding.")]
            builder.add_rank((t, stage), (tp, pp), [state], apart)
    return builder.packed(
        config,
        artifacts.files,
        {name: file for name, file in checkpoint.sidecars.items() if name not in artifacts.held},
        held=artifacts.held,
        losses=[*artifacts.losses, *_unshared(config)],
        parallel={"tp": tp, "pp": pp},
        decisions={
            "model": T5.name,
            "container": container,
            "layout": _SCRIPT if files.blocks.decoder else _NATIVE,
            DIVISIBLE: config[DIVISIBLE],
            **({SPLIT: files.stages.split} if pp > 1 else {}),
        },
        said=T5.said(sections(config)) | _roles(artifacts, config),
    )


# --- what is decided -------------------------------------------------------------------------------------------------


def _stages(model: rewrites.Rewritable, request: WriteRequest, hints: Mapping[str, Any], pp: int) -> Stages:
    layers = {stack: len(getattr(model.architecture, stack).layers) for stack in SECTIONS}
    asked = request.options.get("split")
    if asked is not None or pp == 1:
        return Stages(pp, int(asked or 0) if pp > 1 else 0, layers)
    # as it was, else as even as the layers allow
    splits = sorted(
        range(1, pp), key=lambda split: (pp != hints.get("pp") or split != hints.get(SPLIT), abs(2 * split - pp))
    )
    for split in splits:
        if layers["encoder"] % split == 0 and layers["decoder"] % (pp - split) == 0:
            return Stages(pp, split, layers)
    raise Refusal(
        f"pp={pp} divides the layers of no stack evenly",
        found=f"{layers['encoder']} encoder and {layers['decoder']} decoder layers",
        expected="stages of equal size in each stack",
    )


def _blocks(request: WriteRequest, hints: Mapping[str, Any]) -> Blocks:
    """The layout that is asked for, else that of the source, else the one that NVIDIA's script writes."""
    layout = request.options.get("layout")
    if layout is not None:
        return Blocks(*[layout == _SCRIPT] * 3)
    held = hints.get("blocks") or {"encoder": True, "decoder": True}
    return Blocks(bool(held.get("encoder")), bool(held.get("decoder")), bool(held.get("decoder")))


def _multiple(request: WriteRequest, before: Mapping[str, Any]) -> int:
    multiple = int(request.options.get(DIVISIBLE) or before.get(DIVISIBLE) or 128)
    if multiple < 1:
        raise Refusal(f"{DIVISIBLE} is not a size", found=multiple)
    return multiple


def _dtype(request: WriteRequest, hints: Mapping[str, Any]) -> dtypes.DType | None:
    """The dtype that is asked for, else the one the model had in NeMo: what was folded in float32 goes back to it."""
    if request.dtype is not None or not isinstance(hints.get("dtype"), str):
        return request.dtype
    return dtypes.dtype_named(hints["dtype"])


def _artifacts(
    checkpoint: Checkpoint, before: Mapping[str, Any], hints: Mapping[str, Any], request: WriteRequest
) -> Artifacts:
    """The tokenizer: as it was in NeMo; else the SentencePiece model of a T5, with T5's sentinels."""
    sidecars: dict[str, company.Sidecar] = dict(checkpoint.sidecars)
    if "spiece.model" in sidecars:
        sidecars["tokenizer.model"] = sidecars["spiece.model"]
    section = before.get(TOKENIZER)
    known = section if isinstance(section, Mapping) else SENTINELS_OF_T5
    made = artifacts_of(sidecars, known, hints.get("tokenizer") or {}, request.options.get("tokenizer_name"))
    model = sidecars.get("tokenizer.model")
    if model is not None and made.count is not None:
        data = before.get("data")
        ul2 = isinstance(data, Mapping) and data.get("dataset_type") == "ul2"
        made.count = special_tokens(content(model), made.section, ul2, model.path).count
    if "spiece.model" in checkpoint.sidecars and "tokenizer.model" in made.held:
        made.held = {"spiece.model"} if like_t5(made.section) else set()
    return made


# --- the config ------------------------------------------------------------------------------------------------------


def _config(
    model: rewrites.Rewritable,
    said: Mapping[str, Any],
    checkpoint: Checkpoint,
    before: Mapping[str, Any],
    files: _Files,
    artifacts: Artifacts,
    section: Mapping[str, Any],
    rows: int,
) -> dict[str, Any]:
    """The config of the source where it says this very model, else a new one; with the layout of these files."""
    if _says(before, model):
        config = nested({}, before)
    else:
        config = nested(said, before if _has_sections(before) else TEMPLATE)
        if not before and "encoder.positions.count" in facts_of(model.architecture):
            # one embedding for both stacks would be one table of positions for both
            config["share_token_embeddings"] = False
        start, pad = checkpoint.notes.get("decoder_start"), checkpoint.notes.get("pad")
        if not before and start is not None and start == pad:
            # as NVIDIA's script marks a model whose decoder starts with padding, as that of transformers' T5 does
            config["library"] = "huggingface-t5v1_1"
    kind = dtypes.commonest(files.dtype or assembly.dtype for assembly in model.tensors.values()).name
    config |= {
        "tensor_model_parallel_size": files.tp,
        "pipeline_model_parallel_size": files.stages.pp,
        SPLIT: files.stages.split,
        DIVISIBLE: _leading_to(rows, files, artifacts.count),
        TOKENIZER: dict(section),
        "megatron_amp_O2": kind in ("bf16", "fp16"),
        "precision": {"bf16": "bf16", "fp16": 16}.get(kind, config.get("precision", 32)),
        "target": config.get("target") or TARGET,
        "nemo_version": VERSION,
    }
    for stack, blocks in (("encoder", files.blocks.encoder), ("decoder", files.blocks.decoder)):
        (config[stack] if _has_sections(config) else config)["megatron_legacy"] = blocks
    if files.stages.pp > 1 and config.get("share_token_embeddings") is False:
        raise Refusal(
            "pipeline stages need share_token_embeddings, and this model has positions in each stack",
            found=f"pp={files.stages.pp}",
            fix="use --pp 1",
        )
    return config


def _roles(artifacts: Artifacts, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of special tokens that a reader finds: those of the SentencePiece model that is written."""
    stored = str(artifacts.section.get("model") or "").removeprefix("nemo:")
    return tokens_of(artifacts.files[stored], config, stored).notes if stored in artifacts.files else {}


def _has_sections(config: Mapping[str, Any]) -> bool:
    return all(isinstance(config.get(section), Mapping) for section in SECTIONS)


def _says(before: Mapping[str, Any], model: rewrites.Rewritable) -> bool:
    """Whether a config describes a model, the vocabulary aside."""
    if not before:
        return False
    try:
        found, _ = T5.read(sections(before), _SOURCE)
        found |= {path: value for path, value in facts_of(model.architecture).items() if path.startswith("tokens.")}
        return not schema.differing(facts_of(architecture_of(found, _SOURCE)), facts_of(model.architecture))
    except CkptError:
        return False


def _leading_to(rows: int, files: _Files, tokens: int | None) -> int:
    """The multiple by which NeMo comes from its tokenizer to `rows`: it refuses an embedding of any other size."""
    if tokens is None or padded(tokens, files.multiple, files.tp) == rows:
        return files.multiple
    return rows // files.tp


def _unshared(config: Mapping[str, Any]) -> list[ledgers.Loss]:
    if config.get("share_token_embeddings") is not False:
        return []
    why = "the stacks have positions of their own, which NeMo has only with embeddings of their own: written equal, trained apart"
    return [ledgers.Loss("assumed", "share_token_embeddings: false", why)]


# --- the state dict of a rank ------------------------------------------------------------------------------------------


def _state(natives: Mapping[str, layouts.Native], stages: Stages, stage: int) -> State:
    """The state dict of a stage, in the order of the modules."""
    named = ((stages.name(name, stage), natives[name]) for name in sorted(natives, key=_order))
    return {name: native for name, native in named if name is not None}


def _order(name: str) -> int:
    """Embeddings and tables, the encoder and its norm, the decoder and its norm, the head."""
    ends = [
        f"{LAYERS['encoder']}.",
        f"{ROOT}.{ROOT}.encoder.",
        f"{LAYERS['decoder']}.",
        f"{ROOT}.{ROOT}.decoder.",
        f"{ROOT}.tokens_head.",
    ]
    return next(
        (number for number, start in enumerate(ends, 1) if name.startswith(start)),
        6 if name == f"{ROOT}.word_embeddings.weight" else 0,
    )
