"""Checkpoints behind a web server: every kind of container opens, by ranges; what a server does wrong is retried or refused by name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError, FormatError, StoreError, UsageError
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.storage.bytes.remote import buckets, http, localised, object_at, ranges, stand_in
from ckpt_core.storage.bytes.remote.http import Refused
from ckpt_core.storage.bytes.remote.kept import Cache
from ckpt_core.storage.bytes.remote.objects import Hiccup, Listing, Object
from ckpt_core.storage.bytes.remote.view import _stood
from ckpt_core.storage.bytes.remote.web import _no
from ckpt_core.storage.safetensors import read_header
from ckpt_tests.folders import contents
from ckpt_tests.goldens import SHIPPED
from ckpt_tests.program import ckpt
from ckpt_tests.web import Site, serving

NANOTRON = SHIPPED / "nanotron/main_llama_tied_tp2_pp2/checkpoint"

# One for each container and each way to lie: safetensors, torch zip and legacy, torch_dist, zarr, tar, tar.gz, xser, ZeRO.
CASES = [
    "megatron/qwen3_tied_tp2_pp2_torch_dist",
    "megatron/legacy_ckptver0_gpt2_tp2",
    "megatron-deepspeed/bloom-tp2-dp2-bf16-ds070",
    "nemo-gpt/legacy-gpt2-ln1p-tp2-nemo",
    "nemo-gpt/mcore-llama-gqa-tp2-nemo-distckpt",
    "nemo-t5/ul2_legacy_true_ckpt",
    "nemo2/gpt2_tied_tp2_spm",
    "nxdt/train_hf_mixtral_tp2_xser",
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from another test, and nobody waits long."""
    monkeypatch.setattr(ranges, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(ranges, "_STEPS", ranges._Steps())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF folder with a tokenizer, of a real Nanotron checkpoint."""
    folder = tmp_path_factory.mktemp("web") / "llama"
    convert(NANOTRON, folder, to="hf", sync=False)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / RECEIPT).unlink()
    return folder


@pytest.fixture
def site(model: Path, tmp_path: Path) -> Iterator[Site]:
    """A server of a copy of the model, in the folder `llama`."""
    shutil.copytree(model, tmp_path / "www/llama")
    with serving(tmp_path / "www") as found:
        yield found


@pytest.mark.parametrize("case", CASES)
def test_every_container_opens(case: str) -> None:
    folder = SHIPPED / case / "checkpoint"
    inside = [one for one in folder.iterdir() if one.suffix == ".nemo"]
    given = SHIPPED / case / "config"  # a format that says no architecture
    with serving(SHIPPED / case) as site:
        config = f"{site.url}config" if given.is_dir() else None
        address = f"{site.url}checkpoint/{inside[0].name if inside else ''}"
        expected = fingerprint(inside[0] if inside else folder, config=given if config else None)
        assert fingerprint(address, config=config) == expected
    assert site.asked and all(one.condition for one in site.asked), "every range is asked for on a condition"


def test_inspecting_reads_headers_alone(site: Site) -> None:
    code, text = ckpt("inspect", site.url + "llama")
    assert code == 0, text
    assert f"{site.url}llama" in text
    assert "ckpt-" not in text, "no path of a stand-in is shown"
    weights = [one for one in site.asked if one.name.endswith(".safetensors")]
    assert sum(one.count for one in weights) <= 8 << 10
    code, text = ckpt(
        "convert", site.url + "llama", Path(tempfile.gettempdir(), "none"), "--to", "nanotron", "--dry-run"
    )
    assert code == 0, text
    assert sum(one.count for one in site.asked if one.name.endswith(".safetensors")) <= 16 << 10


def test_a_conversion_is_the_same_and_leaves_no_copy(site: Site, model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="nanotron", tp=2, sync=False)
    local = contents((tmp_path / "out").rename(tmp_path / "local"))
    receipt = convert(f"{site.url}llama/", tmp_path / "out", to="nanotron", tp=2, sync=False)
    remote = contents(tmp_path / "out")
    assert local.pop(RECEIPT) != remote.pop(RECEIPT)
    assert local == remote
    text = json.dumps(receipt.body)
    assert receipt.body["source"]["path"] == f"{site.url}llama"
    assert f"{site.url}llama/model.safetensors" in text
    assert "/ckpt-" not in text
    weights = [one for one in receipt.body["source"]["files"] if one["path"].endswith(".safetensors")]
    assert all(one["version"].startswith('"') for one in weights)
    place = localised(f"{site.url}llama")
    held = sum(one.stat().st_blocks * 512 for one in Path(place).iterdir())
    assert held <= 8192 * len(list(Path(place).iterdir())), "a stand-in holds one line"


def test_both_sides_may_lie_elsewhere(site: Site, tmp_path: Path) -> None:
    convert(site.url + "llama", site.folder / "nanotron", to="nanotron", tp=2, sync=False)
    for command in ("verify", "diff"):
        code, text = ckpt(command, site.url + "llama", site.url + "nanotron")
        assert code == 0, text
    weights = next((site.folder / "nanotron").rglob("*rank-0*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, text = ckpt("verify", site.url + "llama", site.url + "nanotron")
    assert code == 3, text
    assert weights.name in text


def test_workers_read_for_themselves(site: Site, tmp_path: Path) -> None:
    command = ["convert", site.url + "llama", tmp_path / "out", "--to", "nanotron", "--no-sync"]
    code, text = ckpt(*command, "--engine", "processes", "--workers", "2")
    assert code == 0, text
    assert fingerprint(tmp_path / "out") == fingerprint(site.folder / "llama")


@pytest.mark.parametrize("fault", ["status", "drop", "short", "silent", "stalled", "longer", "shorter"])
def test_what_passes_is_asked_for_again(site: Site, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault in ("silent", "stalled"):
        monkeypatch.setattr(http, "_TIMEOUT", 0.2)
        http._local.__dict__.clear()
    expected = fingerprint(site.folder / "llama")
    site.fault = lambda number: fault if number % 3 == 0 else None
    assert fingerprint(site.url + "llama") == expected
    site.fault = lambda number: fault
    ranges._STEPS.__init__()  # type: ignore[misc]
    with pytest.raises(CkptError, match=r"does not answer(?s:.)*7 times in a row"):
        fingerprint(site.url + "llama")


@pytest.mark.parametrize("lie", [-1, 1])
def test_a_size_that_is_wrong_is_noticed(site: Site, lie: int) -> None:
    site.lie = lie
    with pytest.raises(StoreError, match="another range than it was asked for"):
        fingerprint(site.url + "llama")


def test_a_redirect_is_followed_and_a_ring_of_them_refused(site: Site) -> None:
    expected = fingerprint(site.folder / "llama")
    site.fault = lambda number: "moved" if number % 2 else None
    assert fingerprint(site.url + "llama") == expected
    site.fault = lambda number: "moved"
    ranges._STEPS.__init__()  # type: ignore[misc]
    with pytest.raises(StoreError, match=r"does not give this file(?s:.)*too many redirects"):
        fingerprint(site.url + "llama")


@pytest.mark.parametrize("location", ["/new/a%20b%C3%A9.bin", "/new/a b\u00c3\u00a9.bin"])
def test_a_redirect_may_have_spaces_and_letters(site: Site, location: str) -> None:
    """As browsers take them. The server writes headers in Latin-1, so that what it sends of the second one is UTF-8."""
    (site.folder / "new").mkdir()
    (site.folder / "new/a b\u00e9.bin").write_bytes(b"12345")
    site.location = location
    found = object_at(localised(site.url + "old/file"))
    assert found is not None and ranges.read(found, 1, 2) == b"23"


@pytest.mark.parametrize("location", ["http://localhost:99999/x", "http://[::1/x", "ftp://localhost/x"])
def test_a_redirect_to_no_url_is_refused(site: Site, location: str) -> None:
    site.location = location
    with pytest.raises(StoreError, match="not a URL of the web"):
        localised(site.url + "old/file")


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_without_head_is_asked_for_a_byte(site: Site, status: int) -> None:
    """A URL that S3 signed for GET is refused for HEAD."""
    expected = fingerprint(site.folder / "llama")
    site.no_head = status
    assert fingerprint(site.url + "llama") == expected
    with pytest.raises(StoreError, match="404"):
        localised(site.url + "llama/none")


def test_an_address_with_spaces_and_letters_is_asked_for_as_it_is_meant(site: Site) -> None:
    (site.folder / "na\u00efve 1").mkdir()
    (site.folder / "na\u00efve 1/x.bin").write_bytes(b"12345")
    assert ranges.read(object_at(localised(f"{site.url}na\u00efve 1/x.bin")), 1, 2) == b"23"  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["http://localhost:99999/x?sig=hidden", "http://[::1/x?sig=hidden", "http:///x"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="the address is no URL") as error:
        localised(address)
    assert "hidden" not in str(error.value)


def test_a_size_that_no_file_has_is_refused(site: Site) -> None:
    site.lie = 1 << 63
    with pytest.raises(StoreError, match="does not say enough"):
        localised(site.url + "llama/config.json")


def test_a_netrc_that_is_not_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    (tmp_path / ".netrc").chmod(0o644)
    refused = Refused(401, "Unauthorized")
    assert "chmod 600" in str(_no("https://server/x", refused))
    (tmp_path / ".netrc").chmod(0o600)
    assert "chmod 600" not in str(_no("https://server/x", refused))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("whole", "the server ignores ranges"),
        ("other", "another range than it was asked for"),
        ("none", "another range than it was asked for"),
    ],
)
def test_a_server_that_does_something_else_is_refused(site: Site, fault: str, words: str) -> None:
    site.fault = lambda number: fault if site.asked[-1].name.endswith(".safetensors") else None
    with pytest.raises(CkptError, match=words):
        fingerprint(site.url + "llama")


@pytest.mark.parametrize(
    "settings", [{}, {"conditions": False}, {"etags": False}, {"etags": False, "conditions": False}]
)
def test_a_change_in_between_is_noticed(site: Site, settings: dict[str, bool]) -> None:
    for name, value in settings.items():
        setattr(site, name, value)
    file = site.folder / "llama/model.safetensors"
    with open_checkpoint(site.url + "llama") as checkpoint:
        first, *_, last = checkpoint
        assert np.isfinite(checkpoint[first][0]).all()
        ranges._STEPS.__init__()  # type: ignore[misc]
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        os.utime(file, (1e9, 1e9))
        with pytest.raises(FormatError, match="the source changed while it was being read"):
            checkpoint[last].numpy()
        file.unlink()
        with pytest.raises(FormatError, match="the source changed while it was being read"):
            checkpoint[last].numpy()


def test_what_is_not_there_is_one_error(site: Site, tmp_path: Path) -> None:
    for address, words in {
        f"{site.url}nothing": "does not give this file",
        "http://name:secret@127.0.0.1/x": "~/.netrc",
        "file:///tmp/model": "give the path itself",
        "msc://profile/model": "there is no reader for msc://",
        "s3:///model": "names no bucket",
        "http://127.0.0.1:9/model": "does not answer",
        f"https{site.url[4:]}model": f"it may be at {site.url}model",
    }.items():
        code, text = ckpt("inspect", address)
        assert code in (1, 2), text
        assert words in text, text
        assert "secret" not in text and "Traceback" not in text


def test_what_to_look_at_where_a_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in buckets._ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    bucket = object.__new__(buckets.Bucket)
    bucket._root = "s3://bucket"
    assert bucket._look("error sending request") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "AWS_ENDPOINT_URL" in bucket._look("error sending request")
    bucket._root = "gs://bucket"
    assert bucket._look("error sending request") is None
    assert "GOOGLE_APPLICATION_CREDENTIALS" in bucket._look("GET http://169.254.169.254/computeMetadata/v1/instance")

    def silent() -> None:
        raise Hiccup("nobody", look="see that it runs")

    with pytest.raises(StoreError, match="see that it runs; or run the same command again later"):
        ranges.again("gs://bucket/x", silent, 1)


def test_what_signs_a_url_is_written_nowhere(site: Site, tmp_path: Path) -> None:
    convert(site.folder / "llama", site.folder / "one.nemo", to="nemo", sync=False)
    signed = f"{site.url}one.nemo?X-Amz-Credential=WHO&X-Amz-Signature=SECRET"
    staged: list[bytes] = []

    def look(_: object) -> None:
        staged.extend(one.read_bytes() for one in (tmp_path / "out.ckpt-partial").rglob("*") if one.is_file())

    convert(signed, tmp_path / "out", to="hf", sync=False, listener=look)
    assert len(staged) > 3
    said = [
        ckpt(command, *words)[1]
        for command, *words in (
            ["inspect", signed],
            ["inspect", signed, "--json"],
            ["convert", signed, tmp_path / "b", "--to", "hf", "--json"],
            ["convert", signed, tmp_path / "c", "--to", "hf", "--dry-run", "--json"],
            ["verify", signed, tmp_path / "out"],
            ["inspect", signed.replace("one.nemo", "none.nemo")],
            ["inspect", signed.replace("SECRET", "SE CRET")],
            ["inspect", signed.replace("http://", "msc://")],
            ["convert", tmp_path / "out", signed, "--to", "hf"],
        )
    ]
    written = [one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()]
    for text in (*(one.encode() for one in said), *staged, *written):
        assert b"SECRET" not in text and b"SE CRET" not in text and b"WHO" not in text, text


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//x", "/x", "a\0b", "y" * 300])
def test_a_name_that_is_no_path_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="a name that no file can have"):
        _stood(Listing("https://names", "", [Object(f"https://names/{name}", 1, "v")]))


def test_a_file_and_a_folder_of_one_name_are_refused() -> None:
    objects = [Object(f"https://twice/{name}", 1, "v") for name in ("a", "a/b")]
    with pytest.raises(FormatError, match="one name"):
        _stood(Listing("https://twice", "", objects))


def test_a_stand_in_holds_nothing_and_says_where_it_is(site: Site) -> None:
    folder = localised(site.url + "llama")
    file = Path(folder, "model.safetensors")
    assert stand_in(file) and not stand_in(site.folder)
    assert file.stat().st_size == (site.folder / "llama/model.safetensors").stat().st_size
    assert file.stat().st_mode & 0o777 == 0
    assert object_at(file) == object_at(Path(folder, "..", "llama", "model.safetensors"))
    if os.geteuid() == 0:  # who may open everything meets a text
        assert file.read_bytes().startswith(f"a stand-in of ckpt for {site.url}llama/model.safetensors".encode())


def test_a_cache_is_filled_once_and_only_where_asked_for(site: Site, tmp_path: Path) -> None:
    expected = fingerprint(site.folder / "llama")
    seen = []
    for damage in (None, None, lambda one: one.write_bytes(b"nonsense\n9"), None):
        before, site.asked[:] = len(site.asked), []
        ranges._STEPS.__init__()  # type: ignore[misc]
        for one in (tmp_path / "cache").glob("*.have"):
            if damage is not None:
                damage(one)
        code, text = ckpt("fingerprint", site.url + "llama", "--cache", tmp_path / "cache")
        assert code == 0 and text.startswith(expected), text
        seen.append(sum(one.count for one in site.asked))
    assert seen[0] and seen[2] and not seen[1] and not seen[3], (before, seen)


def test_a_cache_whose_data_was_removed_or_cut_gives_no_zeros(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    whole = random.integers(1, 256, 4000, np.uint8).tobytes()
    one = Object("https://server/model.safetensors", len(whole), '"v"')
    fetched = 0

    def fetch(view: memoryview, offset: int) -> None:
        nonlocal fetched
        fetched += len(view)
        view[:] = whole[offset : offset + len(view)]

    def read(offset: int, count: int) -> None:
        view = bytearray(count)
        Cache(str(tmp_path), one).read_into(memoryview(view), offset, fetch)
        assert view == whole[offset : offset + count]

    for number in range(300):
        damaged = next(tmp_path.glob("*.data"), None)
        if damaged is not None and number % 7 == 0:
            damaged.unlink()  # by a program that empties caches
        elif damaged is not None and number % 7 == 3:
            os.truncate(damaged, 1000)  # as a copy on a full disk is
        offset = int(random.integers(0, 3900))
        read(offset, int(random.integers(1, 100)))
    read(0, 4000)
    fetched = 0
    read(17, 3000)
    assert not fetched, "what is there is not asked for"


def test_a_cache_that_is_emptied_while_others_fill_it_gives_no_zeros(tmp_path: Path) -> None:
    whole = bytes(range(1, 201))
    one = Object("https://server/model.safetensors", len(whole), '"v"')

    def fetch(view: memoryview, offset: int) -> None:
        view[:] = whole[offset : offset + len(view)]

    def fetch_slowly(view: memoryview, offset: int) -> None:
        read(0, 150, fetch)  # another process
        (data,) = tmp_path.glob("*.data")
        data.unlink()
        fetch(view, offset)

    def read(offset: int, count: int, fetch: Callable[[memoryview, int], None]) -> None:
        view = bytearray(count)
        Cache(str(tmp_path), one).read_into(memoryview(view), offset, fetch)
        assert view == whole[offset : offset + count]

    read(150, 50, fetch_slowly)
    read(0, 150, fetch)


def test_small_reads_take_few_requests(site: Site) -> None:
    path = site.folder / "big.safetensors"
    save_file({f"t{number:05}": np.zeros(1, np.float32) for number in range(3000)}, path)
    header = read_header(localised(site.url + "big.safetensors"))
    assert len(header.tensors) == 3000
    assert len(site.asked) == 2, "a header is two requests: how long it is, and the rest"


def test_heads_are_asked_for_together(site: Site) -> None:
    for number in range(40):
        save_file({f"t{number}": np.full(3, number, np.float32)}, site.folder / f"many-{number:02}.safetensors")
    barrier = threading.Barrier(4, timeout=20)  # four requests at a time, or nobody is answered

    def wait(number: int) -> None:
        if number in (2, 3, 4, 5):
            barrier.wait()

    site.fault = wait
    folder = localised(site.url)
    for number in range(40):
        assert list(read_header(os.path.join(folder, f"many-{number:02}.safetensors")).tensors) == [f"t{number}"]
    assert len(site.asked) == 40, "each head is asked for once"
