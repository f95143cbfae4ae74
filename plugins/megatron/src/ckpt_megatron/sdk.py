"""Megatron's dialect: what a plugin whose framework trains Megatron's models imports.

NeMo, Megatron-Bridge, Megatron-DeepSpeed and others call the tensors of a GPTModel by one of its versions' names, divide them over
ranks as it does, pad its vocabulary, and store its arguments or its config class. What they share is said here, and what is their own, in
their plugins.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_megatron import contents, fiddle, lightning, masters, transformer_config, weights
    from ckpt_megatron.args.latent_rotary import check_any_version
    from ckpt_megatron.args.mlp import EXPERTS as EXPERT_FACTS
    from ckpt_megatron.args.mlp import read_experts, write_experts
    from ckpt_megatron.args.positions import learned_or_rotary
    from ckpt_megatron.args.router import ROUTER_KEYS
    from ckpt_megatron.bridge.files import find_folder as bridge_folder
    from ckpt_megatron.bridge.read import architecture_of_run
    from ckpt_megatron.bridge.write import run_of
    from ckpt_megatron.builder import GPTBuilder
    from ckpt_megatron.extra_states import linear_extra_states, stacked_extra_states
    from ckpt_megatron.files import DIST_METADATA
    from ckpt_megatron.found import FolderContents, stored_args
    from ckpt_megatron.frequencies import inverse_frequencies
    from ckpt_megatron.layout import DIVISIBLE, FileLayout, keeping_rows, namespace, padded
    from ckpt_megatron.names import LegacySpelling, is_fused, layer_of, renumbered, te
    from ckpt_megatron.names import plain as plain_name
    from ckpt_megatron.optimizer import groups as optimizer_groups
    from ckpt_megatron.optimizer.model_space import DistStates
    from ckpt_megatron.read import choices_of_tensors, rank_tensors, training_of
    from ckpt_megatron.read_dist import read_dist
    from ckpt_megatron.read_dist import split as dist_tensors
    from ckpt_megatron.rewrites import expressed_for, with_biases
    from ckpt_megatron.stages import layers_of_stages
    from ckpt_megatron.write_dist import CONTENT, backend_document, common_document, dist_files, dist_place, write_dist

# Where each name is, `name:other` where it is called otherwise here: whoever needs one of them, to tell whether a file is a
# checkpoint, does not import them all.
_HOMES = {
    "args.latent_rotary": "check_any_version",
    "args.mlp": "EXPERTS:EXPERT_FACTS read_experts write_experts",
    "args.positions": "learned_or_rotary",
    "args.router": "ROUTER_KEYS",
    "bridge.files": "find_folder:bridge_folder",
    "bridge.read": "architecture_of_run",
    "bridge.write": "run_of",
    "builder": "GPTBuilder",
    "extra_states": "linear_extra_states stacked_extra_states",
    "files": "DIST_METADATA",
    "found": "FolderContents stored_args",
    "frequencies": "inverse_frequencies",
    "layout": "DIVISIBLE FileLayout keeping_rows namespace padded",
    "names": "LegacySpelling is_fused layer_of renumbered te plain:plain_name",
    "optimizer": "groups:optimizer_groups",
    "optimizer.model_space": "DistStates",
    "read": "choices_of_tensors rank_tensors training_of",
    "read_dist": "read_dist split:dist_tensors",
    "rewrites": "expressed_for with_biases",
    "stages": "layers_of_stages",
    "write_dist": "CONTENT backend_document common_document dist_files dist_place write_dist",
}
_PLACES = {
    called or name: (module, name)
    for module, names in _HOMES.items()
    for name, _, called in (one.partition(":") for one in names.split())
}

__all__ = [
    "CONTENT",
    "DIST_METADATA",
    "DIVISIBLE",
    "EXPERT_FACTS",
    "ROUTER_KEYS",
    "DistStates",
    "FileLayout",
    "FolderContents",
    "GPTBuilder",
    "LegacySpelling",
    "architecture_of_run",
    "backend_document",
    "bridge_folder",
    "check_any_version",
    "choices_of_tensors",
    "common_document",
    "contents",
    "dist_files",
    "dist_place",
    "dist_tensors",
    "expressed_for",
    "fiddle",
    "inverse_frequencies",
    "is_fused",
    "keeping_rows",
    "layer_of",
    "layers_of_stages",
    "learned_or_rotary",
    "lightning",
    "linear_extra_states",
    "masters",
    "namespace",
    "optimizer_groups",
    "padded",
    "plain_name",
    "rank_tensors",
    "read_dist",
    "read_experts",
    "renumbered",
    "run_of",
    "stacked_extra_states",
    "stored_args",
    "te",
    "training_of",
    "transformer_config",
    "weights",
    "with_biases",
    "write_dist",
    "write_experts",
]

if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> object:
        """Load a name on first use; those without a place are modules."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, inside = _PLACES.get(name, (name, ""))
        found = import_module(f"ckpt_megatron.{module}")
        return getattr(found, inside) if inside else found
