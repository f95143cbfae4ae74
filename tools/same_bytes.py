"""Shows that two commits write byte-identical files: `python tools/same_bytes.py BASE [HEAD] [--formats hf,nemo] [--quick]`.

BASE and HEAD are commits, or folders that hold a working tree; without HEAD it is the tree that this program lies in, as it
is now. Each side runs in processes of its own, which import that side's code (checked), and carries out the same
conversions: the kit's example models to every format, in several layouts and under each choice of each option, and back to
`ir`; and the golden checkpoints (those of `tests`, or `$CKPT_GOLDENS` and `$CKPT_GOLDENS_2026`) to `ir`, to `hf` and to
their own format. Every output file is compared by size and digest, and receipts as documents: without the version of ckpt,
the times and places of files, and the digests that follow from those. Where both sides refuse, the texts are compared; a
text that changed is shown, and is not a failure. Exit status 1: a file or a receipt differs, or one side alone succeeds.

What a commit writes is kept in `--cache`, so that a commit is measured once for everyone who shares the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSION = 1  # of what is measured: kept results of another version are not used

# Models by name: an example of the kit, and facts that are changed; None removes a fact.
_SQUARE: dict[str, object] = {"hidden": 216}  # heads x head_dim, for frameworks that have no size of a head
_UNSHARED: dict[str, object] = {"mlp.moe.shared": None}
_ONE_EPSILON: dict[str, object] = {f"latent_attention.{norm}.eps": 1e-5 for norm in ("norm", "q_norm", "kv_norm")}
_PLAIN = (
    "llama", "moe", "gpt2", "t5", "vit", "bloom", "latent", "llama-padded", "llama-tied", "qwen", "neox", "starcoder2",
    "smollm3", "gemma", "moe-mixed", "t5-crossed", "vit-pooled",
)  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in _PLAIN},
    **{
        f"{name}-square": (name, _SQUARE)
        for name in ("llama", "llama-padded", "llama-tied", "qwen", "moe", "smollm3", "starcoder2")
    },
    "mixtral": ("moe", {**_SQUARE, **_UNSHARED, "mlp.moe.router.normalise": True}),
    "latent-even": ("latent", _ONE_EPSILON),
    "bloom-144": ("bloom", {"hidden": 144, "attention.head_dim": 12, "mlp.ffn": 576}),
    "gpt2-144": ("gpt2", {"hidden": 144, "attention.head_dim": 12, "mlp.ffn": 576}),
    "vit-square": ("vit", {**_SQUARE, "classifier.hidden": False}),
    "t5-even": ("t5", {"encoder.layers": 4, "decoder.layers": 4}),
}
# The models that options are tried on, and those whose single facts are varied.
_TRIED = ("llama-square", "mixtral", "gpt2-144", "bloom-144", "t5-even", "vit")
_VARIED = ("llama-square", "gpt2-144")
_LAYOUTS: tuple[dict[str, int], ...] = ({}, {"tp": 2, "pp": 3}, {"tp": 2, "ep": 2})
# Values of options that are numbers or texts; of other numbers, 2 is tried.
_VALUES = {
    "make_vocab_size_divisible_by": ("1", "16"),
    "max_shard_size": ("100KB",),
    "image_size": ("32x48",),
    "pipeline_cuts": ("2",),
    "iteration": ("7",),
}
# Which format reads a golden checkpoint, where the framework's name in case.json does not begin with the format's.
_FRAMEWORKS = {"nemo-t5": "nemo", "transformers": "hf"}


@dataclass(frozen=True)
class Job:
    """One conversion: what is read (an example, or a folder of goldens), and how it is written. `to` of None: its own format."""

    source: str
    to: str | None
    format: str
    layout: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    golden: str | None = None
    contents: str = ""
    back: bool = False

    def __str__(self) -> str:
        ranks = [f"{name}={size}" for name, size in self.layout.items()]
        options = [f"-o {name}={value}" for name, value in self.options.items()]
        return " ".join([self.source, "->", self.to or "its own format", *ranks, *options])

    @property
    def key(self) -> str:
        """Equal for jobs that do the same, wherever the goldens lie."""
        body = {name: value for name, value in asdict(self).items() if name != "golden"}
        return hashlib.sha256(json.dumps([VERSION, body], sort_keys=True).encode()).hexdigest()[:32]


# One side


class Side:
    """The code of one commit or folder, and what it makes of jobs."""

    def __init__(self, name: str, cache: Path, work: Path) -> None:
        self.name, self._work = name, work
        self._kept: Path | None = None
        if os.path.isdir(name):
            self.tree = Path(name).resolve()
        else:
            commit = _git("rev-parse", "--verify", f"{name}^{{commit}}")
            self.name = f"{name} ({commit[:10]})" if commit[:10] not in name else name
            self.tree, self._kept = _unpacked(commit, cache), cache / "results" / commit
            self._kept.mkdir(parents=True, exist_ok=True)

    def kept(self, job: Job) -> dict[str, Any] | None:
        """What is known of a job already."""
        if self._kept is None or not (path := self._kept / f"{job.key}.json").is_file():
            return None
        return json.loads(path.read_text())

    def keep(self, job: Job, result: dict[str, Any]) -> None:
        if self._kept is not None:
            _put(self._kept / f"{job.key}.json", json.dumps(result).encode())

    def worker(self) -> Worker:
        return Worker(self.tree, Path(tempfile.mkdtemp(dir=self._work)))


class Worker:
    """A process that imports the code of one tree and converts what it is told to."""

    def __init__(self, tree: Path, folder: Path) -> None:
        sources = [*sorted(tree.glob("*/src")), *sorted(tree.glob("plugins/*/src"))]
        if not (tree / "core/src").is_dir():
            sys.exit(f"{tree} has no core/src: it is not a tree of ckpt")
        path = [_metadata(tree, folder), *map(str, sources)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        environment.pop("CKPT_PLUGINS", None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--worker", str(tree), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=folder,
            text=True,
        )

    def ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"the process that runs {request} ended with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _unpacked(commit: str, cache: Path) -> Path:
    """The files of a commit in the cache; several processes may ask for them at a time."""
    tree = cache / "trees" / commit
    if not tree.is_dir():
        tree.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=tree.parent))
        archive = subprocess.Popen(
            ["git", "-C", str(ROOT), "archive", commit, "--", ".", ":(exclude)tests"], stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-x", "-C", fresh], stdin=archive.stdout, check=True)
        if archive.wait():
            sys.exit(f"git archive {commit} failed")
        with contextlib.suppress(OSError):  # another process was first
            fresh.rename(tree)
        shutil.rmtree(fresh, ignore_errors=True)
    return tree


def _put(path: Path, data: bytes) -> None:
    """Write a file that other processes may write as well."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    fresh.write_bytes(data)
    fresh.replace(path)


def _metadata(tree: Path, folder: Path) -> str:
    """A folder of distributions with this tree's entry points; they hide those of the environment that bear the same names."""
    place = folder / "distributions"
    for file in (*sorted(tree.glob("*/pyproject.toml")), *sorted(tree.glob("plugins/*/pyproject.toml"))):
        project = tomllib.loads(file.read_text())["project"]
        info = place / f"{project['name'].replace('-', '_')}-0.0.dist-info"
        info.mkdir(parents=True)
        version = project.get("version", "0.0")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
        groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
        text = "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in groups.items()
        )
        (info / "entry_points.txt").write_text(text)
    return str(place)


# In a worker


def _work(tree: str, folder: str) -> None:
    """Answer requests, one per line of standard input, with the code of `tree`."""
    import ckpt_core

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    _check_origin(tree)
    assert ckpt_core.__file__.startswith(tree)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _TASKS[request.pop("task")](folder, **request)
        _check_origin(tree)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _check_origin(tree: str) -> None:
    """Every module of ours comes from the tree that is judged, and not from what is installed."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("ckpt_") and file is not None and not file.startswith(tree + os.sep):
            sys.exit(f"{name} was imported from {file}, and not from {tree}")


def _survey(folder: str) -> dict[str, Any]:
    """The formats with their options, as `ckpt formats --json` says them."""
    from click.testing import CliRunner

    from ckpt_core.cli.main import cli

    def said(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(cli, ["formats", *arguments, "--json"], catch_exceptions=False)
        return json.loads(result.stdout)

    return {one["name"]: said(one["name"]) for one in said()["formats"] if one["broken"] is None}


def _write_source(folder: str, place: str, example: str, changes: dict[str, object], variation: str | None) -> dict:
    """Write an example of the kit in the `ir` format, with notes and a tokenizer's file."""
    from ckpt_core.testing import example as example_of
    from ckpt_core.testing import variations, write_ir
    from ckpt_core.testing.examples import ABSENT

    architecture = example_of(example, **{path: ABSENT if value is None else value for path, value in changes.items()})
    if variation is not None:
        architecture = variations(architecture)[variation].architecture
    fresh = f"{place}.{secrets.token_hex(4)}"
    write_ir(
        fresh,
        architecture,
        dtype="bf16" if example == "llama-padded" else "fp32",
        notes={"bos": 3, "eos": 5, "max_positions": 64},
        sidecars={"chat_template.jinja": b"{{ messages }}"},
    )
    with contextlib.suppress(OSError):
        os.rename(fresh, place)
    shutil.rmtree(fresh, ignore_errors=True)
    return {}


def _list_variations(folder: str, example: str, changes: dict[str, object]) -> dict[str, list[str]]:
    from ckpt_core.testing import example as example_of
    from ckpt_core.testing import variations

    return {"names": list(variations(example_of(example, **changes)))}


def _convert(
    folder: str, src: str, to: str | None, layout: dict[str, int], options: dict[str, str], back: bool, **_: object
) -> dict[str, Any]:
    """What one conversion writes, or the text of its error."""
    if to is None:
        first = _converted(folder, src, {"to": "ir"})
        if "error" in first:
            return first
        to = first["receipt"]["source"]["format"]
    given = {f"dst.{name}": value for name, value in options.items()}
    with _place(folder, "there") as out:
        result = _converted(folder, src, {"to": to, "options": given, **layout}, out)
        if back and "error" not in result:
            result["back"] = _converted(folder, out, {"to": "ir", "format": to})
    return result


@contextlib.contextmanager
def _place(folder: str, name: str) -> Iterator[str]:
    """Where an output goes. Formats that write this path into their configs write as many bytes on either side."""
    os.mkdir(place := os.path.join(folder, name))
    try:
        yield os.path.join(place, "out")
    finally:
        shutil.rmtree(place)


def _converted(folder: str, src: str, arguments: dict[str, Any], out: str | None = None) -> dict[str, Any]:
    from ckpt_core import convert

    with _place(folder, "back") as other:
        out = out or other
        places = {src: "SRC", out: "DST", folder: "WORK"}
        try:
            receipt = convert(src, out, sync=False, **arguments)
        except Exception as error:  # of any kind: an accident is compared as well
            return {"error": _without(places, str(error)), "kind": type(error).__name__}
        files = dict(_digests(Path(out), folder))
        return {"files": files, "receipt": json.loads(_without(places, json.dumps(_lasting(receipt.body))))}


def _digests(out: Path, folder: str) -> Iterator[tuple[str, tuple[int, str]]]:
    """Size and digest of every file, receipts aside; the name of the folder that is worked in does not count."""
    here = folder.encode()
    for path in sorted([out] if out.is_file() else out.rglob("*")):
        if path.is_symlink() or path.is_dir():
            if path.is_symlink() or not any(path.iterdir()):
                yield str(path.relative_to(out)), (0, os.readlink(path) if path.is_symlink() else "an empty folder")
        elif not path.name.endswith("ckpt-receipt.json"):
            data = path.read_bytes().replace(here, b"/" * len(here))
            name = "" if path == out else str(path.relative_to(out))
            yield name, (len(data), hashlib.sha256(data).hexdigest()[:24])


def _lasting(value: Any) -> Any:
    """A receipt without what differs from day to day and from version to version, without digests of files, which are
    compared themselves, and with long lists as digests.
    """
    dropped = {"ckpt", "plan", "mtime_ns", "seal", "blake3", "crc32"}
    if isinstance(value, Mapping):
        kept = {str(key): _lasting(one) for key, one in value.items() if key not in dropped}
        if isinstance(kept.get("documents"), dict):
            kept["documents"] = sorted(kept["documents"])
        if isinstance(kept.get("files"), list):  # what was read; a receipt of ours among it is of another length
            kept["files"] = sorted(f["path"] for f in kept["files"])
        for key in kept.keys() & {"tensors"}:
            kept[key] = hashlib.sha256(json.dumps(kept[key], sort_keys=True).encode()).hexdigest()[:24]
        return kept
    return [_lasting(one) for one in value] if isinstance(value, list | tuple) else value


def _without(places: Mapping[str, str], text: str) -> str:
    for place, name in places.items():
        text = text.replace(place, name)
    return text


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "survey": _survey,
    "source": _write_source,
    "variations": _list_variations,
    "convert": _convert,
}


# The jobs


def jobs_of(
    formats: Mapping[str, Any], asked: Iterable[str], quick: bool, varied: Mapping[str, list[str]]
) -> list[Job]:
    """Everything that is compared."""
    found: list[Job] = []
    for name in asked:
        about = formats[name]
        if about["writes"]:
            layouts = [one for one in _LAYOUTS if set(one) <= {*about["parallel"]}]
            if not about["parallel"] or len(layouts) == 1:
                layouts = [{}, *({key: 2} for key in about["parallel"])]
            found += _of_models(name, layouts, quick)
            found += _of_options(name, about["options"], layouts, quick)
            found += [
                Job(f"{model}/{variation}", name, name, back=True)
                for model, variations in varied.items()
                for variation in variations
            ]
    return [*found, *_of_goldens({*asked}, {*formats}, quick)]


def _of_models(name: str, layouts: list[dict[str, int]], quick: bool) -> Iterator[Job]:
    """Every model in every layout; in a quick run each in one, and another one for the next."""
    for index, model in enumerate(MODELS):
        chosen = [layouts[index % len(layouts)]] if quick else layouts
        for layout in chosen:
            if "ep" not in layout or "moe" in model or model == "mixtral":
                yield Job(model, name, name, layout, back=True)


def _of_options(name: str, options: list[dict[str, Any]], layouts: list[dict[str, int]], quick: bool) -> Iterator[Job]:
    """Every choice of every option; in a full run also every two of them."""
    choices: dict[str, tuple[str, ...]] = {}
    for option in options:
        if option["side"] != "read":
            kind = option["values"]
            numbers = {"bool": ("true", "false"), "int": ("2",)}.get(kind, ()) if isinstance(kind, str) else tuple(kind)
            choices[option["name"]] = _VALUES.get(option["name"], numbers)
    single = [{option: value} for option, values in choices.items() for value in values]
    pairs = [
        {one: first, two: second}
        for one, two in itertools.combinations([n for n in choices if n not in _VALUES], 2)
        for first, second in itertools.product(choices[one], choices[two])
    ]
    for model, chosen in itertools.product(_TRIED[:2] if quick else _TRIED, single):
        yield Job(model, name, name, {}, chosen, back=True)
    for model, chosen in itertools.product(() if quick else _TRIED[:3], pairs):
        yield Job(model, name, name, layouts[-1] if model == "mixtral" else layouts[min(1, len(layouts) - 1)], chosen)


def _of_goldens(asked: set[str], known: set[str], quick: bool) -> Iterator[Job]:
    for root, case in _golden_cases(quick):
        framework = str(json.loads(case.read_text()).get("framework") or "").lower()
        fitting = [name for name in known if framework.startswith(name)]
        own = _FRAMEWORKS.get(framework) or max(fitting, key=len, default="other")
        for folder, format in (("checkpoint", own), ("source_hf", "hf")):
            place = case.parent / folder
            if place.exists() and (format in asked or (format == "other" and asked == known)):
                name, contents = str(place.relative_to(root)), _contents(place)
                for to in ("ir", "hf", None):
                    if to != format:
                        yield Job(name, to, format, golden=str(place), contents=contents)


def _golden_cases(quick: bool) -> Iterator[tuple[Path, Path]]:
    shipped = next((place for place in (ROOT / "tests/data/golden", ROOT / "tests/golden") if place.is_dir()), None)
    given = [None, None] if quick else [os.environ.get("CKPT_GOLDENS"), os.environ.get("CKPT_GOLDENS_2026")]
    recent = None if shipped is None else shipped.with_name("golden-2026")
    for root in (Path(given[0]) if given[0] else shipped, Path(given[1]) if given[1] else recent):
        if root is not None and root.is_dir():
            for case in sorted(root.rglob("case.json")):
                yield root, case


def _contents(place: Path) -> str:
    """A digest of names and sizes: other goldens are other jobs."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    listed = [(str(path.relative_to(place)), path.stat().st_size) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


# The comparison


@dataclass
class Tally:
    """What was found out about one format."""

    equal: int = 0
    refused: int = 0
    different: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def add(self, job: Job, one: dict[str, Any], two: dict[str, Any]) -> None:
        problem = _difference(one, two)
        if problem is not None:
            self.different.append(f"{job}: {problem}")
        else:
            self.refused += "error" in one
            self.equal += "error" not in one
        for name, first, second in (("", one, two), ("read again: ", one.get("back", {}), two.get("back", {}))):
            if "error" in first and "error" in second and first["error"] != second["error"]:
                self.said.append(f"{job}: {name}\n      was  {first['error']}\n      is   {second['error']}")


def _difference(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """In what two results differ; the words of errors aside."""
    if "error" in one or "error" in two:
        if "error" in one and "error" in two:
            return None
        bad = one if "error" in one else two
        words = f"{bad['kind']}: {bad['error']}"
        return (
            f"was refused, and is written now; it was {words}" if bad is one else f"was written, and fails now: {words}"
        )
    for name in sorted(one["files"].keys() | two["files"].keys()):
        first, second = one["files"].get(name), two["files"].get(name)
        if first != second:
            if first is None or second is None:
                return f"{name or 'the file'} is {'new' if first is None else 'not written any more'}"
            sizes = f"{first[0]} bytes" if first[0] == second[0] else f"{first[0]} bytes, and {second[0]} now"
            return f"{name or 'the file'} differs ({sizes})"
    place = next(_unequal(one["receipt"], two["receipt"]), None)
    if place is not None:
        return f"the receipt differs at {place}"
    if "back" in one and "back" in two and (inner := _difference(one["back"], two["back"])) is not None:
        return f"read again, to ir: {inner}"
    return None


def _unequal(one: Any, two: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            yield from _unequal(one.get(key, "absent"), two.get(key, "absent"), f"{path}.{key}".lstrip("."))
    elif one != two:
        yield f"{path}: was {json.dumps(one)}, is {json.dumps(two)}"


def compare(sides: list[Side], jobs: list[Job], sources: Path, workers: int) -> dict[str, Tally]:
    """Carry out every job on both sides; one side after the other."""
    results: list[dict[int, dict[str, Any]]] = []
    index = {id(job): job for job in jobs}
    for side in sides:
        known = {key: kept for key, job in index.items() if (kept := side.kept(job)) is not None}
        todo = [key for key in index if key not in known]
        print(f"{side.name}: {len(known)} results kept, {len(todo)} to do", file=sys.stderr)

        def run(keys: list[int], side: Side = side) -> dict[int, dict[str, Any]]:
            found = {}
            worker = side.worker()
            for key in keys:
                job = index[key]
                src = job.golden or str(_source_in(sources, job.source))
                found[key] = worker.ask(
                    task="convert", src=src, **{n: v for n, v in asdict(job).items() if n in _ASKED}
                )
                side.keep(job, found[key])
            worker.close()
            return found

        with ThreadPoolExecutor(workers) as pool:
            for found in pool.map(run, [part for n in range(workers) if (part := todo[n::workers])]):
                known |= found
        results.append(known)
    tallies: dict[str, Tally] = {}
    for key, job in index.items():
        tallies.setdefault(job.format, Tally()).add(job, results[0][key], results[1][key])
    return tallies


_ASKED = ("to", "layout", "options", "back")


def _source_in(sources: Path, name: str) -> Path:
    """Where the checkpoint of a source lies: beside all others, since what lies inside one is a file of it."""
    return sources / name.replace("/", "+")


def _sources(worker: Worker, sources: Path, jobs: Iterable[Job]) -> None:
    """Write the `ir` checkpoints that are not there yet."""
    for name in dict.fromkeys(job.source for job in jobs if job.golden is None):
        model, _, variation = name.partition("/")
        example, changes = MODELS[model]
        place = _source_in(sources, name)
        if not place.exists():
            sources.mkdir(parents=True, exist_ok=True)
            request = {"example": example, "changes": changes, "variation": variation or None}
            worker.ask(task="source", place=str(place), **request)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a commit, or a folder with a working tree")
    parser.add_argument("head", nargs="?", default=str(ROOT), help="the same; this working tree by default")
    parser.add_argument("--formats", help="separated by commas; all by default")
    parser.add_argument("--only", default="", help="only jobs that have this text in their line")
    parser.add_argument("--quick", action="store_true", help="fewer layouts, no pairs of options, no varied facts")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--list", action="store_true", help="print the jobs, and do nothing")
    parser.add_argument("--errors", action="store_true", help="show all error texts that changed, not the first three")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckpt-same-bytes"
    parser.add_argument("--cache", type=Path, default=default, help="where trees and results are kept")
    given = parser.parse_args(arguments)
    given.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ckpt-same-bytes-") as work:
        sides = [Side(name, given.cache.resolve(), Path(work)) for name in (given.base, given.head)]
        worker = sides[0].worker()
        formats = worker.ask(task="survey")
        asked = given.formats.split(",") if given.formats else list(formats)
        if unknown := {*asked} - {*formats}:
            parser.error(f"unknown formats {', '.join(sorted(unknown))}; there are {', '.join(formats)}")
        names = {
            model: worker.ask(task="variations", example=MODELS[model][0], changes=MODELS[model][1])["names"]
            for model in (() if given.quick else _VARIED)
        }
        jobs = [job for job in jobs_of(formats, asked, given.quick, names) if given.only in str(job)]
        if given.list:
            print(*jobs, sep="\n")
            return 0
        # A folder's kit may be another than the commit's, so its sources are written anew.
        kept = given.cache.resolve() / "models"
        sources = kept if not os.path.isdir(given.base) else Path(work) / "sources"
        _sources(worker, sources, jobs)
        worker.close()
        tallies = compare(sides, jobs, sources, max(1, given.jobs))
    return report(tallies, every=given.errors)


def report(tallies: Mapping[str, Tally], *, every: bool = False) -> int:
    """Print what was found; the exit status."""
    for name, tally in tallies.items():
        total = tally.equal + tally.refused + len(tally.different)
        said = f", {len(tally.said)} of the refusals in other words" if tally.said else ""
        print(
            f"{name}: {total} compared, {tally.equal} equal, {tally.refused} refused by both{said}, {len(tally.different)} different"
        )
        for line in tally.different[:10]:
            print(f"  DIFFERS {line}")
        if len(tally.different) > 10:
            print(f"  and {len(tally.different) - 10} more")
        for line in tally.said if every else tally.said[:3]:
            print(f"  other words: {line}")
    return 1 if any(tally.different for tally in tallies.values()) or not tallies else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
