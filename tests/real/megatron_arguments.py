"""The command line of each Megatron-LM as data: which argument is which flag, and which of them a checkpoint restores.

    python megatron_arguments.py SOURCE ...      # trees of tags, oldest first; prints launch-arguments.json

Each tree is asked in a process of its own, by its own parser and its own `_set_arg` lines (training/checkpointing.py).
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TABLE = FOLDER.parents[1] / "plugins/megatron/src/ckpt_megatron/launch-arguments.json"
_KINDS = {"moe_freq_type": "pattern", "no_rope_freq_type": "pattern", "tuple_type": "tuple"}


def version_of(source: Path) -> str:
    """`0.16` of the tree of core_v0.16.1."""
    text = (source / "megatron/core/package_info.py").read_text()
    major, minor = (re.search(rf"^{name} = (\d+)", text, re.MULTILINE) for name in ("MAJOR", "MINOR"))
    assert major is not None and minor is not None, source
    return f"{major[1]}.{minor[1]}"


def parser_of(source: Path) -> argparse.ArgumentParser:
    """The parser of a tree that is on PYTHONPATH, in a process of this file, whose folder Python looks into first."""
    import torch._dynamo  # noqa: F401, before a triton of nothing is there
    from absent import absent
    from cpu import without_cuda

    typing.override = lambda function: function  # type: ignore[attr-defined,assignment]  # core 0.18 wants Python 3.12
    without_cuda()
    absent("triton")
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))


def asked(source: Path) -> dict[str, dict[str, Any]]:
    """The `flags` of a tree, from a process that has it on its path, behind stand-ins for what needs a GPU."""
    path = {"PYTHONPATH": os.pathsep.join(map(str, (FOLDER / "te", source)))}
    said = subprocess.check_output([sys.executable, __file__, "--one", str(source)], env=os.environ | path)
    found: dict[str, dict[str, Any]] = json.loads(said.splitlines()[-1])
    return found


def flags(source: Path) -> dict[str, dict[str, Any]]:
    """What a tree's command line has of each argument: its flag, what it takes, its default; and what is restored."""
    restored = _restored(source)
    found: dict[str, dict[str, Any]] = {}
    for action in parser_of(source)._actions:
        default = action.default
        if not isinstance(default, None | bool | int | float | str | list | tuple):
            continue
        if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
            takes: object = action.const
        else:
            name = getattr(action.type, "__name__", "str")
            takes = _KINDS.get(name, name if name in ("int", "float", "str") else "str")
        found[action.dest] = {"flag": action.option_strings[-1], "takes": takes, "default": default}
    for name, forced in restored.items():
        line = found.setdefault(name, {"flag": None})
        if forced or line.get("default") is None:
            line["taken"] = True
    return found


def _restored(source: Path) -> dict[str, bool]:
    """The arguments that `load_args_from_checkpoint` sets, and whether also where the command line has a value."""
    restored = {}
    for node in ast.walk(ast.parse((source / "megatron/training/checkpointing.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_set_arg":
            (name,) = (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))
            restored[str(name)] = any(word.arg == "force" for word in node.keywords)
    # load_args_from_checkpoint takes these two only with --use-tokenizer-model-from-checkpoint-args, the ranks only
    # with --use-mp-args-from-checkpoint-args.
    asked = ["tokenizer_model", "tokenizer_type", "tensor_model_parallel_size", "pipeline_model_parallel_size"]
    asked += ["virtual_pipeline_model_parallel_size", "num_layers_per_virtual_pipeline_stage"]
    return {name: forced for name, forced in restored.items() if name not in (*asked, "expert_model_parallel_size")}


def table(sources: list[Path], names: set[str]) -> dict[str, Any]:
    """The lines of all trees: each has the first version and, if a later one has another, the last."""
    versions = [version_of(source) for source in sources]
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, source in enumerate(sources):
        said = asked(source)
        for name in sorted(names):
            here, before = said.get(name), lines.get(name, [])
            open_line = before[-1] if before and "until" not in before[-1] else None
            if open_line is not None:
                if here == {key: value for key, value in open_line.items() if key != "since"}:
                    continue
                open_line["until"] = versions[number - 1]
            if here is not None:
                lines.setdefault(name, []).append({"since": versions[number], **here})
    return {"versions": versions, "arguments": dict(sorted(lines.items()))}


def text_of(body: dict[str, Any]) -> str:
    """The table as it lies in the repository: a line for each argument and period."""
    rows = [
        f"  {json.dumps(name)}: [" + ", ".join(json.dumps(line) for line in lines) + "]"
        for name, lines in body["arguments"].items()
    ]
    return f'{{\n "versions": {json.dumps(body["versions"])},\n "arguments": {{\n' + ",\n".join(rows) + "\n }\n}\n"


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(flags(Path(sys.argv[2]))))
    else:
        from ckpt_megatron.launch import NAMES

        print(text_of(table([Path(argument) for argument in sys.argv[1:]], set(NAMES))), end="")
