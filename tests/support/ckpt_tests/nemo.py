"""Reading NeMo checkpoints by torch, tarfile and json alone, to judge what ckpt read and wrote."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from ckpt_tests.goldens import Golden
from ckpt_tests.inert import pickle_module

SAFE = {"torch", "collections", "_codecs", "numpy", "_io"}
_DTYPES = {
    "<f4": (np.float32, torch.float32),
    "<f2": (np.float16, torch.float16),
    "bfloat16": (np.int16, torch.bfloat16),
}
_inert = pickle_module(SAFE)


def load(data: bytes) -> dict:
    """What `torch.save` wrote."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_inert)


def members(path: Path) -> dict[str, bytes]:
    """Every file of an archive (or of the only one in a folder), or of a folder, by its name."""
    archive = archive_of(path)
    if archive is not None:
        with tarfile.open(archive) as tar:
            return {one.name.removeprefix("./"): tar.extractfile(one).read() for one in tar if one.isfile()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def archive_of(path: Path) -> Path | None:
    if path.is_file():
        return path
    return next(iter(path.glob("*.nemo")), None)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every model tensor by rank file and stored name, or by key of a distributed checkpoint."""
    found: dict[str, torch.Tensor] = {}
    files = members(path)
    for name, data in files.items():
        if name.endswith(".ckpt"):
            content = load(data)
            states = {key: content[key] for key in content if key == "state_dict" or key.startswith("model")}
            whole = {"": content} if Path(name).name == "model_weights.ckpt" else states
            for key, state in whole.items():
                for stored_as, tensor in state.items():
                    if isinstance(tensor, torch.Tensor):
                        folder = name.rpartition("/")[0].rpartition("/")[2]
                        found["/".join(filter(None, (folder, "" if key == "state_dict" else key, stored_as)))] = tensor
        elif name.endswith("/.zarray") and not key_of(name).startswith("optimizer."):
            found[key_of(name)] = zarr_array(files, name)
    return found


def key_of(name: str) -> str:
    """The tensor's name of a file of its folder."""
    return name.rsplit("/", 2)[-2]


def zarr_array(files: dict[str, bytes], name: str) -> torch.Tensor:
    """A zarr array put together chunk by chunk."""
    array = json.loads(files[name])
    kind, dtype = _DTYPES[array["dtype"]]
    whole = np.zeros(array["shape"], kind)
    grid = [range(-(-size // chunk)) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
    for index in np.ndindex(*map(len, grid)):
        data = np.frombuffer(files[f"{name.removesuffix('.zarray')}{'.'.join(map(str, index))}"], kind).reshape(
            array["chunks"]
        )
        box = tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(index, array["chunks"], strict=True))
        place = whole[box]
        place[...] = data[tuple(slice(size) for size in place.shape)]
    return torch.from_numpy(whole).view(dtype)


def file_set(path: Path) -> set[str]:
    """The names of the files, without the random digits of artifacts, and without those of an optimizer."""
    names = (name if len(name) < 33 or name[32] != "_" else name[33:] for name in members(path))
    return {name for name in names if "optimizer." not in name and not name.endswith("ckpt-receipt.json")}


def config_of(path: Path) -> dict:
    return yaml.safe_load(members(path)["model_config.yaml"])


def own_layout(golden: Golden) -> dict[str, object]:
    """The arguments of `convert` that ask for the layout of the case."""
    if "tp" not in golden.case:  # officially-repartitioned-gpt2-tp1pp3
        tp, pp = golden.folder.name.rpartition("-tp")[2].split("pp")
        return {"tp": int(tp), "pp": int(pp)}
    container = {"container": "ckpt"} if "PTL" in golden.case["format"] else {}
    return {"tp": golden.case["tp"], "pp": golden.case["pp"], "options": container}


def tokenizer_options(golden: Golden) -> dict[str, str]:
    """The tokenizer that lies beside a case whose config names a file of the training machine."""
    files = sorted((golden.folder / "tokenizer").glob("*")) if (golden.folder / "tokenizer").is_dir() else []
    return {"tokenizer": str(files[0])} if files else {}


def repack(source: Path, destination: Path, change: Callable[[dict[str, bytes]], None], mode: str = "w") -> Path:
    """A `.nemo` with its files changed, as a careless hand would pack it: names without `./`."""
    files = members(source)
    change(files)
    with tarfile.open(destination, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return destination


def changed_torch(files: dict[str, bytes], name: str, change: Callable[[dict], object]) -> None:
    """Change the object in a torch file among `files`."""
    content = load(files[name])
    change(content)
    out = io.BytesIO()
    torch.save(content, out)
    files[name] = out.getvalue()


def changed_config(files: dict[str, bytes], **values: object) -> None:
    """Set keys of the config; `None` as a string removes one."""
    config = yaml.safe_load(files["model_config.yaml"])
    for key, value in values.items():
        if value == "absent":
            config.pop(key, None)
        else:
            config[key] = value
    files["model_config.yaml"] = yaml.safe_dump(config, sort_keys=False).encode()


def sentencepiece(pieces: int) -> bytes:
    """A SentencePiece model of that many pieces, and a field of another kind behind them."""
    one = b"\x0a\x05" + b"\x0a\x03abc"
    return one * pieces + b"\x12\x02\x18\x01"
