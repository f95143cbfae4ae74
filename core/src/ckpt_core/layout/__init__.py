"""How tensors are arranged: layout sentences, tables of rows, splits over ranks, config fields."""

from ckpt_core.layout.affine import Link, Tile
from ckpt_core.layout.bind import Layout, Native, Piece, account
from ckpt_core.layout.fields import (
    Codec,
    Config,
    Custom,
    Entry,
    Field,
    Note,
    const,
    custom,
    field,
    fixed,
    ignore,
    implied,
    note,
    one_of,
    same_as,
    uniform,
)
from ckpt_core.layout.maps import Add, NegExp, Scale, ValueMap, neg_exp, plus_one, scale
from ckpt_core.layout.sentence import Product, Sentence, SentenceError, Sum, parse
from ckpt_core.layout.split import Ranks, SplitError
from ckpt_core.layout.table import Drop, Row, Table, drop, row

__all__ = [
    "Add", "Codec", "Config", "Custom", "Drop", "Entry", "Field", "Layout", "Link", "Native", "NegExp", "Note", "Piece", "Product", "Ranks", "Row", "Scale", "Sentence", "SentenceError", "SplitError",
    "Sum", "Table", "Tile", "ValueMap", "account", "const", "custom", "drop", "field", "fixed", "ignore", "implied", "neg_exp", "note", "one_of", "parse", "plus_one", "row", "same_as", "scale", "uniform",
]  # fmt: skip
