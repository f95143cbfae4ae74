"""Pairs of experts: between PEFT's two ways to keep them and those of Megatron-Bridge, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from ckpt_core import convert, fingerprint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError
from ckpt_tests import adapters
from ckpt_tests.adapters import ALPHA, PREFIX, RANK, added, delta, pair
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import weights

BRIDGE, PEFT, EXPERTS = "megatron-lora", "peft", 3
FC1, FC2 = (f"decoder.layers.mlp.experts.experts.linear_{one}.adapter.linear_" for one in ("fc1", "fc2"))
DOWN = "model.layers.0.mlp.experts.1.down_proj"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Tensors = dict[str, torch.Tensor]


def names(layers: int = 2) -> list[str]:
    return [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}"
        for layer in range(layers)
        for expert in range(EXPERTS)
        for part in PROJECTIONS
    ]


def base(tmp_path: Path) -> Tensors:
    return adapters.base(tmp_path / "base", "qwen2_moe", torch.float32, num_experts=EXPERTS)


def adapter_of(tmp_path: Path, *, shared_down: bool = False, **config: object) -> tuple[Path, Tensors, Tensors]:
    """The folder of an adapter on every expert, its tensors, and those of the base. `shared_down`: gate and up have one A."""
    before = base(tmp_path)
    made = {key: tensor for name in names() for key, tensor in pair(name, before[f"{name}.weight"]).items()}
    if shared_down:
        made |= {
            f"{PREFIX}{name}.lora_A.weight": made[
                f"{PREFIX}{name.replace('up_proj', 'gate_proj')}.lora_A.weight"
            ].clone()
            for name in names()
            if name.endswith("up_proj")
        }
    return adapters.save(tmp_path / "adapter", made, **config), made, before


def stored(root: Path) -> Tensors:
    (folder,) = root.glob("iter_*")
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size) for name, one in metadata.items() if hasattr(one, "size")}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors


def store(root: Path, change: Callable[[Tensors, dict], object]) -> Path:
    """Save the only iteration of a run again, with other tensors and another config."""
    (folder,) = root.glob("iter_*")
    tensors, config = stored(root), yaml.safe_load((folder / "run_config.yaml").read_text())
    change(tensors, config)
    for old in (*folder.glob("*.distcp"), folder / ".metadata", *folder.glob("*receipt*")):
        old.unlink()
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    (folder / "run_config.yaml").write_text(yaml.safe_dump(config))
    return root


def merged(adapter: Path, tmp_path: Path, name: str) -> Tensors:
    convert(adapter, tmp_path / name, to="hf", options={"base": str(tmp_path / "base")})
    return weights(tmp_path / name)


def test_to_bridge_and_back(tmp_path: Path) -> None:
    """Each expert has a pair of its own there, stacked as Megatron stacks experts: `share_expert_adapters: false`."""
    adapter, made, _ = adapter_of(tmp_path, shared_down=True)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")
    (file,) = (tmp_path / "run").glob("iter_*/run_config.yaml")
    assert yaml.safe_load(file.read_text())["peft"]["share_expert_adapters"] is False

    def stack(part: str, side: str) -> torch.Tensor:
        rows = [
            [made[f"{PREFIX}model.layers.{layer}.mlp.experts.{x}.{part}.lora_{side}.weight"] for x in range(EXPERTS)]
            for layer in range(2)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    wanted = {
        f"{FC1}in.weight": stack("gate_proj", "A"),
        f"{FC1}out.weight": torch.cat([stack("gate_proj", "B"), stack("up_proj", "B")], dim=2),
        f"{FC2}in.weight": stack("down_proj", "A"),
        f"{FC2}out.weight": stack("down_proj", "B"),
    }
    assert_same_bits(stored(tmp_path / "run"), wanted)
    convert(tmp_path / "run", tmp_path / "back", to=PEFT)
    assert_same_bits(load_file(tmp_path / "back/adapter_model.safetensors"), made)


def test_the_model_is_the_same(tmp_path: Path) -> None:
    """Also where gate and up have an A each, which Megatron has one of."""
    adapter, made, before = adapter_of(tmp_path)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")
    assert main(["verify", str(adapter), str(tmp_path / "run"), "--config", str(tmp_path / "base/config.json")]) == 0
    convert(tmp_path / "run", tmp_path / "back", to=PEFT)
    wanted = {f"{name}.weight": added(before[f"{name}.weight"], delta(made, name)) for name in names()}
    for number, one in enumerate((adapter, tmp_path / "run", tmp_path / "back")):
        assert_same_bits(merged(one, tmp_path, f"hf{number}"), before | wanted)


OF_EXPERTS = [golden for golden in beside("lora", "adapter/adapter_config.json") if "experts" in str(golden)]


@pytest.mark.parametrize("golden", OF_EXPERTS, ids=str)
def test_parameters_of_all_experts_become_a_pair_for_each(golden: Golden, tmp_path: Path) -> None:
    """What PEFT keeps of a parameter (`target_parameters`) has the same product as the modules that it becomes, and in Megatron."""
    adapter, of_base = golden.folder / "adapter", {"base": str(golden.folder / "base"), "merge": "fp32"}
    convert(adapter, tmp_path / "modules", to=PEFT, config=golden.folder / "base/config.json")
    convert(adapter, tmp_path / "run", to=BRIDGE, config=golden.folder / "base/config.json")
    keys = load_file(tmp_path / "modules/adapter_model.safetensors")
    assert any(".experts.0.gate_proj.lora_A.weight" in key for key in keys)
    first = fingerprint(adapter, options=of_base)
    assert fingerprint(tmp_path / "modules", options=of_base) == first
    assert fingerprint(tmp_path / "run", options=of_base) == first


def shared_by_all(tensors: Tensors, config: dict) -> None:
    """As Bridge before 0.6 and NeMo 2 store the one pair of all experts: without an axis of experts."""
    for key in list(tensors):
        tensors[key] = tensors[key][:, 0].clone()
    config["peft"].pop("share_expert_adapters")


def test_a_pair_that_all_experts_share_is_that_of_each(tmp_path: Path) -> None:
    adapter, made, before = adapter_of(tmp_path, shared_down=True)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")
    run = store(tmp_path / "run", shared_by_all)
    first = {name: name.replace(f".experts.{name.split('.')[5]}.", ".experts.0.") for name in names()}
    wanted = {f"{name}.weight": added(before[f"{name}.weight"], delta(made, first[name])) for name in names()}
    assert_same_bits(merged(run, tmp_path, "hf"), before | wanted)
    convert(run, tmp_path / "back", to=PEFT)
    assert_same_bits(merged(tmp_path / "back", tmp_path, "again"), before | wanted)

    store(run, lambda _, config: config["model"].update(expert_model_parallel_size=2))
    with pytest.raises(CkptError, match=r"each rank of expert parallelism trained its own[^\0]*size: 2"):
        merged(run, tmp_path, "lost")
    assert_nothing_at(tmp_path / "lost")


def test_experts_of_a_smaller_rank(tmp_path: Path) -> None:
    """`normalize_moe_lora`: the rank is divided by the experts that a token visits, and alpha is not."""
    adapter, made, before = adapter_of(tmp_path, shared_down=True)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")

    def smaller(_: Tensors, config: dict) -> None:
        config["peft"].update(normalize_moe_lora=True, dim=RANK * config["model"]["moe_router_topk"], alpha=ALPHA)

    run = store(tmp_path / "run", smaller)
    wanted = {f"{name}.weight": added(before[f"{name}.weight"], delta(made, name)) for name in names()}
    assert_same_bits(merged(run, tmp_path, "hf"), before | wanted)
    store(run, lambda _, config: config["peft"].update(dim=RANK * config["model"]["moe_router_topk"] + 1))
    with pytest.raises(CkptError, match="divides the rank by the number of experts"):
        merged(run, tmp_path, "odd")


REFUSED: dict[str, tuple[Callable[[Tensors], object], dict[str, object], tuple[str, ...]]] = {
    "one expert without a pair": (
        lambda made: [made.pop(key) for key in list(made) if "layers.1.mlp.experts.2.up" in key],
        {},
        ("some experts of layers.1.mlp.experts.up.weight", "2 of 3"),
    ),
    "two scales": (lambda made: None, {"alpha_pattern": {"experts.1.up_proj": 9}}, ("differ in rank or scale", "2.25")),
    "two ranks": (
        lambda made: made.update(pair(DOWN, torch.empty(made[f"{PREFIX}{DOWN}.lora_B.weight"].shape[0], 24), rank=2)),
        {"rank_pattern": {"layers.0.mlp.experts.1.down_proj": 2}},
        ("differ in rank or scale", "experts.1.down_proj: 2"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_experts_that_are_not_alike_are_refused(name: str, tmp_path: Path) -> None:
    change, config, words = REFUSED[name]
    _, made, _ = adapter_of(tmp_path)
    change(made)
    adapter = adapters.save(tmp_path / "adapter", made, **config)
    with pytest.raises(CkptError) as refusal:
        convert(adapter, tmp_path / "out", to=BRIDGE, config=tmp_path / "base/config.json")
    for word in (*words, "-o base"):
        assert word in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_a_canonical_adapter_of_experts_is_refused(tmp_path: Path) -> None:
    adapter, *_ = adapter_of(tmp_path)
    with pytest.raises(CkptError, match="leave out -o canonical"):
        convert(adapter, tmp_path / "out", to=BRIDGE, config=tmp_path / "base/config.json", options={"canonical": True})


GATE_UP, OF_DOWN = "mlp.experts.base_layer", "mlp.experts"


def fused_pair(module: str, shape: tuple[int, int], crossed: bool) -> tuple[Tensors, torch.Tensor]:
    """A and B on all experts of a parameter [experts, out, in], and what they add to it, as PEFT says it (`ParamWrapper.get_delta_weight`)."""
    out, into = shape
    rows, columns = (out, into) if crossed else (into, out)
    made = pair(module, torch.empty(columns, rows), rank=RANK * EXPERTS)
    down, up = (made[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
    factors = up.reshape(columns, -1, EXPERTS), down.reshape(EXPERTS, -1, rows)
    said = "o r e, e r i -> e i o" if crossed else "o r e, e r i -> e o i"
    return made, torch.einsum(said, *factors) * (ALPHA / RANK)


def fused_adapter(
    tmp_path: Path, layers: dict[int, str], crossed: bool, **config: object
) -> tuple[Path, Tensors, Tensors]:
    """An adapter on fused experts whose down projections are square, the tensors of the base, and those of the merged model that differ."""
    before = adapters.base(tmp_path / "base", "qwen2_moe", torch.float32, num_experts=EXPERTS, moe_intermediate_size=96)
    made, wanted = Tensors(), Tensors()
    for layer, parts in layers.items():
        for of, names_of in ((GATE_UP, ("gate_proj", "up_proj")), (OF_DOWN, ("down_proj",))):
            if names_of[0] not in parts:
                continue
            one = f"model.layers.{layer}.mlp.experts.0"
            shapes = [before[f"{one}.{name}.weight"].shape for name in names_of]
            here, changes = fused_pair(f"model.layers.{layer}.{of}", (sum(a for a, _ in shapes), shapes[0][1]), crossed)
            made |= here
            for expert, change in enumerate(changes):
                for name, part in zip(names_of, change.chunk(len(names_of)), strict=True):
                    key = f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
                    wanted[key] = added(before[key], part)
    parameters = sorted(
        {"mlp.experts.gate_up_proj" if ".base_layer." in key else "mlp.experts.down_proj" for key in made}
    )
    config = {"target_parameters": [*parameters, *config.pop("more", [])], **config}
    return adapters.save(tmp_path / "adapter", made, **config), before, wanted


BOTH, ONE = {0: "gate_proj down_proj", 1: "gate_proj down_proj"}, {0: "down_proj", 1: "down_proj"}
WAYS = {
    "by shapes, straight": (BOTH, False, {"peft_version": "0.18.1"}),
    "by shapes, crossed": (BOTH, True, {"peft_version": "0.21.2"}),
    "by a release until 0.19": (ONE, True, {"peft_version": "0.19.1"}),
    "by a release since 0.20": (ONE, False, {"peft_version": "0.20.0.dev0"}),
    "by a release that said nothing": (ONE, True, {}),
    "beside a usual name that the class lacks": (BOTH, False, {"more": ["gate.wg"]}),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_of_fused_experts_runs_over_their_input_or_over_their_output(name: str, tmp_path: Path) -> None:
    """Releases of PEFT differ in it. Square experts would be merged either way, so that shapes alone do not say which is meant."""
    layers, crossed, config = WAYS[name]
    adapter, before, wanted = fused_adapter(tmp_path, layers, crossed, **config)
    found = merged(adapter, tmp_path, "hf")
    assert found.keys() == before.keys()
    for key, tensor in found.items():
        assert torch.allclose(tensor, wanted.get(key, before[key]), rtol=3e-7, atol=1e-6), key
    if crossed:
        with pytest.raises(CkptError, match="experts whose A runs over their output"):
            convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")


def test_square_experts_of_an_unknown_release_are_refused(tmp_path: Path) -> None:
    adapter, *_ = fused_adapter(tmp_path, ONE, False, peft_version="of my own")
    with pytest.raises(CkptError, match=r"is of square experts[^\0]*peft_version"):
        merged(adapter, tmp_path, "hf")
