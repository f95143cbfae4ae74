"""Faults of real clusters of Dask and Ray: no wrong output, no lost work. usage: check_clusters.py [dask|ray]...

Clusters of two workers are started on this machine, and ended again. Exit code 0 if every fault ends as it must.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import ckpt_core

SLOW = "import os, time\n_pwrite = os.pwrite\ndef slow(*a):\n    time.sleep(0.3)\n    return _pwrite(*a)\nos.pwrite = slow\n"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


def build(folder: Path) -> None:
    """A Llama of four layers, every value another."""
    h, f, kv, v = 64, 128, 32, 256
    layer = {
        "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, h),
        "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f), "input_layernorm": (h,), "post_attention_layernorm": (h,),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(4) for name, shape in layer.items()}
    random = np.random.default_rng(0)
    folder.mkdir()
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Processes(contextlib.ExitStack):
    """Process groups that are ended with the block."""

    def start(self, *command: object, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(part) for part in command], env={**os.environ, **environment}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.callback(self.end, process)
        return process

    def end(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def dask(work: Path, *workers: dict[str, object]) -> Iterator[tuple[str, subprocess.Popen]]:
    """A scheduler, and a worker for each dict: `prefix` is a command to start it with, the rest is its environment."""
    from distributed import Client

    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with Processes() as processes:
        head = processes.start(
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--no-dashboard",
        )
        for number, worker in enumerate(workers):
            options = dict(worker)
            prefix = options.pop("prefix", [])
            processes.start(
                *prefix, sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard",
                "--local-directory", work / f"worker{number}", **options,
            )  # fmt: skip
        with Client(address, timeout=60) as client:
            client.wait_for_workers(len(workers), timeout=120)
        yield address, head


READY = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
while ray.cluster_resources().get("CPU", 0) < 2:
    time.sleep(0.2)
"""


@contextlib.contextmanager
def ray(work: Path, *workers: dict[str, object]) -> Iterator[tuple[str, subprocess.Popen]]:
    """A head without processors and a node of two, with the environment of the first worker."""
    for _ in range(4):  # on a busy machine Ray gives up while it starts
        address = f"127.0.0.1:{free_port()}"
        with Processes() as processes:
            start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", "127.0.0.1"]
            start += ["--object-store-memory", "100000000"]
            calm = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "60"}
            port = address.rpartition(":")[2]
            head = processes.start(
                *start, "--head", "--port", port, "--num-cpus", 0, "--include-dashboard", "false", **calm
            )
            time.sleep(10)
            processes.start(*start, "--address", address, "--num-cpus", 2, **calm, **workers[0])
            try:
                subprocess.run([sys.executable, "-c", READY, address], capture_output=True, check=True, timeout=60)
            except subprocess.SubprocessError:
                continue
            yield address, head
            return
    sys.exit("no cluster of Ray starts here")


CLUSTERS = {"dask": dask, "ray": ray}


class Check:
    """One conversion on clusters of one kind, and what it must give."""

    def __init__(self, work: Path, engine: str) -> None:
        self.work, self.engine = work, engine
        self.share = work / "share"
        self.out, self.staging = self.share / "out", self.share / "out.ckpt-partial"
        self.source, self.reference = work / "hf", work / "reference"
        (work / "slow").mkdir(exist_ok=True)
        (work / "slow" / "sitecustomize.py").write_text(SLOW)
        self.slow = {"PYTHONPATH": str(work / "slow")}
        self.failed: list[str] = []

    def command(self, *more: object) -> list[str]:
        program = [sys.executable, "-m", "ckpt_core", "convert", self.source, self.out]
        return [str(part) for part in (*program, "--to", "hf", "--dtype", "bf16", *more)]

    def cluster(self, *workers: dict[str, object]) -> contextlib.AbstractContextManager:
        for path in (self.out, self.staging):
            shutil.rmtree(path, ignore_errors=True)
        self.share.mkdir(exist_ok=True)
        return CLUSTERS[self.engine](self.work, *workers)

    def begin(self, address: str) -> subprocess.Popen:
        more = ["--engine", self.engine, "--engine-address", address, "--workers", 2]
        return subprocess.Popen(self.command(*more), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        try:
            error = process.communicate(timeout=180)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            error = "it has no end\n" + process.communicate()[1]
        lines = [line for line in error.splitlines() if not line.startswith("converting")]
        return process.returncode, "\n".join(lines)

    def done(self) -> int:
        try:
            return len((self.staging / "journal.jsonl").read_text().splitlines()) - 1
        except OSError:
            return 0

    def until_done(self, count: int, process: subprocess.Popen) -> None:
        while self.done() < count and process.poll() is None:
            time.sleep(0.02)

    def identical(self) -> bool:
        names = [path.name for path in self.reference.iterdir()]
        return self.out.is_dir() and all(
            (self.out / n).read_bytes() == (self.reference / n).read_bytes() for n in names
        )

    def report(self, name: str, good: bool, text: str) -> None:
        print(f"{self.engine}, {name}: {'ok' if good else 'BAD'}\n    " + text.replace("\n", "\n    "), flush=True)
        if not good:
            self.failed.append(name)

    def refused(self, name: str, process: subprocess.Popen, *said: str) -> None:
        """One short error that says what is wrong; and the repetition, without a cluster, gives the right bytes."""
        code, error = self.end(process)
        good = (
            code == 1 and not self.out.exists() and len(error.splitlines()) <= 6 and all(text in error for text in said)
        )
        kept = self.staging.is_dir()
        again = subprocess.run(self.command(), capture_output=True, check=False).returncode
        self.report(
            name, good and kept and again == 0 and self.identical(), f"exit {code}, staging kept: {kept}\n{error}"
        )

    def undisturbed(self) -> None:
        with self.cluster({}, {}) as (address, _):
            code, error = self.end(self.begin(address))
        self.report("undisturbed", code == 0 and self.identical(), f"exit {code}\n{error}")

    def lost_head(self) -> None:
        with self.cluster(self.slow, self.slow) as (address, head):
            process = self.begin(address)
            self.until_done(2, process)
            os.killpg(head.pid, signal.SIGKILL)
            self.refused("the scheduler is lost", process, "the cluster went away", "repeat the same command")

    def no_cluster(self) -> None:
        with self.cluster({}, {}):
            pass
        code, error = self.end(self.begin(f"{'tcp://' * (self.engine == 'dask')}127.0.0.1:{free_port()}"))
        self.report("no cluster", code == 1 and "does not answer" in error, f"exit {code}\n{error}")

    def other_code(self) -> None:
        other = self.work / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(Path(ckpt_core.__file__).parent, other / "ckpt_core")
        with (other / "ckpt_core" / "engine" / "transfer.py").open("a") as file:
            file.write("\n# another line\n")
        with self.cluster({"PYTHONPATH": str(other)}, {}) as (address, _):
            self.refused("a worker of other code", self.begin(address), "another version of ckpt", socket.gethostname())

    def other_disk(self, left: bool) -> None:
        """The first worker has a file system of its own at the destination, empty or with a staging folder of an earlier run."""
        fill = f"mkdir -p {self.staging}/out && echo old > {self.staging}/token && " if left else ""
        script = f'mount -t tmpfs none {self.share} && {fill} exec "$0" "$@"'
        first = {**self.slow, "prefix": ["unshare", "--mount", "sh", "-c", script]}
        with self.cluster(first, self.slow) as (address, _):
            name = "a worker with another disk" + ", and an old staging folder on it" * left
            self.refused(name, self.begin(address), str(self.staging), socket.gethostname())

    def run(self) -> list[str]:
        self.share.mkdir(exist_ok=True)
        if not self.reference.exists():
            build(self.source)
            subprocess.run(self.command(), check=True, capture_output=True)
            self.out.rename(self.reference)
        cases: list[Callable[[], None]] = [self.undisturbed, self.lost_head, self.no_cluster, self.other_code]
        mounting = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
        if self.engine == "dask" and mounting:
            cases += [lambda: self.other_disk(False), lambda: self.other_disk(True)]
        for case in cases:
            case()
        return self.failed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = [Check(Path(folder), engine).run() for engine in sys.argv[1:] or CLUSTERS]
    sys.exit(any(found))
