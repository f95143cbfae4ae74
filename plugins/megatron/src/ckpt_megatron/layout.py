"""What was decided about the files that are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Refusal, WriteRequest, dtypes, schema, torch_files
from ckpt_megatron.files import FSDP_DTENSOR
from ckpt_megatron.names import LegacySpelling

DIVISIBLE = "make_vocab_size_divisible_by"
"""The argument that says what the rows of an embedding are a multiple of, times the tensor parallel ranks."""


def padded(vocabulary: int, multiple: int, tp: int) -> int:
    """The rows of an embedding of so many tokens, `multiple` being `DIVISIBLE` (training/tokenizer, _vocab_size_with_padding).

    >>> padded(101, 8, 2)
    112
    """
    return math.ceil(vocabulary / (multiple * tp)) * multiple * tp


# What a run may have been told to pad its vocabulary to, the usual one first.
_MULTIPLES = (128, 64, 32, 16, 8, 4, 2, 1)


def keeping_rows(vocabulary: int, rows: int, usual: int, tp: int) -> int | None:
    """The multiple that pads a vocabulary to as many rows as a run was trained with, of those that frameworks are told; `usual` first. None if there is none.

    >>> keeping_rows(101, 112, 128, 2), keeping_rows(101, 112, 128, 3)
    (8, None)
    """
    fitting = (multiple for multiple in (usual, *_MULTIPLES) if padded(vocabulary, multiple, tp) == rows)
    return next(fitting, None)


@schema.dataclass(frozen=True)
class FileLayout:
    """The container, the names and the ranks of a checkpoint; `multiple` is `DIVISIBLE`.

    `within` is the folder of the files where it is not that of an iteration.
    """

    container: str
    names: str
    grouped: bool
    tp: int
    pp: int
    ep: int
    vpp: int
    multiple: int
    iteration: int | None
    version: float = 3.0
    spelling: LegacySpelling = LegacySpelling()
    within: str | None = None

    @classmethod
    def of(cls, request: WriteRequest, hints: Mapping[str, Any]) -> FileLayout:
        """What the options ask for, else what a source of this format had (`hints`), else what most people use."""
        options = request.options
        names = str(options.get("names") or hints.get("names") or "te")
        usual = "grouped" if names == "te" else "sequential"
        container = str(options.get("container") or hints.get("container") or "torch_dist")
        version, spelling = 3.0, LegacySpelling()
        if names == "legacy":
            if options.get("container") not in (None, "torch"):
                raise Refusal(
                    "the models before Megatron-Core have torch files alone",
                    found=f"-o container={options['container']} -o names=legacy",
                )
            container = "torch"
            version = float(hints.get("checkpoint_version", 3.0))
            spelling = LegacySpelling(**hints.get("spelling", {}))
        return cls(
            container,
            names,
            (options.get("experts") or hints.get("experts") or usual) == "grouped",
            request.tp or 1,
            request.pp or 1,
            request.ep or 1,
            int(options.get("vpp") or 1),
            int(options.get(DIVISIBLE) or hints.get(DIVISIBLE) or 128),
            options.get("iteration"),
            version,
            spelling,
        )

    def stored_in(self, asked: dtypes.DType | None) -> dtypes.DType | None:
        """The dtype of all tensors, or None where each keeps its own: Megatron-FSDP stores its fp32 main weights, unless another is asked for."""
        return dtypes.FP32 if asked is None and self.container == FSDP_DTENSOR else asked

    @property
    def folder(self) -> str:
        if self.within is not None:
            return self.within
        return "release" if self.iteration is None else f"iter_{self.iteration:07d}"

    @property
    def parallel(self) -> dict[str, int]:
        return {"tp": self.tp, "pp": self.pp, "ep": self.ep} | ({"vpp": self.vpp} if self.vpp > 1 else {})

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations are split over the tensor parallel ranks: Megatron-Core builds no config of tensor and expert
        parallel ranks without it (model_parallel_config.py).
        """
        return self.tp > 1 and self.ep > 1

    def args(self, dtype: dtypes.DType, tokenizer: str | None, *, moe: bool) -> dict[str, object]:
        """The args that do not describe the model, but that a loader asks for. `moe`: the model has experts."""
        return {
            "tensor_model_parallel_size": self.tp,
            **({"model_parallel_size": self.tp} if self.version < 3 else {}),
            "pipeline_model_parallel_size": self.pp,
            "expert_model_parallel_size": self.ep,
            "expert_tensor_parallel_size": self.tp,
            "context_parallel_size": 1,
            "sequence_parallel": self.sequence_parallel,
            "transformer_impl": "transformer_engine" if self.names == "te" else "local",
            "moe_grouped_gemm": self.grouped and moe,  # False in what Megatron-LM saves of a dense model
            "use_legacy_models": self.names == "legacy",
            DIVISIBLE: self.multiple,
            "params_dtype": dtype,
            "bf16": dtype.name == "bf16",
            "fp16": dtype.name == "fp16",
            "ckpt_format": self.container,
            "use_dist_ckpt": self.container != "torch",
            # Megatron takes a folder of torch DCP for Megatron-FSDP's where this is said (checkpointing.py, _get_checkpoint_format)
            **({"use_megatron_fsdp": True} if self.container == FSDP_DTENSOR else {}),
            "tokenizer_type": "HuggingFaceTokenizer" if tokenizer else None,
            "tokenizer_model": tokenizer,
            "vocab_file": None,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "apply_query_key_layer_scaling": False,
            "data_parallel_random_init": False,
            "spec": None,
            "iteration": self.iteration or 0,
            "consumed_train_samples": 0,
            "skipped_train_samples": 0,
            "consumed_valid_samples": 0,
        }


def namespace(args: Mapping[str, object]) -> torch_files.Opaque:
    """The Namespace that args are stored as."""
    return torch_files.Opaque("argparse", "Namespace", args=(), state=dict(args))
