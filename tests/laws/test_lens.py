"""Reading and writing undo each other, and transformers computes the same logits before and after."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import nanotron, tiny
from ckpt_tests.folders import assert_same_bits, contents
from ckpt_tests.models import load, logits_of, weights

EXACT = 1e-5
FAMILIES = list(tiny.CONFIGS)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """An HF folder of every family in every dtype, written by transformers."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        for name, dtype in DTYPES.items():
            tiny.build(root / f"{family}-{name}", family, dtype)
    return {(family, name): root / f"{family}-{name}" for family in FAMILIES for name in DTYPES}


def assert_same_ir(one: Path, two: Path) -> None:
    """Equal architectures, dtypes and values, canonical tensor by canonical tensor."""
    with open_checkpoint(one) as left, open_checkpoint(two) as right:
        pads = [side.architecture.tokens.padded_vocabulary for side in (left, right)]
        rows = left.architecture.tokens.vocabulary
        assert rows == right.architecture.tokens.vocabulary
        if pads[0] == pads[1]:
            assert left.architecture == right.architecture
        assert list(left) == list(right)
        for name in left:
            assert left[name].dtype == right[name].dtype, name
            a, b = left[name].raw(), right[name].raw()
            if left[name].axes[0].name == "v":
                assert not b[rows:].any(), f"{name} is padded with something"
                a, b = a[:rows], b[:rows]
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), err_msg=name)
    assert fingerprint(one) == fingerprint(two)


# --- HF --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_hf_files_come_back_byte_for_byte(models: dict, family: str, dtype: str, tmp_path: Path) -> None:
    source = models[family, dtype]
    convert(source, tmp_path / "hf", to="hf")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert tiny.auto_config(tmp_path / "hf") == tiny.auto_config(source)
    stated = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert stated["dtype"] == stated["torch_dtype"] == str(DTYPES[dtype]).removeprefix("torch.")
    assert stated["architectures"] == [type(load(source)).__name__]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ir_holds_what_hf_holds(models: dict, family: str, dtype: str, tmp_path: Path) -> None:
    """fp32 on the way, and the source's own bits again at its end."""
    source = models[family, dtype]
    convert(source, tmp_path / "ir", to="ir")
    assert fingerprint(tmp_path / "ir") == fingerprint(source)
    convert(tmp_path / "ir", tmp_path / "hf", to="hf", dtype=dtype)
    assert_same_bits(weights(tmp_path / "hf"), weights(source))
    assert_same_ir(tmp_path / "hf", source)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_written_by_transformers_are_read(models: dict, family: str, tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "sharded", family, shard="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert_same_ir(tmp_path / "sharded", models[family, "fp32"])
    convert(tmp_path / "sharded", tmp_path / "hf", to="hf")
    assert torch.equal(logits_of(load(tmp_path / "hf"), tiny.tokens()), logits_of(model, tiny.tokens()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_state_dict_is_read(models: dict, family: str, tmp_path: Path) -> None:
    """`torch.save(model.state_dict())`, with a tied head's copy and, in transformers 5, fused experts."""
    source = models[family, "fp32"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    torch.save(load(source).state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_ir(tmp_path, source)


def test_views_of_larger_tensors_are_read(models: dict, tmp_path: Path) -> None:
    """torch.save keeps strides: elements then lie one by one in the file, near together or far apart."""
    source = models["llama", "fp32"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    views = {}
    for number, (name, tensor) in enumerate(weights(source).items()):
        inner = (2, 20, 600)[number % 3]
        room = torch.full((*tensor.shape, inner), torch.nan)
        views[name] = room[..., 0].copy_(tensor)
    torch.save(views, tmp_path / "pytorch_model.bin")
    assert_same_ir(tmp_path, source)


# --- Nanotron ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_nanotron_holds_what_hf_holds_in_every_layout(models: dict, family: str, tmp_path: Path) -> None:
    source = models[family, "fp32"]
    for tp, pp in tiny.LAYOUTS:
        run = tmp_path / f"tp{tp}pp{pp}"
        convert(source, run, to="nanotron", tp=tp, pp=pp)
        assert_same_ir(source, run)
        assert_stages_in_order(run, tp, pp)


def assert_stages_in_order(run: Path, tp: int, pp: int) -> None:
    """Every sharded parameter has a file per rank, on one stage; the embedding on the first, layers never back."""
    stages: dict[str, set[int]] = {}
    ranks: dict[str, list[int]] = {}
    for path in (run / "0" / "model").rglob("*_pp-rank-*"):
        stage, stages_, rank, ranks_ = map(
            int, re.search(r"pp-rank-(\d+)-of-(\d+)_tp-rank-(\d+)-of-(\d+)\.", path.name).groups()
        )
        assert (stages_, ranks_) == (pp, tp)
        block = str(path.relative_to(run / "0" / "model" / "model")).partition("/pp_block")[0]
        stages.setdefault(block, set()).add(stage)
        ranks.setdefault(str(path).partition("_pp-rank")[0], []).append(rank)
    assert all(sorted(held) == list(range(tp)) for held in ranks.values())
    order = [
        *(name for name in stages if "embeddings" in name),
        *(f"decoder/{n}" for n in range(3)),
        *(name for name in stages if name == "lm_head"),
    ]
    assert sorted(order) == sorted(stages)
    found = [next(iter(stages[block])) for block in order]
    assert all(len(stages[block]) == 1 for block in order)
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] in (
        pp - 1,
        pp - 2 if "lm_head" not in stages else pp - 1,
    )  # a tied head has no file on the last stage


@pytest.mark.parametrize("family", FAMILIES)
def test_nanotron_files_come_back_byte_for_byte(models: dict, family: str, tmp_path: Path) -> None:
    for tp, pp in (tiny.LAYOUTS[0], tiny.LAYOUTS[-1]):
        one, two = tmp_path / f"tp{tp}pp{pp}", tmp_path / f"tp{tp}pp{pp}again"
        convert(models[family, "fp32"], one, to="nanotron", tp=tp, pp=pp)
        convert(one, two, to="nanotron", tp=tp, pp=pp)
        assert contents(two / "0" / "model") == contents(one / "0" / "model")
        for name in ("model_config.json", "checkpoint_metadata.json"):
            assert (two / "0" / name).read_bytes() == (one / "0" / name).read_bytes()


@pytest.mark.parametrize("interleaved", ["true", "false"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_hf_by_way_of_nanotron_is_the_original(
    models: dict, family: str, dtype: str, interleaved: str, tmp_path: Path
) -> None:
    source = models[family, dtype]
    convert(source, tmp_path / "run", to="nanotron", tp=2, pp=2, options={"rope_interleaved": interleaved})
    convert(tmp_path / "run", tmp_path / "hf", to="hf", dtype=dtype)  # nanotron keeps routers in fp32
    assert_same_bits(weights(tmp_path / "hf"), weights(source))
    before, after = tiny.auto_config(source), tiny.auto_config(tmp_path / "hf")
    # nanotron's Starcoder2Config has no pad_token_id: generation_config.json, which goes along, brings it back
    assert after == before
    if dtype == "fp32":
        before, after = (logits_of(load(folder), tiny.tokens()) for folder in (source, tmp_path / "hf"))
        assert (before - after).abs().max() <= EXACT


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_interleaving_moves_the_rows_of_each_head(models: dict, family: str, tmp_path: Path) -> None:
    """Row 2j of an interleaved head is row j of a half-split one, row 2j + 1 is row half + j; values are left alone."""
    merged = {}
    for interleaved in ("true", "false"):
        run = tmp_path / interleaved
        convert(models[family, "fp32"], run, to="nanotron", tp=2, options={"rope_interleaved": interleaved})
        merged[interleaved] = nanotron.merged(run)
    for name, half in merged["false"].items():
        if ".qkv_proj." not in name:
            assert torch.equal(merged["true"][name], half), name
            continue
        q, k, v = half.split([96, 32, 32])
        expected = [one.reshape(-1, 2, 4, *one.shape[1:]).transpose(1, 2).reshape(one.shape) for one in (q, k)]
        assert torch.equal(merged["true"][name], torch.cat([*expected, v])), name


# --- every field that changes the function ----------------------------------------------------------------------------------


def rope(kind: str, theta: float = 10000.0, **parameters: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


LONG = [1.0 + 0.25 * n for n in range(4)]
SPARSE = {"use_sliding_window": True, "sliding_window": 5}

# fmt: off
VARIANTS = {
    "llama theta":                ("llama", rope("default", theta=500000.0)),
    "llama rope linear":          ("llama", rope("linear", factor=4.0)),
    "llama rope dynamic":         ("llama", rope("dynamic", factor=3.0) | {"max_position_embeddings": 8}),
    "llama rope llama3":          ("llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama rope yarn":            ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama rope yarn, all":       ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.25, beta_fast=24.0,
                                                 beta_slow=2.0, truncate=False)),
    "llama rope yarn, mscale":    ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.2)),
    "llama rope longrope":        ("llama", rope("longrope", original_max_position_embeddings=16, short_factor=LONG, long_factor=LONG[::-1], factor=4.0)),
    "llama rope longrope, scale": ("llama", rope("longrope", original_max_position_embeddings=16, short_factor=LONG, long_factor=LONG[::-1],
                                                 attention_factor=1.5)),
    "llama attention biases":     ("llama", {"attention_bias": True}),
    "llama mlp biases":           ("llama", {"mlp_bias": True}),
    "llama tied":                 ("llama", {"tie_word_embeddings": True}),
    "llama head_dim":             ("llama", {"head_dim": 10}),
    "llama no groups":            ("llama", {"num_key_value_heads": 12}),
    "llama one group":            ("llama", {"num_key_value_heads": 1}),
    "llama eps":                  ("llama", {"rms_norm_eps": 0.3}),
    "llama gelu":                 ("llama", {"hidden_act": "gelu"}),
    "llama gelu_new":             ("llama", {"hidden_act": "gelu_new"}),
    "llama gelu_fast":            ("llama", {"hidden_act": "gelu_fast"}),
    "llama gelu_python":          ("llama", {"hidden_act": "gelu_python"}),
    "llama gelu_pytorch_tanh":    ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama quick_gelu":           ("llama", {"hidden_act": "quick_gelu"}),
    "llama relu":                 ("llama", {"hidden_act": "relu"}),
    "llama relu2":                ("llama", {"hidden_act": "relu2"}),
    "llama swish":                ("llama", {"hidden_act": "swish"}),
    "mistral window":             ("mistral", {"sliding_window": 5}),
    "mistral head_dim":           ("mistral", {"head_dim": 10}),
    "mistral tied":               ("mistral", {"tie_word_embeddings": True}),
    "qwen2 windows everywhere":   ("qwen2", SPARSE | {"max_window_layers": 0}),
    "qwen2 windows at the end":   ("qwen2", SPARSE | {"max_window_layers": 1}),
    "qwen2 windows beyond":       ("qwen2", SPARSE | {"max_window_layers": 28}),
    "qwen2 windows by type":      ("qwen2", SPARSE | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen2 window unused":        ("qwen2", {"use_sliding_window": False, "sliding_window": 5}),
    "qwen2 tied":                 ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn":                 ("qwen2", rope("yarn", theta=1e6, factor=4.0, original_max_position_embeddings=16)),
    "qwen2_moe normalised":       ("qwen2_moe", {"norm_topk_prob": True}),
    "qwen2_moe without biases":   ("qwen2_moe", {"qkv_bias": False}),
    "qwen2_moe every second":     ("qwen2_moe", {"decoder_sparse_step": 2}),
    "qwen2_moe dense layers":     ("qwen2_moe", {"mlp_only_layers": [0, 2]}),
    "qwen2_moe windows":          ("qwen2_moe", SPARSE | {"max_window_layers": 3}),
    "qwen2_moe windows by type":  ("qwen2_moe", SPARSE | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    "smollm3 all rotate":         ("smollm3", {"no_rope_layers": [1, 1, 1]}),
    "smollm3 none rotates":       ("smollm3", {"no_rope_layers": [0, 0, 0]}),
    "smollm3 pattern":            ("smollm3", {"no_rope_layers": [0, 1, 1]}),
    "smollm3 windows":            ("smollm3", SPARSE),
    "smollm3 windows by type":    ("smollm3", SPARSE | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
    "smollm3 biases":             ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "smollm3 untied":             ("smollm3", {"tie_word_embeddings": False}),
    "starcoder2 window":          ("starcoder2", {"sliding_window": 5}),
    "starcoder2 without biases":  ("starcoder2", {"use_bias": False}),
    "starcoder2 untied":          ("starcoder2", {"tie_word_embeddings": False}),
    "starcoder2 erf gelu":        ("starcoder2", {"hidden_act": "gelu"}),
    "starcoder2 eps":             ("starcoder2", {"norm_epsilon": 0.3}),
}
# fmt: on


@pytest.mark.parametrize(("family", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_a_field_away_from_its_default_survives(family: str, overrides: dict[str, object], tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "hf", family, **overrides)
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    back = load(tmp_path / "back")
    assert type(back) is type(model)
    expected = logits_of(model, tiny.tokens())
    assert expected.std() > 0.1
    assert (logits_of(back, tiny.tokens()) - expected).abs().max() <= EXACT
    for one, two in zip(buffers(model), buffers(back), strict=True):
        assert torch.equal(one, two)
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))


def buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    """Rotary frequencies, and the factor on their sines."""
    rotary = model.model.rotary_emb
    return [rotary.inv_freq, torch.tensor(rotary.attention_scaling)]


def test_the_variants_are_different_models(tmp_path: Path) -> None:
    """What the test above would miss if an override did nothing: each gives logits of its own."""
    same = {
        "llama rope yarn, mscale",
        "llama gelu_python",
        "llama swish",
        "qwen2 windows beyond",
        "qwen2 window unused",
        "mistral head_dim",
    }
    base = {family: logits_of(tiny.build(tmp_path / family, family), tiny.tokens()) for family in FAMILIES}
    for name, (family, overrides) in VARIANTS.items():
        if name not in same:
            changed = logits_of(tiny.build(tmp_path / name, family, **overrides), tiny.tokens())
            assert (changed - base[family]).abs().max() > 1e-4, name


# --- the two forms of rotary keys -----------------------------------------------------------------------------------------------

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

# what transformers 4 wrote, what transformers 5 writes
# fmt: off
FORMS = {
    "plain":               ({"rope_theta": 25000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 25000.0}}),
    "scaling is null":     ({"rope_theta": 25000.0, "rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 25000.0}}),
    "linear, old name":    ({"rope_theta": 25000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
                            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 25000.0}}),
    "both names of type":  ({"rope_theta": 25000.0, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
                            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 25000.0}}),
    "dynamic":             ({"rope_theta": 25000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
                            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 25000.0}}),
    "llama3":              ({"rope_theta": 25000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
                            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 25000.0, **LLAMA3}}),
    "yarn":                ({"rope_theta": 25000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
                            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 25000.0}}),
    "yarn, length implied": ({"rope_theta": 25000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
                            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 25000.0}}),
    "theta left out":      ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
                            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
}
# fmt: on


def with_rotary_keys(source: Path, folder: Path, keys: dict[str, object]) -> Path:
    """A copy of a model whose config has these rotary keys and no others."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    for key in ("rope_parameters", "rope_theta", "rope_scaling"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | keys))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder


@pytest.mark.parametrize(("four", "five"), FORMS.values(), ids=FORMS)
def test_both_forms_of_rotary_keys_are_read_alike_and_written_so_that_both_are_right(
    models: dict, four: dict, five: dict, tmp_path: Path
) -> None:
    source = models["llama", "fp32"]
    folders = [
        with_rotary_keys(source, tmp_path / name, keys)
        for name, keys in (("4", four), ("5", five), ("4+5", {**four, **five}))
    ]
    expected = buffers(load(folders[1]))
    assert len({open_checkpoint(folder).architecture for folder in folders}) == 1
    for folder in folders:
        convert(folder, tmp_path / f"{folder.name}-hf", to="hf")
        written = tmp_path / f"{folder.name}-hf"
        for one, two in zip(buffers(load(written)), expected, strict=True):
            assert torch.equal(one, two)
        stated = json.loads((written / "config.json").read_text())
        new = stated.pop("rope_parameters")
        for old_style in ({"rope_parameters": new}, {key: stated[key] for key in ("rope_theta", "rope_scaling")}):
            alone = with_rotary_keys(source, tmp_path / f"{folder.name}-{len(old_style)}", old_style)
            for one, two in zip(buffers(load(alone)), expected, strict=True):
                assert torch.equal(one, two)


CONFLICTS = {
    "theta": {"rope_theta": 500000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "kind": {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "factor": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("keys", CONFLICTS.values(), ids=CONFLICTS)
def test_forms_that_disagree_are_refused(models: dict, keys: dict, tmp_path: Path) -> None:
    folder = with_rotary_keys(models["llama", "fp32"], tmp_path / "hf", keys)
    with pytest.raises(CkptError, match="rope_parameters and rope_theta/rope_scaling disagree"):
        open_checkpoint(folder)
