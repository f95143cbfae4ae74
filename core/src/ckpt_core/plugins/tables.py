"""What a format declares of itself: the lines of its configs and the rows of its tensors, one kind of model at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ckpt_core.lazily import hints_in
from ckpt_core.lean import dataclass

if TYPE_CHECKING:
    from ckpt_core.config import Config
    from ckpt_core.layout import Table, Tables
else:
    hints_in(
        __name__,
        {
            "ckpt_core.config": "Config",
            "ckpt_core.layout": "Table Tables",
        },
    )


@dataclass(frozen=True)
class FamilyTables:
    """One kind of model as a format declares it; what `ckpt_tables` gives, in the order in which a writer prefers them.

    `name` is what the framework calls the kind (`LlamaForCausalLM`), `config` the lines of its config, if it has one,
    and `tables` hold its tensors, with the choices that their rows stand under. `like` names the kind that this one is but for its
    head: what all of such kinds have is said once.
    """

    name: str
    config: Config | None = None
    tables: Tables | Iterable[Table] = ()
    like: str = ""
