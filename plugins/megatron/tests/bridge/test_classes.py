"""Models of Bridge whose layers are unusual: Gemma 2 and 3, EXAONE 4, and norms on the whole width of q and k."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests.bridge import changed, model
from ckpt_tests.families import CASES, build
from ckpt_tests.folders import assert_nothing_at

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ALTERNATING = {"layer_types": [_SLIDING, _FULL]}
# name of a case: (changes of its config; the class, the layers, and the fields that say what is unusual)
WRITTEN: dict[str, tuple[dict[str, object], str, str, dict[str, object]]] = {
    "gemma2": (
        {"rms_norm_eps": 1e-5, **_ALTERNATING}, "Gemma2ModelProvider", "gemma2_layer_spec", {"window_attn_skip_freq": None},
    ),
    "gemma3": (
        {"rms_norm_eps": 1e-5, **_ALTERNATING}, "Gemma3ModelProvider", "gemma3_layer_spec",
        {"interleaved_attn_pattern": [1, 1], "rotary_base": [70.0, 3000.0], "rope_scaling_factor": 4.0, "window_size": 9},
    ),
    "exaone4": (
        {"rms_norm_eps": 1e-5, "sliding_window": None, "layer_types": [_FULL, _FULL]}, "GPTModelProvider", "exaone4_layer_spec", {},
    ),
    "olmoe": ({}, "GPTModelProvider", "minimax_m2_layer_spec", {"moe_router_pre_softmax": True}),
    "minimax_m2": ({}, "GPTModelProvider", "minimax_m2_layer_spec", {"moe_router_score_function": "sigmoid"}),
}  # fmt: skip


def built(name: str, folder: Path, **changes: object) -> Path:
    build(CASES[name], folder / "hf", **{**WRITTEN[name][0], **changes})
    return folder / "hf"


@pytest.mark.parametrize("name", WRITTEN)
def test_a_family_is_written_and_read(name: str, tmp_path: Path) -> None:
    _, class_name, spec, fields = WRITTEN[name]
    source = built(name, tmp_path)
    convert(source, tmp_path / "run", to="megatron-bridge", tp=2, pp=2)
    (tmp_path / "run/ckpt-receipt.json").unlink()
    said = model(tmp_path / "run")
    assert said["_target_"].rpartition(".")[2] == class_name
    assert said["transformer_layer_spec"]["_target_"].rpartition(".")[2] == spec
    assert {key: said.get(key) for key in fields} == fields
    assert fingerprint(tmp_path / "run") == fingerprint(source)
    with open_checkpoint(tmp_path / "run") as one, open_checkpoint(source) as two:
        assert one.architecture.decoder == two.architecture.decoder
        assert not one.checkpoint.provenance.losses


@pytest.mark.parametrize(
    ("name", "changes", "ranks", "options", "named"),
    [
        ("gemma2", {"layer_types": [_FULL, _SLIDING]}, {}, {}, "window_size"),
        ("gemma3", {"final_logit_softcapping": 2.0}, {}, {}, "head.softcap"),
        ("gemma3", {"rms_norm_eps": 1e-6}, {}, {}, "post_norm_eps"),
        ("minimax_m2", {}, {"tp": 3}, {}, "query groups"),
        ("olmoe", {}, {}, {"bridge_version": "0.4"}, "bridge_version"),
        ("olmoe", {}, {}, {"names": "local"}, "names"),
    ],
)
def test_what_bridge_lacks_is_refused_by_name(
    name: str, changes: dict[str, object], ranks: dict[str, int], options: dict[str, str], named: str, tmp_path: Path
) -> None:
    source = built(name, tmp_path, **changes)
    with pytest.raises(CkptError, match=named):
        convert(source, tmp_path / "run", to="megatron-bridge", options=options, **ranks)
    assert_nothing_at(tmp_path / "run")


def test_another_epsilon_of_norms_on_outputs_is_written_when_asked_for(tmp_path: Path) -> None:
    """Bridge computes them with 1e-5 (te_layers.py, TERowParallelLinearLayerNorm): the plan and the reader say so."""
    source = built("gemma3", tmp_path, rms_norm_eps=1e-6)
    convert(source, tmp_path / "run", to="megatron-bridge", options={"post_norm_eps": "1e-5"})
    with open_checkpoint(tmp_path / "run") as found:
        (loss,) = found.checkpoint.provenance.losses
    assert "1e-05" in str(loss)
    assert fingerprint(tmp_path / "run") == fingerprint(source)


def test_a_kind_for_each_layer_is_a_pattern_too(tmp_path: Path) -> None:
    """Since Bridge 0.7."""
    convert(built("gemma3", tmp_path), tmp_path / "run", to="megatron-bridge")
    with open_checkpoint(tmp_path / "run") as one:
        expected = one.architecture
    with open_checkpoint(changed(tmp_path / "run", interleaved_attn_pattern=[_SLIDING, _FULL])) as two:
        assert two.architecture == expected


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("gemma3", {"interleaved_attn_pattern": [0, 0]}, "interleaved_attn_pattern"),
        ("gemma3", {"rotary_base": 5.0}, "rotary_base"),
        ("gemma3", {"is_vision_language": True}, "is_vision_language"),
        ("gemma2", {"window_size": [3, 3]}, "window_size"),
        ("gemma2", {"transformer_layer_spec": {"_call_": False, "_target_": "mine.layers"}}, "transformer_layer_spec"),
    ],
)
def test_another_model_is_refused(name: str, fields: dict[str, object], named: str, tmp_path: Path) -> None:
    convert(built(name, tmp_path), tmp_path / "run", to="megatron-bridge")
    with pytest.raises(CkptError, match=named):
        convert(changed(tmp_path / "run", **fields), tmp_path / "out", to="ir")
    assert_nothing_at(tmp_path / "out")
