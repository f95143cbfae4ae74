"""The real NeMo 1 as a judge: it restores a `.nemo`, or loads a Lightning `.ckpt`, and computes logits.

Every line of standard input is a case (see forked.py): {"archive", "inputs", "out", "tp", "pp", "world"}.
The archive is loaded as NeMo's users load it: `restore_from` with NLPSaveRestoreConnector, or, for a folder with hparams.yaml,
`load_from_checkpoint` as megatron_ckpt_to_nemo.py does. `inputs` holds what the model takes (`input_ids`; with `attention_mask`
and `decoder_*` for T5; `pixel_values`), `out` gets the `logits`. Whatever NeMo refuses is an error. Nothing of the archive's config
is changed. See README.md for what has to be on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

import cpu
import forked
import nemo1_prelude  # noqa: F401  before NeMo
import torch
import torch.distributed
import yaml
from megatron.core.tensor_parallel import random
from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
from nemo.core.classes import ModelPT
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from safetensors.torch import load_file, save_file

_MODELS = (
    "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
    "nemo.collections.nlp.models.language_modeling.megatron_t5_model.MegatronT5Model",
    "nemo.collections.vision.models.megatron_vit_classification_models.MegatronVitClassificationModel",
)


def judge(case: forked.Case) -> None:
    """One rank."""
    model = _restored(case)
    with torch.no_grad():
        logits = _logits(model, load_file(case["inputs"]), case)
    if logits is not None:
        save_file({"logits": logits.float().contiguous()}, case["out"])


def _restored(case: forked.Case) -> Any:
    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    trainer = Trainer(
        accelerator="cpu",
        devices=case["world"],
        num_nodes=1,
        precision="32",
        logger=False,
        enable_checkpointing=False,
        strategy=NLPDDPStrategy(find_unused_parameters=False),
        plugins=[LightningEnvironment()],
    )
    hparams = Path(case["archive"], "hparams.yaml")
    if hparams.is_file():
        kind = _class(yaml.safe_load(hparams.read_text())["cfg"]["target"])
        (step,) = Path(case["archive"], "checkpoints").iterdir()  # a file, or the folder of a distributed one
        model = kind.load_from_checkpoint(str(step), hparams_file=str(hparams), trainer=trainer, map_location="cpu")
        return model.eval().float()
    connector = NLPSaveRestoreConnector()
    how = {"trainer": trainer, "save_restore_connector": connector}
    config = ModelPT.restore_from(case["archive"], return_config=True, **how)
    model = _class(config.target).restore_from(case["archive"], map_location="cpu", **how)
    if case["world"] > 1:
        from megatron.core import parallel_state

        if not parallel_state.model_parallel_is_initialized():
            trainer.strategy.setup_environment()  # as NeMo's own evaluation scripts do after restore_from
        if hasattr(model, "setup_transformer_engine_tp_groups"):
            model.setup_transformer_engine_tp_groups()  # as `setup` does: layers were built before the groups
    return model.eval().float()


def _class(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _logits(model: Any, inputs: dict[str, torch.Tensor], case: forked.Case) -> torch.Tensor | None:
    """Logits of all of the vocabulary, batch first, on the first rank of the last stage; None on all others."""
    kind = type(model).__name__
    if kind == "MegatronVitClassificationModel":
        logits = model.model(inputs["pixel_values"])  # its head is whole on every rank
        return logits if int(os.environ["LOCAL_RANK"]) == 0 else None
    if kind == "MegatronT5Model":
        logits = model.enc_dec_model(
            enc_input_ids=inputs["input_ids"],
            enc_attn_mask=inputs["attention_mask"],
            dec_input_ids=inputs["decoder_input_ids"],
            dec_attn_mask=inputs["decoder_attention_mask"],
            token_type_ids=None,
            labels=None,
        )
        logits = logits["token_logits"] if isinstance(logits, dict) else logits
        return _whole(logits, inputs["decoder_input_ids"].shape[0], case)
    return _gpt_logits(model, inputs["input_ids"], case)


def _gpt_logits(model: Any, tokens: torch.Tensor, case: forked.Case) -> torch.Tensor | None:
    """Over pipeline stages: each gets [sequence, batch, hidden] from the one before it."""
    rank, config = int(os.environ["LOCAL_RANK"]), model.cfg
    stage, (batch, length) = rank // case["tp"], tokens.shape
    inner = cpu.unwrapped(model.model)
    if stage > 0:
        hidden = torch.empty(length, batch, config.hidden_size)
        torch.distributed.recv(hidden, rank - case["tp"])
        inner.set_input_tensor(hidden)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    output = inner(tokens, torch.arange(length)[None].expand_as(tokens), mask, labels=None)
    if stage < case["pp"] - 1:
        torch.distributed.send(output.contiguous(), rank + case["tp"])
        return None
    return _whole(output, batch, case)


def _whole(logits: torch.Tensor, batch: int, case: forked.Case) -> torch.Tensor | None:
    if case["tp"] > 1:
        from megatron.core import parallel_state

        group = parallel_state.get_tensor_model_parallel_group()
        logits = cpu.gathered(logits, group, case["tp"])
        if parallel_state.get_tensor_model_parallel_rank() > 0:
            return None
    return logits if logits.shape[0] == batch else logits.transpose(0, 1)


if __name__ == "__main__":
    for _model in _MODELS:  # once, before the ranks
        with contextlib.suppress(ModuleNotFoundError):  # NeMo 1.22 has no vision
            _class(_model)
    forked.answer(judge)
