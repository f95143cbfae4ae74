"""Mutated checkpoints through every reader: only a `CkptError` may come out, soon, and in little memory.

    python tools/fuzz.py --minutes 10                 every reader: inputs that take new steps in it are mutated on
    python tools/fuzz.py --minutes 10 --checkpoints   whole checkpoints of every format, one file mutated
    python tools/fuzz.py --minutes 10 --adapters      adapters alone and with their base, one file mutated
    python tools/fuzz.py --inputs 2000 --seed 1       the same inputs each time
    python tools/fuzz.py --engine atheris -max_total_time=600      libFuzzer's engine (pip install atheris)

A finding is written to `fuzz-findings/TARGET-N`, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ckpt_core.api import read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.storage import safetensors
from ckpt_core.storage.archive.tar import plan_tar
from ckpt_core.storage.archive.tree import open_tree
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.chunks.dcp import read_distributed
from ckpt_core.storage.chunks.dcp_write import ChunkSpec, plan_distributed
from ckpt_core.storage.chunks.zarr import read_zarr
from ckpt_core.storage.documents import parse_json, parse_yaml
from ckpt_core.storage.dtypes import BF16, FP32
from ckpt_core.storage.pickle.opaque import Opaque
from ckpt_core.storage.pickle.reader import read_pickle
from ckpt_core.storage.torch.nest import plan_nest, torch_bytes
from ckpt_core.storage.torch.reading import read_torch_file, read_torch_member
from ckpt_core.storage.torch.writing import TensorSpec

GOLDENS = Path(__file__).parents[1] / "tests/data/golden"
GOLDENS_2026 = Path(__file__).parents[1] / "tests/data/golden-2026"
SECONDS = 5
MEMORY = 64 << 20  # of one input
_LEAK = 400 << 20  # of a whole run, the inputs that it keeps included
_LARGEST = 1 << 17


Line = tuple[str, int]
Step = tuple[Line, Line]
"""A line that ran, and the one of our code that ran before it: a branch taken for the first time is a new step."""


@dataclass
class Target:
    """A reader: where its input is put, how it is read, and good inputs to begin with."""

    name: str
    file: Path
    read: Callable[[Path], object]
    seeds: list[bytes]
    tokens: tuple[bytes, ...] = ()
    reached: set[Step] = field(default_factory=set)

    def run(self, data: bytes) -> None:
        """Read one input; `AssertionError` for an endless message, or if it takes too long or too much memory."""
        self.file.write_bytes(data)
        started, before = time.process_time(), peak_memory()
        try:
            self.read(self.file)
        except CkptError as problem:
            assert len(str(problem)) < 100_000, "an endless message"
        assert time.process_time() - started < SECONDS, "too slow"
        assert peak_memory() - before < MEMORY, "too much memory"


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def in_bytes(file: OutputFile) -> bytes:
    """A planned file, its data all zeros."""
    data = bytearray(file.size)
    for offset, known in file.literals:
        data[offset : offset + len(known)] = known
    return bytes(data)


def torch_file() -> bytes:
    args = Opaque("argparse", "Namespace", args=(), state={"hidden_size": 8, "lr": 1e-4, "name": "x"})
    tensors = {
        "w": TensorSpec(FP32, (2, 3)),
        "b": TensorSpec(BF16, (4,)),
        "tied": TensorSpec(FP32, (6,), "s"),
        "head": TensorSpec(FP32, (6,), "s"),
    }
    return in_bytes(plan_nest("x.pt", {"model": tensors, "args": args, "step": 7, "shape": [(1, 2), None, True]})[0])


def legacy_file() -> bytes:
    head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s."
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
    return head + b"\x80\x02}X\x01\0\0\0w" + tensor + b"s.\x80\x02]X\x01\0\0\x000a." + struct.pack("<q6f", 6, *range(6))


def distributed(folder: Path) -> bytes:
    """Make a distributed checkpoint in a folder; the bytes of its .metadata."""
    chunks = [ChunkSpec("w", FP32, (4, 3), (row, 0), (2, 3), f"__{row}_0.distcp") for row in (0, 2)]
    chunks.append(ChunkSpec("b", BF16, (5,), (0,), (5,), "__0_0.distcp"))
    plan = plan_distributed("d", chunks, {"x/shard_0_1": ("__0_0.distcp", torch_bytes({"a": 1}, "x"))})
    for file in plan.files:
        (folder / Path(file.path).name).write_bytes(in_bytes(file))
    return plan.metadata


def array(folder: Path) -> bytes:
    """Make a zarr array in a folder; the bytes of its .zarray."""
    folder.mkdir()
    for position in ("0.0", "0.1", "1.0", "1.1"):
        (folder / position).write_bytes(bytes(24))
    keys = {
        "chunks": [2, 3],
        "compressor": None,
        "dtype": "<f4",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": [3, 5],
        "zarr_format": 2,
    }
    return json.dumps(keys).encode()


def read_tree(path: Path) -> None:
    tree = open_tree(path)
    for name in tree.files:
        tree.read(name, limit=1 << 20)
    read_torch_member(tree.below("mp_rank_00"), "model_weights.ckpt")


def read_chunks(folder: Path) -> None:
    checkpoint = read_distributed(folder)
    for tensor in checkpoint.tensors.values():
        list(tensor.stored())
    for blob in checkpoint.objects.values():
        blob.read()


def read_config(path: Path) -> None:
    from ckpt_hf import ckpt_architecture

    ckpt_architecture(str(path))


def rank_file() -> tuple[bytes, Callable[[Path], object]]:
    """The pickle of a rank's DTensors, and a reader of such a pickle, which lies in a torch file with right checksums."""
    from ckpt_fsdp.parts import Parts

    source = next(GOLDENS_2026.rglob("model_world_size_4_rank_1.pt"))
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("/data.pkl"))

    def read(path: Path) -> None:
        file = path.with_suffix(".pt")
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in {**members, name: path.read_bytes()}.items():
                archive.writestr(member, data)
        held, parts = read_torch_file(file), Parts(4)
        for tensor, value in held.items() if isinstance(held, dict) else ():
            try:
                parts.of(str(tensor), value, 1, str(file))
            except CkptError:  # the next one may be read to another end
                continue

    return members[name], read


def gguf_file() -> bytes:
    """A GGUF file with a value of every type, a tokenizer, and tensors of two kinds."""
    from ckpt_gguf.container import plan_file
    from ckpt_gguf.kinds import F32, Q8_0

    tokens = {f"tokenizer.ggml.{name}": value for name, value in {
        "model": "gpt2", "pre": "smollm", "tokens": ["a", "b", "ab", "<|x|>"], "token_type": [1, 1, 1, 3], "merges": ["a b"], "bos_token_id": 3,
        "add_bos_token": True, "scores": [0.0, -1.5, 2.0, 0.0],
    }.items()}  # fmt: skip
    plan = plan_file({"a": (F32, (3,)), "b.weight": (Q8_0, (2, 64))}, {"general.architecture": "llama", **tokens})
    return plan.header + bytes(plan.size - len(plan.header))


def read_gguf(path: Path) -> None:
    """A GGUF file, and the tokenizer that it tells of."""
    from ckpt_gguf.container import read_header
    from ckpt_gguf.tokenizer import told_by

    header = read_header(str(path))
    told_by(header.metadata, header.places, str(path))


def make_targets(folder: Path) -> list[Target]:
    """Every reader, with its files in a folder of its own."""

    def at(name: str, file: str) -> Path:
        (folder / name).mkdir()
        return folder / name / file

    def golden(pattern: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted(GOLDENS.rglob(pattern))[:2] if path.stat().st_size < _LARGEST]

    header = safetensors.plan_file({"a": (FP32, (2, 3)), "b": (BF16, (4,))}, {"format": "pt"})
    members: dict[str, OutputFile | bytes] = {
        "./model_config.yaml": b"a: 1\n",
        "./mp_rank_00/model_weights.ckpt": torch_file(),
        f"./{'long' * 40}": b"x",
    }
    tar = in_bytes(plan_tar("x", members)[0])
    metadata_at, array_at = at("dcp", ".metadata"), at("zarr", "array") / ".zarray"
    metadata = distributed(metadata_at.parent)
    opcodes = tuple(
        bytes([code]) for code in b"\x80\x81\x85\x86\x87\x88\x8a\x8c\x8e\x8f\x90\x92\x93\x94\x95\x96}])(tRbsuehjpqQ."
    )
    of_rank, read_rank = rank_file()
    return [
        Target("ranks", at("ranks", "data.pkl"), read_rank, [of_rank], (*opcodes, b"K\x04", b"Shard", b"Replicate", b"_coordinate_on_dim")),
        Target("safetensors", at("safetensors", "x.safetensors"), safetensors.read_header, [header.header + bytes(header.size - len(header.header))], (b'"', b"{", b"[", b"F32")),
        Target("torch", at("torch", "x.pt"), read_torch_file, [torch_file(), *golden("common.pt")], (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", *opcodes)),
        Target("legacy", at("legacy", "x.pt"), read_torch_file, [legacy_file()], opcodes),
        Target("pickle", at("pickle", "x.pkl"), lambda path: repr(read_pickle(path.read_bytes(), str(path))), [metadata, *golden(".metadata")], opcodes),
        Target("tar", at("tar", "x.nemo"), read_tree, [tar], (b"ustar\0", b"path=", b"size=", b"././@PaxHeader", b"\0" * 512)),
        Target("tar.gz", at("tar.gz", "x.nemo"), read_tree, [gzip.compress(tar, 1, mtime=0)]),
        Target("dcp", metadata_at, lambda path: read_chunks(path.parent), [metadata], opcodes),
        Target("gguf", at("gguf", "x.gguf"), read_gguf, [gguf_file()], (b"GGUF", *(bytes([number, 0, 0, 0]) for number in range(13)), b"\xff" * 8, b"tokenizer.ggml.tokens")),
        Target("zarr", array_at, lambda path: read_zarr(path.parents[1]), [array(array_at.parent)], (b"null", b"[", b"9" * 20, b'"<f4"')),
        Target("json", at("json", "x.json"), lambda path: parse_json(path.read_bytes(), str(path)), [LLAMA, *golden("model_config.json")], (b'"', b"{", b"[", b"NaN", b"1e999", b"\\ud800")),
        Target("yaml", at("yaml", "x.yaml"), lambda path: parse_yaml(path.read_bytes(), str(path)), [b"a: &x {b: [1, 2e-5, yes]}\nc: *x\n<<: {d: 2001-01-01}\n", *golden("config.yaml")], (b"&x ", b"*x", b"!!int ", b"!!bool ", b"<<: ", b"? ", b"- ", b"|\n ", b"---\n", b"{", b"[")),
        Target("config", at("config", "config.json"), read_config, [LLAMA], (b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"99999999999")),
    ]  # fmt: skip


HOSTS: dict[str, dict[str, object]] = {
    "hf": {},
    "nanotron": {"tp": 2},
    "megatron": {"tp": 2, "options": {"container": "torch_dist"}},
    "nemo": {"tp": 2, "options": {"container": "folder", "backend": "ranks"}},
    "nemo2": {},
    "megatron-bridge": {},
    "nxdt": {},
    "deepspeed": {},
    "fsdp": {},
    "torchtitan": {},
    "gguf": {"options": {"tokenizer": "none"}},
    "megatron as Megatron-FSDP": {"to": "megatron", "options": {"container": "fsdp_dtensor"}},
    "megatron-bridge as Megatron-FSDP": {"to": "megatron-bridge", "options": {"container": "fsdp_dtensor"}},
}
_DESCRIPTIONS = (
    ".json",
    ".yaml",
    ".txt",
    "common.pt",
    "train_state.pt",
    "_model_states.pt",
    "latest",
    "newest",
    "checkpoint",
    ".metadata",
    ".gguf",
)


_TOKENS = (b"null", b"-1", b"[]", b"{}", b"0", b"1e999", b"true", b"K\xff", b"N", b"]", b"}")


def reading(name: str, path: Path, **how: Any) -> Callable[[Path], object]:
    """Read the checkpoint at `path`, whichever of its files is mutated. What a reader did not foresee is a finding."""

    def read(_: Path) -> None:
        try:
            read_checkpoint(path, format=name, **how)
        except CkptError as problem:
            assert "fails on this checkpoint" not in str(problem), f"{problem}\n{_cause(problem)}"

    return read


def beside_base(folder: Path, golden: Path) -> None:
    """Make a distributed checkpoint of a base and its adapter in one, as FSDP saves a model of PEFT, its data all zeros."""
    held = {
        part: safetensors.read_header(golden / part / name).tensors
        for part, name in (("base", "model.safetensors"), ("adapter", "adapter_model.safetensors"))
    }
    modules = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in held["adapter"]}
    names = {key.replace(".weight", ".default.weight"): one for key, one in held["adapter"].items()}
    for name, one in held["base"].items():
        module = name.removesuffix(".weight")
        names[f"base_model.model.{module}.base_layer.weight" if module in modules else f"base_model.model.{name}"] = one
    chunks = [
        ChunkSpec(name, one.dtype, one.shape, (0,) * len(one.shape), one.shape, "__0_0.distcp")
        for name, one in names.items()
    ]
    plan = plan_distributed("", chunks)
    folder.mkdir()
    for file in plan.files:
        (folder / file.path).write_bytes(in_bytes(file))
    (folder / ".metadata").write_bytes(plan.metadata)
    (folder / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}))
    shutil.copyfile(golden / "base/config.json", folder / "config.json")


def make_adapters(folder: Path) -> list[Target]:
    """Adapters of every format, by themselves and merged into their base, with each of their files as the one that is mutated."""
    golden = GOLDENS_2026 / "lora/bridge-llama-adapter"
    config, base = golden / "base/config.json", {"base": str(golden / "base")}
    hows: dict[str, tuple[str, dict[str, Any]]] = {
        "adapter": ("peft", {"config": config}),
        "checkpoint": ("megatron-lora", {}),
        "beside": ("fsdp-lora", {}),
    }
    patterns = (
        b".*",
        b"(a+)+",
        b'"rank_pattern": {"q_proj": 4}',
        b'"layers_pattern": "layers"',
        b'"layers_to_transform": 1',
    )
    targets = []
    for name, (format, alone) in hows.items():
        for way, how in {"alone": {"alone": True, **alone}, "merged": {"options": base}}.items():
            path = folder / f"{name}-{way}"
            if name == "beside":
                beside_base(path, golden)
            else:
                shutil.copytree(golden / name, path)
            for file in sorted(path.rglob("*")):
                if file.is_file() and file.stat().st_size < _LARGEST:
                    read = reading(format, path, **how)
                    targets.append(
                        Target(f"{path.name}-{file.name}", file, read, [file.read_bytes()], _TOKENS + patterns)
                    )
    return targets


def make_checkpoints(folder: Path) -> list[Target]:
    """Whole checkpoints of every format, with each of the files that describe them as the one that is mutated."""
    from ckpt_core import convert

    targets = []
    for name, how in HOSTS.items():
        path = folder / f"whole-{name}"
        to = str(how.get("to", name))
        convert(next(GOLDENS.rglob("main_llama_tied_tp2_pp2")) / "checkpoint", path, **{"to": to, **how})
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.name.endswith(_DESCRIPTIONS) and not file.name.startswith("ckpt-receipt"):
                targets.append(Target(f"{name}-{file.name}", file, reading(to, path), [file.read_bytes()], _TOKENS))
    return [*targets, *quantised_folders(folder)]


def quantised_folders(folder: Path) -> list[Target]:
    """Quantised HF folders, with each config, index and header as the one that is mutated; the data stay as they are."""
    targets = []
    for golden in sorted(GOLDENS_2026.glob("quantised/*/checkpoint/config.json")):
        name = golden.parent.parent.name
        path = folder / f"quantised-{name}"
        shutil.copytree(golden.parent, path)
        for file in sorted(path.glob("*.json")):
            targets.append(Target(f"{name}-{file.name}", file, reading("hf", path), [file.read_bytes()], _TOKENS))
        for file in sorted(path.glob("*.safetensors")):
            whole = file.read_bytes()
            end = 8 + int.from_bytes(whole[:8], "little")
            read = behind_header(file, whole[end:], reading("hf", path))
            targets.append(Target(f"{name}-{file.name}", path / f"{file.name}-header", read, [whole[8:end]], _TOKENS))
    return targets


def behind_header(file: Path, data: bytes, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads a folder in which `file` has the header that the input is, and `data` behind it."""
    whole = file.read_bytes()

    def read_with(header: Path) -> None:
        text = header.read_bytes()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)
        try:
            read(header)
        finally:
            file.write_bytes(whole)

    return read_with


def _cause(problem: CkptError) -> str:
    return "".join(traceback.format_exception(problem.__cause__))


LLAMA = json.dumps(
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 120, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
).encode()  # fmt: skip


# --- mutation ---------------------------------------------------------------------------------------------------------------

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


def mutated(data: bytes, others: list[bytes], tokens: tuple[bytes, ...], noise: random.Random) -> bytes:
    """`data` with a few things wrong."""
    found = bytearray(data)
    for _ in range(noise.choice([1, 1, 1, 2, 4])):
        at = noise.randrange(len(found) + 1)
        kind = noise.randrange(8)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << noise.randrange(8)
        elif kind == 1 and found:
            found[min(at, len(found) - 1)] = noise.randrange(256)
        elif kind == 2:
            width, order = noise.choice([1, 2, 4, 8]), noise.choice(["little", "big"])
            found[at : at + width] = (noise.choice(_NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(width, order)
        elif kind == 3:
            del found[at : at + noise.choice([1, 2, 8, 100, 512])]
        elif kind == 4:
            found[at:at] = found[(start := noise.randrange(len(found) + 1)) : start + noise.choice([1, 4, 30, 512])]
        elif kind == 5 and tokens:
            token = noise.choice(tokens)
            found[at : at + noise.choice([0, len(token)])] = token
        elif kind == 6:
            other = noise.choice(others)
            found[at:] = other[noise.randrange(len(other) + 1) :]
        elif kind == 7 and noise.random() < 0.3:
            del found[at:]
    return bytes(found[:_LARGEST])


class Coverage:
    """The steps that our readers take inside the block."""

    def __init__(self) -> None:
        self.steps: set[Step] = set()
        self._last: Line = ("", 0)

    def _trace(self, frame: FrameType, event: str, argument: object):
        if "/ckpt_" not in frame.f_code.co_filename:
            return None
        here = (frame.f_code.co_filename, frame.f_lineno)
        self.steps.add((self._last, here))
        self._last = here
        return self._trace

    def __enter__(self) -> Coverage:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def fuzz(
    folder: Path,
    seed: int,
    inputs: int | None = None,
    seconds: float | None = None,
    make: Callable[[Path], list[Target]] = make_targets,
) -> tuple[int, int, list[tuple[str, bytes, str]]]:
    """Run mutated inputs; how many, how many lines they reached, and the findings: target, input, traceback."""
    noise = random.Random(seed)
    targets = make(folder)
    kept = {target.name: list(target.seeds) for target in targets}
    for target in targets:
        for data in target.seeds:  # each must be good, or little is reached
            target.file.write_bytes(data)
            target.read(target.file)
    findings: list[tuple[str, bytes, str]] = []
    started, done = time.monotonic(), 0
    while (inputs is None or done < inputs) and (seconds is None or time.monotonic() - started < seconds):
        target = targets[done % len(targets)]
        pool = kept[target.name]
        data = mutated(noise.choice(pool), pool, target.tokens, noise)
        done += 1
        try:
            with Coverage() as coverage:
                target.run(data)
        except Exception:
            findings.append((target.name, data, traceback.format_exc()))
        target.file.write_bytes(target.seeds[0])
        if coverage.steps - target.reached:
            target.reached |= coverage.steps
            pool.append(data)
    return done, len({line for target in targets for _, line in target.reached}), findings


def with_atheris(folder: Path, arguments: list[str]) -> None:
    """Let libFuzzer choose: the first byte picks the target."""
    import atheris

    targets = make_targets(folder)

    def one(data: bytes) -> None:
        if data:
            targets[data[0] % len(targets)].run(data[1:])

    atheris.instrument_all()
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, target in enumerate(targets):
        for index, data in enumerate(target.seeds):
            (corpus / f"{target.name}-{index}").write_bytes(bytes([number]) + data)
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoints", action="store_true", help="mutate whole checkpoints of every format")
    which.add_argument("--adapters", action="store_true", help="mutate adapters, alone and with their base")
    asked, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.engine == "atheris":
            with_atheris(Path(folder), rest)
        before = peak_memory()
        done, lines, findings = fuzz(
            Path(folder),
            asked.seed,
            asked.inputs,
            asked.minutes and asked.minutes * 60,
            make_checkpoints if asked.checkpoints else make_adapters if asked.adapters else make_targets,
        )
    grown = peak_memory() - before
    for number, (name, data, text) in enumerate(findings):
        out = Path("fuzz-findings") / f"{name}-{number}"
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(data)
        print(f"{out}\n{text}")
    print(f"{done} inputs reached {lines} lines; memory grew by {grown >> 20} MiB; {len(findings)} findings")
    return 1 if findings or grown > _LEAK else 0


if __name__ == "__main__":
    raise SystemExit(main())
