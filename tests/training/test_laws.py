"""The algebra of moments: where a weight is a multiple of what is stored its moments are divided, and a shift leaves them as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import fingerprint
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.description import Description, RankTensors, SavedTraining
from ckpt_core.errors import CkptError, FormatError, NotCarried
from ckpt_core.gathering import training_of
from ckpt_core.ir.weights import indexed, table
from ckpt_core.layout import ValueMap, neg_exp, plus_one, scale
from ckpt_core.rewrite import Rewritable, untied_head, vocabulary_rows, without_predictors
from ckpt_core.rewrite.model import scaled
from ckpt_core.storage.safetensors import read_header
from ckpt_core.tensors import SourceFiles
from ckpt_core.testing import example, write_ir
from ckpt_core.training import EXP_AVG, KINDS, MOMENTS, Group, Training, followed, from_json, named, to_json

SHARD, INDEX = "training/tensors-00001-of-00001.safetensors", "training/tensors.index.json"


def trained(folder: Path, **facts: object) -> Path:
    """A model of an example, and the state of its training: random moments, two groups."""
    write_ir(str(folder), example("llama-padded", **facts))
    generator = np.random.default_rng(7)
    with open_checkpoint(folder) as model:
        shapes = {name: tensor.shape for name, tensor in model.items()}
    moments = {
        named(kind, name): generator.random(shape).astype(np.float32)
        for kind in MOMENTS
        for name, shape in shapes.items()
    }
    (folder / "training").mkdir()
    save_file(moments, folder / SHARD)
    (folder / INDEX).write_text(json.dumps(dict.fromkeys(moments, Path(SHARD).name)))
    decayed = tuple(name for name, shape in shapes.items() if len(shape) > 1)
    others = tuple(name for name in shapes if name not in decayed)
    groups = (Group(decayed, 2e-3, (0.9, 0.95), 1e-8, 0.1, 4e-3), Group(others, 2e-3, (0.9, 0.95), 1e-8, 0.0, 4e-3))
    state = Training(6, groups, iterations=7, consumed_samples=24, skipped_steps=1)
    (folder / "training" / "training.json").write_text(json.dumps(to_json(state)))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(trained(tmp_path / "ir"), training_state="keep").checkpoint


def test_it_goes_through_the_representation_and_says_itself(tmp_path: Path) -> None:
    source = trained(tmp_path / "ir")
    one = convert(source, tmp_path / "two", to="ir", options={"max_shard_size": "1MB"})
    assert len(list((tmp_path / "two").glob("training/*.safetensors"))) > 1
    two = convert(tmp_path / "two", tmp_path / "three", to="ir")
    assert one.body["training"] == two.body["training"] and one.fingerprint == two.fingerprint == fingerprint(source)
    tensors, _ = indexed(str(tmp_path / "three"), INDEX)
    expected = read_header(str(source / SHARD)).tensors
    assert tensors.keys() == expected.keys()
    with (
        open_checkpoint(tmp_path / "three", training_state="keep") as back,
        open_checkpoint(source, training_state="keep") as first,
    ):
        assert back.training is not None and first.training is not None
        assert to_json(back.training) == to_json(first.training)
        for kind in MOMENTS:
            for name in first:
                assert np.array_equal(first.moment(kind, name).numpy(), back.moment(kind, name).numpy())
    without = convert(source, tmp_path / "four", to="ir", training_state="drop")
    assert without.fingerprint == one.fingerprint and "training" not in without.body
    assert {loss["subject"].partition(",")[0].partition(":")[0] for loss in without.losses} == {
        "optimizer state",
        "iteration and consumed samples",
    }


def test_masters_lie_beside_weights_that_are_rounded(tmp_path: Path, model: Checkpoint) -> None:
    state = model.training
    assert state is not None and not state.own_masters and state.master.keys() == model.tensors.keys()
    with_masters = replace(state, own_masters=True)
    assert sum(name.startswith("optimizer.master/") for name in with_masters.tensors) == len(model.tensors)
    apart = replace(model, training=with_masters)
    assert apart.in_masters.training == replace(state, own_masters=False)
    assert model.in_masters is model


@pytest.mark.parametrize(("via", "powers"), [(scale(4.0), (0.25, 0.0625)), (plus_one, (1.0, 1.0)), (None, (1.0, 1.0))])
def test_a_value_map_acts_by_its_power(tmp_path: Path, via: ValueMap | None, powers: tuple[float, float]) -> None:
    folder, name = trained(tmp_path / "ir"), "layers.0.attention.norm.weight"
    found = _read_by(folder, name, via)
    raw = {kind: tensor for kind in MOMENTS for tensor in [_moments_of(folder)[named(kind, name)]]}
    source = SourceFiles(_states(folder))
    for kind, power in zip(MOMENTS, powers, strict=True):
        lazy = found.of(kind)[name]
        assert np.array_equal(source.floats(lazy, ((0, raw[kind].size),)), raw[kind] * np.float32(power))
    source.close()


def test_another_function_of_a_weight_is_not_carried(tmp_path: Path) -> None:
    with pytest.raises(NotCarried, match="those of another function of the parameter"):
        _read_by(trained(tmp_path / "ir"), "layers.0.attention.norm.weight", neg_exp)


def _read_by(folder: Path, name: str, via: ValueMap | None) -> Training:
    """The state in a folder by a table in which one weight is stored under a value map."""
    checkpoint = open_checkpoint(folder, training_state="keep").checkpoint
    own = table(checkpoint.architecture)
    (row,) = (one for one in own.rows if one.native == name)
    tables = [own.replace(replace(row, via=via))]
    description = Description(
        architecture=checkpoint.architecture, tables=tables, ranks=[], where=str(folder), files=_states(folder)
    )
    tensors, _ = indexed(str(folder), INDEX)
    ranks = {
        kind: [
            RankTensors(
                {},
                {key.partition("/")[2]: one for key, one in tensors.items() if key.startswith(f"optimizer.{kind}/")},
                str(folder),
            )
        ]
        for kind in MOMENTS
    }
    state = from_json(json.loads((folder / "training" / "training.json").read_text()), "training.json")
    return training_of(description, SavedTraining(state, ranks, str(folder), []), checkpoint)


def _moments_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / SHARD)


def _states(folder: Path) -> list:
    return indexed(str(folder), INDEX)[1]


def test_it_follows_a_cut_vocabulary_and_says_what_that_costs(model: Checkpoint) -> None:
    state, tokens = model.training, model.architecture.tokens
    assert state is not None and tokens is not None
    cut = vocabulary_rows(Rewritable(model.architecture, model.tensors), tokens.vocabulary)
    after, losses = followed(state, model.tensors, cut.tensors)
    assert {after.of(kind)["head.weight"].parameter.shape[0] for kind in KINDS} == {tokens.vocabulary}
    (loss,) = losses
    assert loss.kind == "dropped" and f"{tokens.padded_vocabulary} rows become {tokens.vocabulary}" in loss.subject


def test_a_factor_that_is_folded_in_divides_the_moments(model: Checkpoint) -> None:
    name, state = "layers.1.attention.q.weight", model.training
    assert state is not None
    after, losses = followed(state, model.tensors, {**model.tensors, name: scaled(model.tensors[name], 3.0)})
    assert after.exp_avg[name].maps == (scale(3.0**-1),) and after.exp_avg_sq[name].maps == (scale(3.0**-2),)
    assert [loss.kind for loss in losses] == ["assumed"] and name in losses[0].subject
    shifted = {**model.tensors, name: replace(model.tensors[name], maps=(plus_one,))}
    after, losses = followed(state, model.tensors, shifted)
    assert after.exp_avg[name].maps == after.exp_avg_sq[name].maps == ()
    assert "weight decay" in losses[0].subject


def test_new_gone_and_computed_parameters_are_not_carried(model: Checkpoint) -> None:
    state, name = model.training, "layers.1.attention.q.weight"
    assert state is not None
    fewer = {key: tensor for key, tensor in model.tensors.items() if key != name}
    with pytest.raises(NotCarried, match=f"(?s){name} is not a parameter of the target"):
        followed(state, model.tensors, fewer)
    bias = replace(
        model.tensors[name], parameter=replace(model.tensors[name].parameter, name="new"), blocks=(), fill=0.0
    )
    with pytest.raises(NotCarried, match=r"(?s)new did not exist in the source"):
        followed(state, model.tensors, {**model.tensors, "new": bias})
    other = replace(model.tensors[name], blocks=model.tensors["layers.0.attention.q.weight"].blocks)
    with pytest.raises(NotCarried, match=f"(?s){name} is computed of other parameters"):
        followed(state, model.tensors, {**model.tensors, name: other})


def test_a_tied_head_that_is_written_out_has_no_moments(tmp_path: Path) -> None:
    model = open_checkpoint(trained(tmp_path / "ir", head__tied=True), training_state="keep").checkpoint
    assert model.training is not None
    untied = untied_head(without_predictors(Rewritable(model.architecture, model.tensors)))
    with pytest.raises(NotCarried, match=r"(?s)head\.weight is a copy of another parameter"):
        followed(model.training, model.tensors, untied.tensors)


def test_every_parameter_is_stepped_once_or_frozen(tmp_path: Path) -> None:
    folder = trained(tmp_path / "ir")
    said = json.loads((folder / "training" / "training.json").read_text())

    def refused(change: dict, message: str) -> None:
        (folder / "training" / "training.json").write_text(json.dumps(said | change))
        with pytest.raises(CkptError, match=message):
            open_checkpoint(folder, training_state="keep")

    one, two = said["groups"]
    refused({"groups": [one]}, "is in no group of the optimizer, and not frozen")
    refused({"groups": [one, two | {"parameters": [*two["parameters"], one["parameters"][0]]}]}, "is stepped twice")
    refused({"frozen": [one["parameters"][0]]}, "is stepped twice")
    refused({"groups": [one, two | {"parameters": [*two["parameters"], "nothing"]}]}, "names 'nothing'")


def test_a_frozen_parameter_has_no_moments(tmp_path: Path) -> None:
    folder, name = trained(tmp_path / "ir"), "embedding.tokens.weight"
    said, moments = json.loads((folder / "training" / "training.json").read_text()), _moments_of(folder)
    said["groups"][0]["parameters"].remove(name)
    (folder / "training" / "training.json").write_text(json.dumps(said | {"frozen": [name]}))
    with pytest.raises(CkptError, match=r"tensor 'exp_avg of embedding\.tokens\.weight' is not part"):
        open_checkpoint(folder, training_state="keep")
    kept = {key: value for key, value in moments.items() if not key.endswith(f"/{name}")}
    save_file(kept, folder / SHARD)
    receipt = convert(folder, tmp_path / "out", to="ir")
    assert receipt.body["training"]["state"]["frozen"] == [name]
    assert named(EXP_AVG, name) not in receipt.body["training"]["tensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"step": -1},
        {"groups": [{}]},
        {"more": 1},
        {"schedule": []},
        {"own_masters": 1},
        {"optimizer": "lion"},
    ],
)
def test_a_record_that_is_not_one_is_refused(tmp_path: Path, change: dict) -> None:
    folder = trained(tmp_path / "ir")
    body = json.loads((folder / "training" / "training.json").read_text())
    with pytest.raises(FormatError, match=r"training"):
        from_json(body | change, "training.json")
    assert to_json(from_json(body, "training.json")) == body
