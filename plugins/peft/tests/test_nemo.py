"""Adapters that NeMo 2 trained: the golden of Megatron-Bridge, whose tensors have the same names and shapes, in NeMo's folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from ckpt_core import convert, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError
from ckpt_core.sdk import StoredTensor, dtypes, lazy
from ckpt_megatron.fiddle import Call, NamedObject, write_graph
from ckpt_peft.keys import DOWN, UP, AdaptedModule, NamedTensor
from ckpt_peft.megatron.nemo import rows_of_ranks
from ckpt_tests import distributed
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import beside
from ckpt_tests.models import weights

GOLDEN = beside("lora", "checkpoint/latest_checkpointed_iteration.txt")[0]
BASE, CONFIG = str(GOLDEN.folder / "base"), GOLDEN.folder / "base/config.json"
METHODS = "nemo.collections.llm.peft"
LORA = f"{METHODS}.lora.LoRA"
MODEL = "nemo.collections.llm.gpt.model.llama.LlamaModel"
GIVEN = {"dim": 4, "alpha": 6, "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]}
FC1 = "module.decoder.layers.mlp.linear_fc1.adapter.linear_{}.weight"
Tensors = dict[str, torch.Tensor]


def tensors_of_golden() -> Tensors:
    """The tensors of the golden under NeMo's names."""
    (folder,) = GOLDEN.checkpoint.glob("iter_*")
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size) for name, one in metadata.items() if hasattr(one, "size")}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def context(
    run: Path, given: Mapping[str, Any] | None, said: Mapping[str, Any] | None = None, kind: str = LORA
) -> None:
    """The context of a training: io.json with the arguments that were given, and model.yaml with all of them."""
    folder = run / "context"
    folder.mkdir(parents=True, exist_ok=True)
    call = Call(kind, dict(given)) if given is not None else None
    model = {"config": Call(f"{MODEL}Config", {"num_layers": 2}), **({"model_transform": call} if call else {})}
    root = Call("nemo.lightning.io.pl.TrainerContext", {"model": Call(MODEL, model), "extra": "{}"})
    (folder / "io.json").write_text(json.dumps(write_graph(root)))
    if said is not None:
        dump = {"_target_": MODEL, "config": {"num_layers": 2}, "model_transform": {"_target_": kind, **said}}
        (folder / "model.yaml").write_text(yaml.safe_dump(dump))


def save(run: Path, tensors: Tensors | None = None) -> Path:
    """The weights of an adapter."""
    folder = run / "weights"
    dcp.save(tensors if tensors is not None else tensors_of_golden(), checkpoint_id=str(folder), no_dist=True)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    (folder / "adapter_metadata.json").write_text('{"model_ckpt_path": "/models/base"}')
    torch.save({"pytorch-lightning_version": "2.5.0", "epoch": 0, "global_step": 2}, folder / "common.pt")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An adapter with both files of a context."""
    context(tmp_path / "run", {**GIVEN, "lora_dtype": NamedObject("torch.float32")}, {**GIVEN, "dropout": 0.0})
    return save(tmp_path / "run")


def test_it_is_merged_as_the_same_adapter_of_bridge(run: Path, tmp_path: Path) -> None:
    expected = load_file(GOLDEN.folder / "full.safetensors")
    for number, path in enumerate((run, run / "weights")):
        convert(path, tmp_path / f"hf{number}", to="hf", options={"base": BASE})
        assert_same_bits(weights(tmp_path / f"hf{number}"), expected)
    with open_checkpoint(run, options={"base": BASE}) as opened:
        assert opened.format == "megatron-lora"
        assert not any("does not know" in entry.what for entry in opened.checkpoint.ledger)


def test_alone_it_is_the_same_adapter_of_peft(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    convert(run, tmp_path / "out", to="peft", config=CONFIG)
    adapter = GOLDEN.folder / "adapter"
    assert_same_bits(*(load_file(one / "adapter_model.safetensors") for one in (tmp_path / "out", adapter)))
    ours, theirs = (json.loads((one / "adapter_config.json").read_text()) for one in (tmp_path / "out", adapter))
    assert ours == theirs | {"base_model_name_or_path": "/models/base"}
    assert main(["convert", str(run), str(tmp_path / "none"), "--to", "peft"]) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize("files", ["io.json", "model.yaml"])
def test_one_file_of_the_context_is_enough(files: str, run: Path, tmp_path: Path) -> None:
    (run / "context" / ({"io.json", "model.yaml"} - {files}).pop()).unlink()
    convert(run, tmp_path / "hf", to="hf", options={"base": BASE})
    assert_same_bits(weights(tmp_path / "hf"), load_file(GOLDEN.folder / "full.safetensors"))


def test_what_is_not_given_is_what_the_class_has(tmp_path: Path) -> None:
    """io.json of 2.1 and later says neither an alpha of 32 nor a rank of 32."""
    context(tmp_path / "run", {"dim": 4})
    convert(save(tmp_path / "run"), tmp_path / "out", to="peft", config=CONFIG)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["lora_alpha"] == 32
    context(tmp_path / "run", {})
    with pytest.raises(CkptError, match=r"the rank of decoder\.layers\.0[^\0]*4, by the shape[^\0]*32"):
        convert(tmp_path / "run", tmp_path / "again", to="peft", config=CONFIG)


def test_without_a_context_the_user_says_the_alpha(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("io.json", "model.yaml"):
        (run / "context" / name).unlink()
    with pytest.raises(CkptError, match=r"by how much[^\0]*context/io\.json[^\0]*lora_alpha"):
        convert(run, tmp_path / "hf", to="hf", options={"base": BASE})
    assert main(["inspect", str(run)]) == 0
    assert "nothing says by how much" in capsys.readouterr().out
    context(run, None)  # a model that nothing has adapted, by its context
    with pytest.raises(CkptError, match=r"by how much[^\0]*model\.model_transform\.alpha"):
        convert(run, tmp_path / "hf", to="hf", options={"base": BASE})
    convert(run, tmp_path / "hf", to="hf", options={"base": BASE, "lora_alpha": "6"})
    assert_same_bits(weights(tmp_path / "hf"), load_file(GOLDEN.folder / "full.safetensors"))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "DoRA": (lambda run: context(run, GIVEN, kind=f"{METHODS}.dora.DoRA"), r"dora\.DoRA' are not merged"),
    "CanonicalLoRA": (
        lambda run: context(run, GIVEN, kind=f"{METHODS}.canonical_lora.CanonicalLoRA"),
        r"CanonicalLoRA' are not merged[^\0]*lora\.LoRA",
    ),
    "another rank": (
        lambda run: context(run, {**GIVEN, "dim": 8}, {**GIVEN, "dim": 8}),
        r"the rank of decoder\.layers\.0[^\0]*4, by the shape[^\0]*8",
    ),
    "files that disagree": (lambda run: context(run, {**GIVEN, "alpha": 7}, GIVEN), r"disagree about [^\0]*alpha[^\0]*6[^\0]*7"),
    "a default that disagrees": (lambda run: context(run, {"dim": 4}, GIVEN), r"disagree about [^\0]*alpha[^\0]*6[^\0]*32"),
    "an unknown argument": (lambda run: context(run, {**GIVEN, "fancy": 1}, GIVEN), r"'model\.model_transform\.fancy'"),
    "no number": (lambda run: context(run, {**GIVEN, "alpha": "6"}, {**GIVEN, "alpha": "6"}), r"alpha' is not a number"),
    "a module without tensors": (
        lambda run: context(run, *[{**GIVEN, "target_modules": ["linear_qkv", "output_layer"]}] * 2),
        "target_modules names output_layer",
    ),
    "an interrupted save": (lambda run: run.with_name("run-unfinished").touch(), "interrupted"),
    "a graph without a model": (
        lambda run: (run / "context/io.json").write_text(json.dumps(write_graph(Call("TrainerContext")))),
        "holds no model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, run: Path, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    if "disagree" not in name:
        (run / "context/model.yaml").unlink()
    change(run)
    with pytest.raises(CkptError, match=words):
        convert(run, tmp_path / "out", to="hf", options={"base": BASE})
    assert_nothing_at(tmp_path / "out")


def test_another_alpha_than_that_of_the_files_is_refused(run: Path) -> None:
    with pytest.raises(CkptError, match=r"lora_alpha[^\0]*io\.json[^\0]*8[^\0]*6"):
        open_checkpoint(run, options={"base": BASE, "lora_alpha": "8"})


def test_what_is_not_of_a_pair_is_refused(tmp_path: Path) -> None:
    """Magnitudes of DoRA under the class of LoRA, and whole tensors that were trained, too."""
    others = {
        "decoder.layers.mlp.linear_fc1.adapter.weight_magnitude": ("magnitude", torch.ones(2, 160)),
        "decoder.final_layernorm.weight": ("not read as one of an adapter", torch.ones(48)),
    }
    for number, (name, (words, tensor)) in enumerate(others.items()):
        run = tmp_path / str(number)
        context(run, GIVEN)
        save(run, {**tensors_of_golden(), f"module.{name}": tensor})
        with pytest.raises(CkptError, match=words):
            open_checkpoint(run, options={"base": BASE})


def stored_by_ranks(run: Path, ranks: int, parts: int) -> Path:
    """The adapter with A of linear_fc1 stored as chunks of `ranks` ranks, and B as `parts` chunks of its rows."""
    tensors = tensors_of_golden()
    whole = {
        FC1.format(side): (tensors.pop(FC1.format(side)), count) for side, count in (("in", ranks), ("out", parts))
    }
    for name, (tensor, count) in whole.items():
        tensors |= {f"{name}@{index}": part.clone() for index, part in enumerate(tensor.chunk(count, 1))}
    context(run, GIVEN)
    save(run, tensors)

    def joined(metadata: Any) -> None:
        for name, (tensor, count) in whole.items():
            chunks = []
            for index in range(count):
                part = metadata.state_dict_metadata.pop(f"{name}@{index}")
                place = next(one for one in metadata.storage_data if one.fqn == f"{name}@{index}")
                origin = torch.Size([0, index * part.size[1], 0])
                chunks.append(ChunkStorageMetadata(origin, part.size))
                metadata.storage_data[MetadataIndex(name, origin)] = metadata.storage_data.pop(place)
            metadata.state_dict_metadata[name] = TensorStorageMetadata(part.properties, tensor.shape, chunks)

    distributed.changed(run / "weights", joined)
    return run


def test_rows_in_the_order_of_ranks_are_refused(tmp_path: Path) -> None:
    """NeMo before 2.3 stores B of a gated linear_fc1 rank by rank; since 2.3 each rank stores gate and up by themselves."""
    for number, (ranks, parts) in enumerate([(1, 1), (1, 2), (2, 4)]):
        run = stored_by_ranks(tmp_path / str(number), ranks, parts)
        convert(run, tmp_path / f"hf{number}", to="hf", options={"base": BASE})
        assert_same_bits(weights(tmp_path / f"hf{number}"), load_file(GOLDEN.folder / "full.safetensors"))
    older = stored_by_ranks(tmp_path / "older", 2, 2)
    for to, others in (("hf", {"options": {"base": BASE}}), ("peft", {"config": CONFIG})):
        with pytest.raises(
            CkptError,
            match=r"linear_fc1[^\0]*tensor parallel ranks[^\0]*before 2\.3[^\0]*merge_lora[^\0]*size of its training",
        ):
            convert(older, tmp_path / "out", to=to, **others)


def test_rows_of_a_layer_without_a_gate() -> None:
    """The halves that NeMo stores since 2.3 take them apart, unless there is one rank."""

    def chunked(ranks: int, parts: int) -> AdaptedModule:
        counts = {DOWN: ranks, UP: parts}
        shards = {role: tuple(lazy.Shard((index, 0), one) for index in range(count)) for role, count in counts.items()}
        return AdaptedModule(path, tensors={role: NamedTensor(role, (8, 8), held) for role, held in shards.items()})

    path, one = "decoder.layers.0.mlp.linear_fc1", StoredTensor("file", dtypes.FP32, (1, 8), 0, (8, 1))
    assert [rows_of_ranks(chunked(*counts), False) for counts in ((1, 2), (2, 2), (2, 4))] == [False, False, True]
    path = "decoder.layers.0.mlp.linear_fc2"
    assert not rows_of_ranks(chunked(2, 4), False)


def test_inspect_explains_it(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    for word in ("megatron-lora", LORA, "linear_qkv", "alpha 6", "4,608", "/models/base", "-o base=FOLDER"):
        assert word in shown


def test_it_is_written_as_nemo_leaves_it(tmp_path: Path) -> None:
    """The tensors of the golden under NeMo's names, and a context whose graph is read again."""
    adapter, options = GOLDEN.folder / "adapter", {"layout": "nemo2", "pretrained_checkpoint": "/models/nemo"}
    receipt = convert(adapter, tmp_path / "run", to="megatron-lora", config=CONFIG, options=options)
    known, ours = tensors_of_golden(), {}
    metadata = FileSystemReader(tmp_path / "run/weights").read_metadata().state_dict_metadata
    ours = {name: torch.empty(one.size) for name, one in metadata.items() if hasattr(one, "size")}
    dcp.load(ours, checkpoint_id=str(tmp_path / "run/weights"), no_dist=True)
    assert_same_bits(ours, known)
    said = json.loads((tmp_path / "run/weights/adapter_metadata.json").read_text())
    assert said == {"model_ckpt_path": "/models/nemo"}
    dump = yaml.safe_load((tmp_path / "run/context/model.yaml").read_text())["model_transform"]
    assert dump == {"_target_": LORA, **GIVEN, "target_modules": sorted(GIVEN["target_modules"]), "dropout": 0.0}
    assert any("2.3 or later" in str(loss) for loss in receipt.body["losses"])
    (tmp_path / "run/context/model.yaml").unlink()  # NeMo reads io.json alone
    convert(tmp_path / "run", tmp_path / "hf", to="hf", options={"base": BASE})
    assert_same_bits(weights(tmp_path / "hf"), load_file(GOLDEN.folder / "full.safetensors"))
    back = convert(tmp_path / "run", tmp_path / "back", to="peft", config=CONFIG)
    assert back.fingerprint == receipt.fingerprint


def test_what_no_adapter_of_nemo_holds_is_refused(tmp_path: Path) -> None:
    options = {"layout": "nemo2", "canonical": True}
    with pytest.raises(CkptError, match=r"canonical adapter[^\0]*layout=bridge"):
        convert(GOLDEN.folder / "adapter", tmp_path / "run", to="megatron-lora", config=CONFIG, options=options)
    assert_nothing_at(tmp_path / "run")
