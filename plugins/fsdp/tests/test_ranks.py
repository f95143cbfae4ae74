"""Rank files of every mesh, by torch's own DTensors, and everything that can be wrong with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_fsdp import files, mesh, parts
from ckpt_tests import fsdp
from ckpt_tests.deepspeed import inert, save
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import weights

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 20, "intermediate_size": 14, "num_hidden_layers": 1,
    "num_attention_heads": 5, "num_key_value_heads": 1, "vocab_size": 13, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (13, 20),
    "model.norm.weight": (20,),
    "lm_head.weight": (13, 20),
    "model.layers.0.input_layernorm.weight": (20,),
    "model.layers.0.self_attn.q_proj.weight": (20, 20),
    "model.layers.0.self_attn.k_proj.weight": (4, 20),
    "model.layers.0.self_attn.v_proj.weight": (4, 20),
    "model.layers.0.self_attn.o_proj.weight": (20, 20),
    "model.layers.0.post_attention_layernorm.weight": (20,),
    "model.layers.0.mlp.gate_proj.weight": (14, 20),
    "model.layers.0.mlp.up_proj.weight": (14, 20),
    "model.layers.0.mlp.down_proj.weight": (20, 14),
}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model() -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=noise) for name, shape in SHAPES.items()}


def by_rank(name: str) -> fsdp.Placements:
    """FSDP on tensor parallelism: matrices are cut by both."""
    return [_StridedShard(0, split_factor=2), Shard(0)] if len(SHAPES[name]) == 2 else [Shard(0), Replicate()]


# fmt: off
MESHES: dict[str, tuple[tuple[int, ...], Callable[[str], fsdp.Placements]]] = {
    "FSDP on two ranks":                      ((2,),   lambda name: [Shard(0)]),
    "FSDP, the last ranks empty":             ((7,),   lambda name: [Shard(0)]),
    "HSDP":                                   ((2, 3), lambda name: [Replicate(), Shard(0)]),
    "columns on the second dimension":        ((2, 2), lambda name: [Shard(0), Shard(len(SHAPES[name]) - 1) if len(SHAPES[name]) > 1 else Replicate()]),
    "FSDP on tensor parallelism":             ((2, 2), by_rank),
    "replicas on both dimensions":            ((2, 2), lambda name: [Replicate(), Replicate()]),
    "norms whole on every rank":              ((2,),   lambda name: [Shard(0)] if len(SHAPES[name]) == 2 else []),
}
# fmt: on


@pytest.mark.parametrize("what", MESHES)
def test_any_mesh_is_put_together(what: str, model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    sizes, placed = MESHES[what]
    actor = fsdp.write_ranks(tmp_path / "global_step_7/actor", model, sizes, placed)
    fsdp.with_config(actor, CONFIG)
    convert(tmp_path / "global_step_7", tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), model)
    assert (tmp_path / "hf/tokenizer.json").is_file() and (tmp_path / "hf/generation_config.json").is_file()


def test_a_slice_of_a_larger_mesh(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Parameters may be on the mesh of FSDP alone; the ranks along the other dimension then have copies."""

    def sliced(rank: int, state: dict[str, Any]) -> None:
        mesh = state[EMBEDDING].device_mesh["inner"]
        state.update({name: fsdp.dtensor(tensor, mesh, [Shard(0)]) for name, tensor in model.items()})

    placed = MESHES["HSDP"][1]
    actor = fsdp.write_ranks(tmp_path / "run", model, (2, 3), placed, names=("outer", "inner"), change=sliced)
    fsdp.with_config(actor, CONFIG)
    convert(actor, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), model)


# --- older torch -----------------------------------------------------------------------------------------------------


def old_dtensor(local: torch.Tensor, shape: torch.Size, ranks: torch.Tensor) -> object:
    """A DTensor as torch 2.4 pickled it: other modules, and a mesh with the tensor of its ranks."""

    def made(module: str, name: str, **state: object) -> object:
        value = inert(module, name)()
        value.__setstate__(state)
        return value

    kinds = "torch.distributed._tensor.placement_types"
    mesh = made(
        "torch.distributed.device_mesh",
        "DeviceMesh",
        device_type="cuda",
        mesh=ranks,
        mesh_dim_names=("fsdp",),
    )
    meta = inert(kinds, "TensorMeta")(shape, torch.empty(shape).stride(), local.dtype)
    meta.__class__.__reduce__ = lambda self: (type(self), self.made_with)
    spec = made(kinds, "DTensorSpec", mesh=mesh, placements=(made(kinds, "Shard", dim=0),), tensor_meta=meta)
    cls = inert("torch.distributed._tensor.api", "DTensor")
    arguments = (cls, local.dtype, shape, torch.empty(shape).stride(), 0, torch.strided, torch.device("cpu"), False)
    state = (None, {"_local_tensor": local, "_spec": spec})

    class Rebuilt:
        def __reduce__(self) -> tuple:
            return torch._tensor._rebuild_from_type_v2, (torch._utils._rebuild_wrapper_subclass, cls, arguments, state)

    return Rebuilt()


def test_dtensors_of_torch_2_4(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for rank in range(3):
        state = {
            name: old_dtensor(fsdp.part(tensor, (3,), [Shard(0)], (rank,)), tensor.shape, torch.arange(3))
            for name, tensor in model.items()
        }
        save(state, tmp_path / f"run/model_world_size_3_rank_{rank}.pt")
    fsdp.with_config(tmp_path / "run", CONFIG)
    convert(tmp_path / "run", tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), model)


def test_slices_of_a_mesh_of_torch_2_4(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A slice kept its own ranks alone, and those of other slices have copies."""
    for rank in range(4):
        column, row = rank % 2, rank // 2
        state = {
            name: old_dtensor(
                fsdp.part(tensor, (2,), [Shard(0)], (row,)), tensor.shape, torch.tensor([column, column + 2])
            )
            for name, tensor in model.items()
        }
        save(state, tmp_path / f"run/model_world_size_4_rank_{rank}.pt")
    fsdp.with_config(tmp_path / "run", CONFIG)
    convert(tmp_path / "run", tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), model)


def sharded(tensor: torch.Tensor, rank: int, world: int, skipped: int = 0) -> object:
    """A ShardedTensor, as FSDP1 saved without a device mesh."""
    from torch.distributed._shard.sharded_tensor import Shard as Local
    from torch.distributed._shard.sharded_tensor import ShardedTensor, ShardMetadata
    from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties

    chunks, start, places = tensor.chunk(world), 0, []
    for number, chunk in enumerate(chunks):
        places.append(ShardMetadata([start] + [0] * (tensor.dim() - 1), list(chunk.shape), f"rank:{number}/cpu"))
        start += len(chunk)
    whole = ShardedTensorMetadata(places, tensor.shape, TensorProperties(dtype=tensor.dtype))
    own = [Local(chunks[rank].clone(), places[rank])] if rank < len(chunks) else []
    made = ShardedTensor._init_from_local_shards_and_global_metadata(own, whole)
    made._local_shards = own[skipped:]
    return made


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sharded_tensors_of_fsdp1(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def change(rank: int, state: dict[str, Any]) -> None:
        state.update({name: sharded(tensor, rank, 2) for name, tensor in model.items()})

    actor = fsdp.with_config(fsdp.write_ranks(tmp_path / "run", model, change=change), CONFIG)
    convert(actor, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), model)


# --- lies ------------------------------------------------------------------------------------------------------------


def on(rank: int, change: Callable[[dict[str, Any]], None]) -> fsdp.Change:
    return lambda number, state: change(state) if number == rank else None


def spec(change: Callable[[Any], None]) -> fsdp.Change:
    """A change of the spec of the embedding on rank 1."""
    return on(1, lambda state: change(state[EMBEDDING]._spec))


def fewer(state: dict[str, Any]) -> None:
    held = state[EMBEDDING]
    held._local_tensor = held._local_tensor[:-1].clone()


def set_placements(*placements: Any) -> Callable[[Any], None]:
    def change(held: Any) -> None:
        object.__setattr__(held, "placements", placements)
        object.__setattr__(held, "shard_order", None)

    return change


def set_mesh(**fields: Any) -> Callable[[Any], None]:
    def change(held: Any) -> None:
        held.mesh.__dict__.update(fields)

    return change


def set_shape(held: Any) -> None:
    object.__setattr__(held, "tensor_meta", held.tensor_meta._replace(shape=torch.Size((14, 20))))


def renamed(state: dict[str, Any]) -> None:
    state["model.surprise.weight"] = state.pop(EMBEDDING)


def sharded_lie(rank: int, state: dict[str, Any]) -> None:
    state[EMBEDDING] = sharded(torch.zeros(13, 20), rank, 2, skipped=rank)


# fmt: off
LIES: dict[str, tuple[fsdp.Change, str]] = {
    "a part with fewer rows":            (on(1, fewer),                                        "not of the size that its mesh and placements give"),
    "another global shape":              (spec(set_shape),                                     "says two things of itself"),
    "a dimension that it lacks":         (spec(set_placements(Shard(2))),                      "a placement of a DTensor is not one that is read"),
    "cut along another dimension":       (spec(set_placements(Shard(1))),                      "not of the size that its mesh and placements give"),
    "a replica that is none":            (spec(set_placements(Replicate())),                   "not of the size that its mesh and placements give"),
    "a partial sum":                     (spec(set_placements(Partial())),                     "holds a partial sum"),
    "more placements than dimensions":   (spec(set_placements(Shard(0), Shard(0))),            "not one placement for each dimension"),
    "a split that is not there":         (spec(set_placements(_StridedShard(0, split_factor=4))), "the order in which ranks cut a dimension"),
    "a mesh of other ranks":             (spec(set_mesh(_rank_map=torch.tensor([0, 5]))),      "a device mesh is not of this world"),
    "a mesh without this rank":          (spec(set_mesh(_rank_map=torch.tensor([0]))),         "a device mesh"),
    "one rank twice":                    (spec(set_mesh(_rank_map=torch.tensor([1, 1]))),      "does not have one rank at each coordinate"),
    "more ranks than the world has":     (spec(set_mesh(_rank_map=torch.tensor([0, 1, 0, 1]))),  "a device mesh is not of this world"),
    "ranks that are fractions":          (spec(set_mesh(_rank_map=torch.tensor([0.0, 1.0]))),  "a device mesh is impossible"),
    "another rank's file":               (spec(set_mesh(_rank=0)),                             "written by another rank than its name says"),
    "another coordinate":                (spec(set_mesh(_coordinate_on_dim=(0,))),             "written by another rank than its name says"),
    "a name that rank 0 has not":        (on(1, renamed),                                      "rank 1 has no 'model.embed_tokens.weight'"),
    "another dtype on one rank":         (on(1, lambda state: state.update({EMBEDDING: fsdp.dtensor(torch.zeros(13, 20).half(), state[EMBEDDING].device_mesh, [Shard(0)])})), "ranks say different things"),
    "another shape on one rank":         (on(1, lambda state: state.update({EMBEDDING: fsdp.dtensor(torch.zeros(15, 20), state[EMBEDDING].device_mesh, [Shard(0)])})), "ranks say different things"),
    "a buffer that differs":             (lambda rank, state: state.update({"model.norm.weight": torch.full((20,), float(rank))}), "two copies of final_norm.weight differ"),
    "not a tensor":                      (on(1, lambda state: state.update({EMBEDDING: 3})),   "neither a tensor nor a part of one"),
    "shards that do not add up":         (sharded_lie,                                         "do not add up"),
    "an adapter":                        (lambda rank, state: state.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 20)}), "trained with LoRA"),
}
# fmt: on


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_refused_by_name(what: str, model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    change, words = LIES[what]
    actor = fsdp.with_config(fsdp.write_ranks(tmp_path / "run", model, change=change), CONFIG)
    with pytest.raises(CkptError, match=words):
        convert(actor, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


@pytest.fixture(scope="module")
def run(model: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    placed = MESHES["HSDP"][1]
    return fsdp.with_config(fsdp.write_ranks(tmp_path_factory.mktemp("made") / "run", model, (2, 2), placed), CONFIG)


def differing(run: Path, model: dict[str, torch.Tensor]) -> None:
    changed = {**model, "lm_head.weight": model["lm_head.weight"] + 1}
    fsdp.write_ranks(run.parent / "other", changed, (2, 2), MESHES["HSDP"][1])
    shutil.copy(run.parent / "other/model_world_size_4_rank_3.pt", run)


def of_another_step(run: Path, model: dict[str, torch.Tensor]) -> None:
    fsdp.write_ranks(run.parent / "other", model, (2, 2), MESHES["HSDP"][1], step=8)
    shutil.copy(run.parent / "other/extra_state_world_size_4_rank_2.pt", run)


def of_another_world(run: Path, model: dict[str, torch.Tensor]) -> None:
    fsdp.write_ranks(run, model, (2,))


def of_another_world_under_this_name(run: Path, model: dict[str, torch.Tensor]) -> None:
    fsdp.write_ranks(run.parent / "other", model, (2,))
    shutil.copy(run.parent / "other/model_world_size_2_rank_1.pt", run / "model_world_size_4_rank_1.pt")


def in_another_place(run: Path, model: dict[str, torch.Tensor]) -> None:
    shutil.copy(run / "model_world_size_4_rank_1.pt", run / "model_world_size_4_rank_3.pt")


def two_models(run: Path, model: dict[str, torch.Tensor]) -> None:
    shutil.copytree(run, run / "actor")
    shutil.copytree(run, run / "critic")
    for file in run.glob("*.pt"):
        file.unlink()


# fmt: off
MIXED: dict[str, tuple[Callable[[Path, dict[str, torch.Tensor]], object], str]] = {
    "a replica that differs":             (differing,                                                       r"(?s)two copies of head.weight differ.* elements are others"),
    "a rank of another step":             (of_another_step,                                                 "of different steps"),
    "two world sizes":                    (of_another_world,                                                "files of two world sizes lie side by side"),
    "a rank of another world":            (of_another_world_under_this_name,                                "ranks say different things"),
    "one rank's file under another name": (in_another_place,                                                "written by another rank than its name says"),
    "a rank that is missing":             (lambda run, model: (run / "model_world_size_4_rank_2.pt").unlink(), "the file of a rank is missing"),
    "a rank too many":                    (lambda run, model: shutil.copy(run / "model_world_size_4_rank_0.pt", run / "model_world_size_4_rank_4.pt"), r"(?s)beyond the world size.*rank 4.*ranks 0 to 3"),
    "settings of another world":          (lambda run, model: (run / "fsdp_config.json").write_text('{"world_size": 8}'), "fsdp_config.json is of another run"),
    "actor and critic":                   (two_models,                                                      "the folder holds several models"),
    "no config":                          (lambda run, model: shutil.rmtree(run / "huggingface"),           "nothing says what the model is"),
    "a rank file that is cut off":        (lambda run, model: (run / "model_world_size_4_rank_2.pt").write_bytes((run / "model_world_size_4_rank_2.pt").read_bytes()[:700]), "model_world_size_4_rank_2.pt"),
}
# fmt: on


@pytest.mark.parametrize("what", MIXED)
def test_files_that_do_not_belong_together(
    what: str, run: Path, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    change, words = MIXED[what]
    shutil.copytree(run, tmp_path / "a/run")
    change(tmp_path / "a/run", model)
    with pytest.raises(CkptError, match=words):
        convert(tmp_path / "a/run", tmp_path / "hf", to="hf")


def test_masters_are_there_where_parameters_are_in_fp32(
    run: Path, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with open_checkpoint(run, weights="master") as source:
        assert source.checkpoint.provenance.masters
    halved = {name: tensor.bfloat16() for name, tensor in model.items()}
    fsdp.with_config(fsdp.write_ranks(tmp_path / "run", halved), CONFIG)
    with pytest.raises(CkptError, match="there are no fp32 masters"):
        open_checkpoint(tmp_path / "run", weights="master")


def test_a_run_is_read_at_the_step_that_its_tracker_names(run: Path, tmp_path: Path) -> None:
    for step in (5, 7):
        shutil.copytree(run, tmp_path / f"run/global_step_{step}/actor")
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("7")
    with open_checkpoint(tmp_path / "run") as source:
        assert all("global_step_7" in state.path for state in source.checkpoint.files)


def test_the_mesh_that_all_tensors_of_a_file_share_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(parts, "read_mesh", lambda value, file: read.append(file) or mesh.read_mesh(value, file))
    open_checkpoint(run).close()
    assert len(read) == 4


def test_optimizer_files_that_lead_nowhere_are_left(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/optim_world_size_4_rank_0.pt").symlink_to("gone")
    receipt = convert(tmp_path / "run", tmp_path / "hf", to="hf")
    assert any("optim_world_size_4_rank_0.pt" in loss["subject"] for loss in receipt.body["losses"])


def test_what_cannot_be_looked_into_is_no_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker that holds no number, and a folder of somebody else, beside the one that is a checkpoint."""
    shutil.copytree(run, tmp_path / "step/actor")
    (tmp_path / "step/closed").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/latest_checkpointed_iteration.txt").write_text("9" * 100)
    listed = os.listdir

    def listdir(folder: str) -> list[str]:
        if str(folder).endswith("closed"):
            raise PermissionError(folder)
        return listed(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    assert [place.weights for place in files.places(str(tmp_path / "step"))] == [str(tmp_path / "step/actor")]
    assert files.places(str(tmp_path / "empty")) == []
