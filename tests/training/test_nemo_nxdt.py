"""The state of a training in the files of NeMo and NxDT: read as a reading of the raw bytes has it, and written back as the frameworks saved it."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError, NotCarried
from ckpt_core.training import EXP_AVG, EXP_AVG_SQ, MASTER, MOMENTS, Kind
from ckpt_tests.goldens import Golden, every_golden
from ckpt_tests.loosely import Stub, loosely, unpickled
from ckpt_tests.training import judged, loaded, runs

LEGACY = "legacy-llama-tp2pp2-ckpt-optim"
MCORE = "mcore-llama-gqa-tp2pp2-ckpt-distckpt-optim"
ZERO1, ADAMW = "train_hf_gqa_bf16_tp2_dp4_zero1_masters_xser", "train_hf_gqa_tp2_pp1_adamw_plain"
O2 = "ul2_bf16_O2_ckpt"
KINDS: tuple[Kind, ...] = (MASTER, EXP_AVG, EXP_AVG_SQ)


def golden(name: str) -> Golden:
    found = [one for one in every_golden() if str(one) == name]
    if not found:
        pytest.skip(f"no golden {name}")
    return found[0]


def config_of(one: Golden) -> str | None:
    beside = one.folder / "config" / "config.json"
    return str(beside) if beside.is_file() else None


def assert_holds(one: Golden, expected: Iterator[tuple[Kind, str, torch.Tensor]]) -> None:
    """The state that is read has these values, whatever axes its tensors have."""
    with open_checkpoint(one.checkpoint, config=config_of(one), training_state="keep") as source:
        count = 0
        for kind, name, values in expected:
            found = torch.from_numpy(source.moment(kind, name).numpy())
            assert torch.equal(found.reshape(values.shape), values), (kind, name)
            count += 1
        assert count > 10


# --- a second reading --------------------------------------------------------------------------------------------------


def numbered(state: dict[str, torch.Tensor], optimizer: dict[str, Any], kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a kind by the names of the weights: matrices first, then vectors, each in the order of the state dict."""
    inner = optimizer.get("optimizer", optimizer)
    names = [name for name, value in state.items() if isinstance(value, torch.Tensor) and not name.endswith("inv_freq")]
    order = [name for name in names if state[name].ndim > 1], [name for name in names if state[name].ndim == 1]
    found = {}
    for group, (members, body) in enumerate(zip(order, inner["param_groups"], strict=True)):
        for place, (name, number) in enumerate(zip(members, body["params"], strict=True)):
            held = optimizer["fp32_from_fp16_params"][group][place] if kind == MASTER else inner["state"][number][kind]
            found[name] = held
    return found


def legacy_llama(one: Golden) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """Two tensor ranks of two stages with one layer each; a rank has [2 heads, q k v, 10] rows of the fused tensor, and [gate; up] of its own."""
    for kind in MOMENTS:
        ranks = {}
        for stage, rank in itertools.product(range(2), range(2)):
            (file,) = one.checkpoint.glob(f"checkpoints/tp_rank_{rank:02d}_pp_rank_{stage:03d}/*.ckpt")
            held = loosely(file)
            ranks[stage, rank] = numbered(held["state_dict"], held["optimizer_states"][0], kind)
        ends = (
            (0, "embedding.word_embeddings.weight", "embedding.tokens.weight"),
            (1, "output_layer.weight", "head.weight"),
        )
        for stage, stored, name in ends:
            yield kind, name, torch.cat([ranks[stage, rank][f"model.language_model.{stored}"] for rank in range(2)])
        for layer in range(2):
            begins = "model.language_model.encoder.layers.0."
            one_rank, other = (ranks[layer, rank] for rank in range(2))
            fused = torch.stack([held[f"{begins}self_attention.query_key_value.weight"] for held in (one_rank, other)])
            heads = fused.view(4, 3, 10, 48)
            for number, letter in enumerate("qkv"):
                yield kind, f"layers.{layer}.attention.{letter}.weight", heads[:, number].reshape(40, 48)
            halves = torch.stack([held[f"{begins}mlp.dense_h_to_4h.weight"] for held in (one_rank, other)]).view(
                2, 2, 44, 48
            )
            yield kind, f"layers.{layer}.mlp.gate.weight", halves[:, 0].reshape(88, 48)
            yield kind, f"layers.{layer}.mlp.up.weight", halves[:, 1].reshape(88, 48)
            down = [held[f"{begins}mlp.dense_4h_to_h.weight"] for held in (one_rank, other)]
            yield kind, f"layers.{layer}.mlp.down.weight", torch.cat(down, dim=1)
            yield kind, f"layers.{layer}.mlp.norm.weight", one_rank[f"{begins}post_attention_layernorm.weight"]


def ul2(one: Golden) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """One rank in bf16; the masters round to the weights that their numbers say."""
    (file,) = one.checkpoint.glob("*.ckpt")
    held = loosely(file)
    weights = {name: value for name, value in held["state_dict"].items() if "decoder_embedding" not in name}
    root = "enc_dec_model.enc_dec_model."
    for kind in KINDS:
        found = numbered(weights, held["optimizer_states"][0], kind)
        if kind == MASTER:
            assert all(torch.equal(found[name].bfloat16(), weights[name]) for name in found)
        yield kind, "embedding.tokens.weight", found["enc_dec_model.encoder_embedding.word_embeddings.weight"]
        for stack, number in itertools.product(("encoder", "decoder"), range(2)):
            begins = f"{root}{stack}.model.layers.{number}."
            yield kind, f"{stack}.layers.{number}.mlp.down.weight", found[f"{begins}mlp.dense_4h_to_h.weight"]
            yield kind, f"{stack}.layers.{number}.attention.norm.weight", found[f"{begins}input_layernorm.weight"]
            yield kind, f"{stack}.layers.{number}.attention.out.weight", found[f"{begins}self_attention.dense.weight"]


def from_zarr(folder: Path) -> torch.Tensor:
    """A zarr v2 array of float32, out of its chunks."""
    said = json.loads((folder / ".zarray").read_text())
    whole, chunks = np.zeros(said["shape"], np.float32), said["chunks"]
    for index in itertools.product(
        *(range(-(-size // chunk)) for size, chunk in zip(said["shape"], chunks, strict=True))
    ):
        part = np.frombuffer((folder / ".".join(map(str, index))).read_bytes(), np.float32).reshape(chunks)
        place = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, said["shape"], strict=True))
        whole[place] = part[tuple(slice(0, s.stop - s.start) for s in place)]
    return torch.from_numpy(whole)


def core_llama(
    kind: Kind, tensor: Any, heads: int, groups: int, ffn: int, layers: int
) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """Tensors of Megatron-Core for all layers, by `tensor(key)`: fused rows are [groups, heads of each and k and v], and [gate; up] of all ranks."""
    qkv, fc1 = tensor("decoder.layers.self_attention.linear_qkv.weight"), tensor("decoder.layers.mlp.linear_fc1.weight")
    each = heads // groups
    by_group = qkv.view(layers, groups, each + 2, -1, qkv.shape[-1])
    norms = tensor("decoder.layers.self_attention.linear_qkv.layer_norm_weight")
    for layer in range(layers):
        yield kind, f"layers.{layer}.attention.q.weight", by_group[layer, :, :each].reshape(-1, qkv.shape[-1])
        yield kind, f"layers.{layer}.attention.k.weight", by_group[layer, :, each].reshape(-1, qkv.shape[-1])
        yield kind, f"layers.{layer}.attention.v.weight", by_group[layer, :, each + 1].reshape(-1, qkv.shape[-1])
        yield kind, f"layers.{layer}.mlp.gate.weight", fc1[layer, :ffn]
        yield kind, f"layers.{layer}.mlp.up.weight", fc1[layer, ffn:]
        yield kind, f"layers.{layer}.attention.norm.weight", norms[layer]
    yield kind, "head.weight", tensor("output_layer.weight")


def mcore_llama(one: Golden) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    (folder,) = (file.parent for file in one.checkpoint.glob("checkpoints/*/common.pt"))
    config = one.case["model"]
    for kind in MOMENTS:
        yield from core_llama(
            kind,
            lambda key, kind=kind: from_zarr(folder / f"optimizer.state.{kind}.model.{key}"),
            config["num_attention_heads"],
            config["num_query_groups"],
            config["ffn_hidden_size"],
            config["num_layers"],
        )


def nemo2(one: Golden) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """Flattened shards: [shards along each axis, elements of one], of which each is turned back into its shape and put beside its neighbours."""
    folder = one.checkpoint / "weights"
    said = unpickled(folder / ".metadata").state
    shapes = {
        key: entry["nd_reformulated_orig_global_shape"]
        for key, entry in said["mcore_data"].items()
        if "nd_reformulated_orig_global_shape" in entry
    }
    held: dict[str, list[tuple[tuple[int, ...], torch.Tensor]]] = {}
    for index, place in said["storage_data"].items():
        key, stored = index.state["fqn"], place.state
        if key in shapes:
            data = (folder / stored["relative_path"]).read_bytes()[
                stored["offset"] : stored["offset"] + stored["length"]
            ]
            held.setdefault(key, []).append((tuple(index.state["offset"]), loosely(io.BytesIO(data))))
    wholes: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        grid = tuple(said["state_dict_metadata"][key].state["size"])[:-1]
        local = [size // count for size, count in zip(shape, grid, strict=True)]
        whole = torch.full(tuple(shape), torch.nan)
        for origin, value in held[key]:
            assert origin[-1] == 0
            place = tuple(slice(n * size, (n + 1) * size) for n, size in zip(origin, local, strict=False))
            whole[place] = value.reshape(local)
        assert not whole.isnan().any()
        wholes[key] = whole
    config = one.case["explicit_config"]
    for kind, stored in ((MASTER, "fp32_param"), (EXP_AVG, EXP_AVG), (EXP_AVG_SQ, EXP_AVG_SQ)):
        yield from core_llama(
            kind,
            lambda key, stored=stored: wholes[f"optimizer.state.{stored}.module.{key}"],
            config["num_attention_heads"],
            config["num_query_groups"],
            config["ffn_hidden_size"],
            config["num_layers"],
        )


def from_xser(file: Path) -> dict[str, Any]:
    """A nest with its tensors, whose numbers stand for files."""

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(item) for key, item in value.items()}
        if type(value).__name__ == "TensorReference":
            return loosely(Path(f"{file}.tensors") / f"tensor_{value.state['tid']}.pt")
        return value

    return resolved(loosely(file))


def nxdt(one: Golden) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """Numbers in the order that the case says, shards of data parallel ranks one after the other, without the rows of padding."""
    (folder,) = one.checkpoint.glob("*/optim")
    case, layers = one.case, json.loads((one.folder / "config" / "config.json").read_text())
    heads, groups = layers["num_attention_heads"], layers["num_key_value_heads"]
    ranks = []
    for rank in range(2):
        files = [folder / f"dp_rank_{data:02d}_tp_rank_{rank:02d}_pp_rank_00.pt" for data in range(case["dp"])]
        held = [from_xser(file) for file in files if file.is_file()]
        by_kind: dict[Kind, dict[str, torch.Tensor]] = {}
        for kind in KINDS if "sharded_master_weights" in held[0] else MOMENTS:
            by_kind[kind] = {}
            for number, name in enumerate(case["optimizer_param_order"]):
                shards = [
                    part["sharded_master_weights"][number] if kind == MASTER else part["base_state"][number][kind]
                    for part in held
                ]
                by_kind[kind][name] = torch.cat(shards)[: held[0]["shape_info"][number][0]]
        ranks.append(by_kind)
    for kind in ranks[0]:
        fused = [rank[kind]["model.layers.0.self_attn.qkv_proj.weight_qkv"] for rank in ranks]
        size = fused[0].shape[0] // (heads // 2 + 2 * (groups // 2))
        q, k, v = (
            torch.cat(part)
            for part in zip(
                *(one.split([heads // 2 * size, groups // 2 * size, groups // 2 * size]) for one in fused), strict=True
            )
        )
        yield kind, "layers.0.attention.q.weight", q
        yield kind, "layers.0.attention.k.weight", k
        yield kind, "layers.0.attention.v.weight", v
        halves = [rank[kind]["model.layers.0.mlp.gate_up_proj.weight"].chunk(2) for rank in ranks]
        yield kind, "layers.0.mlp.gate.weight", torch.cat([gate for gate, _ in halves])
        yield kind, "layers.0.mlp.up.weight", torch.cat([up for _, up in halves])
        for stored, name in (("embed_tokens", "embedding.tokens.weight"), ("norm", "final_norm.weight")):
            parts = [rank[kind][f"model.{stored}.weight"] for rank in ranks]
            yield kind, name, parts[0] if stored == "norm" else torch.cat(parts)


@pytest.mark.parametrize(
    ("name", "reading"),
    [(LEGACY, legacy_llama), (MCORE, mcore_llama), (O2, ul2), ("llama2_optim_tp2", nemo2), (ZERO1, nxdt)],
)
def test_it_is_what_the_bytes_say(name: str, reading: Any) -> None:
    one = golden(name)
    assert_holds(one, reading(one))


# --- as the framework saved it -------------------------------------------------------------------------------------------


def assert_same(found: Any, expected: Any, place: str = "", but: frozenset[str] = frozenset()) -> None:
    """Two nests are equal, their tensors bit for bit; keys of `but` are not looked at."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert found.keys() - but == expected.keys() - but, place
        for key in expected.keys() - but:
            assert_same(found[key], expected[key], f"{place}.{key}", but)
    elif isinstance(expected, list | tuple) and not isinstance(expected, torch.Size):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}[{number}]", but)
    elif not isinstance(expected, Stub):
        assert found == expected, place


@pytest.mark.parametrize(("name", "ranks"), [(LEGACY, {"tp": 2, "pp": 2}), (O2, {})])
def test_ranks_of_nemo_are_written_as_it_numbers_them(name: str, ranks: dict[str, int], tmp_path: Path) -> None:
    one = golden(name)
    convert(one.checkpoint, tmp_path / "nemo", to="nemo", options={"container": "ckpt"}, training_state="keep", **ranks)
    files = sorted(one.checkpoint.rglob("*.ckpt"))
    assert len(files) == 4 or not ranks
    for file in files:
        (copy,) = (
            found
            for found in (tmp_path / "nemo").rglob(file.name)
            if not ranks or found.parent.name == file.parent.name
        )
        held, written = loosely(file), loosely(copy)
        assert_same(written["optimizer_states"], held["optimizer_states"])
        assert written["global_step"] == held["global_step"]
        if held["lr_schedulers"]:
            assert_same(written["lr_schedulers"], held["lr_schedulers"])
        steps = written["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        assert steps["total"]["completed"] == held["global_step"]


def test_arrays_of_nemo_are_written_as_it_keys_them(tmp_path: Path) -> None:
    one = golden(MCORE)
    convert(
        one.checkpoint, tmp_path / "nemo", to="nemo", tp=2, pp=2, options={"container": "ckpt"}, training_state="keep"
    )
    (common,), (written,) = (
        one.checkpoint.glob("checkpoints/*/common.pt"),
        (tmp_path / "nemo").glob("checkpoints/*/common.pt"),
    )
    assert_same(loosely(written)["optimizer_states"], loosely(common)["optimizer_states"])
    folders = sorted(common.parent.glob("optimizer.state.*"))
    assert len(folders) == 18
    for file in (file for folder in folders for file in folder.iterdir() if file.name != ".zarray"):
        assert (written.parent / file.relative_to(common.parent)).read_bytes() == file.read_bytes(), file


def test_distributed_fused_adam_counts_one_step_for_all(tmp_path: Path) -> None:
    """Beside the states, and in no group (NeMo 1.23, core/optim/distributed_adam.py, `sharded_state_dict`)."""
    one = golden(MCORE)
    convert(one.checkpoint, tmp_path / "nemo", to="nemo", options={"container": "ckpt"}, training_state="keep")
    (common,) = (tmp_path / "nemo").glob("checkpoints/*/common.pt")
    held = loosely(common)
    (state,) = held["optimizer_states"]
    within = state.get("optimizer", state)
    within["state"] = {"step": within["param_groups"][0]["step"]}
    for body in within["param_groups"]:
        del body["step"]
    torch.save(held, common)
    with open_checkpoint(tmp_path / "nemo", training_state="keep") as source:
        assert source.training is not None and source.training.step == within["state"]["step"]


def test_groups_of_a_function_of_its_own_are_refused(tmp_path: Path) -> None:
    """io.json names the function that divides the parameters of a NeMo 2 run, and does not say what it does."""
    shutil.copytree(golden("llama2_optim_tp2").checkpoint, tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("io.json")
    graph = json.loads(file.read_text())
    (module,) = (value for name, value in graph["objects"].items() if name.startswith("megatron_optimizer_module"))
    for name in ("no_weight_decay_cond", "scale_lr_cond"):
        for value in ({"type": "leaf", "value": None}, {"type": "pyref", "module": "mine", "name": "decays"}):
            attribute = [f"Attr(name={name!r})", value | {"paths": []}]
            module["items"].append(attribute)
            file.write_text(json.dumps(graph))
            module["items"].pop()
            if value["type"] == "leaf":
                with open_checkpoint(tmp_path / "run", training_state="keep") as source:
                    assert source.training is not None
            else:
                with pytest.raises(NotCarried, match=r"by a function that is not in the files(.|\n)*mine\.decays"):
                    open_checkpoint(tmp_path / "run", training_state="keep")


@pytest.mark.parametrize(
    ("said", "more", "position"),
    [
        ({"num_steps": 5, "reset_lr_steps": True, "if_init_step": False}, {"decay_steps": 90}, 2),
        ({"num_steps": 5, "reset_lr_steps": False, "if_init_step": True}, {}, 7),  # a policy that does not begin anew
        ({"num_steps": 8}, {"decay_steps": 90}, None),
        ({}, {"decay_steps": 90}, None),
    ],
)
def test_a_schedule_that_began_anew_stands_where_its_curve_does(
    said: dict[str, Any], more: dict[str, Any], position: int | None, tmp_path: Path
) -> None:
    """`reset_lr` of NeMo: its first group remembers at which step the curve began (core/optim/lr_scheduler.py)."""
    convert(
        golden(MCORE).checkpoint, tmp_path / "nemo", to="nemo", options={"container": "ckpt"}, training_state="keep"
    )
    (common,) = (tmp_path / "nemo").glob("checkpoints/*/common.pt")
    held = loosely(common)
    (state,), (schedule,) = held["optimizer_states"], held["lr_schedulers"]
    state.get("optimizer", state)["param_groups"][0]["reset_lr"] = said
    schedule |= {"last_epoch": 7, **more}
    torch.save(held, common)
    if position is None:
        with pytest.raises(CkptError, match="the step at which the learning rate began anew is none"):
            open_checkpoint(tmp_path / "nemo", training_state="keep")
        return
    with open_checkpoint(tmp_path / "nemo", training_state="keep") as source:
        assert source.training is not None
        assert (source.training.schedule.position, source.training.iterations) == (position, 7)


def test_a_chain_of_data_ranks_is_written_as_zero1_cuts_it(tmp_path: Path) -> None:
    one = golden(ZERO1)
    options = {"dp": one.case["dp"], "undecayed": "norms"}
    convert(
        one.checkpoint,
        tmp_path / "nxdt",
        to="nxdt",
        tp=2,
        options=options,
        config=config_of(one),
        training_state="keep",
    )
    (folder,) = one.checkpoint.glob("*/optim")
    files = [file for file in folder.glob("*.pt") if not file.name.endswith(".info.pt")]
    assert len(files) == 8
    for file in files:
        assert_same(
            from_xser(tmp_path / "nxdt" / "optim" / file.name), from_xser(file), file.name, frozenset({"initial_lr"})
        )
    said = loosely(tmp_path / "nxdt" / "user_content.pt")
    assert (said["global_step"], said["MegatronDataModule"]) == (5, {"consumed_samples": 160})


# --- from other frameworks, and on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("framework", "to", "ranks", "options", "dtype"),
    [
        ("hf-trainer", "nemo", {"tp": 2, "pp": 2}, {"container": "ckpt"}, "keep"),
        ("deepspeed", "nxdt", {"tp": 2}, {"dp": 3}, "keep"),
        ("nanotron", "nemo2", {"tp": 2}, {}, "bf16"),
    ],
)
def test_it_goes_on_from_there(
    framework: str, to: str, ranks: dict[str, int], options: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    for run in runs(framework)[-1:]:
        config = run.config_in(tmp_path)
        one = convert(
            run.checkpoint,
            tmp_path / to,
            to=to,
            options=options,
            config=config,
            dtype=dtype,
            training_state="keep",
            **ranks,
        )
        assert one.body["training"]["state"]["own_masters"] == (dtype == "bf16" or to == "nemo2")
        two = convert(tmp_path / to, tmp_path / "hf", to="hf", training_state="keep")
        state = loaded(run, tmp_path / "hf")
        for kind, held in run.expected.items():
            assert [name for name, value in held.items() if not torch.equal(state[kind][name], value)] == [], kind
        told = two.body["training"]["state"]
        assert told["step"] == run.training["step"] and told["schedule"]["position"] == run.training["step"]
        assert told["schedule"]["next_lr"] == pytest.approx(run.training["next_lr"][0], rel=1e-12)
        assert judged(run, state, tmp_path) in (True, None)


# --- what is not whole, or of another step -----------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def inner(held: dict[str, Any]) -> dict[str, Any]:
    (optimizer,) = held["optimizer_states"]
    return optimizer.get("optimizer", optimizer)


def exchanged(states: dict[int, Any], one: int, other: int) -> None:
    states[one], states[other] = states[other], states[one]


def grown(held: dict[str, Any]) -> None:
    inner(held)["param_groups"][0]["params"].append(inner(held)["param_groups"][1]["params"].pop())


OF_NEMO: dict[str, tuple[Change, str]] = {
    "a moment is missing": (lambda held: inner(held)["state"][3].pop("exp_avg"), r"exp_avg of '\S+' is missing"),
    "a parameter has no state": (lambda held: inner(held)["state"].pop(4), r"exp_avg of '\S+' is missing"),
    "two states are exchanged": (lambda held: exchanged(inner(held)["state"], 1, 2), r"does not have the shape"),
    "a moment is transposed": (
        lambda held: inner(held)["state"][2].update(exp_avg=inner(held)["state"][2]["exp_avg"].t().contiguous()),
        r"'exp_avg of \S+dense\.weight' does not have the shape",
    ),
    "a mean of squares is negative": (
        lambda held: inner(held)["state"][4]["exp_avg_sq"].neg_().sub_(1.0),
        r"optimizer\.exp_avg_sq/\S+ has values that are not at least 0",
    ),
    "a group is of another step": (
        lambda held: inner(held)["param_groups"][1].update(step=5),
        r"the moments are of different steps",
    ),
    "the optimizer is of a later step than the run": (
        lambda held: [body.update(step=70) for body in inner(held)["param_groups"]],
        r"the moments are of (another step than the model|different steps)",
    ),
    "a parameter is frozen": (
        lambda held: inner(held)["param_groups"][0]["params"].pop(),
        r"the order of the parameters in the optimizer can't be established",
    ),
    "groups are of another program": (grown, r"the order of the parameters in the optimizer can't be established"),
    "the rank is of another step": (lambda held: held.update(global_step=6), r"the ranks are of different steps"),
    "a rank has other betas": (
        lambda held: inner(held)["param_groups"][0].update(betas=[0.8, 0.9]),
        r"the ranks have other groups of the optimizer",
    ),
}


@pytest.fixture(scope="module")
def ranks_of_nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks of NeMo with a config of plain values, which torch saves again."""
    folder = tmp_path_factory.mktemp("nemo") / "run"
    source = golden(LEGACY).checkpoint
    convert(source, folder, to="nemo", tp=2, pp=2, options={"container": "ckpt"}, training_state="keep")
    return folder


@pytest.mark.parametrize("name", OF_NEMO)
def test_what_is_not_whole_in_nemo_is_refused_by_name(name: str, ranks_of_nemo: Path, tmp_path: Path) -> None:
    change, message = OF_NEMO[name]
    source = tmp_path / "source"
    shutil.copytree(ranks_of_nemo, source)
    (file,) = source.glob("checkpoints/tp_rank_01_pp_rank_000/*.ckpt")
    held = loosely(file)
    change(held)
    torch.save(held, file)
    with pytest.raises(CkptError) as found:
        convert(source, tmp_path / "kept", to="ir", training_state="keep")
    assert re.search(message, str(found.value)), str(found.value)
    assert not (tmp_path / "kept").exists()
    if "negative" not in name:  # which only values tell
        receipt = convert(source, tmp_path / "weights", to="ir")
        (loss,) = (loss for loss in receipt.losses if loss["subject"].startswith("optimizer state"))
        assert "training starts anew: " in loss["reason"] and "training" not in receipt.body


def test_groups_that_say_whether_they_are_of_experts_are_read(ranks_of_nemo: Path, tmp_path: Path) -> None:
    """As since NeMo 2.0's release of these models (modules/common/megatron/utils.py, `get_params_for_weight_decay_optimization`)."""
    source = shutil.copytree(ranks_of_nemo, tmp_path / "source")
    for file in source.glob("checkpoints/*/*.ckpt"):
        held = loosely(file)
        for body in inner(held)["param_groups"]:
            body.update(is_expert=False)
        torch.save(held, file)
    with (
        open_checkpoint(source, training_state="keep") as found,
        open_checkpoint(ranks_of_nemo, training_state="keep") as told,
    ):
        assert found.training is not None and found.training.groups == told.training.groups


def zero1(held: dict[str, Any]) -> dict[int, Any]:
    return held["base_state"]


OF_NXDT: dict[str, tuple[Change, str]] = {
    "a moment is missing": (lambda held: zero1(held)[3].pop("exp_avg"), r"exp_avg of '\S+' is missing"),
    "two states are exchanged": (lambda held: exchanged(zero1(held), 1, 3), r"is not one of 3 shards"),
    "a shard is of another cut": (
        lambda held: zero1(held)[2].update(exp_avg=torch.zeros(40, 8)),
        r"exp_avg of \S+ is not one of 3 shards",
    ),
    "a mean of squares is negative": (
        lambda held: zero1(held)[2]["exp_avg_sq"].neg_().sub_(1.0),
        r"optimizer\.exp_avg_sq/\S+ has values that are not at least 0",
    ),
    "a rank is of another step": (
        lambda held: zero1(held)[1].update(step=torch.tensor(5.0)),
        r"the moments are of different steps",
    ),
    "a parameter is frozen": (lambda held: held["param_groups"][0]["params"].pop(), r"other groups of the optimizer"),
}


@pytest.fixture(scope="module")
def ranks_of_nxdt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nxdt") / "run"
    found = runs("hf-trainer")
    if not found:
        pytest.skip("no run of the Trainer")
    convert(found[0].checkpoint, folder, to="nxdt", tp=2, options={"dp": 3}, training_state="keep")
    return folder


def changed_in(source: Path, folder: Path, change: Change, files: str = "dp_rank_01_tp_rank_01_*.pt") -> Path:
    shutil.copytree(source, folder)
    for file in (folder / "optim").glob(files):
        held = loosely(file)
        change(held)
        torch.save(held, file)
    return folder


@pytest.mark.parametrize("name", OF_NXDT)
def test_what_is_not_whole_in_nxdt_is_refused_by_name(name: str, ranks_of_nxdt: Path, tmp_path: Path) -> None:
    change, message = OF_NXDT[name]
    source = changed_in(ranks_of_nxdt, tmp_path / "source", change)
    with pytest.raises(CkptError) as found:
        convert(source, tmp_path / "kept", to="ir", training_state="keep")
    assert re.search(message, str(found.value)), str(found.value)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("more", [0.0, 1e-12])
def test_moments_in_double_precision_are_those_of_float32_or_refused(
    more: float, ranks_of_nxdt: Path, tmp_path: Path
) -> None:
    def doubled(held: dict[str, Any]) -> None:
        for state in zero1(held).values():
            state["exp_avg"] = state["exp_avg"].double() + more

    source = changed_in(ranks_of_nxdt, tmp_path / "source", doubled, "*.pt")
    if more:
        with pytest.raises(CkptError, match=r"optimizer\.exp_avg/\S+ has values that float32 does not hold"):
            convert(source, tmp_path / "one", to="ir", training_state="keep")
        return
    one = convert(source, tmp_path / "one", to="ir", training_state="keep")
    two = convert(ranks_of_nxdt, tmp_path / "two", to="ir", training_state="keep")
    assert one.body["training"]["fingerprint"] == two.body["training"]["fingerprint"]
    assert not any(loss["kind"] == "rounded" for loss in one.losses)


def test_a_data_rank_that_is_missing_is_named(ranks_of_nxdt: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ranks_of_nxdt, source)
    (source / "optim" / "dp_rank_01_tp_rank_00_pp_rank_00.pt").unlink()
    with pytest.raises(CkptError, match="data parallel ranks of tp=0 pp=0 are missing"):
        convert(source, tmp_path / "out", to="ir", training_state="keep")


def test_an_archive_of_nemo_has_no_place_for_it(tmp_path: Path) -> None:
    for run in runs("hf-trainer")[:1]:
        receipt = convert(run.checkpoint, tmp_path / "model.nemo", to="nemo")
        assert any("holds a model, and no optimizer" in loss["reason"] for loss in receipt.losses)
        with pytest.raises(CkptError, match=r"a \.nemo holds a model, and no optimizer"):
            convert(run.checkpoint, tmp_path / "other.nemo", to="nemo", training_state="keep")
