"""Reading an adapter: the checkpoint of its base, with the adapter merged into it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core.sdk import (
    Checkpoint,
    CkptError,
    FormatError,
    ReadRequest,
    company,
    disk,
    errors,
    lazy,
    ledgers,
    reading,
    schema,
)
from ckpt_hf.sdk import ModelInMemory, model_in_memory
from ckpt_peft.alone import read_alone
from ckpt_peft.files import Files, companions, open_files
from ckpt_peft.keys import Contents, sorted_out
from ckpt_peft.merge import EMBEDDING, HEAD, Merger
from ckpt_peft.settings import Settings, enter, read_settings

_OF_TOKENIZER = ledgers.Reason(
    "tokenizer of the base", "the adapter has its own, which is the one that it was trained with"
)
_AGAIN = ledgers.Reason("tensors that are saved twice", "they are equal to those under the names of the model")
_ORIGINAL = ledgers.Reason(
    "tensors from before the training", "those that were trained, which are saved too, took their place"
)
_NOT_OF_TOKENIZER = (company.GENERATION, company.PROCESSOR)


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The merged model of the adapter at `path` and of `-o base`; without a base the adapter, where it is wanted alone, or a `UsageError`."""
    if request.weights == "master":
        raise errors.NotCarried("an adapter has no fp32 masters", file=path, fix="use --weights model")
    files = open_files(path, request)
    base = request.options.get("base")
    if not isinstance(base, Checkpoint):
        found = read_alone(files, path, request) if request.alone else None
        if found is None:
            raise lacks_base(files, request.alone)
        return found
    settings = read_settings(files.config, files.config_file, bool(request.options.get("residual_base")))
    check_revision(settings, base, files)
    if not files.tensors:
        raise FormatError("the adapter has no tensors", file=files.weights, expected="pairs of lora_A and lora_B")
    contents = sorted_out(files.named, files.weights)
    base, model = _with_vocabulary(base, model_in_memory(base), contents, files)
    merger = Merger(model, settings, files.weights, files.states, exact=request.options.get("merge") == "fp32")
    merger.check_again(contents)
    merger.replace_saved(contents)
    merger.add_all(contents.adapted)
    merger.check_whole()
    enter(files.config, files.config_file, files.ledger)
    for reason, left in ((_AGAIN, contents.again), (_ORIGINAL, contents.originals)):
        for named in left.values():
            files.ledger.left(reason, files.weights, named.key)
    saved = _saved(merger)
    return merged_checkpoint("peft", path, base, merger, files.states, _sidecars(files, base), files.ledger, saved)


def merged_checkpoint(
    format: str,
    path: str,
    base: Checkpoint,
    merger: Merger,
    states: Sequence[disk.FileState],
    sidecars: Mapping[str, company.Sidecar],
    ledger: ledgers.Ledger,
    evidence: Iterable[str] = (),
) -> Checkpoint:
    """The checkpoint that a merger made of a base: read from the base's files and from the adapter's (`states`).

    Raises every problem of the merge. `ledger` is that of the adapter; `evidence` is what its reading rests on besides.
    """
    tensors = merger.finish()
    ledger.joined(base.ledger)
    known = base.provenance
    return Checkpoint(
        format,
        path,
        merger.architecture,
        tensors,
        [*base.files, *(state for state in states if state not in base.files)],
        notes=base.notes,
        sidecars=sidecars,
        ledger=ledger,
        provenance=reading.Provenance(
            hints={},
            origins={**known.origins, base.format: known.hints},
            evidence=[
                f"base: {base.path} of format {base.format}, a {merger.model.class_name}",
                *(f"base: {one}" for one in known.evidence),
                *_evidence(merger),
                *evidence,
            ],
            losses=[*known.losses, *_losses(merger.settings, base, merger)],
            explanations=known.explanations,
        ),
    )


def lacks_base(files: Files, alone: bool = False) -> errors.UsageError:
    """What to give, where no base is given; `alone`: only what the base is, and none of its weights, is needed."""
    named = files.config.get("base_model_name_or_path")
    revision = files.config.get("revision")
    of_hub = isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named, re.ASCII) and not os.path.exists(named)
    address = f"hf://{named}{f'@{revision}' if revision else ''}"
    return errors.UsageError(
        "this is an adapter, which is not a model without its base",
        file=files.folder,
        found=f"an adapter of {named!r}{f', revision {revision!r}' if revision else ''}"
        if named
        else "an adapter that names no base",
        fix="give the config.json of the base with --config: its weights are not needed"
        + (f" (--config {address}, if it is that of the hub)" if of_hub else "")
        if alone
        else "give the folder of the base, in any format: -o base=FOLDER"
        + (f", or -o base={address}, if it is that of the hub" if of_hub else ""),
    )


def check_revision(settings: Settings, base: Checkpoint, files: Files) -> None:
    """Raise an error for a base that is in a hub's cache under another commit than the one that the adapter names."""
    repository, snapshots, commit = os.path.abspath(base.path).rpartition("/snapshots/")
    wanted = settings.revision
    if snapshots and wanted and len(wanted) == len(commit) == 40 and wanted != commit:
        raise CkptError(
            "the base is of another revision than the one that the adapter was trained on",
            file=files.config_file,
            found=f"commit {commit} of {os.path.basename(repository)}",
            expected=f"revision {wanted}",
            fix="give the base of that revision, or leave the key out with -o ignore_keys=revision",
        )


def _with_vocabulary(
    base: Checkpoint, model: ModelInMemory, contents: Contents, files: Files
) -> tuple[Checkpoint, ModelInMemory]:
    """The base and its model with as many tokens as the saved embedding has rows: tokens were added to it before the training.

    Raises an error where not every tensor that has a row for each token is saved with as many rows.
    """
    tokens = base.architecture.tokens
    names = model.names
    rows = {
        name: (native, named.shape[0])
        for name, named in contents.saved.items()
        if (native := names.get(name)) is not None
        and {piece.parameter for piece in native.pieces} <= {EMBEDDING, HEAD, "head.bias"}
        and len(named.shape) == len(native.shape)
        and named.shape[1:] == native.shape[1:]
    }
    if tokens is None or all(native.shape[0] == found for native, found in rows.values()):
        return base, model
    counts = {found for _, found in rows.values()}
    held = {piece.parameter for native, _ in rows.values() for piece in native.pieces}
    missing = [name for name in (EMBEDDING, HEAD, "head.bias") if name in base.tensors and name not in held]
    if len(counts) > 1 or missing:
        raise FormatError(
            "the adapter changes the number of tokens, and not of every tensor that has a row for each",
            file=files.weights,
            found=", ".join(f"{name} with {found} rows" for name, (_, found) in rows.items()),
            expected=f"as many rows of {', '.join(missing)}" if missing else "one number of rows",
            fix="give the base that the adapter was trained on; if it is this one, save the adapter with save_embedding_layers=True",
        )
    (count,) = counts
    architecture = replace(base.architecture, tokens=replace(tokens, vocabulary=count, padded_vocabulary=count))
    tensors = lazy.with_rows(base.tensors, schema.parameters(architecture))
    said = (
        f"vocabulary of {count} tokens: the adapter's embedding has as many rows, the base's {tokens.padded_vocabulary}"
    )
    longer = replace(base, architecture=architecture, tensors=tensors).because(said)
    return longer, model_in_memory(longer)


def _sidecars(files: Files, base: Checkpoint) -> Mapping[str, company.Sidecar]:
    """The files that go along: the tokenizer is the adapter's, where it has one, and everything else of the base's."""
    own = companions(files.folder, files.ledger)
    found = dict(base.sidecars)
    if company.has_tokenizer(own):
        for name in [name for name in found if company.is_companion(name) and name not in _NOT_OF_TOKENIZER]:
            file = found.pop(name)
            if name not in own:
                files.ledger.left(_OF_TOKENIZER, file.path, size=file.size)
    return found | own


def _evidence(merger: Merger) -> Iterator[str]:
    settings = merger.settings
    kind = "DoRA" if settings.dora else "LoRA"
    scales = sorted({settings.scale(target.looked_up) for target in merger.adapted})
    said = ", ".join(f"{scale:.6g}" for scale in scales[:4]) + (
        f" and {len(scales) - 4} more" if len(scales) > 4 else ""
    )
    if merger.adapted:
        yield f"merged: {kind} of {errors.plural(len(merger.adapted), 'module')} into {errors.plural(len(merger.updates), 'tensor')}, scale {said}"
    yield from merger.rewrites
    yield from (f"rewritten before the merge: {one}" for one in merger.model.rewrites)


def _saved(merger: Merger) -> Iterator[str]:
    if merger.saved:
        more = f" and {len(merger.saved) - 4} more" if len(merger.saved) > 4 else ""
        yield f"replaced by what the adapter saved: {', '.join(sorted(merger.saved)[:4])}{more}"


def _losses(settings: Settings, base: Checkpoint, merger: Merger) -> Iterator[ledgers.Loss]:
    rounded = Counter(merger.tensors[name].dtype.name for name in merger.updates)
    for dtype, count in rounded.items():
        if dtype == "fp32":
            continue
        yield ledgers.Loss(
            "rounded",
            f"{count} merged tensors",
            f"computed in float32 and rounded to {dtype}, the dtype of the base, as PEFT does; -o merge=fp32 keeps the float32 sums",
        )
    if settings.bias == "lora_only" and merger.own_biases and not merger.own_biases & set(merger.saved):
        yield ledgers.Loss(
            "assumed",
            "biases of the base",
            "bias=lora_only trained those of the adapted modules, and the adapter has none: PEFT did not always save them",
        )
    if not _is_named(settings.base, base.path):
        yield ledgers.Loss(
            "assumed",
            f"{base.path} is the base",
            f"the adapter names {settings.base!r}" if settings.base else "the adapter names none",
        )
    if settings.revision and "/snapshots/" not in os.path.abspath(base.path):
        yield ledgers.Loss(
            "assumed", f"the base is of revision {settings.revision!r}", "nothing in its folder says its revision"
        )


def _is_named(name: str | None, path: str) -> bool:
    """Whether a base is at the path that the adapter names, or is a folder, or a snapshot of a hub's cache, of that name."""
    if name is None:
        return False
    place = os.path.abspath(path)
    last = os.path.basename(name.rstrip("/"))
    return (
        os.path.abspath(name) == place
        or os.path.basename(place) == last
        or f"/models--{name.replace('/', '--')}/" in place
    )
