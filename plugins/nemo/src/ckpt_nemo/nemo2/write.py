"""Writing a NeMo 2 checkpoint: what `ModelConnector.nemo_load` and `RestoreConfig` load, and, with the state of a training, what a run goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import Checkpoint, Target, WriteRequest, company, documents, facts_of, ledgers, rewrites, schema
from ckpt_megatron.sdk import (
    DIVISIBLE,
    FileLayout,
    GPTBuilder,
    expressed_for,
    fiddle,
    keeping_rows,
    lightning,
    transformer_config,
    write_dist,
)
from ckpt_nemo.nemo2.classes import gemma_of
from ckpt_nemo.nemo2.config import Classes, classes_for, table_of, written_fields
from ckpt_nemo.nemo2.continuing import WrittenRun, as_stepped
from ckpt_nemo.nemo2.files import CONTEXT, GRAPH, MODEL, WEIGHTS
from ckpt_nemo.nemo2.gemma import check_written
from ckpt_nemo.nemo2.tokenizer import WrittenTokenizer, write_tokenizer

PREFIX = "module."
"""That of the module around the model, with which every key begins."""

_ROOT = "nemo.lightning.io.pl.TrainerContext"


@schema.dataclass(frozen=True)
class Context:
    """What NeMo 2 is told of a model: the calls by which it builds it. `numbered`: each layer has tensors of its own."""

    layout: FileLayout
    model: rewrites.Rewritable
    classes: Classes
    fields: dict[str, Any]
    tokenizer: WrittenTokenizer
    numbered: bool
    losses: tuple[ledgers.Loss, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint, request: WriteRequest) -> Context:
        """The context of a model. Raises `Refusal` naming what no config class of NeMo 2 can hold."""
        hints = checkpoint.hints_for("nemo2")
        layout = replace(FileLayout.of(request, hints), container="torch_dist", within=WEIGHTS)
        layout = replace(layout, multiple=_multiple(checkpoint, request, layout))
        fixed = _fixed_rows(checkpoint, hints, layout)
        multiple = fixed or layout.multiple * layout.tp
        model = expressed_for(
            rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors), multiple, by_fields=True
        )
        facts = facts_of(model.architecture)
        tokenizer = write_tokenizer(checkpoint.sidecars, hints.get("tokenizer"))
        classes = classes_for(facts, hints.get("classes") or {})
        fields = written_fields(facts, checkpoint.notes, classes)
        losses = check_written(facts, fields, request.options) if gemma_of(classes.config, classes.model) > 1 else []
        transformer_config.check_layout(model, facts, layout)
        numbered = transformer_config.number_layers(fields, facts, hints)
        rows = facts["tokens.padded_vocabulary"]
        # of more rows than there are tokens, a reader would take the last for padding
        implied = fixed is None and tokenizer.size == facts["tokens.vocabulary"] and _rows_of(tokenizer, layout) == rows
        fields |= {DIVISIBLE: layout.multiple, "vocab_size": None if implied else rows}
        fields |= transformer_config.running(layout, model, request.dtype)
        return cls(layout, model, classes, fields, tokenizer, numbered, tuple(losses))

    def documents(self, transform: fiddle.Call | None = None) -> dict[str, bytes]:
        """The files, without those of the tokenizer. `transform` is the call that adapts the model."""
        graph = fiddle.write_graph(_graph(self.classes, self.fields, self.tokenizer, transform))
        dump = _dump(self.classes, self.fields, self.tokenizer, transform)
        return {
            f"{CONTEXT}/{GRAPH}": (json.dumps(graph, indent=2) + "\n").encode(),
            f"{CONTEXT}/{MODEL}": documents.dump_yaml(dump).encode(),
        }

    @property
    def sidecars(self) -> dict[str, company.Sidecar]:
        """The files of the tokenizer, by their places."""
        return {f"{CONTEXT}/{name}": sidecar for name, sidecar in self.tokenizer.files.items()}


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The folder. Raises `Refusal` naming what no config class of NeMo 2 can hold."""
    checkpoint = as_stepped(checkpoint, request)
    context = Context.of(checkpoint, request)
    layout, classes, fields = context.layout, context.classes, context.fields
    builder = GPTBuilder(layout, context.model, request.dtype, trained=checkpoint, masters=True)
    run = WrittenRun.of(builder)
    write_dist(builder, run.common, homogeneous=not context.numbered, prefix=PREFIX, states=run.states)
    builder.documents |= context.documents()
    return builder.target(
        "nemo2",
        sidecars=context.sidecars,
        parallel=layout.parallel,
        decisions={
            "config": classes.config,
            "model": classes.model,
            "names": layout.names,
            DIVISIBLE: layout.multiple,
        },
        losses=[*context.tokenizer.losses, *_assumed(fields), *context.losses, *run.losses],
        said=table_of(classes, fields).said({key: fiddle.plain_of(value) for key, value in fields.items()}),
        config=fields,
        says=lightning.SAID,
    )


def _assumed(fields: Mapping[str, Any]) -> list[ledgers.Loss]:
    """What older versions of NeMo do not have."""
    if fields.get("mtp_num_layers") is None:
        return []
    return [ledgers.Loss("assumed", "NeMo 2.3 or later", "older versions have no layers of multi-token prediction")]


def _multiple(checkpoint: Checkpoint, request: WriteRequest, layout: FileLayout) -> int:
    """What the vocabulary is padded to a multiple of: where a run goes on, to as many rows as it was trained with, if that can be said."""
    tokens = checkpoint.architecture.tokens
    if checkpoint.training is None or tokens is None or request.options.get(DIVISIBLE) is not None:
        return layout.multiple
    return keeping_rows(tokens.vocabulary, tokens.padded_vocabulary, layout.multiple, layout.tp) or layout.multiple


def _fixed_rows(checkpoint: Checkpoint, hints: Mapping[str, Any], layout: FileLayout) -> int | None:
    """The rows of an embedding whose size the source's config fixed, if as many fit this model and its ranks."""
    rows, tokens = hints.get("vocab_size"), checkpoint.architecture.tokens
    fits = isinstance(rows, int) and tokens is not None and tokens.vocabulary <= rows and rows % layout.tp == 0
    return rows if fits else None


def _rows_of(tokenizer: WrittenTokenizer, layout: FileLayout) -> int | None:
    """The rows that NeMo gives an embedding for a tokenizer, where no vocab_size says how many."""
    if tokenizer.call is None or tokenizer.size is None:
        return None
    multiple = layout.multiple * layout.tp
    return -(-tokenizer.size // multiple) * multiple


def _graph(
    classes: Classes, fields: dict[str, Any], tokenizer: WrittenTokenizer, transform: fiddle.Call | None
) -> fiddle.Call:
    given = {
        key: fiddle.NamedObject(value) if key in transformer_config.FUNCTIONS else value
        for key, value in fields.items()
    }
    adapted = {} if transform is None else {"model_transform": transform}
    arguments = {"config": fiddle.Call(classes.config, given), "tokenizer": tokenizer.call, **adapted}
    model = fiddle.Call(classes.model, arguments)
    return fiddle.Call(_ROOT, {"model": model})


def _dump(
    classes: Classes, fields: dict[str, Any], tokenizer: WrittenTokenizer, transform: fiddle.Call | None
) -> dict[str, Any]:
    """model.yaml, which NeMo does not read, but people and other tools do."""
    said = {
        key: transformer_config.named(value) if key in transformer_config.FUNCTIONS else fiddle.plain_of(value)
        for key, value in sorted(fields.items())
    }
    call = tokenizer.call
    return {
        "_target_": classes.model,
        "config": {"_target_": classes.config, **said},
        "model_transform": None if transform is None else {"_target_": transform.target, **transform.arguments},
        "optim": None,
        "tokenizer": {"_target_": call.target, **call.arguments} if call is not None else None,
    }
