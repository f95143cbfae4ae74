"""How tensors are arranged: layout sentences, tables of rows, splits over ranks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.layout.affine import Link, Tile, boxes_of_range
    from ckpt_core.layout.bind import BoundTables, Native, Part, account
    from ckpt_core.layout.choices import Choice, Chosen, Fragment, Under, Value, fragment, words_of
    from ckpt_core.layout.maps import Add, NegExp, Scale, ValueMap, neg_exp, plus_one, scale
    from ckpt_core.layout.sentence import Product, Sentence, SentenceError, Sum, parse
    from ckpt_core.layout.split import Ranks, SplitError
    from ckpt_core.layout.table import Drop, Row, Table, Tables, drop, matches, row
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".affine": "Link Tile boxes_of_range",
            ".bind": "BoundTables Native Part account",
            ".choices": "Choice Chosen Fragment Under Value fragment words_of",
            ".maps": "Add NegExp Scale ValueMap neg_exp plus_one scale",
            ".sentence": "Product Sentence SentenceError Sum parse",
            ".split": "Ranks SplitError",
            ".table": "Drop Row Table Tables drop matches row",
        },
    )

__all__ = [
    "Add",
    "BoundTables",
    "Choice",
    "Chosen",
    "Drop",
    "Fragment",
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
    "Tables",
    "Tile",
    "Under",
    "Value",
    "ValueMap",
    "account",
    "boxes_of_range",
    "drop",
    "fragment",
    "matches",
    "neg_exp",
    "parse",
    "plus_one",
    "row",
    "scale",
    "words_of",
]  # fmt: skip
