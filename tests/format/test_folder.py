"""A format from a description of its folder: what is read, what is written, and what is wrong with files of ranks."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.api import read_checkpoint
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.plan import make_plan
from ckpt_core.engine.run import run_plan
from ckpt_core.errors import CkptError
from ckpt_core.format.names import NamePattern
from ckpt_core.layout import Choice, Tables
from ckpt_core.opened import LazyTensor
from ckpt_core.reading import checkpoint_of
from ckpt_core.sdk import (
    Activation,
    Config,
    Folder,
    Format,
    FormatInfo,
    ReadRequest,
    Table,
    WriteRequest,
    fact_is,
    key,
    one_of,
    row,
)
from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.home import at_home
from ckpt_core.storage.documents import read_yaml_object
from ckpt_core.tensors import SourceFiles
from ckpt_core.testing import example, write_ir
from ckpt_core.verify.difference import compare

NORMS = ("attention.norm", "mlp.norm", "final_norm")
BOTH = [key("words", "tokens.vocabulary"), key("rows", "tokens.padded_vocabulary")]
LINES = [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    fact_is("mlp.gated", True),
    *(fact_is(f"{norm}.kind", "rms") for norm in NORMS),
    key("width", "hidden"),
    key("layers", "layers"),
    key("heads", "attention.heads"),
    key("kv_heads", "attention.groups"),
    key("head_dim", "attention.head_dim"),
    key("ffn", "mlp.ffn"),
    key("activation", "mlp.activation", via=one_of({"silu": Activation.SILU})),
    key("eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("theta", "attention.rotary.theta", default=10000.0),
    key("tied", "head.tied", default=False),
]
# fmt: off
TABLES = (
    Table(rows=[
        row("embed", "v h", "embedding.tokens.weight", tp="v"),
        row("norm",  "h",   "final_norm.weight"),
        row("head",  "v h", "head.weight",             tp="v"),
    ]),
    Table("block{l}", to="layers.{l}", rows=[
        row("norm1",   "h",                      "attention.norm.weight"),
        # ranks count through groups and their queries: where there are more of them than groups, keys and values are copies
        row("qkv",     "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="g r"),
        row("out",     "h (g r d)",              "attention.out.weight", tp="g r"),
        row("norm2",   "h",                      "mlp.norm.weight"),
        row("gate_up", "((gate + up) f) h",      "mlp.{part}.weight",       tp="f"),
        row("down",    "h f",                    "mlp.down.weight",         tp="f"),
    ]),
)
# fmt: on
RANKED = Folder(config="model.json", weights="rank-{tp:02}.safetensors", counts={"tp": "ranks"})


def format_of(folder: Folder, vocabulary: list = BOTH, **arguments: object) -> Format:
    return Format(FormatInfo("toy", "a format"), folder, Config("Toy", [*LINES, *vocabulary]), TABLES, **arguments)


FORMAT = format_of(RANKED)


def read(path: Path, format: Format = FORMAT, **options: object) -> Checkpoint:
    request = ReadRequest(
        options, **({"architecture": options.pop("architecture")} if "architecture" in options else {})
    )
    with at_home(path):
        return checkpoint_of(format.ckpt_read(str(path), request), "toy", str(path), request)


def write(source: Checkpoint, path: Path, format: Format = FORMAT, options: dict | None = None, **ranks: int) -> Path:
    target = format.ckpt_write(source, WriteRequest(options or {}, **ranks))
    run_plan(make_plan(source, target), str(path), sync=False)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model of 210 tokens, which four ranks do not divide; four groups of heads, three queries each."""
    llama = example("llama", tokens__vocabulary=210, tokens__padded_vocabulary=210, mlp__ffn=60)
    return read_checkpoint(write_ir(tmp_path_factory.mktemp("ir") / "source", llama))


@pytest.fixture(scope="module")
def halves(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(source, tmp_path_factory.mktemp("toy") / "halves", tp=2)


@pytest.fixture
def damaged(halves: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint of two ranks."""
    shutil.copytree(halves, tmp_path / "damaged")
    return tmp_path / "damaged"


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    header = safetensors.read_header(file)
    data = file.read_bytes()
    return {
        name: np.frombuffer(data, np.float32, one.elements, one.offset).reshape(one.shape)
        for name, one in header.tensors.items()
    }


def store(file: Path, tensors: dict[str, np.ndarray]) -> None:
    specs = {name: (safetensors.BY_SAFETENSORS["F32"], value.shape) for name, value in tensors.items()}
    plan = safetensors.plan_file(specs)
    body = bytearray(plan.size)
    body[: len(plan.header)] = plan.header
    for name, value in tensors.items():
        body[plan.offsets[name] : plan.offsets[name] + value.nbytes] = value.tobytes()
    file.write_bytes(body)


def changed(file: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = {name: value.copy() for name, value in tensors_of(file).items()}
    change(tensors)
    store(file, tensors)


# --- what is written is read -------------------------------------------------------------------------------------------------


SHAPES = {
    "ranks of safetensors": (RANKED, {"tp": 4}),
    "ranks of torch files in folders": (Folder(config="params.json", weights="rank_{tp}/stage{pp}.pt"), {"tp": 2, "pp": 3}),
    "a torch file and yaml": (Folder(config="model.yaml", weights="lit_model.pth"), {}),
    "companions in a folder": (Folder(config="a.json", weights="a.safetensors", companions="tokenizer"), {}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_reads_back(shape: str, source: Checkpoint, tmp_path: Path) -> None:
    folder, ranks = SHAPES[shape]
    format = format_of(folder)
    out = write(source, tmp_path / "out", format, **ranks)
    back = read(out, format)
    assert list(compare(source, back)) == []
    assert back.parallel == ranks
    assert format.ckpt_detect(str(out)) == f"{folder.config} beside {folder.first_weights(str(out))}"
    assert format.ckpt_architecture(str(out / folder.config)) is not None
    assert write(back, tmp_path / "again", format, **ranks)
    for name in [name for _, name in folder.pattern.files(str(out))]:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


SHARDED = Folder(
    config="config.json",
    weights="model.safetensors",
    shards="model-{shard:05}-of-{shards:05}.safetensors",
    index="model.safetensors.index.json",
)


def test_shards_have_an_index_and_hold_no_more_than_they_may(source: Checkpoint, tmp_path: Path) -> None:
    format = format_of(SHARDED)
    out = write(source, tmp_path / "out", format, {"max_shard_size": "100KB"})
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (out / "model.safetensors").exists()
    for shard in shards:
        tensors = tensors_of(shard)
        assert len(tensors) == 1 or sum(one.nbytes for one in tensors.values()) <= 100_000
    assert list(compare(source, read(out, format))) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.update(embed="../away.safetensors"), "the index names a file outside the folder"),
        (
            lambda index: index.update(embed="model-00002-of-00009.safetensors"),
            r"can't be read(.|\n)*model-00002-of-00009",
        ),
        (lambda index: index.pop("embed"), "tensor 'embed' is missing"),
        (lambda index: index.update(more=index["embed"]), "tensor 'more' is missing from its shard"),
    ],
)
def test_an_index_that_lies_is_an_error(change: Callable, words: str, source: Checkpoint, tmp_path: Path) -> None:
    out = write(source, tmp_path / "out", format_of(SHARDED), {"max_shard_size": "100KB"})
    file = out / SHARDED.index
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))
    with pytest.raises((CkptError, OSError), match=words):
        read(out, format_of(SHARDED))


def test_companions_travel_and_weights_do_not(halves: Path, damaged: Path) -> None:
    (damaged / "tokenizer.json").write_text("{}")
    (damaged / "optimizer.pt").write_text("not ours")
    (damaged / ".cache").write_text("hidden")
    assert sorted(read(damaged).sidecars) == ["tokenizer.json"]
    assert read(halves).sidecars == {}


def test_companions_that_link_out_are_refused(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (damaged / "notes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(CkptError, match="leads out of the checkpoint"):
        read(damaged)


# --- the vocabulary ------------------------------------------------------------------------------------------------------


def rows_of(checkpoint: Checkpoint) -> int:
    return checkpoint.tensors["embedding.tokens.weight"].parameter.shape[0]


def test_a_vocabulary_that_ranks_do_not_divide_is_padded_and_cut_again(source: Checkpoint, tmp_path: Path) -> None:
    four = read(write(source, tmp_path / "four", tp=4))
    assert (rows_of(four), four.architecture.tokens.vocabulary) == (212, 210)
    whole = read(write(four, tmp_path / "whole", tp=1))
    assert rows_of(whole) == 210
    assert list(compare(source, whole)) == []


def test_rows_are_a_multiple_for_each_rank(source: Checkpoint, tmp_path: Path) -> None:
    format = format_of(RANKED, multiple=64)
    assert rows_of(read(write(source, tmp_path / "two", format, tp=2), format)) == 256


def test_a_config_that_does_not_say_the_vocabulary_leaves_it_to_the_files(source: Checkpoint, tmp_path: Path) -> None:
    format = format_of(Folder(config="model.json", weights="rank-{tp}.safetensors"), [])
    out = write(source, tmp_path / "out", format, tp=4)
    os.remove(out / "ckpt-receipt.json")
    (out / "tokenizer.json").unlink(missing_ok=True)
    found = read(out, format)
    assert found.architecture.tokens.vocabulary == rows_of(found) == 212
    assert [loss.subject for loss in found.provenance.losses] == ["a vocabulary of 212"]
    assert read(out, format, vocab=210).architecture.tokens.vocabulary == 210


# --- what is wrong with ranks ----------------------------------------------------------------------------------------------


def problem(path: Path, format: Format = FORMAT) -> str:
    with pytest.raises(CkptError) as caught:
        read(path, format)
    return str(caught.value)


def test_a_missing_rank_is_named(damaged: Path) -> None:
    (damaged / "rank-01.safetensors").unlink()
    said = problem(damaged)
    assert "a file of weights is missing" in said and "rank-01.safetensors" in said


def test_a_rank_missing_in_the_middle_is_named_without_a_count(source: Checkpoint, tmp_path: Path) -> None:
    format = format_of(Folder(config="model.json", weights="rank-{tp}.safetensors"))
    out = write(source, tmp_path / "out", format, tp=4)
    (out / "rank-1.safetensors").unlink()
    assert "rank-1.safetensors" in problem(out, format)


def test_a_stale_rank_is_an_error_and_no_companion(damaged: Path) -> None:
    shutil.copy(damaged / "rank-01.safetensors", damaged / "rank-02.safetensors")
    said = problem(damaged)
    assert "a file is of a rank that model.json does not count" in said and "rank-02.safetensors" in said


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "2", None, 10**9])
def test_a_count_that_is_none_is_an_error(count: object, damaged: Path) -> None:
    config = json.loads((damaged / "model.json").read_text())
    (damaged / "model.json").write_text(json.dumps(config | {"ranks": count}))
    assert "number of ranks" in problem(damaged) or "fewer files than ranks" in problem(damaged)


def test_exchanged_ranks_are_another_model_and_not_the_same(source: Checkpoint, damaged: Path) -> None:
    os.rename(damaged / "rank-00.safetensors", damaged / "x")
    os.rename(damaged / "rank-01.safetensors", damaged / "rank-00.safetensors")
    os.rename(damaged / "x", damaged / "rank-01.safetensors")
    assert "embedding.tokens.weight" in {one.subject for one in compare(source, read(damaged))}


def test_a_tensor_too_many_is_named_with_its_file(damaged: Path) -> None:
    changed(damaged / "rank-01.safetensors", lambda tensors: tensors.update(surprise=np.zeros(3, np.float32)))
    said = problem(damaged)
    assert "tensor 'surprise' is not part of this architecture" in said and "rank-01.safetensors" in said


def test_a_missing_tensor_is_named_with_its_file(damaged: Path) -> None:
    changed(damaged / "rank-01.safetensors", lambda tensors: tensors.pop("block0.norm1"))
    said = problem(damaged)
    assert "tensor 'block0.norm1' is missing" in said and "rank-01.safetensors" in said


def test_a_tensor_of_another_shape_says_both(damaged: Path) -> None:
    changed(damaged / "rank-00.safetensors", lambda tensors: tensors.update(norm=np.zeros(3, np.float32)))
    said = problem(damaged)
    assert "tensor 'norm' does not have the shape" in said and "(3,)" in said and "rank-00" in said


def test_a_tensor_on_two_stages_of_one_rank_is_compared(source: Checkpoint, tmp_path: Path) -> None:
    format = format_of(Folder(config="model.json", weights="rank-{tp}-{pp}.safetensors"))
    out = write(source, tmp_path / "out", format, tp=1, pp=2)
    norm = tensors_of(out / "rank-0-1.safetensors")["norm"]
    changed(out / "rank-0-0.safetensors", lambda tensors: tensors.update(norm=norm))
    assert list(compare(source, read(out, format))) == []
    changed(out / "rank-0-0.safetensors", lambda tensors: tensors.update(norm=norm + 1))
    with pytest.raises(CkptError, match=r"two copies of final_norm\.weight differ"):
        compare(source, read(out, format))


def value(checkpoint: Checkpoint, name: str) -> np.ndarray:
    files = SourceFiles(checkpoint.files)
    try:
        return LazyTensor(checkpoint.tensors[name], files).numpy()
    finally:
        files.close()


def test_replicas_are_found_by_their_place_and_compared(source: Checkpoint, tmp_path: Path) -> None:
    """With twelve ranks for four groups, q lies once, and k and v of each group on three ranks."""
    out = write(source, tmp_path / "out", tp=12)
    found = read(out)
    assert list(compare(source, found)) == []
    copies = {name: len(one.copies) for name, one in found.tensors.items() if name.startswith("layers.0.attention")}
    assert copies == {
        "layers.0.attention.norm.weight": 11,
        "layers.0.attention.q.weight": 0,
        "layers.0.attention.k.weight": 8,
        "layers.0.attention.v.weight": 8,
        "layers.0.attention.out.weight": 0,
    }
    last = out / "rank-11.safetensors"
    rows = tensors_of(last)["block0.qkv"].shape[0] // 3
    changed(last, lambda tensors: tensors["block0.qkv"].__setitem__(slice(rows, rows + 1), 7.0))
    with pytest.raises(CkptError, match=r"two copies of layers\.0\.attention\.k\.weight differ"):
        value(read(out), "layers.0.attention.k.weight")
    changed(last, lambda tensors: tensors["block0.qkv"].__setitem__(slice(0, 1), 7.0))
    assert (value(read(out), "layers.0.attention.q.weight") == 7.0).any()


# --- the config --------------------------------------------------------------------------------------------------------------


def test_ignored_keys_are_losses_and_blanks_do_not_count(damaged: Path) -> None:
    config = json.loads((damaged / "model.json").read_text()) | {"colour": "red", "shape": "round"}
    (damaged / "model.json").write_text(json.dumps(config))
    assert "unknown config key 'colour'" in problem(damaged)
    found = read(damaged, ignore_keys=" colour, shape ,absent,")
    entries = {entry.key: entry.fate for entry in found.ledger}
    assert (entries["colour"], entries["shape"]) == ("left", "left") and "absent" not in entries
    assert any("colour, shape" in loss.subject for loss in found.all_losses)


def test_a_config_given_by_the_user_takes_the_place_of_none(source: Checkpoint, damaged: Path) -> None:
    (damaged / "model.json").unlink()
    with pytest.raises(CkptError, match=r"there is no model\.json(.|\n)*--config"):
        read(damaged)
    found = read(damaged, architecture=source.architecture)
    assert list(compare(source, found)) == []


def test_a_config_given_by_the_user_must_agree(damaged: Path) -> None:
    other = example("llama", tokens__vocabulary=210, tokens__padded_vocabulary=210, mlp__ffn=37)
    with pytest.raises(CkptError, match=r"mlp\.ffn is \d+ in the checkpoint, 37 in --config"):
        read(damaged, architecture=other)


@pytest.mark.parametrize(
    ("config", "known"),
    [({"hidden_size": 4, "layers": 2, "vocab_size": 7}, False), ({"width": 1, "layers": 2, "heads": 3}, True), ([], False)],
)  # fmt: skip
def test_a_folder_is_detected_by_what_its_config_says(config: object, known: bool, damaged: Path) -> None:
    (damaged / "model.json").write_text(json.dumps(config))
    assert bool(FORMAT.ckpt_detect(str(damaged))) == known


def test_yaml_is_written_and_read(source: Checkpoint, tmp_path: Path) -> None:
    format = format_of(Folder(config="model.yaml", weights="lit_model.pth"))
    out = write(source, tmp_path / "out", format)
    assert read_yaml_object(out / "model.yaml")["width"] == source.architecture.hidden


# --- choices -----------------------------------------------------------------------------------------------------------------


OLD = Choice("names", ("new", "old"), default="new", help="names of the last norm")
CHOSEN = Tables(
    [
        TABLES[0].replace(row("norm", "h", "final_norm.weight", under={"names": "new"})),
        Table(rows=[row("norm_f", "h", "final_norm.weight", under={"names": "old"})]),
        TABLES[1],
    ],
    [OLD],
)


def with_choice(choose: Callable | None = None) -> Format:
    return Format(FormatInfo("toy", "a format"), RANKED, Config("Toy", [*LINES, *BOTH]), CHOSEN, choose=choose)


def test_a_choice_is_found_out_kept_and_asked_for(source: Checkpoint, tmp_path: Path) -> None:
    format = with_choice(lambda config, names: {"names": "old" if "norm_f" in names else "new"})
    assert [option.name for option in format.info.options] == ["ignore_keys", "names"]
    old = write(source, tmp_path / "old", format, {"names": "old"}, tp=2)
    assert "norm_f" in tensors_of(old / "rank-00.safetensors")
    found = read(old, format)
    assert found.provenance.hints == {"names": "old"} and list(compare(source, found)) == []
    again = write(found, tmp_path / "again", format, tp=2)
    assert (again / "rank-01.safetensors").read_bytes() == (old / "rank-01.safetensors").read_bytes()
    assert "norm" in tensors_of(write(found, tmp_path / "new", format, {"names": "new"}, tp=2) / "rank-00.safetensors")


def test_a_choice_that_nothing_tells_is_the_default_unless_asked_for(source: Checkpoint, tmp_path: Path) -> None:
    format = with_choice()
    old = write(source, tmp_path / "old", format, {"names": "old"}, tp=2)
    assert "tensor 'norm' is missing" in problem(old, format)
    assert list(compare(source, read(old, format, names="old"))) == []


# --- what a folder can't be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": "../model.json", "weights": "a.pt"}, "lies below the folder"),
        ({"config": "model.json", "weights": "/tmp/a.pt"}, "lies below the folder"),
        ({"config": "model.json", "weights": "rank-{dp}.pt"}, "unknown field"),
        ({"config": "model-{tp}.json", "weights": "a.pt"}, "unknown field"),
        ({"config": "model.json", "weights": "a.pt", "shards": "a-{shard}.pt"}, "shards need an index"),
        ({"config": "model.json", "weights": "a.pt", "counts": {"tp": "ranks"}}, "does not name"),
    ],
)
def test_a_folder_that_can_not_be_is_an_error(arguments: dict, words: str) -> None:
    with pytest.raises(CkptError, match=words):
        Folder(**arguments)


@pytest.mark.parametrize("numbers", [{"tp": 0}, {"tp": 7}, {"tp": 123}])
def test_names_of_files_are_read_as_they_are_written(numbers: dict[str, int]) -> None:
    pattern = NamePattern("consolidated.{tp:02}.pth", ("tp",))
    assert pattern.numbers(pattern.name(numbers)) == numbers
    assert pattern.numbers("consolidated.1.pth") is None and pattern.numbers("consolidated.001.pth") is None


def test_stages_have_all_layers_between_them() -> None:
    from ckpt_core.format.format import even_stage
    from ckpt_core.layout import BoundTables

    natives = BoundTables(TABLES, example("llama")).natives().values()
    layers = 1 + max(native.layer for native in natives if native.layer is not None)
    for pp in range(1, layers + 1):
        held = [even_stage(native, layers, pp) for native in natives if native.layer is not None]
        assert held == sorted(held) and set(held) == set(range(pp))
        assert max(map(held.count, set(held))) - min(map(held.count, set(held))) <= math.ceil(len(held) / layers)
    ends = {native.name: even_stage(native, layers, 2) for native in natives if native.layer is None}
    assert ends == {"embed": 0, "norm": 1, "head": 1}
