"""Real clusters of Dask and Ray on this machine: the same bytes as one process writes, and no fault that costs output or work.

usage: check_cluster.py [dask|ray|processes]... [CASE]... [--gigabytes SIZE]

Exit code 0 if twelve pairs of formats are identical on each engine, and every fault ends as it must. Prints the rows of the
table in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import filecmp
import gzip
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from local_clusters import CLUSTERS, Running, Worker, free_port
from safetensors.numpy import save_file

import ckpt_core

# A worker whose writes take time, so that there is a middle to be disturbed in, or fail, or leave a trace; one that is killed when it
# has done a task and not yet said so (the secret in its mark has 33 bytes); and a command that is killed at its last rename.
SITE = """
import errno, os, signal, time
pwrite, write, rename, said = os.pwrite, os.write, os.rename, os.environ.get
def other_pwrite(*arguments):
    time.sleep(float(said("SLOW", 0)))
    if said("FAILS"):
        raise OSError(getattr(errno, said("FAILS")), os.strerror(getattr(errno, said("FAILS"))))
    if said("TRACE"):
        open(said("TRACE"), "w").close()
    return pwrite(*arguments)
def other_write(descriptor, data):
    count = write(descriptor, data)
    if said("DIES_ONCE") and len(data) == 33 and not os.path.exists(said("DIES_ONCE")):
        open(said("DIES_ONCE"), "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return count
def other_rename(old, new):
    for moment in ("before", "after"):
        if said("DIES_AT_RENAME") == moment and old.endswith("/out"):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "before":
            rename(old, new)
os.pwrite, os.write, os.rename = other_pwrite, other_write, other_rename
"""
_UNCOUNTED = r"converting|waiting for|reading headers|\[\S+ \S+ [IW] \d+ \d+\] network_util\.cc"
SRUN = """#!/bin/bash
trap 'kill $(jobs -p)' TERM
for node in 1 2 3; do "$@" & sleep 5; done
wait
"""
PAIRS: dict[str, tuple[str, list[str]]] = {  # name -> what is read, and how it is written
    "hf-megatron": ("hf", ["megatron", "--tp", "2", "-o", "container=torch"]),
    "hf-megatron_dist": ("hf", ["megatron", "-o", "container=torch_dist"]),
    "hf-nemo": ("hf", ["nemo", "--tp", "2"]),
    "hf-nxdt": ("hf", ["nxdt", "--tp", "8", "-o", "xser=true"]),
    "hf-nanotron": ("hf", ["nanotron", "--tp", "2", "--pp", "2"]),
    "hf-deepspeed": ("hf", ["deepspeed"]),
    "megatron-hf": ("hf-megatron", ["hf", "--max-shard-size", "20MB"]),
    "megatron_dist-nanotron": ("hf-megatron_dist", ["nanotron", "--tp", "4"]),
    "nemo-hf": ("hf-nemo", ["hf"]),
    "nxdt-megatron": ("hf-nxdt", ["megatron", "-o", "container=torch"]),
    "nanotron-nemo": ("hf-nanotron", ["nemo"]),
    "deepspeed-hf": ("hf-deepspeed", ["hf"]),
}
VOCABULARY = 8000
MANY = 20
"""Workers of a cluster of which one may be no part."""


def build(folder: Path, gigabytes: float) -> None:
    """A Llama in bf16 of about so many GB, in four files; every value another."""
    h, f, kv, v = 512, 1408, 256, VOCABULARY
    layer = {
        "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, h),
        "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f), "input_layernorm": (h,), "post_attention_layernorm": (h,),
    }  # fmt: skip
    layers = max(2, 2 * round(gigabytes * 1e9 / (4 * sum(int(np.prod(shape)) for shape in layer.values()))))
    shapes = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in layer.items()}
    random = np.random.default_rng(0)
    folder.mkdir()
    names, weight_map = list(shapes), {}
    for number in range(4):
        file = f"model-{number + 1:05}-of-00004.safetensors"
        part = {
            name: random.standard_normal(shapes[name], np.float32).astype(ml_dtypes.bfloat16)
            for name in names[number::4]
        }
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": h, "intermediate_size": f, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 32, "vocab_size": v, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def differing(one: Path, other: Path) -> list[str]:
    """The files that two outputs do not share byte for byte."""
    if one.is_file() or other.is_file():
        return [] if one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False) else [one.name]
    ours, theirs = ({path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (one, other))
    unlike = [path for path in ours & theirs if not filecmp.cmp(one / path, other / path, shallow=False)]
    return sorted(map(str, [*(ours ^ theirs), *unlike]))


def loopback() -> int:
    """Bytes that went over loopback so far."""
    return int(next(line for line in Path("/proc/net/dev").read_text().splitlines() if "lo:" in line).split()[1])


def peak_memory(process: int) -> float:
    """The most that a process had resident so far, in MB; 0 if it is gone."""
    try:
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1e3
    except (OSError, TypeError):
        return 0.0


def alone_on_loopback() -> bool:
    """Move this process to a network of its own, which has a loopback, so that nobody else's bytes are counted; whether that is allowed."""
    new_network, set_flags, up_and_running = 0x40000000, 0x8914, 0x41
    if ctypes.CDLL(None).unshare(new_network):
        return False
    with socket.socket() as asked:
        fcntl.ioctl(asked, set_flags, struct.pack("16sH14x", b"lo", up_and_running))
    return True


class Check:
    """Conversions on clusters of one engine, and what they must give."""

    def __init__(self, work: Path, engine: str, alone: bool = False) -> None:
        self.work, self.engine, self.alone = work, engine, alone
        self.share, self.local = work / "share", work / "local"  # what all workers see, and what one process writes
        self.out, self.staging = self.share / "out", self.share / "out.ckpt-partial"
        self.source = work / "hf"
        (work / "site").mkdir(exist_ok=True)
        (work / "site" / "sitecustomize.py").write_text(SITE)
        self.slow = self.worker(SLOW="0.1")
        self.rows: list[str] = []
        self.failed: list[str] = []

    def worker(self, *prefix: str, **environment: str) -> Worker:
        return Worker({"PYTHONPATH": str(self.work / "site"), **environment}, prefix)

    # --- commands

    def command(self, source: Path, out: Path, options: list[str], address: str | None = None) -> list[str]:
        program = [sys.executable, "-m", "ckpt_core", "convert", source, out, "--to", *options, "--no-sync"]
        engine = (
            [] if address is None else ["--engine", self.engine, *(["--engine-address", address] if address else [])]
        )
        return [str(part) for part in (*program, *engine)]

    def begin(
        self,
        address: str | None = None,
        source: Path | None = None,
        options: list[str] | None = None,
        **environment: str,
    ) -> subprocess.Popen:
        command = self.command(source or self.source, self.out, options or PAIRS["hf-megatron"][1], address)
        calm = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment}
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, env=calm
        )

    def end(self, process: subprocess.Popen) -> tuple[int, str, float]:
        """Exit code, what was said but for progress, and seconds.

        A line that Ray's C++ part logs does not count: a machine without a way to the internet gets a warning when Ray looks for its own
        address, before any level of logging holds (Ray 2.60, network_util.cc).
        """
        begun = time.monotonic()
        try:
            error = process.communicate(timeout=240)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            error = f"it has no end\n{process.communicate()[1]}"
        said = [line for line in error.splitlines() if not re.match(_UNCOUNTED, line)]
        return process.returncode, "\n".join(said), time.monotonic() - begun

    def done(self) -> int:
        try:
            return len((self.staging / "journal.jsonl").read_text().splitlines()) - 1
        except OSError:
            return 0

    def until_done(self, count: int, process: subprocess.Popen) -> None:
        while self.done() < count and process.poll() is None:
            time.sleep(0.02)

    def clear(self) -> None:
        for path in (self.out, self.staging):
            shutil.rmtree(path, ignore_errors=True)
        self.share.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def cluster(self, *workers: Worker) -> Iterator[Running]:
        self.clear()
        with CLUSTERS[self.engine](self.work, workers) as running:
            yield running

    # --- what it must give

    def report(self, fault: str, good: bool, what: str, code: int | None, error: str, seconds: float) -> None:
        print(
            f"{self.engine}, {fault}: {'ok' if good else 'BAD'}, exit {code} after {seconds:.0f} s, {what}", flush=True
        )
        if error:
            print("    " + error.replace("\n", "\n    "), flush=True)
        self.rows.append(f"| {fault} | {self.engine} | {what} | {code} | {seconds:.0f} |")
        if not good:
            self.failed.append(fault)

    def finished(self, fault: str, process: subprocess.Popen, *said: str, what: str = "") -> None:
        """It ends with the bytes that one process writes."""
        code, error, seconds = self.end(process)
        unlike = differing(self.out, self.local / "hf-megatron") if code == 0 else ["no output"]
        good = not unlike and all(text in error for text in said)
        self.report(
            fault, good, what + ("identical" if not unlike else f"NOT identical: {unlike[:3]}"), code, error, seconds
        )

    def refused(self, fault: str, process: subprocess.Popen, *said: str) -> None:
        """One short error that says what is wrong; what is done is kept, and the repetition in one process gives the right bytes."""
        code, error, seconds = self.end(process)
        short = len(error.splitlines()) <= 6 and "Traceback" not in error
        good = code == 1 and not self.out.exists() and short and all(text in error for text in said)
        kept = self.done()
        again = self.begin()
        again.communicate()
        good = good and again.returncode == 0 and not differing(self.out, self.local / "hf-megatron")
        self.report(fault, good and kept > 0, f"one error, {kept} tensors kept", code, error, seconds)

    # --- cases

    def pairs(self) -> None:
        """Twelve pairs of formats; they all write to one place, for some documents name it."""
        with contextlib.ExitStack() as stack:
            address = ""
            if self.engine in CLUSTERS:
                address = stack.enter_context(self.cluster(*[Worker()] * 3)).address
            for name, (source, options) in PAIRS.items():
                read = self.source if source == "hf" else self.local / source
                begun = time.monotonic()
                unlike = self._pair(name, read, options, address)
                what = f"{name} identical" if not unlike else f"{name} NOT identical: {unlike[:3]}"
                self.report("none", not unlike, what, 0 if not unlike else 1, "", time.monotonic() - begun)

    def _pair(self, name: str, source: Path, options: list[str], address: str | None) -> list[str]:
        out, kept = self.out, self.local / name
        receipt, kept_receipt = (path.with_name(f"{path.name}.ckpt-receipt.json") for path in (out, kept))
        code, error, _ = self.end(subprocess.Popen(
            self.command(source, out, options, address), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        ))  # fmt: skip
        if code:
            return [error]
        if address is None:
            out.rename(kept)
            if receipt.exists():
                receipt.rename(kept_receipt)
            return []
        unlike = differing(out, kept)
        if out.is_file():
            unlike += differing(receipt, kept_receipt)
            receipt.unlink()
            out.unlink()
        else:
            shutil.rmtree(out)
        return unlike

    def traffic(self) -> None:
        with self.cluster(*[Worker()] * 3) as running:
            self.begin(running.address).communicate()  # workers import the package
            shutil.rmtree(self.out)
            before = loopback()
            process = self.begin(running.address)
            code, error, seconds = self.end(process)
            moved = (loopback() - before) / 1e6
        total = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file()) / 1e6
        self.report(
            "none",
            code == 0 and (moved < 10 or not self.alone),
            f"{moved:.1f} MB over loopback for {total:.0f} MB",
            code,
            error,
            seconds,
        )

    def progress(self) -> None:
        with self.cluster(*[self.slow] * 3) as running:
            error = self.begin(running.address).communicate()[1]
        shown = [int(found[1]) for found in re.finditer(r"^converting (\d+)%", error, re.MULTILINE)]
        self.report("none", len(shown) > 1 and shown == sorted(shown), f"progress {shown}", 0, "", 0)

    def worker_killed(self) -> None:
        with self.cluster(*[self.slow] * 3) as running:
            process = self.begin(running.address)
            self.until_done(3, process)
            os.kill(running.busy(), signal.SIGKILL)
            self.finished("a worker is killed", process)

    def worker_killed_before_it_reports(self) -> None:
        dying = self.worker(DIES_ONCE=str(self.work / f"{self.engine}-died"))
        with self.cluster(*[dying] * 3) as running:
            self.finished("a worker is killed when a task is done and not reported", self.begin(running.address))
        if not (self.work / f"{self.engine}-died").exists():
            self.failed.append("no worker was killed before it reported")

    def worker_fails(self) -> None:
        for fault, number in (("a worker's disk fails", errno.EIO), ("a worker's disk is full", errno.ENOSPC)):
            bad = self.worker(FAILS=errno.errorcode[number])
            with self.cluster(bad, self.slow, self.slow) as running:
                process = self.begin(running.address)
                self.finished(fault, process, "it is left out", os.strerror(number), what="its tasks go elsewhere, ")

    def all_disks_full(self) -> None:
        """What one worker wrote before is kept."""
        full = self.worker(FAILS="ENOSPC")
        with self.cluster(self.slow) as running:
            process = self.begin(running.address)
            self.until_done(2, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        with CLUSTERS[self.engine](self.work, [full] * 2) as running:
            said = (os.strerror(errno.ENOSPC), socket.gethostname(), "repeat the same command")
            self.refused("every worker's disk is full", self.begin(running.address), *said)

    def joins_late(self) -> None:
        traces = [self.work / f"{self.engine}-trace-{number}" for number in range(3)]
        workers = [self.worker(SLOW="0.3", TRACE=str(trace)) for trace in traces]
        with self.cluster(workers[0]) as running:
            process = self.begin(running.address)
            self.until_done(1, process)
            for worker in workers[1:]:
                running.join(worker)
            self.finished("workers join late", process, what=f"{len(traces)} at work, ")
        if missing := [trace.name for trace in traces if not trace.exists()]:
            self.failed.append(f"workers that joined late did nothing: {missing}")

    def two_commands(self) -> None:
        with self.cluster(*[self.slow] * 3) as running:
            first = self.begin(running.address)
            self.until_done(2, first)
            code, error, seconds = self.end(self.begin(running.address))
            good = code == 1 and "another conversion is writing to this destination" in error and first.poll() is None
            self.report("a second command at the same destination", good, "refused", code, error, seconds)
            self.finished("the first command meanwhile", first)

    def killed_publishing(self) -> None:
        site = str(self.work / "site")
        for moment in ("before", "after"):
            with self.cluster(*[Worker()] * 3) as running:
                process = self.begin(running.address, PYTHONPATH=site, DIES_AT_RENAME=moment)
                process.communicate()
                whole = self.out.exists() and not differing(self.out, self.local / "hf-megatron")
                if process.returncode != -signal.SIGKILL or whole != (moment == "after"):
                    self.failed.append(f"the command was not killed {moment} its last rename")
                if moment == "before":
                    self.finished("the command is killed before its last rename", self.begin(running.address))
            if moment == "after":  # the cluster ended with the job
                again = self.begin(running.address)
                self.finished("the command is killed after its last rename, and the cluster ends", again)
                if self.staging.exists():
                    self.failed.append("the staging folder is left")

    def source_changes(self) -> None:
        source = self.work / "changing"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(self.source, source)
        with self.cluster(*[self.slow] * 3) as running:
            process = self.begin(running.address, source)
            self.until_done(3, process)
            os.utime(source / "model-00002-of-00004.safetensors")
            code, error, seconds = self.end(process)
            good = code == 1 and "changed while it was being read" in error and "model-00002" in error
            good = good and not self.out.exists() and not self.staging.exists() and len(error.splitlines()) <= 6
            self.report("a source file changes", good, "one error, nothing is left", code, error, seconds)

    def batch_job(self) -> None:
        """The script of the documentation, as it is there; `srun` starts its command three times, on this machine."""
        page = Path(__file__).parents[2] / "docs" / "tasks" / "cluster.md"
        scripts = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", page.read_text(), re.DOTALL)
        (script,) = (one for one in scripts if f"--engine {self.engine}" in one)
        programs, source = self.work / "programs", self.local / "hf-megatron"
        programs.mkdir(exist_ok=True)
        for name, text in {"job": script, "hostname": "#!/bin/sh\necho 127.0.0.1\n", "srun": SRUN}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.clear()
        environment = {
            **os.environ, "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "SRC": str(source), "DST": str(self.out), "SLURM_CPUS_PER_TASK": "1", "TMPDIR": str(self.work),
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120", "RAY_agent_register_timeout_ms": "120000",
        }  # fmt: skip
        job = subprocess.Popen(
            [programs / "job"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )  # fmt: skip
        try:
            code, error, seconds = self.end(job)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        verify = [sys.executable, "-m", "ckpt_core", "verify", str(source), str(self.out)]
        good = code == 0 and subprocess.run(verify, capture_output=True, check=False).returncode == 0
        said = "\n".join(line for line in error.splitlines() if line.startswith(("error", " ")))[:1000]
        self.report("the batch job of the documentation", good, "verified", code, said, seconds)

    def inflated(self) -> None:
        """A tar in gzip, which each process inflates once for itself."""
        source, wanted = self.work / "packed.nemo", self.local / "nemo-hf"
        with open(self.local / "hf-nemo", "rb") as tar, gzip.open(source, "wb", 1) as packed:
            shutil.copyfileobj(tar, packed)
        with self.cluster(*[Worker()] * 3) as running:
            # No receipt of ours says how many rows of it are padding.
            process = self.begin(running.address, source, [*PAIRS["nemo-hf"][1], "-o", f"vocab={VOCABULARY}"])
            memory = 0.0
            while process.poll() is None:
                memory = max(memory, *map(peak_memory, running.inside()))
                time.sleep(0.2)
            code, error, seconds = self.end(process)
        unlike = (
            [name for name in differing(self.out, wanted) if name.endswith(".safetensors")] if code == 0 else [error]
        )
        what = f"{'identical' if not unlike else f'NOT identical: {unlike[:3]}'}, {memory:.0f} MB in a worker at most"
        self.report("a source in a tar.gz", not unlike, what, code, error, seconds)

    def worker_stands_still(self) -> None:
        with self.cluster(*[self.slow] * 3) as running:
            process = self.begin(running.address)
            self.until_done(3, process)
            stopped = running.busy()
            os.kill(stopped, signal.SIGSTOP)
            self.finished("a worker stands still", process, what="its tasks go elsewhere, ")
            os.kill(stopped, signal.SIGCONT)

    def all_stand_still(self) -> None:
        """Of Ray the nodes would be taken for dead."""
        if self.engine == "dask":
            with self.cluster(*[self.slow] * 2) as running:
                process = self.begin(running.address)
                self.until_done(3, process)
                for sign, seconds in ((signal.SIGSTOP, 75), (signal.SIGCONT, 0)):
                    for worker in running.workers:
                        os.kill(worker.pid, sign)
                    time.sleep(seconds)
                self.finished("all stand still for 75 s", process, "no result for 6", what="it says what is awaited, ")

    def driver_killed(self) -> None:
        for engine in (self.engine, "local"):
            with self.cluster(*[self.slow] * 3) as running:
                process = self.begin(running.address)
                self.until_done(4, process)
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kept = self.done()
                again = self.begin(running.address if engine != "local" else None)
                name = "the command is killed, and repeated" + " without the cluster" * (engine == "local")
                self.finished(name, again, what=f"{kept} tensors kept, ")

    def head_lost(self) -> None:
        with self.cluster(*[self.slow] * 3) as running:
            process = self.begin(running.address)
            self.until_done(4, process)
            os.killpg(running.head.pid, signal.SIGKILL)
            self.refused("the scheduler or head is killed", process, "the cluster went away", "repeat the same command")

    def no_cluster(self) -> None:
        self.clear()
        process = self.begin(f"{'tcp://' * (self.engine == 'dask')}127.0.0.1:{free_port()}")
        code, error, seconds = self.end(process)
        good = code == 1 and "does not answer" in error and seconds < 60
        self.report("there is no cluster", good, "one error", code, error, seconds)
        with socket.create_server(("127.0.0.1", 0)) as other:
            process = self.begin(f"127.0.0.1:{other.getsockname()[1]}")
            code, error, seconds = self.end(process)
        good = code == 1 and "what listens there is no" in error and len(error.splitlines()) <= 6
        self.report("something else listens there", good, "one error", code, error, seconds)

    def other_version(self) -> None:
        other = self.work / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(Path(ckpt_core.__file__).parent, other / "ckpt_core")
        init = other / "ckpt_core" / "__init__.py"
        init.write_text(re.sub(r'__version__ = "[^"]+"', '__version__ = "0.0.1"', init.read_text()))
        with self.cluster(Worker({"PYTHONPATH": str(other)}), self.slow, self.slow) as running:
            process = self.begin(running.address)
            said = ("another version of ckpt", "ckpt 0.0.1", socket.gethostname())
            self.refused("a worker of another version", process, *said)

    def _elsewhere(self, left: bool) -> Worker:
        """A worker with a file system of its own at the destination, empty or with a staging folder of an earlier run."""
        fill = f"mkdir -p {self.staging}/out && echo old > {self.staging}/token && " if left else ""
        return self.worker(
            "unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {self.share} && {fill} exec "$0" "$@"'
        )

    def other_file_system(self) -> None:
        for left in (False, True):
            with self.cluster(self._elsewhere(left), self.slow, self.slow) as running:
                fault = "a worker without the mount" + ", with an old staging folder" * left
                self.refused(fault, self.begin(running.address), str(self.staging), socket.gethostname())

    def one_of_many(self) -> None:
        """It is left out; of Ray this takes too many nodes for one machine."""
        if self.engine == "dask":
            with self.cluster(self._elsewhere(False), *[self.slow] * (MANY - 1)) as running:
                fault = f"one of {MANY} workers without the mount"
                said = ("it is left out", str(self.staging), socket.gethostname())
                self.finished(fault, self.begin(running.address), *said, what="it is left out, ")

    def run(self, only: set[str]) -> list[str]:
        cases = {"pairs": self.pairs}
        if self.engine in CLUSTERS:
            mounting = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
            names = (
                "traffic progress joins_late two_commands worker_killed worker_killed_before_it_reports worker_fails all_disks_full worker_stands_still "
                "all_stand_still driver_killed killed_publishing head_lost no_cluster other_version source_changes inflated batch_job"
            )
            cases |= {name: getattr(self, name) for name in names.split()}
            if mounting:  # as root
                cases |= {"other_file_system": self.other_file_system, "one_of_many": self.one_of_many}
        for name, case in cases.items():
            if not only or name in only:
                case()
        return self.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--gigabytes", type=float, default=0.1)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    engines = [word for word in asked.words if word in ("processes", *CLUSTERS)] or ["processes", *CLUSTERS]
    only = {word for word in asked.words if word not in engines}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    alone = alone_on_loopback()
    with tempfile.TemporaryDirectory(prefix="ckpt-cluster-", dir=asked.work) as folder:
        work = Path(folder)
        for name in ("share", "local"):
            (work / name).mkdir()
        build(work / "hf", asked.gigabytes)
        local = Check(work, "local")
        for name, (source, options) in PAIRS.items():
            if not only or only & {"pairs", "inflated"} or name == "hf-megatron":
                read = work / "hf" if source == "hf" else work / "local" / source
                if wrong := local._pair(name, read, options, None):
                    sys.exit(f"{name}: {wrong}")
        checks = [Check(work, engine, alone) for engine in engines]
        failed = [check.run(only) for check in checks]
    print(*(row for check in checks for row in check.rows), sep="\n")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
