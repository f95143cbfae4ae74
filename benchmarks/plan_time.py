"""How long it takes to plan the conversion of the largest open models, and how much memory.

    python benchmarks/plan_time.py [--only NAME] [--profile]

Nothing is downloaded and no weight is stored: a source is what a format would have written, with all its headers
and documents, over files of holes. Each conversion is planned in a process of its own, from importing the package to the
hash of the plan, which is all that `ckpt convert` does before it moves the first byte. Seconds are of CPU time; the peak is of resident memory.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.architecture import Architecture

# What makes the sources is imported where they are made, for it would count in the memory of a plan.

LLAMA_405B = {
    "layers": 126,
    "hidden": 16384,
    "tokens.vocabulary": 128256,
    "tokens.padded_vocabulary": 128256,
    "attention.heads": 128,
    "attention.groups": 8,
    "attention.head_dim": 128,
    "attention.rotary.theta": 500000.0,
    "mlp.ffn": 53248,
}
DEEPSEEK_671B = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "vocab_size": 129280,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

KIMI_K2 = {  # Kimi-K2-Instruct: the same class, with more experts and fewer heads
    **DEEPSEEK_671B,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 163840,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "rope_theta": 50000.0,
}

Asked = dict[str, object]
HF: Asked = {"to": "hf"}
HF_FP8: Asked = {"to": "hf", "options": {"quantise": "fp8-block"}}
MEGATRON_405B: Asked = {
    "to": "megatron",
    "tp": 8,
    "pp": 16,
    "options": {  # 126 layers: 7, then 14 times 8, then 7
        "container": "torch",
        "decoder_first_pipeline_num_layers": "7",
        "decoder_last_pipeline_num_layers": "7",
    },
}
MEGATRON_671B: Asked = {"to": "megatron", "tp": 8, "ep": 32}

CASES: dict[str, tuple[str, Asked, Asked]] = {
    # name: the model, how its source is written, what is planned
    "405B: hf to megatron tp8 pp16": ("405B", HF, MEGATRON_405B),
    "405B: megatron tp8 pp16 to hf": ("405B", MEGATRON_405B, HF),
    "671B: hf to megatron tp8 ep32": ("671B", HF, MEGATRON_671B),
    "671B: megatron tp8 ep32 to hf": ("671B", MEGATRON_671B, HF),
    "671B: hf to ir": ("671B", HF, {"to": "ir"}),
    "671B: hf FP8 to hf bf16": ("671B", HF_FP8, HF),
    "671B: hf FP8 to megatron tp8 ep32": ("671B", HF_FP8, MEGATRON_671B),
    "671B: hf FP8, codes kept": ("671B", HF_FP8, {"to": "hf", "options": {"quantised": "keep"}}),
}


def architecture_of(model: str, work: Path) -> Architecture:
    """The model's architecture, from facts or from its config."""
    if model == "405B":
        from ckpt_core.testing import example

        return example("llama", **{path.replace(".", "__"): value for path, value in LLAMA_405B.items()})
    from ckpt_core.api import config_architecture

    config = work / "config.json"
    config.write_text(json.dumps(KIMI_K2 if model == "1T" else DEEPSEEK_671B))
    found = config_architecture(str(config))
    assert found is not None
    return found


def source_of(model: str, asked: Asked, work: Path) -> str:
    """The model as `asked` would write it, in holes."""
    from ckpt_core.api import plan_conversion
    from ckpt_core.testing import write_ir
    from synthetic import write_files

    start = work / f"{model}-ir"
    if not start.exists():
        write_ir(start, architecture_of(model, work), dtype="bf16", sparse=True)
    source = work / f"{model}-{asked['to']}{'-fp8' if asked is HF_FP8 else ''}"
    if not source.exists():
        write_files(plan_conversion(start, source, **asked).target, source, data=False)  # type: ignore[arg-type]
    return str(source)


def measure(source: str, asked: Asked, profile: bool) -> dict[str, float]:
    """Plan one conversion in this process: CPU seconds, and peak memory in MB."""
    from ckpt_core.api import plan_conversion
    from ckpt_core.cli import COLLECTION

    gc.set_threshold(COLLECTION)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    plan = plan_conversion(source, f"{source}-out", **asked)  # type: ignore[arg-type]
    planned = time.process_time()
    plan.hash  # noqa: B018
    hashed = time.process_time()
    if profile:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return {
        "plan": planned,
        "hash": hashed - planned,
        "tensors": len(plan.tensors),
        "files": len(plan.source.files),
        "peak": peak() / 1024,
    }


def peak() -> int:
    """The most kB of memory that this process had. That of `getrusage` is also the one of the process that started it."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--work", type=Path, help="a folder on a file system with holes, where sources are kept")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        source, asked = json.loads(arguments.measure)
        print(json.dumps(measure(source, asked, arguments.profile)))
        return
    print("| conversion | tensors | source files | plan s | hash s | peak MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        os.makedirs(work, exist_ok=True)
        for name, (model, written, asked) in CASES.items():
            if arguments.only not in name:
                continue
            given = json.dumps([source_of(model, written, work), asked])
            options = ["--profile"] if arguments.profile else []
            done = subprocess.run(
                [sys.executable, __file__, "--measure", given, *options], stdout=subprocess.PIPE, check=True
            )
            found = json.loads(done.stdout)
            print(
                f"| {name} | {found['tensors']:,} | {found['files']:,} | {found['plan']:.1f} | {found['hash']:.1f} "
                f"| {found['peak']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
