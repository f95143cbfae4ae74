"""The real NeMo 1 as a judge: it restores a `.nemo`, or loads a Lightning `.ckpt`, and computes logits.

    python nemo1_judge.py ARCHIVE INPUTS OUT --tp 2 --pp 2

ARCHIVE is loaded as NeMo's users load it: `restore_from` with NLPSaveRestoreConnector, or, for a folder with hparams.yaml,
`load_from_checkpoint` as megatron_ckpt_to_nemo.py does. INPUTS holds what the model takes (`input_ids`; with `attention_mask`
and `decoder_*` for T5; `pixel_values`), OUT gets the `logits`. Whatever NeMo refuses is an error. Nothing of the archive's config
is changed. See README.md for what has to be on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpu
import nemo1_prelude  # noqa: F401  before NeMo
import torch
import torch.distributed
import yaml
from safetensors.torch import load_file, save_file

_RANK = "LOCAL_RANK"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("inputs")
    parser.add_argument("out")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    asked = parser.parse_args()
    if asked.tp * asked.pp > 1 and _RANK not in os.environ:
        sys.exit(_started(asked.tp * asked.pp))
    model = _restored(asked)
    with torch.no_grad():
        logits = _logits(model, load_file(asked.inputs), asked)
    if logits is not None:
        save_file({"logits": logits.float().contiguous()}, asked.out)


def _started(world: int) -> int:
    """This program again, once for every rank, with what Lightning's launchers set; the first error code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | told | {_RANK: str(rank)})
        for rank in range(world)
    ]
    return max(abs(rank.wait()) for rank in ranks)


def _restored(asked: argparse.Namespace) -> Any:
    from megatron.core.tensor_parallel import random

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
    from nemo.core.classes import ModelPT
    from pytorch_lightning import Trainer
    from pytorch_lightning.plugins.environments import LightningEnvironment

    trainer = Trainer(
        accelerator="cpu",
        devices=asked.tp * asked.pp,
        num_nodes=1,
        precision="32",
        logger=False,
        enable_checkpointing=False,
        strategy=NLPDDPStrategy(find_unused_parameters=False),
        plugins=[LightningEnvironment()],
    )
    hparams = Path(asked.archive, "hparams.yaml")
    if hparams.is_file():
        kind = _class(yaml.safe_load(hparams.read_text())["cfg"]["target"])
        (step,) = Path(asked.archive, "checkpoints").iterdir()  # a file, or the folder of a distributed one
        model = kind.load_from_checkpoint(str(step), hparams_file=str(hparams), trainer=trainer, map_location="cpu")
        return model.eval().float()
    connector = NLPSaveRestoreConnector()
    how = {"trainer": trainer, "save_restore_connector": connector}
    config = ModelPT.restore_from(asked.archive, return_config=True, **how)
    model = _class(config.target).restore_from(asked.archive, map_location="cpu", **how)
    if asked.tp * asked.pp > 1:
        from megatron.core import parallel_state

        if not parallel_state.model_parallel_is_initialized():
            trainer.strategy.setup_environment()  # as NeMo's own evaluation scripts do after restore_from
    return model.eval().float()


def _class(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _logits(model: Any, inputs: dict[str, torch.Tensor], asked: argparse.Namespace) -> torch.Tensor | None:
    """Logits of all of the vocabulary, batch first, on the first rank of the last stage; None on all others."""
    kind = type(model).__name__
    if kind == "MegatronVitClassificationModel":
        logits = model.model(inputs["pixel_values"])  # its head is whole on every rank
        return logits if int(os.environ.get(_RANK, 0)) == 0 else None
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
        return _whole(logits, inputs["decoder_input_ids"].shape[0], asked)
    return _gpt_logits(model, inputs["input_ids"], asked)


def _gpt_logits(model: Any, tokens: torch.Tensor, asked: argparse.Namespace) -> torch.Tensor | None:
    """Over pipeline stages: each gets [sequence, batch, hidden] from the one before it."""
    rank, config = int(os.environ.get(_RANK, 0)), model.cfg
    stage, (batch, length) = rank // asked.tp, tokens.shape
    inner = cpu.unwrapped(model.model)
    if stage > 0:
        hidden = torch.empty(length, batch, config.hidden_size)
        torch.distributed.recv(hidden, rank - asked.tp)
        inner.set_input_tensor(hidden)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    output = inner(tokens, torch.arange(length)[None].expand_as(tokens), mask, labels=None)
    if stage < asked.pp - 1:
        torch.distributed.send(output.contiguous(), rank + asked.tp)
        return None
    return _whole(output, batch, asked)


def _whole(logits: torch.Tensor, batch: int, asked: argparse.Namespace) -> torch.Tensor | None:
    if asked.tp > 1:
        from megatron.core import parallel_state

        group = parallel_state.get_tensor_model_parallel_group()
        logits = cpu.gathered(logits, group, asked.tp)
        if parallel_state.get_tensor_model_parallel_rank() > 0:
            return None
    return logits if logits.shape[0] == batch else logits.transpose(0, 1)


if __name__ == "__main__":
    main()
