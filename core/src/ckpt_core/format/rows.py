"""The rows of the token embedding as files hold them: what says the padded vocabulary where a config does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_core.format.folder import WeightFile
from ckpt_core.layout import Table, parse
from ckpt_core.layout.bind import join
from ckpt_core.lean import dataclass

_EMBEDDING = "embedding.tokens.weight"


@dataclass(frozen=True, slots=True)
class EmbeddingRows:
    """Which stored tensor is the embedding, along which of its dimensions the vocabulary lies, and whether ranks divide it."""

    name: str
    dimension: int
    divided: bool

    @classmethod
    def of(cls, tables: Sequence[Table]) -> EmbeddingRows | None:
        """The embedding in some tables; None if no row of theirs holds it, or one that does not give it a dimension of its own."""
        for table in tables:
            for row in table.rows:
                if join(table.to, row.canonical) == _EMBEDDING and not row.copy:
                    names = parse(row.sentence).names_by_dim()
                    own = [number for number, found in enumerate(names) if set(found) == {"v"}]
                    if own:
                        divided = "v" in dict(row.splits).get("tp", "").split()
                        return cls(join(table.native, row.native), own[0], divided)
        return None

    def in_files(self, files: Iterable[WeightFile]) -> int | None:
        """How many rows the files hold, over all tensor parallel ranks; None if none of them holds the embedding."""
        held: dict[int, int] = {}
        for file in files:
            tensor = file.tensors.get(self.name)
            if tensor is not None and len(tensor.shape) > self.dimension:
                held.setdefault(file.numbers.get("tp", 0) if self.divided else 0, tensor.shape[self.dimension])
        return sum(held.values()) or None
