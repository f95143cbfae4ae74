"""The order in which classes register their parameters, and which of them the Trainer decays, judged by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.trainer_pt_utils import get_parameter_names

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import NotCarried
from ckpt_core.sdk import architecture_of, layouts
from ckpt_core.training import MOMENTS
from ckpt_hf.config import BY_TYPE
from ckpt_hf.registered import _ORDERS, is_decayed, registered
from ckpt_tests.families import CASES, SIZES

_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # trainer.py, 5.24
MODELS = {
    **{name: (name, SIZES) for name in ("llama", "mistral", "qwen2", "smollm3")},
    **{name: (case.model_type, case.config) for name, case in CASES.items() if case.model_type in _ORDERS},
}


def test_every_order_is_judged() -> None:
    assert {model_type for model_type, _ in MODELS.values()} == _ORDERS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_order_and_the_groups_are_those_of_transformers(name: str) -> None:
    model_type, given = MODELS[name]
    config = CONFIG_MAPPING[model_type](**given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [name for name, _ in model.named_parameters()]
    family = BY_TYPE[model_type]
    body = json.loads(config.to_json_string(use_diff=False)) | {"model_type": model_type}
    facts, _ = family.config.read(family.as_stored(body, set(names), lambda one, other: False), "config.json")
    tables = family.spellings(family.arranged_by(body))[-1]
    natives = layouts.BoundTables(tables, architecture_of(facts, "config.json")).natives()
    assert registered(model_type, family.class_name, natives) == names
    decayed = get_parameter_names(model, [torch.nn.LayerNorm], _NOT_DECAYED)
    assert [name for name in names if is_decayed(name)] == [name for name in names if name in decayed]


def test_a_class_whose_order_is_not_known_is_refused() -> None:
    for model_type, class_name in (("gpt2", "GPT2LMHeadModel"), ("llama", "LlamaForSequenceClassification")):
        with pytest.raises(NotCarried, match=f"the order in which {class_name} registers them is not known"):
            registered(model_type, class_name, {})


# --- transformers 4, whose experts are modules: as `named_parameters()` of 4.57 has a layer, of experts 0 and 11 of twelve --------

_LATENT_OF_4 = "q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj"
_EXPERT_OF_4 = "mlp.experts.{} gate_proj up_proj down_proj"
_SHARED_OF_4 = "mlp.shared_experts gate_proj up_proj down_proj"
OF_4 = {
    "mixtral": [
        "self_attn q_proj k_proj v_proj o_proj",
        "block_sparse_moe gate",
        "block_sparse_moe.experts.{} w1 w2 w3",
    ],
    "qwen3_moe": ["self_attn q_proj k_proj v_proj o_proj q_norm k_norm", "mlp gate", _EXPERT_OF_4],
    "olmoe": ["self_attn q_proj k_proj v_proj o_proj q_norm k_norm", "mlp gate", _EXPERT_OF_4],
    "deepseek_v2": [f"self_attn {_LATENT_OF_4}", _EXPERT_OF_4, "mlp gate", _SHARED_OF_4],
}
OF_4_FUSED = {
    "granitemoe": ["self_attn q_proj k_proj v_proj o_proj", "block_sparse_moe input_linear output_linear router.layer"],
}
SIZES_OF_4 = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 50,
}
FURTHER_OF_4: dict[str, dict[str, int]] = {
    "mixtral": {"num_local_experts": 12},
    "qwen3_moe": {"num_experts": 12, "moe_intermediate_size": 8},
    "olmoe": {"num_experts": 12},
    "granitemoe": {"num_local_experts": 12},
    "deepseek_v2": {
        "n_routed_experts": 12, "n_shared_experts": 2, "first_k_dense_replace": 0, "moe_intermediate_size": 8, "num_experts_per_tok": 2,
        "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8,
    },
}  # fmt: skip


def of_4(model_type: str) -> list[str]:
    """The parameters in the order of transformers 4.57."""
    names = ["model.embed_tokens.weight"]
    for layer in range(2):
        for group in (OF_4 | OF_4_FUSED)[model_type]:
            module, *parts = group.split()
            for expert in range(12) if "{}" in module else [0]:
                names += [f"model.layers.{layer}.{module.format(expert)}.{part}.weight" for part in parts]
        names += [f"model.layers.{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]
    return [*names, "model.norm.weight", "lm_head.weight"]


def model_of_4(model_type: str, folder: Path) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A folder of such a model, and the shapes of its parameters."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SIZES_OF_4, **FURTHER_OF_4[model_type]))
    model.save_pretrained(folder)  # with a tensor for each expert, as transformers 4 has them in memory, too
    with safe_open(folder / "model.safetensors", "pt") as held:
        return folder, {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118


def optimizer_of(names: list[str], shapes: dict[str, tuple[int, ...]], **said: object) -> dict[str, Any]:
    """A state of torch's AdamW after 4 steps, of the groups of the Trainer."""
    generator = torch.Generator().manual_seed(3)
    split = [[name for name in names if is_decayed(name)], [name for name in names if not is_decayed(name)]]
    numbers = {name: number for number, name in enumerate([*split[0], *split[1]])}
    state = {
        number: {"step": torch.tensor(4.0), **{k: torch.rand(shapes[n], generator=generator) for k in MOMENTS}}
        for n, number in numbers.items()
    }
    usual = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, **said}
    groups = [
        usual | {"weight_decay": wd, "params": [numbers[n] for n in of]}
        for wd, of in zip((0.1, 0.0), split, strict=True)
    ]
    return {"state": state, "param_groups": groups}


@pytest.mark.parametrize("model_type", OF_4)
def test_an_optimizer_of_transformers_4_has_a_state_for_each_expert(model_type: str, tmp_path: Path) -> None:
    folder, shapes = model_of_4(model_type, tmp_path)
    names = of_4(model_type)
    assert set(names) == shapes.keys()
    optimizer = optimizer_of(names, shapes)
    torch.save(optimizer, folder / "optimizer.pt")
    numbers = {name: n for n, name in enumerate(sorted(names, key=lambda name: not is_decayed(name)))}
    downs = [
        name
        for name in names
        if name.startswith("model.layers.1.")
        and name.endswith(("down_proj.weight", "w2.weight"))
        and "experts." in name
        and "shared" not in name
    ]
    with open_checkpoint(folder, training_state="keep") as found:
        for kind in MOMENTS:
            expected = torch.stack([optimizer["state"][numbers[name]][kind] for name in downs])
            assert torch.equal(
                torch.from_numpy(found.moment(kind, "layers.1.mlp.experts.down.weight").numpy()), expected
            )
            q = optimizer["state"][numbers["model.layers.1.self_attn.o_proj.weight"]][kind]
            out = next(name for name in found if name.startswith("layers.1.") and name.endswith("attention.out.weight"))
            assert torch.equal(torch.from_numpy(found.moment(kind, out).numpy()).reshape(q.shape), q)


def test_an_optimizer_of_transformers_4_has_the_router_of_granitemoe_elsewhere(tmp_path: Path) -> None:
    """Its experts are fused in both, so that shapes alone tell them apart. The weights are the moments here: each has its own."""
    folder, shapes = model_of_4("granitemoe", tmp_path)
    names = of_4("granitemoe")
    assert set(names) == shapes.keys()
    optimizer = optimizer_of(names, shapes)
    torch.save(optimizer, folder / "optimizer.pt")
    numbers = {name: n for n, name in enumerate(sorted(names, key=lambda name: not is_decayed(name)))}
    save_file({name: optimizer["state"][numbers[name]]["exp_avg"] for name in names}, folder / "model.safetensors")
    with open_checkpoint(folder, training_state="keep") as found:
        assert len(found) > 20
        for name in found:
            assert (found.moment("exp_avg", name).numpy() == found[name].numpy()).all()


def test_experts_without_tokens_are_named(tmp_path: Path) -> None:
    """torch passes by what has no gradient: such an expert has no state, or has made fewer steps."""
    folder, shapes = model_of_4("mixtral", tmp_path / "run")
    names = of_4("mixtral")
    expert = sorted(names, key=lambda name: not is_decayed(name)).index(
        "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    )

    def refused(optimizer: dict[str, Any], message: str) -> None:
        torch.save(optimizer, folder / "optimizer.pt")
        with pytest.raises(NotCarried, match=message):
            open_checkpoint(folder, training_state="keep")
        receipt = convert(folder, tmp_path / "weights", to="ir", overwrite=True)
        assert "optimizer state" in str(receipt.losses) and "training" not in receipt.body

    never = optimizer_of(names, shapes)
    del never["state"][expert]
    refused(never, r"experts\.3\.w2\.weight' was never stepped, and others of its kind were(.|\n)*got no token")
    fewer = optimizer_of(names, shapes)
    fewer["state"][expert]["step"] -= 1
    refused(fewer, r"different numbers of steps(.|\n)*experts\.3\.w2\.weight' made 3(.|\n)*an expert without tokens")
