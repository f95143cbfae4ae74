"""Runs the cells of a notebook in this process, without Jupyter, and holds what they print against what the file shows.

`python tools/notebook.py FILE` compares, `--write` puts the output into the file. Cells share one namespace, as in a kernel; the value of a cell's
last expression is its output. A figure or any other rich output is not known here.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def executed(cells: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The outputs of each cell of code, in the form of nbformat 4."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [_run("".join(cell["source"]), number, namespace) for number, cell in enumerate(cells, 1)]


def _run(source: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source, f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said, value = io.StringIO(), None
    with contextlib.redirect_stdout(said):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if said.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": said.getvalue().splitlines(True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(True)}
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs


def texts(outputs: list[dict[str, Any]]) -> str:
    """What outputs show, as one text."""
    return "\n".join("".join(one.get("text") or one["data"]["text/plain"]).rstrip() for one in outputs)


def main(arguments: list[str]) -> int:
    path = Path(next(one for one in arguments if not one.startswith("-")))
    book = json.loads(path.read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    stale = False
    for number, (cell, outputs) in enumerate(zip(cells, executed(cells), strict=True), 1):
        if texts(outputs) != texts(cell["outputs"]):
            stale = True
            print(f"cell {number} prints:\n{texts(outputs)}\nand the file shows:\n{texts(cell['outputs'])}")
        cell |= {"outputs": outputs, "execution_count": number}
    if "--write" in arguments:
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
        return 0
    print("stale: python tools/notebook.py --write" if stale else f"{len(cells)} cells print what {path.name} shows")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
