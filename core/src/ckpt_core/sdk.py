"""All that the author of a plugin imports, and all that the plugins of this project import."""

from ckpt_core import architecture as schema
from ckpt_core import company, errors, reading
from ckpt_core import config as configs
from ckpt_core import launch as launches
from ckpt_core import layout as layouts
from ckpt_core import ledger as ledgers
from ckpt_core import rewrite as rewrites
from ckpt_core import tensors as lazy
from ckpt_core.architecture import Activation, Architecture, Facts, PerLayer, RotaryKind, architecture_of, facts_of
from ckpt_core.checkpoint import Checkpoint, Loss, Placement, Provenance, Sidecar, Target
from ckpt_core.config import (
    Config,
    Custom,
    Entry,
    by_layer,
    custom,
    decided,
    derived,
    fact_is,
    ignore,
    implied,
    key,
    key_is,
    nested,
    note,
    one_of,
    rules,
    same_as,
    tagged,
    uniform,
    values,
)
from ckpt_core.description import Averaged, Description, Fragment, RankTensors, Vocabulary
from ckpt_core.errors import CkptError, FormatError, Problems, Refusal
from ckpt_core.format import Folder, Format
from ckpt_core.layout import Native, Table, drop, row
from ckpt_core.ledger import Ledger
from ckpt_core.plugins import FamilyTables, FormatInfo, Option, ReadRequest, WriteRequest, hookimpl, judgement
from ckpt_core.reading import IGNORE_KEYS, check_agreement, given, without_ignored
from ckpt_core.receipt import Receipt, original_of, receipt_of
from ckpt_core.storage import archive as trees
from ckpt_core.storage import bytes as disk
from ckpt_core.storage import chunks as chunked
from ckpt_core.storage import containers, documents, dtypes, safetensors
from ckpt_core.storage import torch as torch_files
from ckpt_core.storage.containers import SAFETENSORS, TORCH
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.tensors import ParameterBuilder, Shard
from ckpt_core.tensors.stored import storage_dtype
from ckpt_core.writing import TargetBuilder

__all__ = [
    "IGNORE_KEYS",
    "SAFETENSORS",
    "TORCH",
    "Activation",
    "Architecture",
    "Averaged",
    "Checkpoint",
    "CkptError",
    "Config",
    "Custom",
    "DType",
    "Description",
    "Entry",
    "Facts",
    "FamilyTables",
    "Folder",
    "Format",
    "FormatError",
    "FormatInfo",
    "Fragment",
    "Ledger",
    "Loss",
    "Native",
    "Option",
    "ParameterBuilder",
    "PerLayer",
    "Placement",
    "Problems",
    "Provenance",
    "RankTensors",
    "ReadRequest",
    "Receipt",
    "Refusal",
    "RotaryKind",
    "Shard",
    "Sidecar",
    "StoredTensor",
    "Table",
    "Target",
    "TargetBuilder",
    "Vocabulary",
    "WriteRequest",
    "architecture_of",
    "by_layer",
    "check_agreement",
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
    "given",
    "hookimpl",
    "ignore",
    "implied",
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
    "original_of",
    "reading",
    "receipt_of",
    "rewrites",
    "row",
    "rules",
    "safetensors",
    "same_as",
    "schema",
    "storage_dtype",
    "tagged",
    "torch_files",
    "trees",
    "uniform",
    "values",
    "without_ignored",
]
