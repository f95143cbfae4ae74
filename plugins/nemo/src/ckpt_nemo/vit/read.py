"""Reading a vision transformer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    Description,
    FormatError,
    ReadRequest,
    Refusal,
    architecture_of,
    company,
    layouts,
    reading,
)
from ckpt_megatron.sdk import masters
from ckpt_nemo.container.by_rank import Tensors, check_by_rank, rank_tensors, training_of
from ckpt_nemo.container.omegaconf import check_resolved
from ckpt_nemo.container.places import SUFFIX
from ckpt_nemo.container.saved import Rank, SavedCheckpoint
from ckpt_nemo.gpt.config import TRAINING_KEYS
from ckpt_nemo.vit.config import VIT, choices_of, explanations
from ckpt_nemo.vit.files import Stages
from ckpt_nemo.vit.image_processor import of_nemo
from ckpt_nemo.vit.weights import LINEAR, TABLES, patch_layer


def read(saved: SavedCheckpoint, request: ReadRequest) -> Description:
    """A vision transformer that was opened as `saved`."""
    check_by_rank(saved, "a ViT of NeMo")
    config = reading.without_ignored(saved.config, request, saved.ledger, saved.config_file, saved.section)
    check_resolved(config, TRAINING_KEYS, saved.config_file)
    layer = patch_layer(saved.names, saved.place)
    facts, notes = VIT.read(config, saved.config_file)
    saved.enter_config(VIT, config)
    facts["patches.bias"] = layer == LINEAR
    architecture = architecture_of(facts, saved.config_file)
    choices = choices_of(config, layer)
    _check_positions(saved, architecture)
    ranks = {(rank.tp, rank.pp): _tensors(rank, request) for rank in saved.ranks}
    sidecars = dict(saved.companions)
    if company.PROCESSOR in saved.artifacts:
        sidecars[company.PROCESSOR] = saved.artifacts[company.PROCESSOR]
    elif architecture.patches is not None:
        notes["image_processor"] = of_nemo(architecture.patches)
    if request.weights == "master":
        saved.ledger.read_masters()
    tp, pp = saved.parallel
    stages = _stages(saved, architecture)
    return Description(
        architecture=architecture,
        tables=TABLES,
        choices=choices,
        ranks=rank_tensors(saved, ranks, stages.name),
        where=saved.place,
        root=saved.root,
        files=saved.states,
        config=saved.config_file,
        notes=notes,
        sidecars=sidecars,
        parallel={"tp": tp, "pp": pp},
        ledger=saved.close(sidecars),
        hints=_hints(saved, choices),
        evidence=list(_evidence(config, architecture, choices, request)),
        explanations=explanations(config),
        masters=all(masters.present({"optimizer": rank.optimizer}) for rank in saved.ranks),
        training=lambda: training_of(saved, lambda rank: rank.chunks[0], stages.name),
    )


def _tensors(rank: Rank, request: ReadRequest) -> Tensors:
    """The tensors of a rank by name, masters in their place where those are asked for."""
    if len(rank.chunks) != 1:
        raise FormatError(
            "virtual pipeline stages of a ViT are not supported", file=rank.file, found=f"{len(rank.chunks)} of them"
        )
    if request.weights != "master":
        return rank.chunks[0]
    return masters.replaced(rank.chunks, {"optimizer": rank.optimizer}, rank.file, None)[0]


def _check_positions(saved: SavedCheckpoint, architecture: Architecture) -> None:
    """A table for images of another size: NeMo would interpolate it while loading (bilinear, in half precision)."""
    positions = architecture.encoder.positions if architecture.encoder else None
    for rank in saved.ranks:
        for name, tensor in rank.chunks[0].items():
            if (
                positions
                and name.startswith("backbone.position_embeddings")
                and len(tensor.shape) == 2
                and tensor.shape[0] != positions.count
            ):
                raise FormatError(
                    f"tensor {name!r} has positions for images of another size than the config's",
                    file=rank.file,
                    found=f"{tensor.shape[0]} rows",
                    expected=f"{positions.count}, by img_h, img_w, patch_dim and class_token_length",
                    fix="set img_h and img_w to the size it was trained for; -o image_size=... interpolates positions, stated in the receipt",
                )


def _stages(saved: SavedCheckpoint, architecture: Architecture) -> Stages:
    _, pp = saved.parallel
    layers = len(architecture.encoder.layers) if architecture.encoder else 0
    try:
        return Stages(pp, layers)
    except Refusal as problem:
        problem.file = saved.config_file
        raise


def _evidence(
    config: Mapping[str, Any], architecture: Architecture, choices: layouts.Chosen, request: ReadRequest
) -> Iterator[str]:
    """What the reading rests on, where defaults or names decide it."""
    patches, encoder = architecture.patches, architecture.encoder
    if patches is None or encoder is None:
        return
    age = "NeMo 1: pixel by pixel, all channels of each" if choices["patch_layer"] == LINEAR else "NeMo 2: no bias"
    yield f"patches: backbone.{choices['patch_layer']} ({age})"
    said = "" if "class_token_length" in config else ", the default, as class_token_length is not said"
    yield f"class tokens: {patches.class_tokens}{said}"
    mlp = encoder.layers[0].mlp
    function = mlp and mlp.activation
    if function in (Activation.GELU_ERF, Activation.GELU_TANH):
        form = "tanh" if function is Activation.GELU_TANH else "erf"
        keys = ("openai_gelu", "bias_activation_fusion")
        yield f"the {form} form of GELU: " + ", ".join(f"{key} {str(bool(config.get(key))).lower()}" for key in keys)
    if choices["megatron_legacy"]:
        yield "q, k and v in the order [3, heads, head_dim] on each rank (megatron_legacy)"
    if request.weights == "master":
        yield "weights: fp32 masters of the optimizer"


def _hints(saved: SavedCheckpoint, choices: layouts.Chosen) -> dict[str, Any]:
    """The choices by which the same files can be written again, the config among them."""
    tp, pp = saved.parallel
    hints = {
        "kind": "vit",
        "container": saved.container,
        "tp": tp,
        "pp": pp,
        "patch_layer": choices["patch_layer"],
        "config": dict(saved.config),
    }
    if saved.container == "ckpt":
        hints["step"] = os.path.basename(saved.place).removesuffix(SUFFIX)
    return hints
