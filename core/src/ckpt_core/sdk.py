"""All that the author of a plugin imports, and all that the plugins of this project import."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core import architecture as schema
    from ckpt_core import company, errors, reading
    from ckpt_core import config as configs
    from ckpt_core import launch as launches
    from ckpt_core import layout as layouts
    from ckpt_core import ledger as ledgers
    from ckpt_core import rewrite as rewrites
    from ckpt_core import tensors as lazy
    from ckpt_core.architecture import Activation, Architecture, Facts, architecture_of, facts_of
    from ckpt_core.checkpoint import Adapter, Checkpoint, Target
    from ckpt_core.config import (
        Config,
        by_layer,
        custom,
        decided,
        derived,
        fact_is,
        ignore,
        key,
        key_is,
        nested,
        note,
        one_of,
        rules,
        same_as,
        tagged,
        values,
    )
    from ckpt_core.description import Description, RankTensors
    from ckpt_core.errors import CkptError, FormatError, Refusal
    from ckpt_core.format import Folder, Format
    from ckpt_core.layout import Table, drop, row
    from ckpt_core.plugins import judgement
    from ckpt_core.plugins.hookspecs import hookimpl
    from ckpt_core.plugins.request import FormatInfo, Option, ReadRequest, WriteRequest
    from ckpt_core.plugins.tables import FamilyTables
    from ckpt_core.storage import archive as trees
    from ckpt_core.storage import bytes as disk
    from ckpt_core.storage import chunks as chunked
    from ckpt_core.storage import containers, documents, dtypes
    from ckpt_core.storage import torch as torch_files
    from ckpt_core.storage.tensor import StoredTensor
    from ckpt_core.writing import TargetBuilder
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".architecture": ":schema Activation Architecture Facts architecture_of facts_of",
            ".checkpoint": "Adapter Checkpoint Target",
            ".company": ":company",
            ".config": ":configs Config by_layer custom decided derived fact_is ignore key key_is nested note one_of same_as tagged",
            ".config.rules": ":rules",
            ".config.values": ":values",
            ".description": "Description RankTensors",
            ".errors": ":errors CkptError FormatError Refusal",
            ".format": "Folder Format",
            ".launch": ":launches",
            ".layout": ":layouts Table drop row",
            ".ledger": ":ledgers",
            ".plugins.hookspecs": "hookimpl",
            ".plugins.judgement": ":judgement",
            ".plugins.request": "FormatInfo Option ReadRequest WriteRequest",
            ".plugins.tables": "FamilyTables",
            ".reading": ":reading",
            ".rewrite": ":rewrites",
            ".storage.archive": ":trees",
            ".storage.bytes": ":disk",
            ".storage.chunks": ":chunked",
            ".storage.containers": ":containers",
            ".storage.documents": ":documents",
            ".storage.dtypes": ":dtypes",
            ".storage.tensor": "StoredTensor",
            ".storage.torch": ":torch_files",
            ".tensors": ":lazy",
            ".writing": "TargetBuilder",
        },
    )

__all__ = [
    "Activation",
    "Adapter",
    "Architecture",
    "Checkpoint",
    "CkptError",
    "Config",
    "Description",
    "Facts",
    "FamilyTables",
    "Folder",
    "Format",
    "FormatError",
    "FormatInfo",
    "Option",
    "RankTensors",
    "ReadRequest",
    "Refusal",
    "StoredTensor",
    "Table",
    "Target",
    "TargetBuilder",
    "WriteRequest",
    "architecture_of",
    "by_layer",
    "chunked",
    "company",
    "configs",
    "containers",
    "custom",
    "decided",
    "derived",
    "disk",
    "documents",
    "drop",
    "dtypes",
    "errors",
    "fact_is",
    "facts_of",
    "hookimpl",
    "ignore",
    "judgement",
    "key",
    "key_is",
    "launches",
    "layouts",
    "lazy",
    "ledgers",
    "nested",
    "note",
    "one_of",
    "reading",
    "rewrites",
    "row",
    "rules",
    "same_as",
    "schema",
    "tagged",
    "torch_files",
    "trees",
    "values",
]
