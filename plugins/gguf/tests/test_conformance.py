"""The conformance kit on GGUF files of every architecture."""

from __future__ import annotations

import os
from typing import Any

from ckpt_core.testing import Entry, Quirks
from ckpt_core.testing.examples import small_numbers
from ckpt_gguf.container import plan_file, read_header
from ckpt_gguf.kinds import F32
from ckpt_tests.conformance import FirstParty, OtherModels
from ckpt_tests.gguf import MODELS


class GgufEntries:
    """The tensors of a folder with one GGUF file."""

    def find(self, folder: str) -> list[Entry]:
        file = os.path.join(folder, "model.gguf")
        return [Entry(file, name, name, entry.offset) for name, entry in read_header(file).tensors.items()]

    def remove(self, entry: Entry) -> None:
        self._change(entry, lambda held: held.pop(entry.key))

    def add(self, entry: Entry) -> str:
        self._change(entry, lambda held: held.__setitem__("surprise.weight", (F32, (3,), bytes(12))))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        def longer(held: dict[str, Any]) -> None:
            kind, (rows, *rest), data = held[entry.key]
            held[entry.key] = kind, (rows + 1, *rest), data + bytes(len(data) // rows)

        self._change(entry, longer)

    def retype(self, entry: Entry) -> None:
        """ggml has integers of 32 bits, type 26, which no model has for weights."""
        kind = read_header(entry.file).tensors[entry.key].kind
        with open(entry.file, "rb+") as stream:
            data = stream.read()
            at = data.index(len(entry.key).to_bytes(8, "little") + entry.key.encode()) + 8 + len(entry.key)
            at += 4 + 8 * int.from_bytes(data[at : at + 4], "little")
            assert data[at : at + 4] == kind.number.to_bytes(4, "little")
            stream.seek(at)
            stream.write((26).to_bytes(4, "little"))

    def _change(self, entry: Entry, change: Any) -> None:
        header = read_header(entry.file)
        with open(entry.file, "rb") as stream:
            body = stream.read()
        held = {
            name: (one.kind, one.shape, body[one.offset : one.offset + one.size])
            for name, one in header.tensors.items()
        }
        change(held)
        plan = plan_file({name: one[:2] for name, one in held.items()}, header.metadata)
        out = bytearray(plan.header) + bytes(plan.size - len(plan.header))
        for name, (_, _, data) in held.items():
            out[plan.offsets[name] : plan.offsets[name] + len(data)] = data
        with open(entry.file, "wb") as stream:
            stream.write(out)


IDS = {"tokenizer": "none"}  # the kit's models have none
FIRST = ("llama-tied", "llama-padded", "llama")


class TestGguf(FirstParty):
    # The first model has a tied head: a file that lost output.weight is one of such a model, and nothing tells the two apart.
    format = "gguf"
    test_every_choice_of_an_option = None  # -o type rounds, as --dtype does: test_write.py looks at each
    quirks = Quirks(
        models={name: MODELS[name] for name in FIRST},
        expresses=(
            "attention.head_dim",
            "attention.rotary.theta",
            "attention.rotary.scaling=linear",
            "attention.rotary.scaling=llama3",
        ),
        entries=GgufEntries(),
        frameworks=("gguf",),
        write_options=IDS,
    )


class TestOtherArchitectures(OtherModels):
    format = "gguf"
    test_every_choice_of_an_option = None
    quirks = Quirks(
        models={name: model for name, model in MODELS.items() if name not in FIRST},
        values=small_numbers,
        entries=GgufEntries(),
        write_options=IDS,
    )
