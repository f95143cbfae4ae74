"""Config files as tables: each line maps keys of a framework to facts of the architecture, both ways, and says so in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.config.decisions import Choice, Custom, Decided, choice, custom, decided
    from ckpt_core.config.entry import LEFT_OUT, REQUIRED, Entry, same_as, uniform
    from ckpt_core.config.layers import ByLayer, InOtherLayers, by_layer, in_other_layers
    from ckpt_core.config.lenses import (
        AllAgree,
        Derived,
        FactIs,
        Ignore,
        Implied,
        Key,
        KeyIs,
        Note,
        Repeats,
        all_agree,
        derived,
        elsewhere,
        fact_as,
        fact_is,
        ignore,
        implied,
        key,
        key_is,
        note,
        repeats,
    )
    from ckpt_core.config.nesting import Nested, Switch, Tagged, Where, nested, switched, tagged, where
    from ckpt_core.config.pairs import pairs_by_hand
    from ckpt_core.config.said import Said, layers_of, value_of
    from ckpt_core.config.table import Config
    from ckpt_core.config.values import Codec, ValueType, one_of
    from ckpt_core.config.views import TableError
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".decisions": "Choice Custom Decided choice custom decided",
            ".entry": "LEFT_OUT REQUIRED Entry same_as uniform",
            ".layers": "ByLayer InOtherLayers by_layer in_other_layers",
            ".lenses": "AllAgree Derived FactIs Ignore Implied Key KeyIs Note Repeats all_agree derived elsewhere fact_as fact_is ignore implied key key_is note repeats",
            ".nesting": "Nested Switch Tagged Where nested switched tagged where",
            ".pairs": "pairs_by_hand",
            ".said": "Said layers_of value_of",
            ".table": "Config",
            ".values": "Codec ValueType one_of",
            ".views": "TableError",
        },
    )

__all__ = [
    "LEFT_OUT", "REQUIRED", "AllAgree", "ByLayer", "Choice", "Codec", "Config", "Custom", "Decided", "Derived", "Entry", "FactIs", "Ignore", "Implied",
    "InOtherLayers", "Key", "KeyIs", "Nested", "Note", "Repeats", "Said", "Switch", "TableError", "Tagged", "ValueType", "Where", "all_agree", "by_layer",
    "choice", "custom", "decided", "derived", "elsewhere", "fact_as", "fact_is", "ignore", "implied", "in_other_layers", "key", "key_is", "layers_of", "nested", "note",
    "one_of", "pairs_by_hand", "repeats", "same_as", "switched", "tagged", "uniform", "value_of", "where",
]  # fmt: skip
