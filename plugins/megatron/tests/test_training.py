"""The state of a training in Megatron's files: from every recorded run into every way that Megatron keeps it, and on from there bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError, NotCarried
from ckpt_core.testing import example, write_ir
from ckpt_core.training import MOMENTS, Group, Training, named, to_json
from ckpt_megatron.config import GPT
from ckpt_megatron.files import rank_files
from ckpt_megatron.masters import BUFFERS
from ckpt_megatron.names import is_fused, plain
from ckpt_megatron.optimizer.buffers import fitted, walked
from ckpt_megatron.optimizer.groups import said_of, united
from ckpt_megatron.optimizer.registered import registered
from ckpt_megatron.ranks import RankFile
from ckpt_tests.goldens import Golden, each
from ckpt_tests.training import KINDS, Run, loaded, runs

EVERYBODY = runs("hf-trainer", "fsdp2-dcp", "deepspeed", "megatron", "nanotron")
OWN = runs("megatron")
WAYS = {
    "dist distributed": ("megatron", {"tp": 2}, {"container": "torch_dist"}),
    "dist plain": ("megatron", {}, {"container": "torch_dist", "optimizer": "plain", "adam": "torch"}),
    "torch plain": ("megatron", {"tp": 2, "pp": 2}, {"container": "torch", "adam": "torch", "names": "local"}),
    "torch distributed": ("megatron", {"pp": 2}, {"container": "torch", "optimizer": "distributed"}),
    "bridge": ("megatron-bridge", {}, {}),
}


def written(run: Run, folder: Path, way: str, **more: str) -> Path:
    """A run as Megatron keeps it."""
    to, ranks, options = WAYS[way]
    options = {**options, "global_batch_size": "4", **more}
    rows = 1 if run.golden.case["hf_config"]["vocab_size"] % 2 else 2  # no more rows of padding than there are
    if ranks.get("tp", 1) > rows:
        ranks = {**ranks, "tp": rows}
    convert(
        run.checkpoint,
        folder,
        to=to,
        options=options,
        config=run.config_in(folder.parent),
        training_state="keep",
        **ranks,
    )
    return folder


@pytest.mark.parametrize("run", EVERYBODY, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_into_megatron_and_comes_out_as_it_was(run: Run, way: str, tmp_path: Path) -> None:
    convert(written(run, tmp_path / "run", way), tmp_path / "hf", to="hf", training_state="keep")
    found, expected = loaded(run, tmp_path / "hf"), run.expected
    for kind in KINDS:
        assert [name for name, value in expected[kind].items() if not torch.equal(found[kind][name], value)] == []


@pytest.mark.parametrize("run", OWN[:2], ids=str)
def test_counters_and_schedule_stay_as_they_are(run: Run, tmp_path: Path) -> None:
    """Between two layouts of Megatron nothing of the schedule is lost: it counts samples, and scales the largest learning rate."""
    how = run.training
    with open_checkpoint(written(run, tmp_path / "run", "dist distributed"), training_state="keep") as found:
        state = found.training
        assert state is not None and state.schedule.position == state.consumed_samples == how["consumed_samples"]
        assert (state.step, state.iterations, state.skipped_steps) == (how["step"], how["step"], 0)
        assert {key: state.schedule.native["megatron"][key] for key in how["schedule"] if key != "num_steps"} == {
            key: value for key, value in how["schedule"].items() if key != "num_steps"
        }
        assert [group.initial_lr for group in state.groups] == [how["schedule"]["max_lr"]] * 2
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == str(how["step"])


def test_fused_adam_counts_the_steps_of_a_group_and_torch_those_of_a_parameter(tmp_path: Path) -> None:
    for run in runs("hf-trainer"):
        for adam in ("fused", "torch"):
            folder = written(run, tmp_path / adam, "torch plain", adam=adam)
            (file, _), *_ = rank_files(str(folder / "iter_0000006"))
            optimizer = RankFile(file, (0,), "auto").content["optimizer"]
            fused = adam == "fused"
            assert ["step" in group for group in optimizer["param_groups"]] == [fused, fused]
            assert {"step" in state for state in optimizer["state"].values()} == {not fused}
            assert [group["wd_mult"] for group in optimizer["param_groups"]] == [1.0, 0.0]


def test_masters_lie_beside_weights_in_half_precision(tmp_path: Path) -> None:
    """A run in fp32 goes on in bf16: what was stepped is the master, and the weights are those rounded."""
    for run in runs("hf-trainer"):
        for number, way in enumerate(("dist distributed", "torch plain")):
            to, ranks, options = WAYS[way]
            place = tmp_path / str(number)
            options = {**options, "global_batch_size": "4"}
            convert(run.checkpoint, place, to=to, options=options, training_state="keep", dtype="bf16", **ranks)
            with open_checkpoint(place, training_state="keep") as found:
                assert found.training is not None and found.training.own_masters
                weight, master = found["layers.1.mlp.up.weight"], found.moment("master", "layers.1.mlp.up.weight")
                expected = run.expected["weights"]["model.layers.1.mlp.up_proj.weight"]
                assert np.array_equal(master.numpy(), expected.numpy())
                assert np.array_equal(weight.numpy(), expected.bfloat16().float().numpy())


def test_what_megatron_can_not_go_on_from_is_said(tmp_path: Path) -> None:
    for run in runs("hf-trainer"):
        counted = {"global_batch_size": "4"}
        for options, message in (
            ({}, "does not say how many samples it consumed"),
            (counted | {"iteration": "3"}, "before the steps that the optimizer has made"),
            (counted | {"container": "fsdp_dtensor"}, "not written into Megatron-FSDP's files"),
            (counted | {"names": "legacy"}, "not written into files of the models before Core"),
        ):
            with pytest.raises(NotCarried, match=message):
                convert(run.checkpoint, tmp_path / "no", to="megatron", options=options, training_state="keep")
        receipt = convert(run.checkpoint, tmp_path / "weights", to="megatron")
        assert "global_batch_size" in str(receipt.losses) or "how many samples" in str(receipt.losses)
        assert "training" not in receipt.body


def test_weight_decay_of_norms_is_named(tmp_path: Path) -> None:
    """Nanotron decays norms, and Megatron-LM never does."""
    for run in runs("nanotron"):
        receipt = convert(run.checkpoint, tmp_path / "run", to="megatron", training_state="keep")
        (loss,) = (loss for loss in receipt.losses if loss["subject"].startswith("weight decay 0 of "))
        assert loss["kind"] == "assumed" and "it was 0.1" in loss["reason"]


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_experts_that_ranks_share_out_have_an_optimizer_of_their_own(container: str, tmp_path: Path) -> None:
    """Two optimizers, as Megatron's ChainedOptimizer has them, of which each has its groups; and every moment back."""
    source = stepped_model(tmp_path / "ir", "moe")
    for ep, optimizers in ((1, 1), (2, 2)):
        place = tmp_path / f"ep{ep}"
        convert(source, place, to="megatron", ep=ep, options={"container": container}, training_state="keep")
        folder = place / "iter_0000007"
        if container == "torch":
            (file, numbers), *_ = rank_files(str(folder))
            saved = RankFile(file, numbers, "auto").content["optimizer"]
            saved = saved if isinstance(saved, list) else [saved]
        else:
            saved = torch.load(folder / "common.pt", weights_only=False)["optimizer"]
            saved = list(saved.values()) if 0 in saved else [saved]
        apart = [{g["is_expert_parallel"] for g in (one.get("optimizer") or one)["param_groups"]} for one in saved]
        assert apart == [{False}, {True}][:optimizers]
        with (
            open_checkpoint(source, training_state="keep") as one,
            open_checkpoint(place, training_state="keep") as two,
        ):
            assert one.training is not None and two.training is not None
            for kind in MOMENTS:
                assert two.training.of(kind).keys() == one.training.of(kind).keys()
                for name in one.training.of(kind):
                    assert np.array_equal(one.moment(kind, name).numpy(), two.moment(kind, name).numpy()), name


QK_NORMS = {"layers": 2, "attention.qk_norm.kind": "rms", "attention.qk_norm.eps": 1e-5}


def without_decay(path: Path) -> set[str]:
    """The parameters that a state has no weight decay for."""
    with open_checkpoint(path, training_state="keep") as found:
        assert found.training is not None
        return {name for group in found.training.groups if not group.weight_decay for name in group.parameters}


@pytest.mark.parametrize("way", ["dist distributed", "torch plain", "torch distributed"])
def test_the_group_of_a_parameter_is_what_the_files_say(way: str, tmp_path: Path) -> None:
    """Embeddings of core 0.14 and 0.15 with --embedding-init-method-std, and the norms of Qwen3-Next: the groups themselves have no names."""
    source = stepped_model(tmp_path / "ir", "llama", **QK_NORMS)
    convert(source, tmp_path / "run", to="megatron", options=WAYS[way][2] | {"names": "te"}, training_state="keep")
    name = "common.pt" if way == "dist distributed" else "mp_rank_00/model_optim_rng.pt"
    vectors = without_decay(tmp_path / "run")
    norms = {name for name in vectors if "q_norm" in name or "k_norm" in name}
    assert len(norms) == 4 and "embedding.tokens.weight" not in vectors

    def told(number: int, moved: str | None = None, old: bool = False, **args: object) -> set[str]:
        def change(held) -> None:
            for key, value in args.items():
                setattr(held["args"], key, value)
            optimizer = held["optimizer"]
            matrices, rest = optimizer.get("optimizer", optimizer)["param_groups"]
            if old:
                del matrices["default_config"], rest["default_config"]
            if moved == "embedding" and way == "torch plain":
                rest["params"].insert(0, matrices["params"].pop(0))

        return without_decay(changed(tmp_path / "run", tmp_path / str(number), name, change))

    assert told(1, embedding_init_method_std=0.02) == vectors  # core 0.16 decays them
    assert told(2, old=True) == vectors
    undecayed = told(3, "embedding", old=True, embedding_init_method_std=0.02)
    assert undecayed == vectors | {"embedding.tokens.weight"}
    if way != "torch plain":  # whose groups list their parameters
        for number, args in enumerate(
            ({"apply_wd_to_qk_layernorm": True}, {"no_weight_decay_cond_type": "qwen3_next"})
        ):
            assert told(4 + number, **args) == vectors - norms
    with pytest.raises(NotCarried, match="by a condition that is not known"):
        told(6, no_weight_decay_cond_type="mine")


def test_the_groups_of_a_run_of_bridge_are_what_its_config_says(tmp_path: Path) -> None:
    """The model's own default of `embedding_init_method_std` is in every file: it counts in the condition of Qwen3-Next of Bridge 0.2 alone."""
    source = stepped_model(tmp_path / "ir", "llama", **QK_NORMS)
    convert(source, tmp_path / "run", to="megatron-bridge", training_state="keep")
    vectors = without_decay(tmp_path / "run")

    def told(
        number: int, old: bool, scheduler: str | None = None, since_0_6: bool = False, **sections: object
    ) -> set[str]:
        def change(held) -> None:
            for group in held["optimizer"]["optimizer"]["param_groups"] if old else ():
                del group["default_config"]

        copy = changed(tmp_path / "run", tmp_path / str(number), "common.pt", change)
        (file,) = copy.rglob("run_config.yaml")
        config = yaml.safe_load(file.read_text())
        config["model"]["embedding_init_method_std"] = 0.02
        config["scheduler"] = {"no_weight_decay_cond_type": scheduler} | ({"max_steps": None} if since_0_6 else {})
        file.write_text(yaml.safe_dump(config | sections))
        return without_decay(copy)

    norms = {name for name in vectors if "q_norm" in name or "k_norm" in name}
    assert len(norms) == 4 and told(1, True) == told(2, False) == vectors
    assert told(3, True, "qwen3_next") == vectors - norms | {"embedding.tokens.weight"}
    assert told(4, False, "qwen3_next") == vectors - norms
    by_optimizer = {"apply_wd_to_qk_layernorm": True}  # 0.3 to 0.5 do not look at it, and 0.6 looks at nothing else
    assert told(5, False, since_0_6=True, optimizer=by_optimizer) == vectors - norms
    assert told(6, False, "qwen3_next", since_0_6=True) == vectors
    assert told(7, False, "qwen3_next", optimizer=by_optimizer) == vectors - norms
    with pytest.raises(NotCarried, match="norms of queries and keys have weight decay can't be told"):
        told(8, False, optimizer=by_optimizer)
    with pytest.raises(NotCarried, match="a class that is not Bridge's"):
        told(9, False, optimizer_config_override_provider={"_target_": "mine.Provider"})


def stepped_model(folder: Path, name: str, **changes: object) -> Path:
    """A model of an example with random moments."""
    write_ir(str(folder), example(name, **changes))
    generator = np.random.default_rng(7)
    with open_checkpoint(folder) as model:
        shapes = {name: tensor.shape for name, tensor in model.items() if "correction" not in name}
        frozen = tuple(name for name in model if name not in shapes)
    moments = {
        named(kind, name): generator.random(shape).astype(np.float32)
        for kind in MOMENTS
        for name, shape in shapes.items()
    }
    file = "tensors-00001-of-00001.safetensors"
    (folder / "training").mkdir()
    save_file(moments, folder / "training" / file)
    (folder / "training" / "tensors.index.json").write_text(json.dumps(dict.fromkeys(moments, file)))
    groups = [tuple(name for name, shape in shapes.items() if (len(shape) > 1) is decayed) for decayed in (True, False)]
    state = Training(
        6,
        tuple(
            Group(names, 2e-3, (0.9, 0.95), 1e-8, decay, 4e-3) for names, decay in zip(groups, (0.1, 0.0), strict=True)
        ),
        iterations=7,
        consumed_samples=24,
        skipped_steps=1,
        frozen=frozen,
    )
    (folder / "training" / "training.json").write_text(json.dumps(to_json(state)))
    return folder


# --- the order of parameters -------------------------------------------------------------------------------------------


@each("megatron")
def test_modules_register_parameters_in_the_order_of_the_files(golden: Golden) -> None:
    """Judged by the files themselves: a rank's model is a dict in the order of registration."""
    folder = next(one for one in golden.checkpoint.iterdir() if one.is_dir())
    for file, numbers in rank_files(str(folder)):
        for tensors in RankFile(file, numbers, "auto").chunks:
            names = [plain(name) for name in tensors if not BUFFERS.search(name)]
            if not any(name.startswith("language_model.") for name in tensors):  # those before Core had another
                assert registered(reversed(names), fused=any(map(is_fused, tensors)), grouped=False) == names


def test_transformer_engine_registers_a_norm_before_its_matrix() -> None:
    layer = "decoder.layers.0."
    names = [
        f"{layer}{name}"
        for name in ("input_layernorm.weight", "self_attention.linear_proj.weight", "self_attention.linear_qkv.weight")
    ]
    assert registered(names, fused=True, grouped=False) == [names[1], names[0], names[2]]
    assert registered(names, fused=False, grouped=False) == names
    with pytest.raises(NotCarried, match=r"the place of 'mtp\.layers\.0\.enorm\.weight'"):
        registered(["mtp.layers.0.enorm.weight"], fused=True, grouped=False)


def test_a_buffer_ends_where_its_parameters_do() -> None:
    shapes = {"embedding": (5, 7), "norm": (3,), "head": (11, 2)}
    starts, sizes = walked(shapes)
    assert (starts, sizes) == ({"head": (0, 0), "norm": (0, 64), "embedding": (0, 128)}, [163])
    assert fitted(shapes, sizes, "file", "a bucket") == starts
    # an embedding that two stages share has a bucket of its own, and so has what a run cut for overlapping
    assert fitted(shapes, walked(shapes, "embedding")[1], "file", "a bucket")["embedding"] == (1, 0)
    assert fitted(shapes, walked(shapes, "head")[1], "file", "a bucket") == {
        "head": (0, 0),
        "norm": (1, 0),
        "embedding": (1, 64),
    }
    for wrong in ([162], [164], [22, 100], []):
        with pytest.raises(NotCarried, match="does not end where its parameters do"):
            fitted(shapes, wrong, "file", "a bucket")


# --- what is damaged ---------------------------------------------------------------------------------------------------


def changed(source: Path, folder: Path, name: str, change) -> Path:
    """A copy in which a torch file that holds plain values is another."""
    shutil.copytree(source, folder)
    (file,) = folder.rglob(name)
    held = torch.load(file, weights_only=False)
    change(held)
    torch.save(held, file)
    return folder


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    for run in runs("hf-trainer"):
        dist = written(run, tmp_path / "dist", "dist distributed")
        plain_ = written(run, tmp_path / "plain", "torch plain", names="te")
        flat = written(run, tmp_path / "flat", "torch distributed")
        one = "mp_rank_00_000/model_optim_rng.pt"

        def pad(held) -> None:
            for buffer in held[0].values():
                buffer["numel_unpadded"] += 64

        def other_step(held) -> None:
            held["optimizer"]["optimizer"]["param_groups"][1]["step"] = 5

        for number, (source, name, change, message) in enumerate(
            (
                (plain_, one, lambda held: held["optimizer"]["state"][3].pop("exp_avg"), "exp_avg of .* is missing"),
                (plain_, one, lambda held: held["optimizer"]["state"][2]["step"].add_(1), "moments are of different steps"),
                (plain_, one, lambda held: held["optimizer"]["param_groups"][0]["params"].pop(), "order of the parameters"),
                (plain_, one, lambda held: held["optimizer"]["state"].update({1: held["optimizer"]["state"][2]}), "does not have the shape"),
                (plain_, one, lambda held: held["optimizer"]["state"][1].update(exp_avg=held["optimizer"]["state"][1]["exp_avg"].half()), "use-precision-aware-optimizer"),
                (plain_, one, lambda held: held["optimizer"]["state"][1]["exp_avg_sq"].neg_(), "values that are not at least 0"),
                (flat, "mp_rank_00_000/distrib_optim.pt", pad, "does not end where its parameters do"),
                (dist, "common.pt", other_step, "moments are of different steps"),
                (dist, "common.pt", lambda held: held.update(iteration=5), "another"),
            )
        ):  # fmt: skip
            copy = changed(source, tmp_path / str(number), name, change)
            with pytest.raises(CkptError, match=message):
                convert(copy, tmp_path / "no", to="ir", training_state="keep")


def test_the_files_say_what_a_run_is_told(tmp_path: Path) -> None:
    """The args, that a weightless reader of them needs for the place in the data."""
    for run in runs("hf-trainer"):
        folder = written(run, tmp_path / "run", "dist distributed")
        common = torch.load(folder / "iter_0000006" / "common.pt", weights_only=False)
        assert common["args"].consumed_train_samples == 24 and common["iteration"] == 6
        assert common["content_metadata"]["distrib_optim_sharding_type"] == "fully_reshardable"
        schedule = common["opt_param_scheduler"]
        assert schedule["num_steps"] == 24 and schedule["max_lr"] == max(run.training["lr_history"])
        curve = ("min_lr", "lr_warmup_steps", "lr_decay_steps", "lr_decay_style")  # nothing of it is invented
        assert [schedule[key] for key in curve] == [None] * 4 and "start_wd" not in schedule
        assert GPT.keys & vars(common["args"]).keys()


@pytest.mark.parametrize("clip", [0.25, 1.0])
def test_a_launch_says_what_no_checkpoint_tells_megatron(
    clip: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in runs("hf-trainer"):
        convert(run.checkpoint, tmp_path / "ir", to="ir", training_state="keep")
        file = tmp_path / "ir" / "training" / "training.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"clip_grad": clip, "consumed_samples": 24}))
        convert(tmp_path / "ir", tmp_path / "run", to="megatron", training_state="keep")
        assert main(["launch", str(tmp_path / "run")]) in (0, None)
        said = capsys.readouterr().out
        assert "--weight-decay 0.1" in said and ("--clip-grad 0.25" in said) == (clip == 0.25)


def test_ranks_have_the_groups_of_their_own_parameters() -> None:
    """As until core 0.13: norms come first on one stage, and experts are on one stage alone."""
    matrices, vectors, experts = (
        {"lr": 0.1, "wd_mult": wd, "is_expert_parallel": apart}
        for wd, apart in ((1.0, False), (0.0, False), (1.0, True))
    )
    found = {"first": [matrices, vectors], "second": [vectors, matrices | {"step": 6}, experts]}
    assert sorted(map(repr, map(said_of, united(found)))) == sorted(map(repr, map(said_of, found["second"])))
    with pytest.raises(CkptError, match=r"lr 0\.2 of group(.|\n)*0\.1, as in first"):
        united(found | {"third": [experts, matrices | {"lr": 0.2}]})
