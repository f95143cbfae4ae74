"""Tars are listed as tarfile lists them, written as tarfile and GNU tar read them, and read inside gzip at any place."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckpt_core.errors import FormatError
from ckpt_core.storage.archive import inflate
from ckpt_core.storage.archive.inflate import inflated, open_stored
from ckpt_core.storage.archive.tar import Listing, list_tar, plan_tar
from ckpt_core.storage.archive.tree import is_archive, open_tree
from ckpt_core.storage.bytes.output import Checksum, OutputFile

FILES = {
    "model_config.yaml": b"hidden_size: 5\n",
    "mp_rank_00/model_weights.ckpt": bytes(range(256)) * 40,
    "mp_rank_01/model_weights.ckpt": b"",
    f"{'long' * 30}/{'er' * 50}": b"3" * 512,
    "übung/ß": b"utf-8",
}


def packed(files: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT, prefix: str = "./") -> bytes:
    """A tar by the standard library, with a folder before the files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("./" if prefix else "folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def listed(data: bytes) -> Listing:
    return list_tar(io.BytesIO(data), "x.tar", len(data))


def in_bytes(planned: OutputFile) -> bytearray:
    """What is known of a planned file, with `.` where its data will be."""
    data = bytearray(b"." * planned.size)
    for offset, known in planned.literals:
        data[offset : offset + len(known)] = known
    return data


_NAMES = (
    st.lists(st.text("abcß.", min_size=1, max_size=60), min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda name: not {".", ".."} & set(name.split("/")))
)
_CONTENTS = st.dictionaries(_NAMES, st.binary(max_size=1100), min_size=1, max_size=5).filter(
    lambda files: not any(f"{other}/".startswith(f"{name}/") for name in files for other in files if other != name)
)


@settings(max_examples=60)
@given(
    files=_CONTENTS, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), prefix=st.sampled_from(["./", ""])
)
def test_a_tar_is_listed_as_the_standard_library_lists_it(files: dict[str, bytes], form: int, prefix: str) -> None:
    data = packed(files.items(), form, prefix)
    found = listed(data)
    assert {name: data[one.offset : one.offset + one.size] for name, one in found.files.items()} == files


@settings(max_examples=60)
@example(files={"a" * 97 + "ß" * 20: b"cut in a letter at byte 100"}, known=False)
@given(files=_CONTENTS, known=st.booleans())
def test_a_planned_tar_is_read_by_the_standard_library_and_by_us(files: dict[str, bytes], known: bool) -> None:
    members = {f"./{name}": data if known else OutputFile("", len(data), ((0, data),)) for name, data in files.items()}
    planned, offsets = plan_tar("x.nemo", members)
    data = bytes(in_bytes(planned))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {one.name: tar.extractfile(one).read() for one in tar if one.isfile()} == {
            f"./{name}": files[name] for name in files
        }
        assert {one.name: one.offset_data for one in tar if one.isfile()} == offsets
        folders = {one.name.removeprefix("./") for one in tar if one.isdir()} - {"."}
    found = listed(data)
    assert {f"./{name}": one.offset for name, one in found.files.items()} == offsets
    assert found.folders == folders


def test_what_is_known_of_a_member_goes_where_the_member_goes() -> None:
    inner = OutputFile("", 700, ((3, b"abc"), (690, b"end")), (Checksum(100, 50, (5, 695)),))
    planned, offsets = plan_tar("x.nemo", {"./a": b"1", "./b": inner, "./c": b"2"})
    at = offsets["./b"]
    assert at % 512 == 0
    assert planned.checksums == (Checksum(at + 100, 50, (at + 5, at + 695)),)
    data = in_bytes(planned)
    assert data[at + 3 : at + 6] == b"abc" and data[at + 690 : at + 693] == b"end"
    assert data.count(b".") - data.count(b"./") == 700 - 6, "all but the member's own data is known"


def test_sizes_beyond_octal(tmp_path: Path) -> None:
    planned, offsets = plan_tar("x.nemo", {"./huge": OutputFile("", 9 << 30), "./last": b"small"})
    path = tmp_path / "x.nemo"
    with path.open("wb") as file:  # sparse: nothing of the 9 GiB is written
        file.truncate(planned.size)
        for offset, known in planned.literals:
            file.seek(offset)
            file.write(known)
    assert [(name, one.offset, one.size) for name, one in open_tree(path).files.items()] == [
        ("huge", offsets["./huge"], 9 << 30),
        ("last", offsets["./last"], 5),
    ]
    with tarfile.open(path) as tar:
        assert [one.size for one in tar if one.isfile()] == [9 << 30, 5]


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar program")
def test_the_tar_program_unpacks_what_is_planned(tmp_path: Path) -> None:
    planned, _ = plan_tar("x.nemo", {f"./{name}": data for name, data in FILES.items()})
    (tmp_path / "x.nemo").write_bytes(in_bytes(planned))
    subprocess.run(["tar", "xf", "x.nemo"], cwd=tmp_path, check=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES


# --- trees ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "tar", "tar.gz"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same files, kept in each of the three ways."""
    path = tmp_path / "kept"
    data = packed(FILES.items())
    if request.param == "folder":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(path, filter="data")
    else:
        path.write_bytes(data if request.param == "tar" else gzip.compress(data))
    return path


def test_a_tree_is_the_same_however_it_is_kept(kept: Path) -> None:
    tree = open_tree(kept)
    assert {name: tree.read(name) for name in tree.files} == FILES
    assert tree.folders == sorted({name.split("/")[0] for name in FILES if "/" in name})
    below = tree.below("mp_rank_00")
    assert {name: below.read(name) for name in below.files} == {
        "model_weights.ckpt": FILES["mp_rank_00/model_weights.ckpt"]
    }
    assert "model_weights.ckpt" in below and "model_config.yaml" not in below and "../model_config.yaml" not in below
    assert not list(tree.below("nothing").files)
    assert {state.path for state in tree.states} == (
        {str(kept)} if kept.is_file() else {str(kept / name) for name in FILES}
    )
    with pytest.raises(FormatError, match="missing") as caught:
        tree.below("mp_rank_00").read("none")
    assert caught.value.file == f"{kept}/mp_rank_00/none"
    with pytest.raises(FormatError, match="too large"):
        tree.read("model_config.yaml", limit=3)


def test_an_archive_is_told_by_its_content(tmp_path: Path) -> None:
    data = packed(FILES.items())
    for name, content, expected in (
        ("x.zip", data, True),
        ("y.bin", gzip.compress(data), True),
        ("z.tar", b"no tar" * 200, False),
        ("z.tar.gz", gzip.compress(b"no tar" * 200), False),
        ("cut.nemo", data[:300], False),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_archive(tmp_path / name) is expected, name
    assert not is_archive(tmp_path) and not is_archive(tmp_path / "none")


def test_links_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "real").write_bytes(b"1")
    (folder / "near").symlink_to("real")
    (tmp_path / "secret").write_bytes(b"2")
    (folder / "far").symlink_to("../secret")
    tree = open_tree(folder)
    assert tree.read("near") == b"1"
    with pytest.raises(FormatError, match="leads out of the checkpoint") as caught:
        tree.read("far")
    assert caught.value.file == str(folder / "far")


def test_the_cache_of_a_hub_links_to_blobs(tmp_path: Path) -> None:
    blob = tmp_path / "models--a--b" / "blobs" / "c0ffee"
    folder = tmp_path / "models--a--b" / "snapshots" / "main"
    blob.parent.mkdir(parents=True)
    (folder / "weights").mkdir(parents=True)
    blob.write_bytes(b"3")
    (folder / "weights" / "w").symlink_to("../../../blobs/c0ffee")
    assert open_tree(folder).below("weights").read("w") == b"3"


# --- inside gzip ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes]:
    """A tar.gz of two gzip members, with an index of a few entries, and what it inflates to."""
    monkeypatch.setattr(inflate, "_SPACING", 20_000)
    monkeypatch.setattr(inflate, "_MOST_ENTRIES", 6)
    monkeypatch.setattr(inflate, "_PIECE", 7_000)
    noise = random.Random(5)
    data = packed([("weights", bytes(noise.choices(range(40), k=300_000))), ("more", bytes(50_000))])
    path = tmp_path / "large.nemo"
    path.write_bytes(gzip.compress(data[:200_000]) + gzip.compress(data[200_000:]) + bytes(99))
    return path, data


def test_any_range_is_read(large: tuple[Path, bytes]) -> None:
    path, data = large
    contents = inflated(path)
    assert contents.size == len(data)
    assert len(contents._entries) <= 6
    noise = random.Random(7)
    for _ in range(300):
        start = noise.randrange(len(data))
        view = bytearray(min(noise.choice([1, 100, 30_000]), len(data) - start))
        contents.read_into(memoryview(view), start)
        assert view == data[start : start + len(view)]
    with open_stored(path) as stream:
        assert stream.read() == data
    with pytest.raises(FormatError, match="ends too early"):
        contents.read_into(memoryview(bytearray(2)), len(data) - 1)


def test_another_process_makes_its_own_index(large: tuple[Path, bytes]) -> None:
    path, data = large
    sent = pickle.dumps(inflated(path))
    assert len(sent) < 1000
    inflate._indexed.cache_clear()
    view = bytearray(10)
    pickle.loads(sent).read_into(memoryview(view), 123_456)
    assert view == data[123_456:123_466]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda good: good[:-9], "cut off"),
        (lambda good: good[: len(good) // 2], "cut off"),
        (lambda good: good[:-8] + b"oops" + good[-4:], "damaged"),
        (lambda good: good[:-4] + b"oops", "damaged"),
        (lambda good: good[:900] + bytes(9) + good[909:], "damaged"),
        (lambda good: good + b"behind", "damaged"),
    ],
    ids=["trailer cut", "half", "checksum", "length", "inside", "behind"],
)
def test_damage_is_found_before_anything_is_read(tmp_path: Path, damage, problem: str) -> None:
    noise = random.Random(3)
    path = tmp_path / "x.nemo"
    path.write_bytes(damage(gzip.compress(packed([("a", noise.randbytes(5000))]))))
    with pytest.raises(FormatError, match=problem) as caught:
        open_tree(path)
    assert caught.value.file == str(path)


def test_a_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "_LARGE", 8 << 20)
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    path = tmp_path / "bomb.nemo"
    path.write_bytes(
        bomb.compress(packed([("a", b"")])) + b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    )
    with pytest.raises(FormatError, match="bomb"):
        open_tree(path)


def test_a_file_that_changed_is_not_read_on(large: tuple[Path, bytes]) -> None:
    path, _ = large
    state = open_tree(path).states[0]
    os.utime(path, ns=(1, 1))
    inflate._indexed.cache_clear()
    with pytest.raises(FormatError, match="changed"):
        inflated(path, state)
