"""The corpus: whole checkpoints, each with one thing about it that is hostile or broken.

A case damages a copy of a good checkpoint (`hosts`) and names what the error must say. Payloads are harmless: one
that ran would create the file `MARKER`, and no more.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_core.storage.pickle.opaque import Opaque
from ckpt_core.storage.pickle.reader import read_pickle
from ckpt_core.storage.pickle.writer import write_pickle

MARKER = "ckpt-malice-marker"


@dataclass(frozen=True)
class Case:
    """`damage` gets the copy of the `host` (a folder or a file) and returns the path to read, or None for the copy."""

    name: str
    host: str
    says: str
    damage: Callable[[Path], Path | None]


CASES: list[Case] = []


def case(name: str, host: str, says: str) -> Callable[[Callable[[Path], Path | None]], Callable[[Path], Path | None]]:
    """Enter the decorated function."""

    def enter(damage: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
        CASES.append(Case(name, host, says, damage))
        return damage

    return enter


# --- pickles ----------------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Fetch a global and call it."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


TOUCH = text(f"touch {MARKER}")
PYTHON = text(f"open({MARKER!r}, 'w').close()")

PAYLOADS = {
    "os.system": (call("os", "system", TOUCH), "os.system"),
    "posix.system": (call("posix", "system", TOUCH), "posix.system"),
    "torch.hub.load": (call("torch.hub", "load", text("x/y"), text("z")), "torch.hub.load"),
    "builtins.exec": (call("builtins", "exec", PYTHON), "builtins.exec"),
    "eval inside a tensor's arguments": (
        call("torch._utils", "_rebuild_tensor_v2", call("builtins", "eval", PYTHON)),
        "builtins.eval",
    ),
    "a chain of getattr": (
        call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system")) + b"(" + TOUCH + b"tR",
        "builtins.__import__",
    ),
    "subprocess.Popen by NEWOBJ_EX": (
        b"csubprocess\nPopen\n(" + TOUCH + b"t}" + text("shell") + b"\x88s\x92",
        "subprocess.Popen",
    ),
    "a global nested in a global's name": (
        b"\x8c\x05torch\x8c\x17serialization.os.system\x93(" + TOUCH + b"tR",
        "os.system",
    ),
    "a method of an inert stand-in": (
        b"cargparse\nNamespace\n)\x81}" + text("__class__") + call("os", "system", TOUCH) + b"sb",
        "os.system",
    ),
    "a reduction hidden in a dict key": (b"}" + call("runpy", "_run_code", PYTHON) + b"Ns", "runpy._run_code"),
    "importlib by OBJ": (b"(cimportlib\nimport_module\n" + text("antigravity") + b"o", "importlib.import_module"),
    "codecs to unpickle again": (call("_pickle", "loads", b"C\x01."), "_pickle.loads"),
    "numpy.load with pickles": (call("numpy", "load", text(MARKER)), "numpy.load"),
    "torch.load of another file": (call("torch.serialization", "load", text("other.pt")), "torch.serialization.load"),
    "an extension code": (b"\x82\x01", "extension"),
    "shutil.rmtree": (call("shutil", "rmtree", text("/nonexistent")), "shutil.rmtree"),
    "ctypes": (call("ctypes", "CDLL", text("libc.so.6")), "ctypes.CDLL"),
    "code made by types": (call("types", "CodeType", b"K\x00"), "types.CodeType"),
}
ABUSES = {
    "a memo index of 4 GiB that is never stored": (b"j\xff\xff\xff\xff", "never stored"),
    "nested twenty thousand deep": (b"]" * 20_000 + b"a" * 19_999, "nests too deep"),
    "a billion laughs": (b"(]" + b"q\x00](h\x00h\x00h\x00e" * 60 + b"t", "too many values"),
    "a million laughs in tuples": (b"N\x85" + b"q\x00h\x00\x86" * 25, "too many values"),
    "a text of 4 GiB": (b"X\xff\xff\xff\xffabc", "too long|too early"),
    "bytes of 8 EiB": (b"\x8e" + b"\xff" * 7 + b"\x7f" + b"abc", "too long"),
    "an integer of 2 GiB": (b"\x8b\xff\xff\xff\x7f", "too long"),
    "marks within marks": (b"(" * 5000, "nests too deep"),
    "twenty million sets, of 216 bytes each": (b"(" + b"\x8f" * 20_000_000 + b"l", "far more than a checkpoint"),
    "an empty stack popped": (b"00", "did not open|more from its stack"),
    "a stack that is not left clean": (b"NNN", "one value"),
    "a frame longer than the file": (b"\x95" + struct.pack("<Q", 1 << 50), "cut off"),
    "keys chosen to collide": (
        b"}" + b"".join(b"\x8a\x09" + struct.pack("<Q", 2 + n * (2**61 - 1)) + b"\0N" + b"s" for n in range(3)),
        "dict key",
    ),
}
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}" + text("little_endian") + b"\x88s."


def pickled(code: bytes) -> bytes:
    return b"\x80\x04" + code + b"."


def torch_zip(code: bytes, **members: bytes) -> bytes:
    """A torch file whose object is made by `code`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {"data.pkl": pickled(code), "version": b"3\n", **members}.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
    return out.getvalue()


# Every kind of file that is, or holds, a pickle, and how to put one there.
HOLDERS: dict[str, tuple[str, Callable[[Path, bytes], None]]] = {
    "pytorch_model.bin": ("hf-bin", lambda host, code: write(host / "pytorch_model.bin", torch_zip(code))),
    "a legacy .bin": ("hf-bin", lambda host, code: write(host / "pytorch_model.bin", LEGACY + pickled(code) + b"].")),
    "model_optim_rng.pt": (
        "megatron",
        lambda host, code: write(host / "release/mp_rank_01/model_optim_rng.pt", torch_zip(code)),
    ),
    "common.pt": ("dist", lambda host, code: write(host / "release/common.pt", torch_zip(code))),
    ".metadata": ("dist", lambda host, code: write(host / "release/.metadata", pickled(code))),
    "weights in a .nemo": (
        "nemo",
        lambda host, code: repack(host, lambda name, data: torch_zip(code) if "mp_rank_01" in name else data),
    ),
    "weights in a .nemo of gzip": (
        "nemo-gz",
        lambda host, code: repack(host, lambda name, data: torch_zip(code) if "mp_rank_00" in name else data),
    ),
    "weights of DeepSpeed": ("deepspeed", lambda host, code: write(first(host, "fp32.pt"), torch_zip(code))),
    ".metadata of NeMo 2": ("nemo2", lambda host, code: write(host / "weights/.metadata", pickled(code))),
    "a tensor of xser": ("nxdt", lambda host, code: write(first(host, "tensor_3.pt"), torch_zip(code))),
}


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def first(folder: Path, name: str) -> Path:
    """The first file below a folder that is called so."""
    return min(folder.rglob(name))


for number, (what, (code, says)) in enumerate([*PAYLOADS.items(), *ABUSES.items()]):
    # Each payload in two of the holders, in turn; together they meet everywhere.
    for holder in (list(HOLDERS)[number % len(HOLDERS)], list(HOLDERS)[(3 * number + 2) % len(HOLDERS)]):
        host, put = HOLDERS[holder]
        known = f"{what}, in {holder}"
        if not any(one.name == known for one in CASES):
            CASES.append(Case(known, host, says, lambda host, put=put, code=code: put(host, code)))


@case("a bare pickle for a .bin", "hf-bin", "bare pickle|magic")
def _(host: Path) -> None:
    write(host / "pytorch_model.bin", pickled(PAYLOADS["os.system"][0]))


@case("a zip bomb for a .bin", "hf-bin", "compressed")
def _(host: Path) -> None:
    with zipfile.ZipFile(host / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("model/data.pkl", pickled(b"}"))
        archive.writestr("model/data/0", bytes(64 << 20))


@case("records of a .bin that overlap", "hf-bin", "overlap|not where")
def _(host: Path) -> None:
    path = host / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\x01\x02")
    entries = [first]
    while (after := data.find(b"PK\x01\x02", entries[-1] + 4)) > 0:
        entries.append(after)
    struct.pack_into("<I", data, entries[5] + 42, struct.unpack_from("<I", data, entries[4] + 42)[0])
    write(path, bytes(data))


@case("a .bin cut off in its data", "hf-bin", "no end|cut off|too early")
def _(host: Path) -> None:
    path = host / "pytorch_model.bin"
    write(path, path.read_bytes()[:-30_000])


@case("a storage type that lies", "hf-bin", "another size")
def _(host: Path) -> None:
    storage = b"(" + text("storage") + b"ctorch\nDoubleStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
    write(host / "pytorch_model.bin", torch_zip(b"}" + text("w") + tensor + b"s", **{"data/0": bytes(24)}))


@case("an offset into another storage", "hf-bin", "past the end")
def _(host: Path) -> None:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"M\xff\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
    write(host / "pytorch_model.bin", torch_zip(b"}" + text("w") + tensor + b"s", **{"data/0": bytes(24)}))


@case("weights that are not tensors", "hf-bin", "not a named tensor|no tensor")
def _(host: Path) -> None:
    write(
        host / "pytorch_model.bin",
        torch_zip(b"}" + text("model.embed_tokens.weight") + b"cargparse\nNamespace\n)\x81s"),
    )


@case("a state dict that holds itself", "megatron", "too many values")
def _(host: Path) -> None:
    write(host / "release/mp_rank_00/model_optim_rng.pt", torch_zip(b"}q\x00" + text("model") + b"h\x00s"))


# --- tars -------------------------------------------------------------------------------------------------------------------


def repack(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Pack an archive again with the contents of its files changed."""
    rebuilt(path, lambda members: [(one, change(one.name, data) if one.isfile() else data) for one, data in members])


def rebuilt(
    path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], Iterable[tuple[tarfile.TarInfo, bytes]]]
) -> None:
    """Pack an archive again with its members changed."""
    compressed = path.read_bytes()[:2] == b"\x1f\x8b"
    with tarfile.open(path) as tar:
        members = [(one, tar.extractfile(one).read() if one.isfile() else b"") for one in tar]  # type: ignore[union-attr]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for one, data in change(members):
            one.size = len(data)
            tar.addfile(one, io.BytesIO(data))
    write(path, gzip.compress(out.getvalue(), 1, mtime=0) if compressed else out.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


ADDED = {
    "a path that climbs": (member("./../../evil"), "points elsewhere"),
    "an absolute name": (member("/tmp/evil"), "points elsewhere"),
    "a path that climbs inside": (member("./mp_rank_00/../../evil"), "points elsewhere"),
    "a name with a backslash": (member("..\\evil"), "points elsewhere"),
    "a name of a drive": (member("C:/evil"), "points elsewhere"),
    "a symbolic link outside": (member("./tokenizer.model", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    "a symbolic link inside": (member("./mp_rank_02", tarfile.SYMTYPE, "mp_rank_00"), "symbolic link"),
    "a hard link": (member("./copy.yaml", tarfile.LNKTYPE, "./model_config.yaml"), "hard link"),
    "a character device": (member("./zero", tarfile.CHRTYPE), "device"),
    "a block device": (member("./disk", tarfile.BLKTYPE), "device"),
    "a named pipe": (member("./pipe", tarfile.FIFOTYPE), "named pipe"),
    "a sparse file": (member("./sparse", tarfile.GNUTYPE_SPARSE), "sparse"),
    "a continued file": (member("./part", b"M"), "part of a file"),
    "a member of an unknown kind": (member("./odd", b"Z"), "unknown kind"),
    "a second model_config.yaml": (member("./model_config.yaml"), "twice"),
    "a second model_config.yaml, said otherwise": (member("model_config.yaml"), "twice"),
    "a second model_config.yaml, with a detour": (member(".//./model_config.yaml"), "twice"),
    "a folder called as a file": (member("./model_config.yaml", tarfile.DIRTYPE), "file and as a folder"),
    "a file below a file": (member("./model_config.yaml/inner"), "file and as a folder"),
    "a file without a name": (member("./"), "no name"),
    "a name far too long": (member("./" + "deep/" * 100 + "x"), "absurdly long"),
}
for what, (info, says) in ADDED.items():
    for host in ("nemo", "nemo-gz") if "climbs" in what or "link" in what else ("nemo",):
        CASES.append(
            Case(
                f"{what} in a {host}",
                host,
                says,
                lambda path, info=info: rebuilt(path, lambda members: [*members, (info, b"")]),
            )
        )


def header_at(data: bytes | bytearray, name: str) -> int:
    return bytes(data).index(name.encode().ljust(100, b"\0"))


def with_header(path: Path, name: str, at: int, value: bytes) -> None:
    """Change some bytes of a member's header, and make its checksum right again."""
    data = bytearray(path.read_bytes())
    start = header_at(data, name)
    data[start + at : start + at + len(value)] = value
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    write(path, bytes(data))


CONFIG = "./model_config.yaml"
HEADERS = {
    "a size beyond the end": (124, b"77777777777\0", "cut off"),
    "a size of 2**80": (124, b"\x80" + b"\0" + b"\xff" * 10, "cut off"),
    "a negative size": (124, b"\xff" * 12, "not a number"),
    "a size with a sign": (124, b"-0000000010\0", "not a number"),
    "a size of digits that are not octal": (124, b"00000000999\0", "not a number"),
    "a dialect that nobody knows": (257, b"ustarX", "dialect"),
    "a name that is not UTF-8": (2, b"\xff\xfe", "UTF-8"),
}
for what, (at, value, says) in HEADERS.items():
    CASES.append(
        Case(f"{what} in a .nemo", "nemo", says, lambda path, at=at, value=value: with_header(path, CONFIG, at, value))
    )


def pax(record: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(member("././@PaxHeader", tarfile.XHDTYPE), record)]


EXTENDED = {
    "a PAX path that climbs": (pax(b"20 path=../../evil1\n"), "points elsewhere"),
    "a PAX size beyond the end": (pax(b"24 size=999999999999999\n"), "cut off"),
    "a PAX size that is not a number": (pax(b"12 size=-12\n"), "not a number"),
    "a PAX record longer than its header": (pax(b"99 path=x\n"), "damaged"),
    "a PAX record of no length": (pax(b"0 path=x\n"), "damaged"),
    "a PAX header of two megabytes": (pax(b"2097152 comment=" + b"x" * (2097152 - 17) + b"\n"), "too long"),
    "a sparse file by PAX": (pax(b"22 GNU.sparse.major=1\n"), "sparse"),
    "names in another charset": (pax(b"21 hdrcharset=BINARY\n"), "UTF-8"),
    "two long names": ([*pax(b"11 path=ab\n"), *pax(b"11 path=cd\n")], "two long names"),
    "a global header that renames": ([(member("g", tarfile.XGLTYPE), b"11 path=ab\n")], "global header"),
    "a long name for nobody": (None, "long name of a member"),
}
for what, (extra, says) in EXTENDED.items():

    def put(path: Path, extra: Any = extra) -> None:
        rebuilt(
            path,
            lambda members: (
                [*members, *pax(b"11 path=ab\n")] if extra is None else [*members[:1], *extra, *members[1:]]
            ),
        )

    CASES.append(Case(f"{what} in a .nemo", "nemo", says, put))


@case("a .nemo cut off in a member", "nemo", "cut off|ends in")
def _(path: Path) -> None:
    write(path, path.read_bytes()[: path.stat().st_size // 2])


@case("a .nemo cut off behind a member", "nemo", "ends in")
def _(path: Path) -> None:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    write(path, path.read_bytes()[: last.offset_data + -(-last.size // 512) * 512])


@case("a second tar behind a .nemo", "nemo", "behind its end")
def _(path: Path) -> None:
    write(path, path.read_bytes() * 2)


@case("a header with a wrong checksum", "nemo", "checksum")
def _(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[header_at(data, CONFIG) + 20] ^= 1
    write(path, bytes(data))


@case("a .nemo of gzip with a flipped bit", "nemo-gz", "damaged")
def _(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    write(path, bytes(data))


@case("a .nemo of gzip cut off", "nemo-gz", "cut off")
def _(path: Path) -> None:
    write(path, path.read_bytes()[:-100])


@case("a gzip bomb that begins as a .nemo", "nemo-gz", "bomb")
def _(path: Path) -> None:
    with tarfile.open(path) as tar:
        first = tar.getmembers()[0]
    head = gzip.decompress(path.read_bytes())[: first.offset_data]
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    write(path, bomb.compress(head) + b"".join(bomb.compress(bytes(1 << 20)) for _ in range(400)) + bomb.flush())


@case("a .nemo without a config", "nemo", "model_config.yaml|no installed format")
def _(path: Path) -> None:
    rebuilt(path, lambda members: [(one, data) for one, data in members if "config" not in one.name])


# --- distributed checkpoints ------------------------------------------------------------------------------------------------


def with_metadata(host: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the state of the Metadata object of a DCP."""
    path = host / "release/.metadata"
    value = read_pickle(path.read_bytes(), ".metadata")
    change(value.state)
    write(path, write_pickle(value, ".metadata"))


def places(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [info.state for info in state["storage_data"].values()]


def tensors(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [one.state for one in state["state_dict_metadata"].values() if one.name == "TensorStorageMetadata"]


def size(*sizes: Any) -> Opaque:
    return Opaque("torch", "Size", args=(tuple(sizes),))


METADATA: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a file above the folder": (
        lambda state: places(state)[0].update(relative_path="../x.distcp"),
        "outside the folder",
    ),
    "an absolute file": (lambda state: places(state)[0].update(relative_path="/etc/passwd"), "outside the folder"),
    "a file that climbs inside": (
        lambda state: places(state)[0].update(relative_path="a/../../x"),
        "outside the folder",
    ),
    "a file with a NUL": (lambda state: places(state)[0].update(relative_path="a\0b"), "outside the folder"),
    "a file that is not there": (lambda state: places(state)[0].update(relative_path="__9_9.distcp"), "missing"),
    "a file that is a number": (lambda state: places(state)[0].update(relative_path=7), "impossible"),
    "an offset past the end": (lambda state: places(state)[0].update(offset=1 << 40), "outside the file"),
    "a negative offset": (lambda state: places(state)[0].update(offset=-64), "impossible"),
    "an offset of 2**200": (lambda state: places(state)[0].update(offset=1 << 200), "impossible"),
    "a length past the end": (lambda state: places(state)[0].update(length=1 << 40), "outside the file"),
    "a length of a fraction": (lambda state: places(state)[0].update(length=1.5), "impossible"),
    "two entries on the same bytes": (lambda state: places(state)[1].update(places(state)[0]), "share bytes"),
    "a chunk that lies nowhere": (
        lambda state: state["storage_data"].pop(next(iter(state["storage_data"]))),
        "lies nowhere|places",
    ),
    "a tensor that is not described": (
        lambda state: state["state_dict_metadata"].pop(next(iter(state["state_dict_metadata"]))),
        "does not describe",
    ),
    "a shape larger than its chunks": (
        lambda state: tensors(state)[0].update(size=size(10**6, 10**6)),
        "impossible|tile",
    ),
    "a shape of 2**60": (lambda state: tensors(state)[0].update(size=size(1 << 60)), "impossible|tile"),
    "a negative size": (lambda state: tensors(state)[0].update(size=size(-1, 5)), "impossible"),
    "a shape of texts": (lambda state: tensors(state)[0].update(size=["7"]), "impossible"),
    "no chunks": (lambda state: tensors(state)[0].update(chunks=[]), "places|tile"),
    "a chunk twice": (lambda state: tensors(state)[0]["chunks"].append(tensors(state)[0]["chunks"][0]), "places|tile"),
    "a chunk that grows": (
        lambda state: tensors(state)[0]["chunks"][0].state.update(
            sizes=size(*(1 << 20,) * len(tensors(state)[0]["size"]))
        ),
        "tile",
    ),
    "a dtype that is none": (
        lambda state: setattr(tensors(state)[0]["properties"], "state", ("float32",)),
        "impossible",
    ),
    "another class for a tensor": (
        lambda state: setattr(next(iter(state["state_dict_metadata"].values())), "name", "Evil"),
        "another kind",
    ),
    "no list of tensors": (lambda state: state.update(state_dict_metadata=None), "no tensors"),
    "a list for the places": (lambda state: state.update(storage_data=[]), "no tensors"),
    "compressed chunks": (lambda state: places(state)[0].update(transform_descriptors=["zstd"]), "compressed"),
}
for what, (change, says) in METADATA.items():
    CASES.append(Case(f"{what} in .metadata", "dist", says, lambda host, change=change: with_metadata(host, change)))


@case("chunks of another dtype than .metadata says", "dist", "not what")
def _(host: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        for one in tensors(state):
            one["properties"].state = (read_pickle(b"ctorch\nfloat16\n.", ""), *one["properties"].state[1:])

    with_metadata(host, change)


@case("two chunks that change places", "dist", "not what|differ")
def _(host: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        one, *others = places(state)
        other = next(place for place in others if place["length"] != one["length"])
        first, second = dict(one), dict(other)
        one.update(second)
        other.update(first)

    with_metadata(host, change)


@case("a .distcp cut off", "dist", "outside the file")
def _(host: Path) -> None:
    path = host / "release/__0_0.distcp"
    write(path, path.read_bytes()[:-1000])


@case("a .distcp of zeros", "dist", "not a torch file")
def _(host: Path) -> None:
    path = host / "release/__0_0.distcp"
    write(path, bytes(path.stat().st_size))


@case("a .distcp that is a link to what holds no tensors", "dist", "leads out of the checkpoint")
def _(host: Path) -> None:
    path = host / "release/__0_0.distcp"
    (host.parent / "elsewhere.distcp").write_bytes(b"root:x:0:0:root:/root:/bin/bash\n" * 9999)
    path.unlink()
    path.symlink_to("../../elsewhere.distcp")


@case("a .metadata that is a link to elsewhere", "dist", "leads out of the checkpoint|no installed format")
def _(host: Path) -> None:
    path = host / "release/.metadata"
    path.rename(host.parent / "elsewhere.metadata")
    path.symlink_to("../../elsewhere.metadata")


@case("a .metadata cut off", "dist", "too early|cut off")
def _(host: Path) -> None:
    path = host / "release/.metadata"
    write(path, path.read_bytes()[:-20])


@case("a .metadata without end", "dist", "more than one pickle")
def _(host: Path) -> None:
    with (host / "release/.metadata").open("r+b") as file:
        file.truncate(1 << 24)


@case("a .metadata of a terabyte", "dist", "metadata is too large")
def _(host: Path) -> None:
    with (host / "release/.metadata").open("r+b") as file:
        file.truncate(1 << 40)


@case("a common.pt that is a folder", "dist", "common|args|config")
def _(host: Path) -> None:
    (host / "release/common.pt").unlink()
    (host / "release/common.pt").mkdir()


@case("a metadata.json that is not an object", "dist", "metadata.json|no installed format")
def _(host: Path) -> None:
    write(host / "release/metadata.json", b"[1, 2]")


# --- zarr -------------------------------------------------------------------------------------------------------------------


def with_array(path: Path, **keys: Any) -> None:
    """Change the description of one array inside a .nemo."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("linear_qkv.weight/.zarray"):
            return data
        return json.dumps(json.loads(data) | keys).encode()

    repack(path, change)


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "an endless array": ({"shape": [1 << 59, 1 << 59, 4]}, "missing"),
    "a negative shape": ({"shape": [-1, 5, 5]}, "impossible"),
    "chunks of nothing": ({"chunks": [0, 0, 0]}, "impossible"),
    "chunks larger than their files": ({"chunks": [1, 1 << 30, 1 << 20]}, "not of its size|missing|none of them"),
    "an array compressed by blosc": ({"compressor": {"id": "blosc"}}, "compressor"),
    "an array of Python objects": ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "filters"),
    "an array of another dtype": ({"dtype": "<f8"}, "not of its size"),
    "an array in Fortran order": ({"order": "F"}, "order"),
    "an unknown key": ({"storage_transformers": []}, "unknown key"),
}
for what, (keys, says) in ARRAYS.items():
    CASES.append(Case(f"{what} in zarr", "zarr", says, lambda path, keys=keys: with_array(path, **keys)))


@case("a missing chunk of zarr", "zarr", "missing")
def _(path: Path) -> None:
    rebuilt(
        path, lambda members: [(one, data) for one, data in members if not one.name.endswith("linear_fc2.weight/0.0.0")]
    )


@case("a short chunk of zarr", "zarr", "not of its size")
def _(path: Path) -> None:
    repack(path, lambda name, data: data[:-4] if name.endswith("linear_fc2.weight/0.0.0") else data)


@case("a chunk of zarr too many", "zarr", "none of them")
def _(path: Path) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [
            *members,
            *(
                (member(one.name.replace("/0.0.0", "/99.0.0")), data)
                for one, data in members
                if one.name.endswith("linear_fc2.weight/0.0.0")
            ),
        ]

    rebuilt(path, change)


@case("a .zarray of a thousand brackets", "zarr", "nested too deeply")
def _(path: Path) -> None:
    deep = b"[" * 1000 + b"]" * 1000
    repack(path, lambda name, data: deep if name.endswith("linear_qkv.weight/.zarray") else data)


# --- safetensors ------------------------------------------------------------------------------------------------------------


def with_header_of(host: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of model.safetensors, and write it with its own length; the data stays."""
    path = host / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    encoded = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    write(path, len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


NORM = "model.norm.weight"
SAFETENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "offsets that overlap": (
        lambda header: header.update({NORM: {**header[NORM], "data_offsets": [0, _bytes(header)]}}),
        "overlaps|gap",
    ),
    "offsets that leave a gap": (lambda header: header.pop(NORM), "gap|wrong length"),
    "offsets past the end": (
        lambda header: header[NORM].update(data_offsets=[1 << 40, (1 << 40) + _bytes(header)]),
        "does not fit",
    ),
    "negative offsets": (lambda header: header[NORM].update(data_offsets=[-4, 0]), "impossible"),
    "offsets in the wrong order": (
        lambda header: header[NORM].update(data_offsets=header[NORM]["data_offsets"][::-1]),
        "does not fit",
    ),
    "a shape that does not fit its bytes": (lambda header: header[NORM].update(shape=[1]), "does not fit"),
    "a shape that overflows": (lambda header: header[NORM].update(shape=[1 << 59] * 8), "does not fit|impossible"),
    "a thousand dimensions": (lambda header: header[NORM].update(shape=[1] * 1000), "impossible"),
    "a dtype that nobody knows": (lambda header: header[NORM].update(dtype="F128"), "unknown dtype"),
    "a dtype that is a list": (lambda header: header[NORM].update(dtype=["F32"]), "unknown dtype"),
    "a shape of fractions": (lambda header: header[NORM].update(shape=[1.0]), "impossible"),
    "an entry that is a list": (lambda header: header.update({NORM: [1, 2]}), "lacks"),
    "metadata that nests": (lambda header: header.update(__metadata__={"a": {"b": "c"}}), "strings"),
    "a name given twice": (lambda header: json.dumps(header).encode()[:-1] + b', "a": 1, "a": 2}', "twice"),
    "a header of brackets": (lambda header: b"[" * 100_000, "nested too deeply"),
    "a header that is a list": (lambda header: b"[]", "not an object"),
    "a header that is not UTF-8": (lambda header: b'{"\xff\xfe": 1}', "JSON"),
    "a number of a million digits": (lambda header: b'{"a": ' + b"9" * 1_000_000 + b"}", "JSON"),
    "a shape that is NaN": (
        lambda header: json.dumps(header).replace('"shape": [', '"shape": [NaN, ', 1).encode(),
        "NaN",
    ),
    "ten million brackets": (lambda header: b'{"a": [' + b"[]," * 10_000_000 + b"[]]}", "too much"),
}


def _bytes(header: dict[str, Any]) -> int:
    start, stop = header[NORM]["data_offsets"]
    return stop - start


for what, (change, says) in SAFETENSORS.items():
    CASES.append(Case(f"{what} in safetensors", "hf", says, lambda host, change=change: with_header_of(host, change)))


@case("a header length of 16 EiB", "hf", "does not fit the file")
def _(host: Path) -> None:
    path = host / "model.safetensors"
    write(path, b"\xff" * 8 + path.read_bytes()[8:])


@case("a header as long as a terabyte of holes", "hf", "does not fit the file")
def _(host: Path) -> None:
    path = host / "model.safetensors"
    with path.open("r+b") as file:
        file.write((1 << 39).to_bytes(8, "little"))
        file.truncate(1 << 40)


@case("an empty model.safetensors", "hf", "too short")
def _(host: Path) -> None:
    write(host / "model.safetensors", b"")


@case("one byte too few", "hf", "does not fit|wrong length")
def _(host: Path) -> None:
    path = host / "model.safetensors"
    write(path, path.read_bytes()[:-1])


@case("one byte too many", "hf", "wrong length")
def _(host: Path) -> None:
    path = host / "model.safetensors"
    write(path, path.read_bytes() + b"\0")


def with_index(host: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = host / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    changed = change(index)
    write(path, changed if isinstance(changed, bytes) else json.dumps(index).encode())


INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a shard above the folder": (lambda index: index["weight_map"].update({NORM: "../evil.safetensors"}), "evil"),
    "an absolute shard": (lambda index: index["weight_map"].update({NORM: "/etc/passwd"}), "passwd"),
    "a shard that is not there": (lambda index: index["weight_map"].update({NORM: "model-9.safetensors"}), "model-9"),
    "a shard that is a list": (lambda index: index["weight_map"].update({NORM: ["a"]}), "index"),
    "a tensor in another shard": (
        lambda index: index["weight_map"].update(
            {NORM: next(file for file in index["weight_map"].values() if file != index["weight_map"][NORM])}
        ),
        NORM,
    ),
    "no weight_map": (lambda index: index.pop("weight_map"), "weight_map"),
    "a weight_map of lists": (lambda index: index.update(weight_map=[["a", "b"]]), "weight_map|index"),
    "keys given twice": (lambda index: b'{"weight_map": {"a": "b", "a": "c"}}', "twice"),
}
for what, (change, says) in INDEXES.items():
    CASES.append(Case(f"{what} in an index", "hf-sharded", says, lambda host, change=change: with_index(host, change)))


# --- configs ----------------------------------------------------------------------------------------------------------------

JSON = {
    "a hundred thousand brackets": (b"[" * 100_000, "nested too deeply|JSON"),
    "a hundred thousand objects": (b'{"a":' * 100_000, "nested too deeply|JSON"),
    "a number of a million digits": (b'{"hidden_size": ' + b"9" * 1_000_000 + b"}", "digits|JSON"),
    "keys given twice": (b'{"hidden_size": 8, "hidden_size": 16}', "twice"),
    "a list": (b"[]", "object"),
    "text cut off": (b'{"hidden_size": 8', "JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "JSON"),
    "nothing": (b"", "JSON"),
    "zeros": (bytes(100), "JSON"),
}
for what, (data, says) in JSON.items():
    CASES.append(Case(f"{what} as config.json", "hf", says, lambda host, data=data: write(host / "config.json", data)))


def with_config(host: Path, **keys: Any) -> None:
    path = host / "config.json"
    write(path, json.dumps(json.loads(path.read_bytes()) | keys).encode())


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "a hidden size of 10**30": ({"hidden_size": 10**30}, "h=10{30}"),
    "a negative hidden size": ({"hidden_size": -8}, "hidden: -8"),
    "a hidden size of NaN": ({"hidden_size": float("nan")}, "NaN"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "number of layers"),
    "layers that are text": ({"num_hidden_layers": "two"}, "number of layers"),
    "no heads": ({"num_attention_heads": 0}, "heads: 0"),
    "heads of truth": ({"num_attention_heads": True}, "heads has a value of the wrong type"),
    "a vocabulary of 2**40": ({"vocab_size": 1 << 40}, "v=1099511627776"),
    "a norm of infinity": ({"rms_norm_eps": float("inf")}, "Infinity"),
    "a norm of a number too large": ({"rms_norm_eps": 10**400}, "rms_norm_eps|number|digits"),
    "a rope of lists": ({"rope_theta": [[[]]]}, "rope_theta|theta"),
}
for what, (keys, says) in KEYS.items():
    CASES.append(Case(f"{what} in config.json", "hf", says, lambda host, keys=keys: with_config(host, **keys)))

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
YAML = {
    "a billion laughs": (LAUGHS.encode(), "unfold"),
    "laughs by merging": (
        b"a: &a {x: &b [&c [1, 1], *c, *c, *c]}\n" + b"".join(b"m%d: {<<: *a, y: *b}\n" % n for n in range(150_000)),
        "too long|unfold",
    ),
    "a Python object": (f"a: !!python/object/apply:os.system ['touch {MARKER}']".encode(), "os.system"),
    "a Python name": (b"a: !!python/name:os.system", "os.system"),
    "a tag that nobody knows": (b"a: !evil {b: c}", "!evil"),
    "a hundred thousand brackets": (b"[" * 100_000, "nested deeper"),
    "a thousand indentations": ("\n".join(" " * n + "a:" for n in range(1000)).encode(), "nested deeper"),
    "three megabytes": (b"a: " + b"x" * (3 << 20), "too long"),
    "keys given twice": (b"model: {a: 1}\nmodel: {a: 2}\n", "twice"),
    "a list": (b"- 1\n- 2\n", "list|keys|object"),
    "several documents": (b"a: 1\n---\nb: 2\n", "document"),
    "no UTF-8": (b"a: \xff\xfe\xfa", "utf-8"),
    "an alias to itself": (b"a: &a [*a]\n", "stands for what it is in"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "unhashable"),
    "a timestamp that is none": (b"a: !!timestamp x\n", "YAML"),
    "bytes": (b"a: !!binary aGk=\n", "binary"),
}
for what, (data, says) in YAML.items():
    CASES.append(
        Case(
            f"{what} as config.yaml",
            "nanotron",
            says,
            lambda host, data=data: write(first(host, "config.yaml"), data),
        )
    )
    CASES.append(
        Case(
            f"{what} as model_config.yaml",
            "nemo",
            says,
            lambda path, data=data: repack(path, lambda name, old: data if name == CONFIG else old),
        )
    )


# --- what is not a file --------------------------------------------------------------------------------------------------------


def replaced(host: Path, name: str) -> Path:
    path = host / name
    path.unlink()
    return path


@case("a named pipe for the weights", "hf", "regular file|no installed format|pipe")
def _(host: Path) -> None:
    os.mkfifo(replaced(host, "model.safetensors"))


@case("a named pipe for the config", "hf", "regular file|no installed format|pipe")
def _(host: Path) -> None:
    os.mkfifo(replaced(host, "config.json"))


@case("a link to /dev/zero for the config", "hf", "regular file|no installed format|device")
def _(host: Path) -> None:
    replaced(host, "config.json").symlink_to("/dev/zero")


@case("a link to itself for the weights", "hf", "no installed format|links")
def _(host: Path) -> None:
    replaced(host, "model.safetensors").symlink_to("model.safetensors")


@case("a socket for the weights", "hf", "regular file|no installed format|socket")
def _(host: Path) -> None:
    path = replaced(host, "model.safetensors")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(path.parent)  # the address may have 100 characters
        bound.bind(path.name)
        os.chdir(here)


@case("a folder for the weights", "hf", "regular file|no installed format|folder")
def _(host: Path) -> None:
    replaced(host, "model.safetensors").mkdir()


@case("a link to itself for the checkpoint", "hf", "no such file|links")
def _(host: Path) -> Path:
    loop = host / "loop"
    loop.symlink_to("loop")
    return loop


@case("a named pipe for a .nemo", "nemo", "no installed format|regular file|pipe")
def _(path: Path) -> None:
    os.mkfifo(replaced(path.parent, path.name))


@case("a rank file that is a named pipe", "megatron", "regular file|pipe|missing|no ")
def _(host: Path) -> None:
    os.mkfifo(replaced(host, "release/mp_rank_01/model_optim_rng.pt"))


@case("a folder that loops into itself", "megatron", "no installed format|release|iteration|missing|several")
def _(host: Path) -> None:
    (host / "release/mp_rank_01/model_optim_rng.pt").unlink()
    (host / "release/mp_rank_01").rmdir()
    (host / "release/mp_rank_01").symlink_to("..")


@case("a tracker that points elsewhere", "megatron", "not a checkpoint, but holds one")
def _(host: Path) -> None:
    write(host / "latest_checkpointed_iteration.txt", b"../../../etc")


@case("a tracker without end", "megatron", "not a checkpoint, but holds one")
def _(host: Path) -> None:
    write(host / "latest_checkpointed_iteration.txt", b"1" * 1_000_000)


# --- receipts, which are believed where they fit ----------------------------------------------------------------------------


@case("a receipt of brackets beside a .nemo", "nemo", "nested too deeply|JSON")
def _(path: Path) -> None:
    write(path.with_name(f"{path.name}.ckpt-receipt.json"), b"[" * 100_000)


RECEIPTS = {
    "that is not JSON": (b"{", "JSON"),
    "that is a list": (b"[]", "object"),
    "of brackets": (b"[" * 100_000, "nested too deeply|JSON"),
}
for what, (data, says) in RECEIPTS.items():
    CASES.append(Case(f"a receipt {what}", "hf", says, lambda host, data=data: write(host / "ckpt-receipt.json", data)))


# --- what is not a checkpoint at all -------------------------------------------------------------------------------------------

_HOLLOW = """
    config.json model_config.json config.yaml metadata.json latest latest_checkpointed_iteration.txt .metadata common.pt
    model_config.yaml hparams.yaml run_config.yaml architecture.json model.safetensors pytorch_model.bin newest
    model.safetensors.index.json io.json model.yaml x.ckpt mp_rank_00_model_states.pt layer_01-model_00-model_states.pt
    model_optim_rng.pt model_weights.ckpt dp_rank_00_tp_rank_00_pp_rank_00.pt
""".split()
_HOLLOW_FOLDERS = (
    "weights context checkpoints model_weights mp_rank_00 global_step1 iter_0000001 release model 1".split()
)


def make_strays(folder: Path) -> list[Path]:
    """Files and folders that have the names of checkpoints, or the contents of others, and are none."""
    contents = {
        "evil.pt": torch_zip(PAYLOADS["os.system"][0]),
        "evil.ckpt": torch_zip(PAYLOADS["builtins.exec"][0]),
        "empty-dict.pt": torch_zip(b"}"),
        "empty-list.ckpt": torch_zip(b"]"),
        "zeros.nemo": bytes(10240),
        "empty.safetensors": b"",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(member("./x"))
    contents |= {"one-file.nemo": out.getvalue(), "one-file-gz.nemo": gzip.compress(out.getvalue())}
    for name, data in contents.items():
        write(folder / name, data)
    os.mkfifo(folder / "pipe.nemo")
    (folder / "empty").mkdir()
    for inner in ("", *_HOLLOW_FOLDERS):
        (folder / "hollow" / inner).mkdir(parents=True)
        for name in _HOLLOW:
            write(folder / "hollow" / inner / name, b"")
    return sorted(folder.iterdir())
