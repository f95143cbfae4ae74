"""Which files of a folder are the weights that are read, and which are others.

A folder that was saved into twice has a `model.safetensors` and shards with an index, and one of them is stale: which,
nothing says, so it is asked (`-o weight_files=`). Repositories have weights once more in another container or under
other names (`pytorch_model.bin`, `consolidated.safetensors`, `original/`, GGUF): those are named and left.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from ckpt_core.sdk import CkptError, FormatError, company, containers, errors, ledgers, schema
from ckpt_hf.files import (
    KINDS,
    WeightFiles,
    module_folders,
    read_weights,
)
from ckpt_hf.training import state_of_training

OPTION = "weight_files"
_READABLE = (".safetensors", ".bin", ".pt", ".pth")


@schema.dataclass(frozen=True)
class WeightSet:
    """Weight files that are read together, by name; `index` says what is in which, where there is one."""

    files: tuple[str, ...]
    index: str | None = None

    def __str__(self) -> str:
        return self.index or ", ".join(self.files)

    @property
    def suffix(self) -> str:
        """How the names of its files end; an index may list none."""
        return os.path.splitext(self.index.removesuffix(".index.json") if self.index else self.files[0])[1]


def chosen_set(folder: str, asked: str = "") -> WeightSet:
    """The set that `asked` names (weight files or indexes, separated by commas), else the only one of the usual container.

    Raises an error that names both where one container has two sets, and where there is none.
    """
    if asked:
        return _asked_for(folder, [name.strip() for name in asked.split(",") if name.strip()])
    for kind in KINDS:
        sets = _sets(folder, kind)
        if len(sets) > 1:
            raise FormatError(
                f"two sets of weights lie side by side, {sets[0]} and {sets[1]}: the folder was saved into twice",
                file=folder,
                found="; ".join(f"{one}: {errors.plural(len(one.files), 'file')}" for one in sets),
                fix=f"say which is the model: -o {OPTION}={sets[0]} or -o {OPTION}={sets[1]}, or remove the stale one",
            )
        if sets:
            return sets[0]
    others = [
        name
        for name in sorted(os.listdir(folder))
        if name.endswith(_READABLE) and not state_of_training(name) and os.path.isfile(os.path.join(folder, name))
    ]
    raise FormatError(
        "there are no weights here under the usual names" if others else "there are no weights here",
        file=folder,
        found=", ".join(others)[:120] or None,
        expected="model.safetensors or pytorch_model.bin, or their index",
        fix=f"say which files are the model: -o {OPTION}={others[0]}" if others else None,
    )


def _sets(folder: str, kind: WeightFiles) -> list[WeightSet]:
    found = []
    if os.path.isfile(os.path.join(folder, kind.single)):
        found.append(WeightSet((kind.single,)))
    if os.path.isfile(os.path.join(folder, kind.index)):
        files = tuple(sorted(set(containers.read_index(os.path.join(folder, kind.index)).values())))
        if found and files == found[0].files:  # an index of one file says nothing new
            return [WeightSet(files, kind.index)]
        found.append(WeightSet(files, kind.index))
    return found


def _asked_for(folder: str, names: Sequence[str]) -> WeightSet:
    files: list[str] = []
    index = None
    for name in names:
        path = os.path.join(folder, name)
        if os.path.basename(name) != name or not os.path.isfile(path):
            raise CkptError(
                f"option {OPTION} names no file of the folder",
                file=folder,
                found=name,
                expected="names, without a path",
            )
        if name.endswith(".index.json"):
            files += sorted(set(containers.read_index(path).values()))
            index = name if len(names) == 1 else None
        else:
            files.append(name)
    if not files:
        raise CkptError(f"option {OPTION} names no weight file", file=folder, found=", ".join(names) or "nothing")
    return WeightSet(tuple(dict.fromkeys(files)), index)


def check_outside(folder: str, read: WeightSet, names: Collection[str]) -> None:
    """Refuses weight files of the same container outside the set that hold tensors of the model, whose are called `names`.

    A tensor is the model's if its name begins as theirs do ("model."): `mtp.safetensors`, shards without an index, the
    half of a set that was saved over. Others are called otherwise (`layers.0.attention.wq.weight`).
    """
    beginnings = {name.partition(".")[0] for name in names}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.endswith(read.suffix) or name in read.files or state_of_training(name) or not os.path.isfile(path):
            continue
        held = [tensor for tensor in read_weights(path).tensors if tensor.partition(".")[0] in beginnings]
        if held:
            both = ",".join([str(read) if read.index else ",".join(read.files), name])
            raise FormatError(
                f"weights of this model lie outside the files that are read, in {name}",
                file=path,
                found=f"{errors.plural(len(held), 'tensor')}, {held[0]!r} among them",
                expected=f"all in {read}",
                fix=f"leave it out with -o {OPTION}={read.index or ','.join(read.files)}, or read it too with -o {OPTION}={both}",
            )


def enter_left_out(ledger: ledgers.Ledger, folder: str, read: WeightSet) -> None:
    """Enter the weights in the folder that are not read, and the state of a training beside them."""
    travelling = {*company.FOLDERS, *module_folders(folder)}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name in read.files or name == read.index:
            continue
        if os.path.isfile(path) and name.endswith(containers.WEIGHT_SUFFIXES):
            ledger.left(_reason(name, read), path, size=os.path.getsize(path))
        elif os.path.isdir(path) and not name.startswith(".") and name not in travelling:
            inner = [one for one in os.scandir(path) if one.name.endswith(containers.WEIGHT_SUFFIXES) and one.is_file()]
            for one in inner:
                ledger.left(
                    ledgers.Reason("weights in a folder of their own", f"{read} is read"),
                    one.path,
                    size=one.stat().st_size,
                )


def _reason(name: str, read: WeightSet) -> ledgers.Reason:
    if reason := state_of_training(name):
        return reason
    if name.endswith(tuple(kind.suffix for kind in KINDS)):
        same = name.endswith(read.suffix)
        return ledgers.Reason(
            "weights under other names" if same else "weights in another container", f"{read} is read"
        )
    return ledgers.Reason("weights of another format", f"{read} is read")
