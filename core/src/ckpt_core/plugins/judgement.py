"""What a format's own framework makes of a checkpoint: the answer to `ckpt_logits`, and how a framework is asked apart.

A framework takes its process over (process groups, default devices, signal handlers) and may wait forever for a GPU. So a
plugin can have it asked in processes of its own, one per rank, that end after a while; `ckpt_core.plugins.judging` is
what runs in them. It is asked only where it is installed, and nothing is imported to find that out.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_core import numpy as np
from ckpt_core.lazily import hints_in
from ckpt_core.lean import dataclass

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint
else:
    hints_in(__name__, {"ckpt_core.checkpoint": "Checkpoint"})

__all__ = [
    "CannotRun",
    "Case",
    "FilesRefused",
    "Judgement",
    "installed",
    "judged_apart",
    "loading",
    "named",
]

SECONDS = 900.0
MOST_RANKS = 8
_WORDS = 300


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a framework, with its version, made of a checkpoint; one of the other three is given.

    `logits`: float32, what it computed. `refused`: what it says against the files, which it will not load. `cannot`: why
    it cannot run here, which says nothing about the files.
    """

    framework: str
    logits: np.ndarray | None = None
    refused: str = ""
    cannot: str = ""


class CannotRun(Exception):
    """The framework cannot run this here: no GPU, another version, a part of it that is missing."""


class FilesRefused(Exception):
    """The framework does not load the files: a tensor that is missing, unknown, or of another shape."""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Whatever fails in this block is what the framework says against the files."""
    try:
        yield
    except (CannotRun, FilesRefused, ImportError):
        raise
    except pickle.UnpicklingError as problem:  # a class that torch.load does not make
        raise CannotRun(said(problem)) from problem
    except Exception as problem:
        raise FilesRefused(said(problem)) from problem


def said(problem: BaseException) -> str:
    """An error in one line that is not too long."""
    return shortened(f"{type(problem).__name__}: {problem}")


def shortened(text: str) -> str:
    """One line of a text that may have many."""
    line = " ".join(text.split())
    return line if len(line) <= _WORDS else f"{line[:_WORDS]}..."


def installed(package: str) -> bool:
    """Whether a package (`megatron.core`) could be imported; none of it is. A folder of its name, without code, is none."""
    path: Sequence[str] | None = None
    name, origin = "", None
    for part in package.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return False
        path, origin = spec.submodule_search_locations, spec.origin
    return origin is not None


def named(distribution: str) -> str:
    """A framework with its version; without one where it is a source tree on the path."""
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


def judged_apart(
    module: str,
    package: str,
    checkpoint: Checkpoint,
    inputs: Mapping[str, np.ndarray],
    ranks: Mapping[str, int] | None = None,
    seconds: float = SECONDS,
) -> Judgement | None:
    """What the framework in `package` makes of a checkpoint, asked by `module` (see `judging`) in processes of its own.

    `ranks` are the sizes of the topology that loads it, `{"tp": 2, "pp": 1}`; one process is started for each rank. None if
    the framework is not installed. Nothing that happens in those processes is raised here.
    """
    if not installed(package):
        return None
    sizes = dict(ranks or {})
    world = int(np.prod(list(sizes.values()), dtype=int))
    if world > MOST_RANKS:
        return Judgement(package, cannot=f"its {world} ranks are more than the {MOST_RANKS} that are started to judge")
    if not os.path.exists(checkpoint.path):
        return Judgement(package, cannot="it loads local files alone")
    with tempfile.TemporaryDirectory(prefix="ckpt-judge-") as folder:
        arrays: dict[str, Any] = {name: np.asarray(values) for name, values in inputs.items()}
        np.savez(os.path.join(folder, "inputs.npz"), **arrays)
        asked = {"path": os.path.abspath(checkpoint.path), "ranks": sizes, "world": world}
        Path(folder, "asked.json").write_text(json.dumps(asked))
        return _outcome(module, package, folder, world, seconds)


def _outcome(module: str, package: str, folder: str, world: int, seconds: float) -> Judgement:
    late = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_process(module, folder, rank)) for rank in range(world)]
        # a rank that fails leaves the others waiting for it
        while None in (ended := [one.poll() for one in running]) and not any(ended):
            if time.monotonic() > late:
                return Judgement(package, cannot=f"it did not end within {seconds:g} seconds")
            time.sleep(0.05)
    answers = [_answer(folder, rank) for rank in range(world)]
    framework = next((answer["framework"] for answer in answers if "framework" in answer), package)
    refused, cannot = (
        next((answer[kind] for answer in answers if kind in answer), "") for kind in ("refused", "cannot")
    )
    if refused or cannot:
        return Judgement(framework, refused=refused, cannot="" if refused else cannot)
    with contextlib.suppress(OSError, ValueError):
        return Judgement(framework, logits=np.load(os.path.join(folder, "logits.npy"), allow_pickle=False))
    last = next((line for rank in range(world) if (line := _last_line(folder, rank))), "it ended without an answer")
    return Judgement(framework, cannot=shortened(last))


@contextlib.contextmanager
def _process(module: str, folder: str, rank: int) -> Iterator[subprocess.Popen[bytes]]:
    """A rank, ended with the block. `-P`: where ckpt was called may be a stranger's folder, and no module is taken from it."""
    command = [sys.executable, "-P", "-m", "ckpt_core.plugins.judging", module, folder, str(rank)]
    # HF_HUB_OFFLINE: what is judged is here. TORCH_FORCE_WEIGHTS_ONLY_LOAD: torch.load makes no objects, whoever calls it.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    with open(_errors(folder, rank), "wb") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _errors(folder: str, rank: int) -> str:
    return os.path.join(folder, f"errors-{rank}")


def _answer(folder: str, rank: int) -> dict[str, str]:
    try:
        return json.loads(Path(folder, f"answer-{rank}.json").read_text())
    except (OSError, ValueError):
        return {}


def _last_line(folder: str, rank: int) -> str:
    lines = Path(_errors(folder, rank)).read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged: the files at `path`, by process `rank` of `world`, on these inputs of the hook `ckpt_logits`."""

    path: str
    inputs: Mapping[str, np.ndarray]
    ranks: Mapping[str, int]
    rank: int
    world: int
    folder: str

    def joined(self) -> None:
        """Join the other ranks in torch's process group, by gloo, which needs neither GPU nor network."""
        import torch.distributed

        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world), LOCAL_RANK=str(self.rank))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        method = f"file://{os.path.join(self.folder, 'rendezvous')}"
        torch.distributed.init_process_group("gloo", init_method=method, rank=self.rank, world_size=self.world)

    def tokens(self) -> np.ndarray:
        """The token ids of a model that is a decoder alone."""
        if self.inputs.keys() - {"mask"} != {"tokens"}:
            raise CannotRun(f"it is asked for decoders alone, not for {', '.join(sorted(self.inputs))}")
        return self.inputs["tokens"]
