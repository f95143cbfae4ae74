"""What a reader makes of a file is bounded: a hostile one is refused before it takes the memory that it asks for."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import tarfile

import pytest

from ckpt_core.errors import CkptError, FormatError, Problems, ProblemsFound
from ckpt_core.storage.archive import tar
from ckpt_core.storage.documents import parse_json, parse_yaml
from ckpt_core.storage.pickle.reader import Limits, read_pickle

# Bytes of memory for one byte of the pickle: 216, 72, 58, 62 and 44, and each file would take more than 2 GB.
GREEDY = {
    "empty sets": b"(" + b"\x8f" * (10 << 20) + b"l.",
    "empty lists": b"(" + b"]" * (30 << 20) + b"l.",
    "dicts of one": b"(" + b"}NNs" * (9 << 20) + b"l.",
    "lists in lists": b"(" + b"]]a" * (11 << 20) + b"l.",
    "ordered dicts": b"ccollections\nOrderedDict\nq\0(" + b"h\0)R" * (12 << 20) + b"l.",
}
READ = """
import resource, sys
from ckpt_core.errors import FormatError
from ckpt_core.storage.pickle.reader import Limits, read_pickle
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_pickle(data, "x.pkl")
except FormatError as problem:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, problem)
"""


@pytest.mark.parametrize("name", GREEDY)
def test_a_pickle_may_make_as_much_as_a_checkpoint_of_its_size(name: str) -> None:
    run = subprocess.run([sys.executable, "-c", READ], input=GREEDY[name], capture_output=True, check=True)
    grown, _, problem = run.stdout.decode().partition(" ")
    assert "far more than a checkpoint of its size" in problem and "file: x.pkl" in problem
    assert "found: " in problem and "expected: at most " in problem
    assert int(grown) << 10 < 128 << 20


def test_what_a_pickle_remembers_counts() -> None:
    """Out of order, a value takes a hundred bytes more."""
    limits = Limits(memory_free=1000)

    def remembering(step: int) -> bytes:
        return b"N" + b"".join(b"r" + (step * number).to_bytes(4, "little") for number in range(1000)) + b"."

    assert read_pickle(remembering(1), "x.pkl", limits=limits) is None
    with pytest.raises(FormatError, match="far more than"):
        read_pickle(remembering(2), "x.pkl", limits=limits)


@pytest.mark.parametrize("item", ['"ab"', "[0]", "{}", '{"a":0}', "[[]]", "999", '"€"'])
def test_json_is_refused_before_it_is_read(item: str) -> None:
    data = ("[" + f"{item}," * (48_000_000 // (len(item) + 1)) + "0]").encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="holds too much"):
        parse_json(data, "x.json")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 128 << 20


@pytest.mark.parametrize(("opens", "closes"), [(b"[", b"]"), (b'{"a":[', b"]}")], ids=["arrays", "both"])
def test_json_nests_so_deep_in_every_python(opens: bytes, closes: bytes) -> None:
    """Python's own limit lies between 1000 levels and 10,000, and what walks the value has 1000 calls."""
    most = 64 // (len(closes))
    assert parse_json(opens * most + closes * most, "x.json")
    for times in (most + 1, 500, 5000, 50_000):
        with pytest.raises(FormatError, match="nested too deeply"):
            parse_json(opens * times + closes * times, "x.json")


def test_a_sign_is_no_digit_of_a_number() -> None:
    """A text is looked at for rows of digits before its numbers are counted one by one: both must say the same."""
    forty = b"-" + b"9" * 40
    assert parse_json(b"[%s]" % forty, "x.json") == [1 - 10**40]
    assert parse_json(b'["%s", %s]' % (b"7" * 41, forty), "x.json") == ["7" * 41, 1 - 10**40]
    with pytest.raises(FormatError, match="more than 40 digits"):
        parse_json(b"[%s9]" % forty, "x.json")


def test_yaml_has_so_many_values() -> None:
    with pytest.raises(FormatError, match="more than 100000 values"):
        parse_yaml(b"[" + b"a," * 100_000 + b"b]", "x.yaml")


def test_the_names_in_a_tar_take_so_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of 512 bytes may be in 60 folders that no other is in."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(100):
            archive.addfile(tarfile.TarInfo(f"{number:05}/" + "a/" * 59 + "b"))
    size = out.tell()
    assert len(tar.list_tar(out, "x.tar", size).folders) == 6000
    monkeypatch.setattr(tar, "_MAX_MEMORY", 1 << 20)
    with pytest.raises(FormatError, match="too much to be listed"):
        tar.list_tar(out, "x.tar", size)


def test_a_thousand_problems_are_kept_and_the_rest_is_counted() -> None:
    problems = Problems("reading x")
    for number in range(3000):
        problems.add(CkptError(f"tensor {number} is wrong"))
    with pytest.raises(ProblemsFound, match="3000 problems, of which the first 1000 are kept") as caught:
        problems.raise_any()
    assert len(caught.value.problems) == 1000
