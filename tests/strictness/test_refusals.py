"""What a target cannot hold is refused by name, and so is a request that makes no sense."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ckpt_tests import tiny
from ckpt_tests.folders import assert_nothing_at, contents
from ckpt_tests.program import assert_refused, ckpt

PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 5}

# family, overrides, target, what the refusal names
# fmt: off
NANOTRON = [
    ("llama",      {"rope_parameters": PLAIN},                    "0.4",  ["rope_theta", "500000"]),
    ("llama",      {"rope_parameters": LINEAR},                   "0.4",  ["rope"]),
    ("llama",      {"rope_parameters": LLAMA3},                   "0.4",  ["rope", "llama3"]),
    ("llama",      {"rope_parameters": LLAMA3},                   "main", ["rope", "llama3"]),
    ("llama",      {"head_dim": 10},                              "0.4",  ["head_dim", "10"]),
    ("llama",      {"head_dim": 10},                              "main", ["head_dim", "10"]),
    ("llama",      {"attention_bias": True},                      "0.4",  ["bias"]),
    ("llama",      {"attention_bias": True},                      "main", ["attention.out_bias"]),
    ("llama",      {"mlp_bias": True},                            "main", ["mlp.up_bias", "mlp.down_bias"]),
    ("llama",      {"hidden_act": "quick_gelu"},                  "main", ["gelu_quick"]),
    ("qwen2",      {},                                            "0.4",  ["bias"]),
    ("qwen2_moe",  {},                                            "0.4",  ["moe"]),
    ("qwen2_moe",  {"norm_topk_prob": True},                      "main", ["mlp.moe.router.normalise is always False"]),
    ("smollm3",    {},                                            "0.4",  ["nanotron 0.4", "attention.rotary"]),
    ("smollm3",    {"no_rope_layers": [0, 1, 1]},                 "main", ["attention.rotary"]),
    ("smollm3",    {"no_rope_layers": [0, 0, 0]},                 "main", ["rotary"]),
    ("mistral",    {"sliding_window": 5},                         "0.4",  ["nanotron 0.4", "attention.window"]),
    ("qwen2",      WINDOWS | {"max_window_layers": 1},            "main", ["window"]),
    ("starcoder2", {"tie_word_embeddings": False},                "main", ["head.tied"]),
    ("starcoder2", {"use_bias": False},                           "main", ["bias"]),
    ("starcoder2", {"rope_parameters": LINEAR},                   "main", ["attention.rotary.scaling.kind = linear"]),
    ("starcoder2", {"rope_parameters": PLAIN | {"rope_theta": 1.5}}, "main", ["rope_theta", "1.5"]),
]
# fmt: on


@pytest.mark.parametrize(
    ("family", "overrides", "target", "names"),
    NANOTRON,
    ids=[f"{f} {' '.join(o) or 'as it is'} {t}" for f, o, t, _ in NANOTRON],
)
def test_what_a_release_cannot_express_is_refused(
    family: str, overrides: dict, target: str, names: list[str], tmp_path: Path
) -> None:
    tiny.build(tmp_path / "hf", family, **overrides)
    assert_refused(tmp_path / "hf", *names, to="nanotron", arguments=("-o", f"target={target}"))


# family, overrides, class asked for, what the refusal names
CLASSES = [
    ("llama", {}, "Qwen2ForCausalLM", ["attention.q_bias"]),
    ("llama", {"rope_parameters": LLAMA3}, "Starcoder2ForCausalLM", ["mlp.gated"]),
    ("llama", {"mlp_bias": True}, "MistralForCausalLM", ["mlp.up_bias"]),
    ("mistral", {"sliding_window": 5}, "LlamaForCausalLM", ["attention.window"]),
    ("smollm3", {}, "LlamaForCausalLM", ["attention.rotary"]),
    ("qwen2", {}, "Qwen2MoeForCausalLM", ["mlp.moe"]),
    ("qwen2_moe", {}, "Qwen2ForCausalLM", ["mlp.moe"]),
    ("starcoder2", {}, "LlamaForCausalLM", ["norm.kind"]),
]


@pytest.mark.parametrize(
    ("family", "overrides", "wanted", "names"), CLASSES, ids=[f"{f} as {w}" for f, _, w, _ in CLASSES]
)
def test_a_class_that_is_not_exact_is_refused(
    family: str, overrides: dict, wanted: str, names: list[str], tmp_path: Path
) -> None:
    tiny.build(tmp_path / "hf", family, **overrides)
    assert_refused(tmp_path / "hf", wanted, *names, to="hf", arguments=("-o", f"hf_class={wanted}"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama")
    return folder


# arguments of a conversion to nanotron, exit code, what is named
# fmt: off
REQUESTS = [
    (["--tp", "3"],                          1, ["tp=3", "key-value heads"]),
    (["--tp", "8"],                          1, ["tp=8", "12 query heads", "4 key-value heads"]),
    (["--pp", "4"],                          1, ["pp=4", "3 layers"]),
    (["--tp", "0"],                          2, ["--tp"]),
    (["--tp", "-1"],                         2, ["--tp"]),
    (["--ep", "2"],                          2, ["--ep", "nanotron"]),
    (["-o", "targte=0.4"],                   2, ["'targte'", "did you mean 'target'"]),
    (["-o", "target=0.3"],                   2, ["'0.3'", "0.4 | main"]),
    (["-o", "target=Main"],                  2, ["'Main'", "did you mean 'main'"]),
    (["-o", "rope_interleaved=maybe"],       2, ["rope_interleaved", "'maybe'"]),
    (["-o", "target=0.4", "-o", "rope_interleaved=false"], 1, ["0.4", "rope_interleaved"]),
    (["-o", "container=bin"],                2, ["'container'"]),
    (["-o", "make_vocab_size_divisible_by=x"], 2, ["make_vocab_size_divisible_by", "'x'"]),
    (["--weights", "master"],                1, ["master"]),
    (["--dtype", "int8"],                    2, ["int8"]),
    (["--max-memory", "1MiB"],               1, ["memory budget is too small", "found: 1 MiB", "fix: --max-memory "]),
    (["--from", "nanotron"],                 1, ["latest.txt", "step"]),
    (["--from", "nanotorn"],                 2, ["'nanotorn'", "did you mean 'nanotron'"]),
    (["--config", "absent.json"],            1, ["absent.json"]),
]
# fmt: on


@pytest.mark.parametrize(
    ("arguments", "code", "names"), REQUESTS, ids=[" ".join(arguments) for arguments, _, _ in REQUESTS]
)
def test_a_request_that_cannot_be_served_is_refused(
    model: Path, arguments: list[str], code: int, names: list[str]
) -> None:
    assert_refused(model, *names, to="nanotron", code=code, arguments=tuple(arguments))


def test_an_unknown_target_format_is_refused(model: Path) -> None:
    assert_refused(model, "'nanotorn'", "did you mean 'nanotron'", to="nanotorn", code=2)


def test_a_target_without_ranks_refuses_them(model: Path) -> None:
    assert_refused(model, "--tp", "hf", to="hf", code=2, arguments=("--tp", "2"))


def test_a_destination_that_exists_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    before = contents(tmp_path)
    code, text = ckpt("convert", model, tmp_path / "out", "--to", "hf")
    assert code == 1
    assert "the destination exists" in text
    assert "--overwrite" in text
    assert contents(tmp_path) == before


def test_a_destination_that_is_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    code, text = ckpt("convert", model, tmp_path / "out", "--to", "hf")
    assert (code, (tmp_path / "out").read_text()) == (1, "mine")
    assert "the destination exists" in text


def test_an_empty_folder_may_be_the_destination(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert ckpt("convert", model, tmp_path / "out", "--to", "hf")[0] == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
@pytest.mark.parametrize("place", [".", "inside", "..", "link"])
def test_a_destination_that_touches_the_source_is_refused(
    model: Path, place: str, overwrite: tuple[str, ...], tmp_path: Path
) -> None:
    source = tmp_path / "parent" / "hf"
    source.parent.mkdir()
    shutil.copytree(model, source)
    (tmp_path / "link").symlink_to(source)
    destination = tmp_path / "link" if place == "link" else source / place
    before = contents(tmp_path)
    code, text = ckpt("convert", source, destination, "--to", "nanotron", *overwrite)
    assert code == 1
    assert "source" in text
    assert contents(tmp_path) == before


def test_a_destination_in_no_folder_is_refused(model: Path, tmp_path: Path) -> None:
    code, text = ckpt("convert", model, tmp_path / "absent" / "out", "--to", "hf")
    assert code == 1
    assert "parent folder does not exist" in text
    assert_nothing_at(tmp_path / "absent")


def test_fp16_that_overflows_is_refused_by_name(tmp_path: Path) -> None:
    """Found while the values are read, after the staging folder is made: nothing may stay."""
    folder = tmp_path / "hf"
    tiny.build(folder, "llama")
    held = load_file(folder / "model.safetensors")
    held["model.layers.2.mlp.up_proj.weight"][3, 4] = 70000.0
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(folder, "layers.2.mlp.up.weight does not fit fp16", "70000", to="hf", arguments=("--dtype", "fp16"))
