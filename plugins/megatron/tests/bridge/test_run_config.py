"""What a run config means, which iteration is read, and what is refused."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ckpt_core import convert, open_checkpoint
from ckpt_core.architecture import Activation
from ckpt_core.errors import CkptError
from ckpt_megatron.bridge.config import is_plain
from ckpt_tests import distributed, refusals
from ckpt_tests.families import CASES, build
from ckpt_tests.folders import assert_nothing_at

refused = functools.partial(refusals.refused, format="megatron-bridge")

STEP = "iter_0000007"
GELU = "torch.nn.functional.gelu"
NEMOTRON = "megatron.bridge.models.nemotron"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    build(CASES["qwen3_moe"], folder / "hf")
    options = {"iteration": "7", "should_pad_vocab": "true", "make_vocab_size_divisible_by": "8"}
    convert(folder / "hf", folder / "bridge", to="megatron-bridge", options=options)
    (folder / "bridge/ckpt-receipt.json").unlink()
    return folder / "bridge"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def model(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / STEP / "run_config.yaml"
    body = yaml.safe_load(path.read_text())
    change(body["model"])
    path.write_text(yaml.safe_dump(body))


def layer(run: Path, **options: str):
    with open_checkpoint(run, format="megatron-bridge", options=options) as source:
        return source.architecture.decoder.layers[0]


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("surprising_key", 3, "surprising_key"),
        ("qk_l2_norm", True, "qk_l2_norm"),
        ("moe_layer_freq", [1], "moe_layer_freq"),
        ("moe_expert_capacity_factor", 1.25, "moe_expert_capacity_factor"),
        ("restore_modelopt_state", True, "restore_modelopt_state"),
        ("position_embedding_type", "mrope", "mrope"),
        ("transformer_layer_spec", {"_target_": "recipes.spec", "_call_": False}, "recipes.spec"),
        ("vocab_size", None, "vocab_size"),
        ("vocab_size", 56, "64 rows"),
        ("vocab_size", 73, "64 rows"),
        ("should_pad_vocab", False, "should_pad_vocab = False"),
        ("num_layers", 3, "layer"),
        ("hidden_size", 95, "shape"),
        ("_target_", "megatron.bridge.models.gemma.gemma2_provider.Gemma2ModelProvider", "Gemma2ModelProvider"),
        ("_target_", None, "_target_"),
    ],
)
def test_a_changed_field_is_refused_by_name(run: Path, key: str, value: object, named: str) -> None:
    model(run, lambda fields: fields.update({key: value}))
    refused(run, named)


def test_a_field_without_meaning_may_be_left_out(run: Path) -> None:
    model(run, lambda fields: fields.update(surprising_key=3))
    with open_checkpoint(run, options={"ignore_keys": "surprising_key"}) as source:
        (loss,) = [loss for loss in source.checkpoint.all_losses if "surprising_key" in loss.subject]
        assert loss.kind == "dropped" and "ignore_keys" in loss.reason
        assert not source.checkpoint.provenance.losses


def test_a_class_of_someone_else_is_taken_by_its_fields(run: Path) -> None:
    model(run, lambda fields: fields.update(_target_="recipes.MyProvider"))
    with open_checkpoint(run) as source:
        assert [loss.subject for loss in source.checkpoint.provenance.losses] == ["recipes.MyProvider"]


def test_a_builder_keeps_the_fields_one_level_deeper(run: Path) -> None:
    """Since 0.6 the model may be a config of its own, with TransformerConfig inside."""
    expected = open_checkpoint(run).architecture

    def nested(fields: dict[str, Any]) -> None:
        own = {
            key: fields.pop(key)
            for key in list(fields)
            if key not in ("_target_", "vocab_size", "should_pad_vocab", "seq_length")
        }
        del fields["_target_"]
        fields.update(
            _builder_="megatron.bridge.models.gpt.gpt_builder.GPTModelBuilder",
            transformer={"_target_": "x.TransformerConfig", **own},
        )

    model(run, nested)
    assert open_checkpoint(run).architecture == expected


@pytest.mark.parametrize(
    ("function", "fused", "activation"),
    [
        ({"_target_": "torch._C._nn.gelu", "_call_": False}, False, Activation.GELU_ERF),
        ({"_target_": GELU, "_call_": False}, True, Activation.GELU_TANH),
        ({"_target_": GELU, "_partial_": True, "_args_": [], "approximate": "tanh"}, False, Activation.GELU_TANH),
        ({"_target_": "megatron.core.activations.fast_gelu", "_call_": False}, False, Activation.GELU_TANH),
        ({"_target_": "megatron.core.activations.quick_gelu", "_call_": False}, False, Activation.GELU_QUICK),
        ({"_target_": "megatron.core.activations.squared_relu", "_call_": False}, False, Activation.RELU_SQUARED),
        ({"_target_": f"{NEMOTRON}.nemotron_provider.squared_relu", "_call_": False}, False, Activation.RELU_SQUARED),
        ({"_target_": f"{NEMOTRON}.nemotron_bridge.squared_relu", "_call_": False}, False, Activation.RELU_SQUARED),
    ],
)
def test_the_activation(run: Path, function: dict, fused: bool, activation: Activation) -> None:
    model(run, lambda fields: fields.update(activation_func=function, bias_activation_fusion=fused))
    assert layer(run).mlp.activation is activation


def test_a_fused_gelu_without_biases_is_refused(run: Path) -> None:
    """TransformerConfig raises for it; unfused, or gated, it is a model."""
    plain = {
        "activation_func": {"_target_": GELU, "_call_": False},
        "gated_linear_unit": False,
        "add_bias_linear": False,
    }
    model(run, lambda fields: fields.update(plain, bias_activation_fusion=True))
    refused(run, "a fused GELU needs a bias", "bias_activation_fusion = True, add_bias_linear = False")
    model(run, lambda fields: fields.update(gated_linear_unit=True))
    assert layer(run).mlp.activation is Activation.GELU_TANH


def test_gelu_of_another_engine_is_refused(run: Path) -> None:
    model(
        run,
        lambda fields: fields.update(activation_func={"_target_": GELU, "_call_": False}, use_te_activation_func=True),
    )
    refused(run, "use_te_activation_func")


def test_a_clamp_counts_for_quick_gelu_alone(run: Path) -> None:
    """Other fused kernels leave the clamp and the offset out, and so does TransformerEngine."""
    clamped = {"activation_func_clamp_value": 7.0, "glu_linear_offset": 1.0}
    model(run, lambda fields: fields.update(clamped))
    refused(run, "activation_func_clamp_value", "silu")
    quick = {"_target_": "megatron.core.fusions.fused_bias_geglu.quick_gelu", "_call_": False}
    model(run, lambda fields: fields.update(activation_func=quick))
    assert (layer(run).mlp.clamp, layer(run).mlp.up_offset) == (7.0, 1.0)
    model(run, lambda fields: fields.update(use_te_activation_func=True))
    refused(run, "use_te_activation_func", "activation_func_clamp_value")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("gpt_provider.GPTModelProvider", True),
        ("llama.llama_provider.Llama32ModelProvider3B", True),
        ("qwen.qwen_provider.Qwen3MoEModelProvider235B_A22B", True),
        ("deepseek.deepseek_provider.DeepSeekV2LiteModelProvider", True),
        ("gemma.gemma_provider.CodeGemmaModelProvider2B", True),
        ("gemma.gemma3_provider.Gemma3ModelProvider1B", True),
        ("gemma_vl.gemma3_vl_provider.Gemma3VLModelProvider4B", False),
        ("qwen.qwen_provider.Qwen3NextModelProvider80B_A3B", False),
        ("nemotronh.nemotron_h_provider.NemotronHModelProvider4B", False),
        ("nemotronh.nemotron_h_provider.Nemotron3NanoProvider", False),
        ("llama.llama_provider.Llama4ModelProvider", False),
        ("gpt_oss.gpt_oss_provider.GPTOSSProvider20B", False),
    ],
)
def test_classes_that_do_what_their_fields_say(name: str, plain: bool) -> None:
    assert is_plain(f"megatron.bridge.models.{name}") == plain


# --- the files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "model: [", "model: 3", "- 1", "checkpoint: {}"])
def test_a_file_that_is_no_run_config_is_refused(run: Path, text: str) -> None:
    (run / STEP / "run_config.yaml").write_text(text)
    refused(run, "run_config.yaml")


def test_the_iteration_is_that_of_the_train_state(run: Path) -> None:
    shutil.copytree(run / STEP, run / "iter_0000009")
    model(run, lambda fields: fields.update(layernorm_epsilon=0.25))
    assert layer(run).attention.norm.eps == 0.25
    (run / "latest_checkpointed_iteration.txt").unlink()
    assert layer(run).attention.norm.eps == 0.25
    (run / "latest_train_state.pt").unlink()
    refused(run, "says which iteration", "iter_0000007, iter_0000009")
    (run / "latest_checkpointed_iteration.txt").write_text("9")
    assert layer(run).attention.norm.eps == 1e-6


def test_trackers_that_disagree_are_refused(run: Path) -> None:
    (run / "latest_checkpointed_iteration.txt").write_text("8")
    refused(run, "disagree", "8", "7")


@pytest.mark.parametrize("state", [{"step": 7}, {}, [7], {"step": torch.tensor([7])}, {"step": torch.tensor(-1)}])
def test_a_train_state_without_a_step_is_refused(run: Path, state: object) -> None:
    torch.save(state, run / "latest_train_state.pt")
    refused(run, "names no iteration")


def test_an_iteration_that_is_gone_is_refused(run: Path) -> None:
    shutil.rmtree(run / STEP)
    refused(run, "is not there")


def test_another_container_is_refused(run: Path) -> None:
    (run / STEP / "metadata.json").unlink()
    refused(run, "torch_dist")


def test_adapters_are_no_model(run: Path) -> None:
    old = "decoder.layers.0.self_attention.linear_proj.weight"
    change = lambda metadata: distributed.renamed(metadata, old, old.replace(".weight", ".adapter.linear_in.weight"))  # noqa: E731
    distributed.changed(run / STEP, change)
    refused(run, "LoRA", "adapter")


def test_a_renamed_tensor_is_named(run: Path) -> None:
    old = "decoder.layers.1.mlp.router.weight"
    distributed.changed(run / STEP, lambda metadata: distributed.renamed(metadata, old, old.replace("router", "ruter")))
    refused(run, "ruter", "router.weight' is missing")


# --- versions ------------------------------------------------------------------------------------------------------

LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("version", "target", "keys", "assumed"),
    [
        (None, "GPTModelProvider", {"rope_scaling", "rope_scaling_factor"}, True),
        ("0.4", "GPTModelProvider", {"rope_scaling", "rope_scaling_factor"}, False),
        ("0.6", "GPTModelProvider", {"rope_scaling", "rope_scaling_factor"}, False),
        (
            "0.2",
            "Llama31ModelProvider",
            {"scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"},
            False,
        ),
    ],
)
def test_llama_3_1_is_said_as_the_version_says_it(
    tmp_path: Path, version: str | None, target: str, keys: set[str], assumed: bool
) -> None:
    from ckpt_core.api import plan_conversion
    from ckpt_tests import tiny

    tiny.build(tmp_path / "hf", "llama", rope_parameters=LLAMA31)
    options = {"bridge_version": version} if version else {}
    plan = plan_conversion(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", options=options)
    assert [loss.kind for loss in plan.target.losses] == (["assumed"] if assumed else [])
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", options=options)
    fields = yaml.safe_load((tmp_path / "run/iter_0000000/run_config.yaml").read_text())["model"]
    assert fields["_target_"].endswith(f".{target}")
    scaling = {
        "rope_scaling",
        "rope_scaling_factor",
        "scale_factor",
        "low_freq_factor",
        "high_freq_factor",
        "old_context_len",
    }
    assert scaling & fields.keys() == keys
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(tmp_path / "run") as two:
        assert one.architecture == two.architecture


# --- what the layers are made of ---------------------------------------------------------------------------------------

BLOCK_SPEC = "megatron.core.models.gpt.gpt_layer_specs.get_gpt_decoder_block_spec"


def written(source: str, folder: Path, **options: str) -> dict[str, Any]:
    build(CASES[source], folder / "hf", **({"rope_parameters": None} if source == "deepseek_v3" else {}))
    convert(folder / "hf", folder / "run", to="megatron-bridge", options=options)
    return yaml.safe_load((folder / "run/iter_0000000/run_config.yaml").read_text())["model"]


@pytest.mark.parametrize(
    ("version", "target"),
    [
        ("0.2", "deepseek.deepseek_provider.DeepSeekV3ModelProvider"),
        ("0.4", "mla_provider.MLAModelProvider"),
        ("0.6", "mla_provider.MLAModelProvider"),
    ],
)
def test_layers_of_two_kinds_have_a_spec_that_makes_both(tmp_path: Path, version: str, target: str) -> None:
    """GPTModelProvider's own makes experts in every layer."""
    fields = written("deepseek_v3", tmp_path, bridge_version=version)
    assert fields["_target_"] == f"megatron.bridge.models.{target}"
    assert sorted(set(fields["moe_layer_freq"])) == [0, 1] and fields["moe_grouped_gemm"] is True
    spec = {"_args_": [], "_partial_": True, "_target_": BLOCK_SPEC, "use_transformer_engine": True}
    assert fields["transformer_layer_spec"] == spec


def test_experts_are_one_module(original: Path, tmp_path: Path) -> None:
    """Bridge 0.2 exports no others; modules that are not TransformerEngine's have no such kernel."""
    fields = yaml.safe_load((original / STEP / "run_config.yaml").read_text())["model"]
    assert fields["moe_grouped_gemm"] is True
    local = written("qwen3_moe", tmp_path, names="local")
    assert "moe_grouped_gemm" not in local and "transformer_layer_spec" not in local


# --- yarn ------------------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"mscale": 0.7, "mscale_all_dim": 0.4},
        {"attention_factor": 1.3},
    ],
)
def test_yarn_is_written_and_read(tmp_path: Path, more: dict[str, object]) -> None:
    from ckpt_tests import tiny

    tiny.build(tmp_path / "hf", "llama", rope_parameters={**YARN, **more})
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge")
    fields = yaml.safe_load((tmp_path / "run/iter_0000000/run_config.yaml").read_text())["model"]
    # Bridge raises for betas that are null, and does not round for a null of the last
    in_full = {"yarn_rotary_scaling_factor": 4.0, "yarn_original_max_position_embeddings": 32}
    in_full |= {f"yarn_{key}": more.get(key, usual) for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))}
    in_full |= {"yarn_correction_range_round_to_int": more.get("truncate", True), "position_embedding_type": "yarn"}
    assert in_full.items() <= fields.items()
    (tmp_path / "run/ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(tmp_path / "run") as two:
        found, expected = (side.architecture.decoder.layers[0].attention.rotary for side in (two, one))
        assert found.theta == expected.theta and found.fraction == expected.fraction
        given = {key: value for key, value in vars_of(expected.scaling).items() if value is not None}
        held = vars_of(found.scaling)
        assert {key: held[key] for key in given} == pytest.approx(given, rel=1e-12, abs=0)


def vars_of(scaling: Any) -> dict[str, Any]:
    return {name: getattr(scaling, name) for name in scaling.__slots__ if name != "kind"}


def test_yarn_has_no_fields_in_0_2(tmp_path: Path) -> None:
    from ckpt_tests import tiny

    tiny.build(tmp_path / "hf", "llama", rope_parameters=YARN)
    with pytest.raises(CkptError, match="bridge_version"):
        convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", options={"bridge_version": "0.2"})
    assert_nothing_at(tmp_path / "run")


def test_yarn_beside_other_positions_is_refused(run: Path) -> None:
    """Attention stretches by yarn's factor whatever the positions are."""
    model(run, lambda fields: fields.update(yarn_rotary_scaling_factor=4.0))
    refused(run, "yarn_rotary_scaling_factor")
    model(run, lambda fields: fields.update(position_embedding_type="yarn"))
    refused(run, "yarn_original_max_position_embeddings")


def test_queries_that_are_not_compressed_are_written_for_0_4(tmp_path: Path) -> None:
    """Megatron-Core 0.19, on which 0.6 builds, has one more norm before them."""
    source = tmp_path / "hf"
    build(CASES["deepseek_v3"], source, q_lora_rank=None, rope_parameters=None)
    with pytest.raises(CkptError, match=r"linear_q_proj(.|\n)*bridge_version=0.4"):
        convert(source, tmp_path / "run", to="megatron-bridge", options={"bridge_version": "0.6"})
    from ckpt_core.api import plan_conversion

    target = plan_conversion(source, tmp_path / "run", to="megatron-bridge").target
    assert target.decisions["bridge_version"] == "0.4"
    assert ["0.6" in f"{loss.subject} {loss.reason}" for loss in target.losses if loss.kind == "assumed"] == [True]
