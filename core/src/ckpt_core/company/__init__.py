"""What a model comes with besides its tensors: tokenizer, ids of special tokens, generation config, licence."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Sidecar
    from ckpt_core.company.companions import (
        FOLDERS,
        OF_TRAINING,
        companions_of,
        files_below,
        files_in,
        is_companion,
        known_ids,
    )
    from ckpt_core.company.image_processor import PROCESSOR, processor_file, processor_settings
    from ckpt_core.company.tokenizer import GENERATION, ROLES, has_tokenizer, is_token, pieces_of, size_of
    from ckpt_core.company.vocabulary import asked_vocabulary, settled, with_vocabulary
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            "ckpt_core.checkpoint": "Sidecar",
            ".companions": "FOLDERS OF_TRAINING companions_of files_below files_in is_companion known_ids",
            ".image_processor": "PROCESSOR processor_file processor_settings",
            ".tokenizer": "GENERATION ROLES has_tokenizer is_token pieces_of size_of",
            ".vocabulary": "asked_vocabulary settled with_vocabulary",
        },
    )

__all__ = [
    "FOLDERS",
    "GENERATION",
    "OF_TRAINING",
    "PROCESSOR",
    "ROLES",
    "Sidecar",
    "asked_vocabulary",
    "companions_of",
    "files_below",
    "files_in",
    "has_tokenizer",
    "is_companion",
    "is_token",
    "known_ids",
    "pieces_of",
    "processor_file",
    "processor_settings",
    "settled",
    "size_of",
    "with_vocabulary",
]
