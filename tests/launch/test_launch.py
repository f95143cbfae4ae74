"""How frameworks are started: every fact of a model is in what `ckpt launch` says, and what it says is right."""

from __future__ import annotations

import copy
import json
import pickle
import shlex
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import launch_of, plan_conversion
from ckpt_core.architecture import Activation, Architecture, RotaryKind
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.launch import UNKNOWN, Argument, Launch, command_text, override
from ckpt_core.plugins.discovery import all_plugins
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import ABSENT
from ckpt_megatron.launch import VERSIONS, line_of
from ckpt_tests.goldens import SHIPPED

GOLDENS = SHIPPED / "nemo-t5"
TRAINED = [plugin.name for plugin in all_plugins() if plugin.hooks.ckpt_launch.get_hookimpls()]
NEVER_OR_ALWAYS_TIED = (
    "nxdt",
    "megatron-deepspeed",
)  # a tied head is written as two matrices, or is the only one there is
NORMS = ("attention.norm", "mlp.norm", "final_norm")
SCALING = "attention.rotary.scaling"
ODD = {
    "llama": {},
    "eps": {f"{norm}.eps": 1e-6 for norm in NORMS},
    "tied": {"head.tied": True},
    "llama31": {
        f"{SCALING}.kind": RotaryKind.LLAMA3,
        f"{SCALING}.factor": 8.0,
        f"{SCALING}.low_frequency_factor": 1.0,
        f"{SCALING}.high_frequency_factor": 4.0,
        f"{SCALING}.original_positions": 8192,
    },
    "yarn": {
        f"{SCALING}.kind": RotaryKind.YARN,
        f"{SCALING}.factor": 4.0,
        f"{SCALING}.original_positions": 32,
        f"{SCALING}.truncate": False,
    },
    "linear": {f"{SCALING}.kind": RotaryKind.LINEAR, f"{SCALING}.factor": 4.0},
    "qwen3": {"attention.qk_norm.kind": "rms", "attention.qk_norm.eps": 1e-5},
    "partial": {"attention.rotary.fraction": 0.5},
    "window": {"attention.window": 16},
    "theta": {"attention.rotary.theta": 500000.0},
    "biased": {f"attention.{part}_bias": True for part in "qkv"},
    "gelu": {"mlp.activation": Activation.GELU_ERF, "mlp.gated": False},
    "groups": {"attention.groups": 12},
}


def said(launch: Launch) -> dict[str, object]:
    """The model's arguments by name, wherever the checkpoint lies and however it is shared out."""
    return {one.name: one.value for one in launch.arguments if one.model}


def architecture(base: str, name: str) -> Architecture:
    return example(base, **{"attention.head_dim": 24, "hidden": 288, **ODD[name]})


def launched(folder: Path, name: str, *, base: str = "llama", **asked) -> Launch:
    place = folder / base / name
    if not place.exists():
        write_ir(place, architecture(base, name), sparse=True)
    return launch_of(place, **asked)


@pytest.mark.parametrize("format", TRAINED)
def test_another_model_is_started_otherwise(tmp_path, format) -> None:
    """Each odd model is refused by its format, or started with something else than the usual one."""
    base = "gpt2" if format == "megatron-deepspeed" else "llama"  # the code of BLOOM has no Llama
    usual, different = said(launched(tmp_path, "llama", base=base, to=format)), 0
    for name in ODD:
        try:
            if architecture(base, name) == architecture(base, "llama"):
                continue
            odd = said(launched(tmp_path, name, base=base, to=format))
        except CkptError:
            continue
        assert odd != usual or (name == "tied" and format in NEVER_OR_ALWAYS_TIED), name
        different += 1
    assert different


def test_a_megatron_launch_names_what_is_not_restored(tmp_path) -> None:
    expected = {
        "llama": [],
        "eps": [["--norm-epsilon", "1e-06"]],
        "tied": [],  # --untie-embeddings-and-output-weights is restored
        "llama31": [["--use-rope-scaling"]],
        "linear": [["--rotary-seq-len-interpolation-factor", "4"]],
        "qwen3": [["--qk-layernorm"]],
        "partial": [],
        "window": [["--window-size", "15,0"]],
        "theta": [],
        "biased": [],
        "groups": [],
        "gelu": [["--no-bias-gelu-fusion"]],
    }
    for name, words in expected.items():
        launch = launched(tmp_path, name, to="megatron", options={"megatron_version": "0.16"})
        assert sorted(map(list, (one.words for one in launch.silent))) == sorted(words), name
        assert launch.words[:3] == ["torchrun", "--nproc-per-node=1", "pretrain_gpt.py"]


def test_a_command_of_python_values_is_quoted_once(tmp_path) -> None:
    """NeMo 2 reads names and values of Python: a text stands in quotes of its own."""
    launch = launched(tmp_path, "llama", to="nemo2")
    text = command_text(launch)
    assert shlex.split(text.replace("\\\n", " ")) == launch.words
    assert "model.config.normalization='RMSNorm'" in launch.words and "'\"'\"'" not in text


@pytest.mark.parametrize("version", VERSIONS)
def test_every_argument_of_the_model_is_said_restored_or_at_its_default(tmp_path, version) -> None:
    """No fact gets lost between the args of a checkpoint and the command line of a version."""
    for name in ODD:
        try:
            launch = launched(tmp_path, name, to="megatron", options={"megatron_version": version})
        except CkptError as refusal:
            assert name in ("window", "yarn") and version < {"window": "0.15", "yarn": "0.19"}[name], refusal
            continue
        for one in launch.arguments:
            assert one.taken or one.words or one.default == one.value, (name, one)
            assert not one.words or one.words[0] == line_of(one.name, version)["flag"]
        assert "--norm-epsilon" in launch.words or name != "eps"


def test_yarn_is_started_by_the_arguments_that_no_checkpoint_restores(tmp_path) -> None:
    launch = launched(tmp_path, "yarn", to="megatron")
    assert [one.words for one in launch.silent] == [
        ("--rotary-scaling-factor", "4.0"),
        ("--yarn-beta-fast", "32.0"),
        ("--yarn-beta-slow", "1.0"),
        ("--no-yarn-correction-range-round-to-int",),
        ("--yarn-original-max-position-embeddings", "32"),
    ]


def test_what_a_version_has_no_argument_for_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(CkptError, match=r"no argument of Megatron-LM 0\.13 says window_size"):
        launched(tmp_path, "window", to="megatron", options={"megatron_version": "0.13"})
    source = tmp_path / "llama" / "window"
    plan = plan_conversion(source, tmp_path / "out", to="megatron", options={"megatron_version": "0.13"})
    assert any("window_size" in loss.subject and "0.13" in loss.reason for loss in plan.losses)


def test_a_factor_that_no_version_passes_on_is_refused(tmp_path) -> None:
    """Megatron-LM parses --rope-scaling-factor, and gives its model the factor 8 (Llama 3.2 has 32)."""
    write_ir(tmp_path / "m", example("llama", **{**ODD["llama31"], f"{SCALING}.factor": 32.0}), sparse=True)
    with pytest.raises(CkptError, match="says rope_scaling_factor"):
        launch_of(tmp_path / "m", to="megatron")


def test_without_a_version_it_is_the_newest_that_can_say_it_all(tmp_path) -> None:
    assert launched(tmp_path, "llama", to="megatron").framework == f"Megatron-LM {VERSIONS[-1]}"
    gelu = {f"{norm}.{key}": value for norm in NORMS for key, value in (("kind", "layer"), ("bias", True))}
    write_ir(tmp_path / "old", example("gpt2", **gelu))
    old = launch_of(tmp_path / "old", to="megatron", options={"names": "legacy"})
    assert old.framework == "Megatron-LM 0.17" and "--use-legacy-models" in old.words


def test_the_zero_centred_norm_is_not_restored_since_0_16(tmp_path) -> None:
    """`_set_arg('apply_layernorm_1p')` sets an attribute that nobody looks at since 0.16."""
    write_ir(tmp_path / "m", example("llama", **{f"{norm}.zero_centred": True for norm in NORMS}))
    flags = {}
    for version in ("0.15", "0.16"):
        launch = launch_of(tmp_path / "m", to="megatron", options={"megatron_version": version})
        assert "--apply-layernorm-1p" in launch.words
        flags[version] = [one.words for one in launch.silent]
    assert flags == {"0.15": [], "0.16": [("--apply-layernorm-1p",)]}


def test_a_checkpoint_is_started_where_it_lies_on_its_own_ranks(tmp_path) -> None:
    write_ir(tmp_path / "m", example("llama", layers=4))
    out = tmp_path / "out"
    convert(tmp_path / "m", out, to="megatron", tp=2, pp=2, options={"iteration": "7"})
    words = launch_of(out).words
    # validate_args asks for the variable as soon as there are tensor parallel ranks
    assert words[:4] == ["env", "CUDA_DEVICE_MAX_CONNECTIONS=1", "torchrun", "--nproc-per-node=4"]
    assert "--finetune" not in words and "--no-load-optim" in words
    assert words[words.index("--load") + 1] == str(out)
    step = launch_of(out / "iter_0000007").words
    assert step[step.index("--load") + 1] == str(out) and step[step.index("--ckpt-step") + 1] == "7"


@pytest.mark.parametrize("version", ["0.2", "0.6"])
def test_an_output_is_started_as_it_was_written(version, tmp_path) -> None:
    """Files of two versions may be alike: the receipt says which one was asked for."""
    source = write_ir(tmp_path / "ir", example("llama"))
    convert(source, tmp_path / "run", to="megatron-bridge", options={"bridge_version": version})
    assert launch_of(tmp_path / "run").framework == f"Megatron-Bridge {version}"


@pytest.mark.parametrize("names", ["legacy", "mcore"])  # files of ranks, and a distributed folder
def test_what_lightning_saved_is_started_where_it_lies(tmp_path, names) -> None:
    write_ir(tmp_path / "m", example("llama", **{"attention.groups": 12}))
    out, options = tmp_path / "out", {"container": "ckpt", "names": names}
    convert(tmp_path / "m", out, to="nemo", tp=2, options=options)
    kept = json.loads((out / "ckpt-receipt.json").read_text())["target"]["launch"]
    found = launch_of(out)
    assert found.to_json()["command"] == kept["command"]
    said = {one.name.rpartition(".")[2]: one.value for one in found.arguments}
    assert said["hparams_file"] == str(out / "hparams.yaml")
    assert list(Path(said["checkpoint_dir"]).rglob(said["checkpoint_name"]))
    assert launch_of(out / "checkpoints").words == found.words


def test_one_checkpoint_of_a_t5_is_started_by_its_own_name() -> None:
    saved = GOLDENS / "ul2_legacy_false_ckpt" / "checkpoint"
    (file,) = saved.glob("*.ckpt")
    said = {one.name.rpartition(".")[2]: one.value for one in launch_of(file).arguments}
    assert (said["checkpoint_dir"], said["checkpoint_name"]) == (str(saved), file.name)


def test_a_nemo_that_computes_it_is_started(tmp_path) -> None:
    """NeMo 1.23 ignores qkv_bias; the script of NeMo 2.0 puts its own config over all of the archive's."""
    usual = launched(tmp_path, "llama", to="nemo", options={"names": "mcore"})
    newer = launched(tmp_path, "biased", to="nemo")
    assert usual.framework == "NeMo 1.23" and usual.program[2] == "megatron_gpt_continue_training.py"
    assert newer.framework == "NeMo 2.0" and newer.program[2] == "megatron_gpt_pretraining.py"
    assert {"++model.qkv_bias=true", "++model.hidden_size=288", "++model.transformer_engine=true"} <= {*newer.words}
    with pytest.raises(Refusal, match=r"no argument of NeMo 2\.0 says container"):
        launched(tmp_path, "biased", to="nemo", options={"container": "ckpt"})


def test_tensor_and_expert_parallel_ranks_have_sequences_split(tmp_path) -> None:
    """Megatron-Core refuses to build a config of both without it."""
    write_ir(tmp_path / "m", example("moe", mlp__moe__shared=ABSENT))
    for ranks in ({"tp": 2, "ep": 2}, {"tp": 2}, {"ep": 2}):
        convert(tmp_path / "m", tmp_path / "out", to="megatron", overwrite=True, **ranks)
        assert ("--sequence-parallel" in launch_of(tmp_path / "out").words) is (len(ranks) == 2)
        convert(tmp_path / "m", tmp_path / "nemo", to="nemo2", overwrite=True, **ranks)
        context = (tmp_path / "nemo/context/model.yaml").read_text()
        assert ("sequence_parallel: true" in context) is (len(ranks) == 2)


def test_experts_are_said_of_a_model_that_has_them_alone(tmp_path) -> None:
    """Megatron-LM saves `moe_grouped_gemm` as False with a dense model, whatever runs its linear layers."""
    dense = launched(tmp_path, "llama", to="megatron")
    assert not [word for word in dense.words if "moe" in word or "expert" in word]
    write_ir(tmp_path / "m", example("moe", mlp__moe__shared=ABSENT), sparse=True)
    assert "--moe-grouped-gemm" in launch_of(tmp_path / "m", to="megatron").words


def test_the_receipt_and_the_summary_say_how_to_start(tmp_path, capsys) -> None:
    launched(tmp_path, "qwen3", to="megatron")
    out = tmp_path / "out"
    assert main(["convert", str(tmp_path / "llama" / "qwen3"), str(out), "--to", "megatron"]) == 0
    assert f"does not take 1 argument from the checkpoint: see ckpt launch {out}" in capsys.readouterr().out
    kept = json.loads((out / "ckpt-receipt.json").read_text())["target"]["launch"]
    assert main(["launch", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert kept["command"] == shown["command"] and "--qk-layernorm" in shown["command"]
    assert main(["inspect", str(out)]) == 0
    assert f"ckpt launch {out}: how its framework starts with it" in capsys.readouterr().out
    assert main(["launch", str(out)]) == 0
    text = capsys.readouterr().out
    assert "#   --qk-layernorm    (its own: False)\n" in text and " \\\n  --qk-layernorm \\\n" in text


def test_a_format_that_nothing_trains_is_refused(tmp_path, capsys) -> None:
    write_ir(tmp_path / "m", example("llama"))
    assert main(["launch", str(tmp_path / "m")]) == 1
    assert "no training program starts from a checkpoint of format ir" in capsys.readouterr().err


def test_overrides_are_read_back_as_they_were_meant() -> None:
    assert override("a", "1e-5") == "a='1e-5'" and override("a", 1e-5) == "a=1e-05"
    assert override("a", {"b": [True, None, "x y"]}) == "a={b:[true,null,'x y']}"


def test_silent_is_what_a_framework_would_compute_otherwise() -> None:
    assert Argument("eps", 1e-6, default=1e-5).silent and Argument("eps", 1e-6, default=UNKNOWN).silent
    assert not Argument("eps", 1e-6, default=1e-6).silent
    assert not Argument("eps", 1e-6, default=1e-5, taken=True).silent
    assert not Argument("load", "x", model=False).silent


def test_a_default_that_there_is_none_of_has_a_name() -> None:
    assert (
        repr(Argument("eps", 1e-6))
        == "Argument(name='eps', value=1e-06, words=(), default=UNKNOWN, taken=False, model=True)"
    )
    for one in (pickle.loads(pickle.dumps(UNKNOWN)), copy.deepcopy(UNKNOWN)):
        assert one is UNKNOWN
