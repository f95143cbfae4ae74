"""How many rows of an embedding are tokens, where a format keeps the padded number alone.

Frameworks pad the vocabulary to a multiple that their ranks can share. Rows of padding never become tokens in silence:
the number is asked for, is recorded, follows from the tokenizer by the framework's own rule, or is said to be assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_core.architecture import parameters
from ckpt_core.checkpoint import Checkpoint, Loss
from ckpt_core.company.tokenizer import size_beyond, size_of
from ckpt_core.errors import CkptError
from ckpt_core.lazily import hints_in

if TYPE_CHECKING:
    from ckpt_core.plugins.request import ReadRequest
else:
    hints_in(__name__, {"ckpt_core.plugins.request": "ReadRequest"})


def asked_vocabulary(request: ReadRequest) -> int | None:
    """The number of tokens that the user gives: with `-o vocab=N`, else by `--config`."""
    given = request.architecture.tokens if request.architecture is not None else None
    asked = request.options.get("vocab")
    return int(asked) if asked is not None else given.vocabulary if given is not None else None


def settled(
    checkpoint: Checkpoint,
    request: ReadRequest,
    *,
    padded: Callable[[int], int],
    said: bool = False,
    tokenizer: int | None = None,
) -> Checkpoint:
    """`checkpoint` with its true vocabulary; a loss says so where it takes all rows for tokens without proof.

    `padded` is the framework's rule: how many rows it gives to a number of tokens. `said`: the files
    themselves prove the number they give. `tokenizer`: how many tokens the tokenizer has, where no companion can say it.
    """
    asked = asked_vocabulary(request)
    if asked is not None:
        return with_vocabulary(checkpoint, asked)
    tokens = checkpoint.architecture.tokens
    if tokens is None or said or checkpoint.provenance.recorded or tokens.vocabulary < tokens.padded_vocabulary:
        return checkpoint
    rows = tokens.padded_vocabulary
    count = tokenizer if tokenizer is not None else _count(checkpoint)
    if count is not None and 0 < count <= rows and padded(count) == rows:
        checkpoint = checkpoint.because(f"true vocabulary {count}: the tokenizer's")
        return with_vocabulary(checkpoint, count) if count < rows else checkpoint
    why = (
        "no tokenizer says how many of the rows are padding: -o vocab=N"
        if count is None
        else f"the tokenizer's {count} tokens do not lead to {rows} rows: tokens were added, or it is another one"
    )
    return checkpoint.because(losses=[Loss("assumed", f"a vocabulary of {rows}", why)])


def with_vocabulary(checkpoint: Checkpoint, vocabulary: int) -> Checkpoint:
    """`checkpoint` with its true vocabulary known: rows beyond it are padding."""
    tokens = checkpoint.architecture.tokens
    if tokens is None or not 0 < vocabulary <= tokens.padded_vocabulary:
        raise CkptError(
            "the vocabulary does not fit the embedding",
            file=checkpoint.path,
            found=vocabulary,
            expected=f"1 to {tokens.padded_vocabulary if tokens else 0}",
        )
    architecture = replace(checkpoint.architecture, tokens=replace(tokens, vocabulary=vocabulary))
    known = parameters(architecture)
    tensors = {name: replace(tensor, parameter=known[name]) for name, tensor in checkpoint.tensors.items()}
    training = None if checkpoint.training is None else checkpoint.training.of_parameters(known)
    return replace(checkpoint, architecture=architecture, tensors=tensors, training=training)


def with_sound_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint`, with a loss that says so where its tokenizer has ids that its vocabulary does not have.

    Such a tokenizer goes along all the same: the wild has models whose added tokens never got a row. It reads the tokenizer's files
    whole, which are megabytes to fetch from a store: there a plan asks for headers alone, and does without it.
    """
    tokens = checkpoint.architecture.tokens
    try:
        size = None if tokens is None else size_beyond(checkpoint.sidecars, tokens.vocabulary)
    except CkptError:  # a damaged one says nothing
        size = None
    if tokens is None or size is None:
        return checkpoint
    reason = (
        f"its ids go up to {size - 1}, and those of the vocabulary to {tokens.vocabulary - 1}: a text with a token beyond it "
        "makes a framework fail, or reads a row of padding. Is it another model's? Then put the right one there. Were tokens "
        "added to it? Then give them rows first, with resize_token_embeddings of transformers"
    )
    return checkpoint.because(losses=[Loss("assumed", "that the tokenizer is the model's", reason)])


def _count(checkpoint: Checkpoint) -> int | None:
    """How many tokens the tokenizer among the companions has; a damaged one says nothing."""
    try:
        return size_of(checkpoint.sidecars)
    except CkptError:
        return None
