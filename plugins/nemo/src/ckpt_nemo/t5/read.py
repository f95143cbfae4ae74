"""Reading a T5 or UL2 model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    FormatError,
    ReadRequest,
    Refusal,
    architecture_of,
    company,
    lazy,
    ledgers,
    reading,
)
from ckpt_megatron.sdk import masters
from ckpt_nemo.container.by_rank import Tensors, check_by_rank, rank_tensors, training_of
from ckpt_nemo.container.places import SUFFIX
from ckpt_nemo.container.saved import Rank, SavedCheckpoint, values_of
from ckpt_nemo.container.tokenizer import Tokenizer, content, find_tokenizer
from ckpt_nemo.t5.config import SECTIONS, T5, sections
from ckpt_nemo.t5.files import SPLIT, Stages
from ckpt_nemo.t5.tokens import like_t5, tokens_of
from ckpt_nemo.t5.weights import (
    CROSS_TABLE,
    DECODER_TOKENS,
    HEAD_BIAS,
    LAST_STAGE_TOKENS,
    RELATIVE_TABLES,
    ROOT,
    TABLES,
    TOKENS,
    Blocks,
)
from ckpt_nemo.t5.words import differences, explanations
from ckpt_nemo.values import flag

_SHARED = f"{ROOT}.decoder_embedding."


def read(saved: SavedCheckpoint, request: ReadRequest) -> Description:
    """An encoder-decoder model that was opened as `saved`."""
    check_by_rank(saved, "a T5 of NeMo 1")
    config = sections(reading.without_ignored(saved.config, request, saved.ledger, saved.config_file, saved.section))
    ranks = {(rank.tp, rank.pp): _tensors(rank, config, request.weights) for rank in saved.ranks}
    facts, notes = T5.read(config, saved.config_file)
    saved.enter_config(T5, config)
    rows = _rows(saved, ranks)
    facts |= {"tokens.vocabulary": rows, "tokens.padded_vocabulary": rows}
    architecture = architecture_of(facts, saved.config_file)
    blocks = _blocks(saved, config, request)
    stages = _stages(saved, config, architecture)
    tp, pp = saved.parallel
    ranks = {(t, stage): _with_own_heads(tensors, architecture, t, tp) for (t, stage), tensors in ranks.items()}
    tokenizer = find_tokenizer(saved.config, saved.artifacts, request.options.get("tokenizer"))
    losses = [*tokenizer.losses, *_name_tokens(tokenizer, saved.config, notes)]
    evidence = differences(config, blocks, architecture)
    if request.weights == "master":
        evidence.append("weights: fp32 masters of the optimizer")
        saved.ledger.read_masters()
    sidecars = saved.companions | _sidecars(tokenizer)
    return Description(
        architecture=architecture,
        tables=TABLES,
        choices={**blocks.choices, "relative_bias": "own_heads"},
        ranks=rank_tensors(saved, ranks, stages.name),
        where=saved.place,
        root=saved.root,
        files=saved.states,
        config=saved.config_file,
        # the T5s of transformers have rows of their own beyond their tokenizers', which NVIDIA's script takes as they are
        vocabulary=reading.Vocabulary(rows=lambda tokens: tokens, tokenizer=_token_count(tokenizer, saved.config)),
        notes=notes,
        sidecars=sidecars,
        parallel={"tp": tp, "pp": pp},
        ledger=saved.close(sidecars),
        hints=_hints(saved, blocks, stages, tokenizer, ranks),
        evidence=evidence,
        losses=losses,
        explanations=explanations(config, architecture, _largest(saved, ranks)),
        masters=all(masters.present({"optimizer": rank.optimizer}) for rank in saved.ranks),
        training=lambda: training_of(
            saved,
            lambda rank: _stepped(_tensors(rank, config, "model"), config),
            stages.name,
            lambda tensors, rank: _with_own_heads(
                _with_shared(tensors, _tensors(rank, config, "model")), architecture, rank.tp, tp
            ),
        ),
    )


# --- the tensors of a rank -------------------------------------------------------------------------------------------


def _tensors(rank: Rank, config: Mapping[str, Any], weights: str) -> Tensors:
    """The tensors of a rank by name, masters in their place where `weights` is master."""
    if len(rank.chunks) != 1:
        raise FormatError(
            "an encoder-decoder has no virtual pipeline stages", file=rank.file, found=f"{len(rank.chunks)} of them"
        )
    # Float16Module stands inside the outer enc_dec_model
    found = {name.replace(f"{ROOT}.module.", f"{ROOT}.", 1): tensor for name, tensor in rank.chunks[0].items()}
    if weights != "master":
        return found
    return masters.replaced([_stepped(found, config)], {"optimizer": rank.optimizer}, rank.file, None)[0]


def _stepped(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The parameters that the optimizer knows: what is one module under two names, it knows once."""
    if TOKENS not in tensors or config.get("share_token_embeddings") is False:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_SHARED)}


def _with_shared(tensors: Tensors, weights: Tensors) -> Tensors:
    """The tensors of an optimizer, with what is one module under the other of its names as well, as the weights have it."""
    twins = {name: name.replace(_SHARED, f"{ROOT}.encoder_embedding.", 1) for name in weights.keys() - tensors.keys()}
    return {**tensors, **{name: tensors[twin] for name, twin in twins.items() if twin in tensors}}


def _rows(saved: SavedCheckpoint, ranks: Mapping[tuple[int, int], Tensors]) -> int:
    """The rows of the embedding, over all ranks."""
    held = [tensors[TOKENS].shape for (_, stage), tensors in ranks.items() if stage == 0 and TOKENS in tensors]
    if not held or any(len(shape) != 2 for shape in held):
        raise FormatError(
            f"tensor {TOKENS!r} is missing, or is not a matrix",
            file=saved.place,
            found=", ".join(map(str, held)) or None,
        )
    return sum(shape[0] for shape in held)


def _with_own_heads(tensors: Tensors, architecture: Architecture, t: int, tp: int) -> Tensors:
    """The tensors of tensor parallel rank `t`; of each table of relative biases, the columns of the rank's own heads."""
    own = dict(tensors)
    for name in tensors.keys() & RELATIVE_TABLES.keys():
        stored, attention = tensors[name], getattr(architecture, RELATIVE_TABLES[name]).layers[0].attention
        if len(stored.shape) == 2 and stored.shape[1] == attention.heads and not attention.heads % tp:
            columns = attention.heads // tp
            offset = stored.offset + t * columns * stored.strides[1] * stored.dtype.size
            own[name] = replace(stored, shape=(stored.shape[0], columns), offset=offset)
    return own


# --- what the config leaves to the reader ------------------------------------------------------------------------------


def _blocks(saved: SavedCheckpoint, config: Mapping[str, Any], request: ReadRequest) -> Blocks:
    """Where fused rows are blocks; for the cross attention that is true from NeMo 1.13 on alone."""
    legacy = {section: flag(config, f"{section}.megatron_legacy", False) for section in SECTIONS}
    cross = legacy["decoder"] and _since_1_13(saved, config, request)
    return Blocks(legacy["encoder"], legacy["decoder"], cross)


def _since_1_13(saved: SavedCheckpoint, config: Mapping[str, Any], request: ReadRequest) -> bool:
    """Whether the model was trained since that release: as the user says, by a key that came with it, by the version.

    The version comes last: the base YAML of NVIDIA's script (r1.16) says 1.11.0rc0, and models that it makes keep that.
    """
    given = request.options.get("nemo_version")
    if not given and "decoder.normalize_attention_scores" in config:
        return True
    numbers = str(given or config.get("nemo_version") or "").split(".")
    if len(numbers) > 1 and numbers[0].isdigit() and numbers[1].isdigit():
        return (int(numbers[0]), int(numbers[1])) >= (1, 13)
    raise CkptError(
        "decoder.megatron_legacy is true, and nothing says which NeMo trained the model: before 1.13 it did not concern the cross attention",
        file=saved.config_file,
        fix="say it with -o nemo_version=1.12 (or a later one)",
    )


def _stages(saved: SavedCheckpoint, config: Mapping[str, Any], architecture: Architecture) -> Stages:
    _, pp = saved.parallel
    split = config.get(SPLIT)
    layers = {stack: len(getattr(architecture, stack).layers) for stack in SECTIONS}
    try:
        return Stages(pp, split if type(split) is int else 0, layers)
    except Refusal as problem:
        problem.file = saved.config_file
        raise


def _name_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], notes: dict[str, Any]) -> list[ledgers.Loss]:
    """Note which tokens begin, end and pad a sequence: NeMo's decoder starts with the first of them, not with padding."""
    file = tokenizer.files.get("tokenizer.model")
    if file is None:
        why = "the tokenizer is not stored with the weights: NeMo starts the decoder with its bos_id, transformers needs to be told"
        return [ledgers.Loss("unsaid", "decoder_start_token_id, eos_token_id, pad_token_id", why)]
    notes |= tokens_of(content(file), config, file.path).notes
    return []


def _token_count(tokenizer: Tokenizer, config: Mapping[str, Any]) -> int | None:
    """How many tokens NeMo has of the stored SentencePiece model, with those that it adds."""
    file = tokenizer.files.get("tokenizer.model")
    return None if file is None else tokens_of(content(file), config, file.path).count


def _sidecars(tokenizer: Tokenizer) -> dict[str, company.Sidecar]:
    """The tokenizer's files; under the name that transformers' T5 looks for, where its sentinels are those of a T5."""
    files = dict(tokenizer.files)
    if like_t5(tokenizer.section) and "tokenizer.model" in files:
        files["spiece.model"] = files.pop("tokenizer.model")
    return files


def _hints(
    saved: SavedCheckpoint,
    blocks: Blocks,
    stages: Stages,
    tokenizer: Tokenizer,
    ranks: Mapping[tuple[int, int], Tensors],
) -> dict[str, Any]:
    """The choices by which the same files can be written again, the config among them."""
    tp, pp = saved.parallel
    copies = (DECODER_TOKENS, LAST_STAGE_TOKENS)
    dtypes = {stored.dtype.name for tensors in ranks.values() for name, stored in tensors.items() if name not in copies}
    return {
        "kind": "t5",
        "container": saved.container,
        "tp": tp,
        "pp": pp,
        SPLIT: stages.split,
        "blocks": {"encoder": blocks.encoder, "decoder": blocks.decoder, "cross": blocks.cross},
        "config": dict(saved.config),
        **({"dtype": dtypes.pop()} if len(dtypes) == 1 else {}),
        **({"step": os.path.basename(saved.place).removesuffix(SUFFIX)} if saved.container == "ckpt" else {}),
        "tokenizer": tokenizer.names,
    }


def _largest(saved: SavedCheckpoint, ranks: Mapping[tuple[int, int], Tensors]) -> dict[str, float]:
    """The largest absolute value of the small tensors that no HF class may have: what leaving one out would change."""
    source = lazy.SourceFiles(saved.states)
    try:
        found = {}
        for name in (HEAD_BIAS, CROSS_TABLE):
            held = [tensors[name] for tensors in ranks.values() if name in tensors]
            # the core refuses others, and names their file
            floats = [stored for stored in held if stored.dtype.floating]
            values = [np.abs(values_of(stored, name, source)).max(initial=0.0) for stored in floats]
            found[name] = float(np.max(values, initial=0.0))
        return found
    finally:
        source.close()
