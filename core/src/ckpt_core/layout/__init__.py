"""How tensors are arranged: layout sentences, tables of rows, splits over ranks."""

from ckpt_core.layout.affine import Link, Tile
from ckpt_core.layout.bind import BoundTables, Native, Part, account
from ckpt_core.layout.maps import Add, NegExp, Scale, ValueMap, neg_exp, plus_one, scale
from ckpt_core.layout.sentence import Product, Sentence, SentenceError, Sum, parse
from ckpt_core.layout.split import Ranks, SplitError
from ckpt_core.layout.table import Drop, Row, Table, drop, matches, row

__all__ = [
    "Add",
    "BoundTables",
    "Drop",
    "Link",
    "Native",
    "NegExp",
    "Part",
    "Product",
    "Ranks",
    "Row",
    "Scale",
    "Sentence",
    "SentenceError",
    "SplitError",
    "Sum",
    "Table",
    "Tile",
    "ValueMap",
    "account",
    "drop",
    "matches",
    "neg_exp",
    "parse",
    "plus_one",
    "row",
    "scale",
]  # fmt: skip
