"""An adapter of Megatron-Bridge or NeMo 2 by itself, without the weights of its base."""

from __future__ import annotations

import re

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    Refusal,
    layouts,
    rewrites,
)
from ckpt_hf.sdk import ModelInMemory
from ckpt_megatron.sdk import (
    architecture_of_run,
    expressed_for,
    weights,
)
from ckpt_peft.alone import alone
from ckpt_peft.keys import DOWN, MAGNITUDE, UP
from ckpt_peft.megatron import nemo
from ckpt_peft.megatron.canonical import LORA as CANONICAL
from ckpt_peft.megatron.canonical import TABLES as WITH_PARTS
from ckpt_peft.megatron.canonical import check_release
from ckpt_peft.megatron.files import Files, of_model
from ckpt_peft.merge import Merger
from ckpt_peft.pairs import (
    pairs_of,
    without_weights,
)
from ckpt_peft.settings import Settings

_KEYS = {DOWN: "linear_in.weight", UP: "linear_out.weight", MAGNITUDE: "weight_magnitude"}
_LORA, _DORA = "megatron.bridge.peft.lora.LoRA", "megatron.bridge.peft.dora.DoRA"
_TOKENIZER = "tokenizer"
_ONE_EXPERT = re.compile(r"\.experts\.local_experts\.\d+\.")


def gpt_model(base: Checkpoint, canonical: bool = False) -> ModelInMemory:
    """A base as Megatron's GPTModel, whose weights the adapter's names are about. `canonical`: the parts of fused layers are modules, too."""
    own = rewrites.Rewritable(base.architecture, base.tensors, files=base.files)
    model = expressed_for(own, 1, by_fields=True)
    names = layouts.BoundTables(WITH_PARTS if canonical else weights.TABLES, model.architecture).natives()
    if all(model.tensors.get(name) == tensor for name, tensor in base.tensors.items()):
        model = own  # what Megatron needs besides are biases of zeros
    return ModelInMemory("GPTModel", model.architecture, model.tensors, names, model.rewrites)


def read_alone(files: Files, settings: Settings, path: str, given: Architecture | None) -> Checkpoint | None:
    """The adapter as it is. What its base is says run_config.yaml, and for one of NeMo 2 --config (`given`): None where it is missing."""
    architecture = given if files.of_nemo else architecture_of_run(files.config_file)
    if architecture is None:
        return None
    model = model_of(files, without_weights(architecture, "", ""))
    merger = Merger(model, settings, files.folder, files.states, exact=False)
    merger.add_all(of_model(files, model))
    merger.check_whole()
    base = settings.base
    if not files.of_nemo:
        files.ledger.used("architecture", files.config_file, "model")
        origin = files.run["model"].get("hf_model_id")
        base = origin if isinstance(origin, str) and origin else base
    return alone("megatron-lora", path, architecture, pairs_of(merger, files.states), base, files.states, files.ledger)


def model_of(files: Files, base: Checkpoint) -> ModelInMemory:
    """The base as the GPTModel whose modules an adapter in files changes. In CanonicalLoRA parts of fused layers are modules."""
    canonical = files.peft.get("_target_") == CANONICAL
    model = gpt_model(base, canonical)
    if files.of_nemo:
        _check_rows(files, model)
    if canonical:
        layers = model.architecture.decoder.layers if model.architecture.decoder else ()
        groups = max((layer.attention.groups for layer in layers if layer.attention), default=1)
        check_release(files.peft, [one.path for one in files.adapted], groups, files.config_file)
    return model


def _check_rows(files: Files, model: ModelInMemory) -> None:
    """Raise a `Refusal` for matrices of NeMo 2 whose rows are in the order of its tensor parallel ranks."""
    layers = model.architecture.decoder.layers if model.architecture.decoder else ()
    gated = all(layer.mlp.gated for layer in layers if layer.mlp)
    for one in files.adapted:
        if nemo.rows_of_ranks(one, gated):
            raise Refusal(
                f"the rows of {one.up.key} lie by tensor parallel ranks",
                file=files.folder,
                found="as NeMo before 2.3 stores an adapter of linear_fc1 with a gate, and NeMo since 2.3 one without a gate",
                # other sizes load these rows in another order, and so does NeMo's export of an adapter, which has one rank
                fix="merge it with NeMo (llm.peft.merge_lora) at the tensor parallel size of its training, and convert the model",
            )
