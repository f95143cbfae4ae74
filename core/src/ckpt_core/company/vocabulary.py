"""How many rows of an embedding are tokens, where a format keeps the padded number alone.

Frameworks pad the vocabulary to a multiple that their ranks can share. Rows of padding never become tokens in silence:
the number is asked for, is recorded, follows from the tokenizer by the framework's own rule, or is said to be assumed.
"""

from __future__ import annotations

from collections.abc import Callable

from ckpt_core.checkpoint import Checkpoint, Loss
from ckpt_core.company.tokenizer import size_of
from ckpt_core.errors import CkptError
from ckpt_core.plugins import ReadRequest
from ckpt_core.receipt.origin import with_vocabulary


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
    if tokens is None or said or checkpoint.recorded or tokens.vocabulary < tokens.padded_vocabulary:
        return checkpoint
    rows = tokens.padded_vocabulary
    count = tokenizer if tokenizer is not None else _count(checkpoint)
    if count is not None and 0 < count <= rows and padded(count) == rows:
        checkpoint.evidence.append(f"true vocabulary {count}: the tokenizer's")
        return with_vocabulary(checkpoint, count) if count < rows else checkpoint
    why = (
        "no tokenizer says how many of the rows are padding: -o vocab=N"
        if count is None
        else f"the tokenizer's {count} tokens do not lead to {rows} rows: tokens were added, or it is another one"
    )
    checkpoint.losses.append(Loss("assumed", f"a vocabulary of {rows}", why))
    return checkpoint


def _count(checkpoint: Checkpoint) -> int | None:
    """How many tokens the tokenizer among the companions has; a damaged one says nothing."""
    try:
        return size_of(checkpoint.sidecars)
    except CkptError:
        return None
