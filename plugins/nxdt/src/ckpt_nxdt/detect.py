"""How a checkpoint is arranged: what its files decide, and what a user has to say.

Names decide the style and the kind of attention inputs, shapes the number of copies of every key-value head, and the
copies themselves on which ranks they lie. What is left is whether AWS's converter or a job wrote the files: their orders
differ in three configurations, and shapes are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import Architecture, CkptError, FormatError, errors, schema
from ckpt_nxdt.files import Weights
from ckpt_nxdt.weights import Arrangement

_MARKS = {
    "fused": ".self_attn.qkv_proj.weight_qkv",
    "linear": ".self_attn.qkv_proj.weight_k",
    "coalesced": ".self_attn.qkv_proj.weight",
    "split": ".self_attn.k_proj.weight",
}
_SEPARATE = "-o kv_replicas=separate keeps every copy as a key-value head of its own, which is what a job computes with"


@schema.dataclass
class Detection:
    """The arrangement of a checkpoint and what it rests on. `copies` of every key-value head lie on ranks of their own;
    `separate`: they differ, and each is read as a head."""

    arrangement: Arrangement
    copies: int = 1
    separate: bool = False
    evidence: list[str] = field(default_factory=list)


@schema.dataclass(frozen=True)
class Clues:
    """All that an arrangement is told by: the tensors, the signs that a job wrote them, the model's attention, the
    user's options, and what our own receipt recorded."""

    weights: Weights
    trained: Sequence[str]
    attention: schema.Attention
    options: Mapping[str, Any]
    recorded: Mapping[str, Any]


def attention_of(architecture: Architecture) -> schema.Attention:
    """The attention that all layers of an NxDT model have."""
    layers = architecture.decoder.layers if architecture.decoder else ()
    attention = layers[0].attention if layers else None
    if attention is None or any(layer.attention is None for layer in layers):
        found = "layers without plain attention"
        raise CkptError("no job has such a model", found=found, expected="a Llama or a Mixtral")
    return attention


def detect_arrangement(clues: Clues) -> Detection:
    """The arrangement of the tensors; raises what the files cannot decide, and what a user says against them."""
    style = _style(clues.weights)
    qkv = _qkv(clues.weights) if style == "hf" else "separate"
    detected = Detection(Arrangement(style, qkv))
    detected.evidence.append(f"model_style {style}" + (f", qkv {qkv}" if style == "hf" else "") + ", by tensor names")
    if qkv in ("linear", "fused"):
        detected.copies = _copies(clues, qkv)
    facts = {"model_style": style, "kv_size_multiplier": detected.copies} | ({"qkv": qkv} if style == "hf" else {})
    for name, value in facts.items():
        if clues.options.get(name) not in (None, value):
            given, fix = f"-o {name}={clues.options[name]}", "leave it out: the files say it"
            raise errors.UsageError(f"the files contradict {given}", found=f"{name}={value}", fix=fix)
    if style == "megatron":
        detected.arrangement = Arrangement(style, qkv, layout=_megatron_layout(clues, detected.evidence))
    elif detected.copies > 1:
        _order_copies(clues, detected)
    return detected


def _style(weights: Weights) -> str:
    if any(name.startswith("language_model.") for name in weights.names):
        return "megatron"
    if any(name.startswith("model.") for name in weights.names):
        return "hf"
    shown = ", ".join(sorted(weights.names)[:3]) or "no tensors"
    expected = "model.layers.0... (model_source hf) or language_model.encoder.layers.0... (megatron)"
    raise FormatError(
        "these are not tensors of a model that we know", file=weights.folder, found=shown, expected=expected
    )


def _qkv(weights: Weights) -> str:
    for qkv, mark in _MARKS.items():
        if any(name.endswith(mark) for name in weights.names):
            return qkv
    expected = " | ".join(f"{mark} ({qkv})" for qkv, mark in _MARKS.items())
    raise FormatError("there are no attention inputs", file=weights.folder, expected=expected)


def _keys(clues: Clues, qkv: str) -> tuple[str, int]:
    """The tensor that holds k of one layer, and the row where k begins in it."""
    weights, attention = clues.weights, clues.attention
    name = min(name for name in weights.names if name.endswith(_MARKS[qkv]))
    for rank in range(weights.tp):
        if len(weights.shape(name, rank)) != 2:
            raise FormatError(f"tensor {name!r} is not a matrix on tensor parallel rank {rank}", file=weights.folder)
    return name, attention.heads // weights.tp * attention.head_dim if qkv == "fused" else 0


def _copies(clues: Clues, qkv: str) -> int:
    """kv_size_multiplier: ranks x key-value heads per rank / key-value heads."""
    weights, attention = clues.weights, clues.attention
    name, start = _keys(clues, qkv)
    rows = weights.shape(name, 0)[0] - start
    if qkv == "fused":
        rows //= 2
    copies, rest = divmod(rows * weights.tp, attention.groups * attention.head_dim)
    if rest or copies < 2:
        return 1  # where that is wrong too, the shapes do not fit the tables, and are named
    if weights.tp != attention.groups * copies:
        raise FormatError(
            f"the files hold {copies} times the {attention.groups} key-value heads of the model on {weights.tp} ranks",
            file=weights.folder,
            found=f"{name!r} of shape {weights.shape(name, 0)}",
            expected="one key-value head per rank where heads have copies: tp = heads x kv_size_multiplier",
            fix="check num_key_value_heads in the config",
        )
    return copies


def _order_copies(clues: Clues, detected: Detection) -> None:
    """On which ranks the copies of a key-value head lie."""
    weights, options = clues.weights, clues.options
    qkv, copies, groups = detected.arrangement.qkv, detected.copies, clues.attention.groups
    where = f"{copies} copies of every key-value head"
    if options.get("kv_replicas") == "separate":
        detected.separate = True
        detected.evidence.append(f"{where} read as heads of their own, by option")
        return
    name, start = _keys(clues, qkv)
    rows = [weights.row(name, rank, start) for rank in range(weights.tp)]
    neighbours = all(rows[rank] == rows[rank - rank % copies] for rank in range(weights.tp))
    strided = all(rows[rank] == rows[rank % groups] for rank in range(weights.tp))
    if not neighbours and not strided:
        raise FormatError(
            f"the {where} differ, so they are not copies",
            file=weights.folder,
            found=f"{name!r}: trn2 jobs that start from scratch with a kv_replicator train every copy on its own",
            fix=_SEPARATE,
        )
    if groups == 1:
        detected.evidence.append(f"{where}: of one head, in the same order on trn1 and trn2")
        return
    hardware, layout, because = _hardware(clues, neighbours, strided, groups, where)
    _check_order(weights, hardware, layout, neighbours, strided, groups, where)
    detected.arrangement = Arrangement("hf", qkv, hardware, layout)
    detected.evidence.append(f"{where} in the order of {hardware}, {because}")
    if (hardware, layout) == ("trn2", "aws-converter"):
        detected.evidence.append("AWS's converter pairs heads wrongly for trn2; read as it meant them")


def _hardware(clues: Clues, neighbours: bool, strided: bool, groups: int, where: str) -> tuple[str, str, str]:
    """The hardware and the writer that an order of copies is for, and what says so.

    A trn1 job needs the copies strided, and a trn2 job side by side. Only AWS's converter mixes that up.
    """
    layout = clues.options.get("layout")
    if clues.options.get("hw_backend") is not None:
        return str(clues.options["hw_backend"]), str(layout or "native"), "by option"
    if neighbours and not strided:
        return "trn2", str(layout or "native"), "as they lie on neighbouring ranks"
    if strided and not neighbours and (layout == "native" or (layout is None and clues.trained)):
        return "trn1", "native", f"as they lie {groups} ranks apart in files that a job wrote"
    if clues.recorded.get("hw_backend") in ("trn1", "trn2"):
        recorded = clues.recorded.get("layout")
        return str(clues.recorded["hw_backend"]), str(layout or recorded or "native"), "by the receipt"
    raise errors.UsageError(
        f"nothing says whether these files are for trn1 or for trn2: {where} lie {groups} ranks apart",
        file=clues.weights.folder,
        found="the order of a trn1 job, and what AWS's converter writes for both",
        expected="-o hw_backend=trn1, or -o hw_backend=trn2 -o layout=aws-converter, as given to the converter",
    )


def _check_order(
    weights: Weights, hardware: str, layout: str, neighbours: bool, strided: bool, groups: int, where: str
) -> None:
    """Raise where the copies do not lie as they are said to."""
    if (hardware, layout) == ("trn2", "native"):
        if not neighbours:
            raise FormatError(
                f"a trn2 job has the {where} on neighbouring ranks; here they lie {groups} ranks apart",
                file=weights.folder,
                found="what AWS's converter writes for trn2, by mistake",
                fix=f"-o layout=aws-converter gives the model it was made from; {_SEPARATE}",
            )
    elif not strided:
        said = f"-o hw_backend={hardware} -o layout={layout}"
        fix = "leave both out: the files say it"
        raise errors.UsageError(
            f"the files contradict {said}: {where} lie on neighbouring ranks", file=weights.folder, fix=fix
        )


def _megatron_layout(clues: Clues, evidence: list[str]) -> str:
    """native or aws-converter: they differ where a rank has several heads of one tensor."""
    attention = clues.attention
    per_rank = max(1, attention.groups // clues.weights.tp)
    given = clues.options.get("layout")
    if given is not None:
        evidence.append(f"order of q, k and v: {given}, by option")
        return str(given)
    if per_rank == 1:
        return "native"  # both are the same
    if clues.trained:
        evidence.append("order of q, k and v: native, as a job wrote the files")
        return "native"
    if clues.recorded.get("layout") in ("native", "aws-converter"):
        evidence.append(f"order of q, k and v: {clues.recorded['layout']}, by the receipt")
        return str(clues.recorded["layout"])
    heads = "heads" if attention.heads == attention.groups else "key-value heads"
    raise errors.UsageError(
        f"nothing says who wrote these files: with {per_rank} {heads} per rank a job interleaves them head by head, "
        "and AWS's converter puts all of q, k and v together",
        file=clues.weights.folder,
        expected="-o layout=native (a job wrote them, or they are to be read as a job does) or -o layout=aws-converter",
    )
