"""Where NxDT's ranks keep what, said once more with torch; and what only a layout can get wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import launch_of, plan_conversion, read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example
from ckpt_core.testing.examples import ABSENT, write_ir
from ckpt_hf import load_model
from ckpt_tests import nxdt, tiny
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import load, logits_of
from ckpt_tests.refusals import refused

HEADS, GROUPS, HEAD_DIM, LAYERS = 8, 2, 12, 5
FILE = "model/dp_rank_00_tp_rank_{:02d}_pp_rank_{:02d}.pt"
REPLICATED = {"tp": 4, "options": {"hw_backend": "trn2", "qkv": "linear"}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of 8 heads and 2 key-value heads, the same with a tied head, and a mixture."""
    folder = tmp_path_factory.mktemp("sources")
    sizes = {"vocab_size": 64, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "num_hidden_layers": LAYERS}
    tiny.build(folder / "llama", "llama", **sizes)
    tiny.build(folder / "tied", "llama", **{**sizes, "num_hidden_layers": 1}, tie_word_embeddings=True)
    moe = example("moe", layers=1, hidden=216, mlp__moe__shared=ABSENT, mlp__moe__router__normalise=True)
    write_ir(folder / "mixtral", moe)
    return {path.name: path for path in folder.iterdir()}


def written(source: Path, folder: Path, **arguments) -> Path:
    convert(source, folder, to="nxdt", **arguments)
    return folder


def without_receipt(folder: Path) -> Path:
    (folder / "ckpt-receipt.json").unlink()
    return folder


# --- heads ---------------------------------------------------------------------------------------------------------


def head_of(hardware: str, layout: str, rank: int, ranks: int) -> tuple[list[int], int]:
    """The query heads of a rank in its order, and its key-value head."""
    copies, per_group, per_rank = ranks // GROUPS, HEADS // GROUPS, HEADS // ranks
    if hardware == "trn1":
        key, copy = rank % GROUPS, rank // GROUPS
        return [key * per_group + copy * per_rank + x for x in range(per_rank)], key
    queries = list(range(rank * per_rank, (rank + 1) * per_rank))
    return queries, rank % GROUPS if layout == "aws-converter" else rank // copies


@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("qkv", ["linear", "fused"])
@pytest.mark.parametrize(
    ("hardware", "layout"),
    [("trn1", "native"), ("trn1", "aws-converter"), ("trn2", "native"), ("trn2", "aws-converter")],
)
def test_copies_of_heads_lie_where_the_hardware_wants_them(
    hardware: str, layout: str, qkv: str, ranks: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    options = {"hw_backend": hardware, "layout": layout, "qkv": qkv}
    run = written(sources["llama"], tmp_path / "run", tp=ranks, options=options)
    hf = load_file(sources["llama"] / "model.safetensors")
    q, k, v, out = (hf[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkvo")
    for rank in range(ranks):
        queries, key = head_of(hardware, layout, rank, ranks)
        held = nxdt.load(run / FILE.format(rank, 0))
        parts = [torch.cat([q.view(HEADS, HEAD_DIM, -1)[head] for head in queries])]
        parts += [tensor.view(GROUPS, HEAD_DIM, -1)[key] for tensor in (k, v)]
        name = "model.layers.1.self_attn.qkv_proj.weight"
        names = [f"{name}_qkv"] if qkv == "fused" else [f"{name}_{part}" for part in "qkv"]
        assert torch.equal(torch.cat([held[name] for name in names]), torch.cat(parts))
        columns = [out.view(-1, HEADS, HEAD_DIM)[:, head] for head in queries]
        assert torch.equal(held["model.layers.1.self_attn.o_proj.weight"], torch.cat(columns, 1))
    assert fingerprint(run) == fingerprint(sources["llama"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "for trn1 or for trn2"),
        ({"hw_backend": "trn1"}, None),
        ({"hw_backend": "trn2"}, "layout=aws-converter gives"),
    ],
)
def test_copies_that_lie_apart_need_a_word(
    given: dict, says: str | None, sources: dict[str, Path], tmp_path: Path
) -> None:
    options = {"hw_backend": "trn1", "layout": "aws-converter"}
    run = without_receipt(written(sources["llama"], tmp_path / "run", tp=4, options=options))
    if says is None:
        assert fingerprint(run, options=given) == fingerprint(sources["llama"])
    else:
        refused(run, problem=says, options=given)


def test_what_a_job_wrote_says_its_hardware(sources: dict[str, Path], tmp_path: Path) -> None:
    for hardware in ("trn1", "trn2"):
        run = without_receipt(written(sources["llama"], tmp_path / hardware, tp=4, options={"hw_backend": hardware}))
        assert fingerprint(run) == fingerprint(sources["llama"])
        other = {"trn1": "trn2", "trn2": "trn1"}[hardware]
        refused(run, problem="neighbouring ranks", options={"hw_backend": other})


def spoil(run: Path, names: str, rank: int) -> None:
    path = run / FILE.format(rank, 0)
    held = torch.load(path)
    for name in held:
        if name.endswith(names):
            held[name] += 1
    torch.save(held, path)


def test_copies_that_differ_are_refused_or_kept_as_heads(sources: dict[str, Path], tmp_path: Path) -> None:
    """Kept, they are the model that a job computes with: every rank attends with the keys that it has."""
    run = without_receipt(written(sources["llama"], tmp_path / "run", **REPLICATED))
    spoil(run, "weight_k", rank=1)
    refused(run, problem="(?s)differ, so they are not copies.*kv_replicas=separate")
    # --config must agree with what the config beside the weights says, and not with the heads that copies are read as
    config = str(sources["llama"] / "config.json")
    with open_checkpoint(run, config=config, options={"kv_replicas": "separate"}) as source:
        assert source.architecture.decoder.layers[0].attention.groups == 4
        keys = source["layers.0.attention.k.weight"].numpy()
    stored = [nxdt.load(run / FILE.format(rank, 0))["model.layers.0.self_attn.qkv_proj.weight_k"] for rank in range(4)]
    assert torch.equal(torch.from_numpy(keys.copy()), torch.stack(stored))
    convert(run, tmp_path / "hf", to="hf", options={"kv_replicas": "separate"})
    spoiled = {name: tensor.clone() for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items()}
    assert spoiled["model.layers.0.self_attn.k_proj.weight"].shape[0] == 4 * HEAD_DIM
    assert load(tmp_path / "hf").config.num_key_value_heads == 4


def test_a_difference_behind_the_first_rows_is_found_when_it_is_read(sources: dict[str, Path], tmp_path: Path) -> None:
    run = without_receipt(written(sources["llama"], tmp_path / "run", **REPLICATED))
    path = run / FILE.format(3, 0)
    held = torch.load(path)
    held["model.layers.4.self_attn.qkv_proj.weight_v"][-1, -1] += 1
    torch.save(held, path)
    refused(run, problem="two copies of layers.4.attention.v.weight differ")


def test_separate_heads_are_the_same_model_where_copies_are_equal(sources: dict[str, Path], tmp_path: Path) -> None:
    run = written(sources["llama"], tmp_path / "run", **REPLICATED)
    one = load_model(sources["llama"], dtype="fp32")
    two = load_model(run, options={"kv_replicas": "separate"}, dtype="fp32")
    assert (logits_of(one, tiny.tokens()) - logits_of(two, tiny.tokens())).abs().max() < 1e-4


# --- pipelines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pp", "options", "expected"),
    [
        (2, {}, [[0, 1], [2, 3, 4]]),  # the remainder goes to the last stages
        (3, {}, [[0], [1, 2], [3, 4]]),
        (2, {"virtual_pp": "2"}, [[0, 2], [1, 3, 4]]),  # stage s lies on rank s mod pp
        (2, {"pipeline_cuts": "3"}, [[0, 1, 2, 3], [4]]),
        (3, {"pipeline_cuts": "model.layers.0,model.layers.1"}, [[0], [1], [2, 3, 4]]),
    ],
)
def test_layers_lie_on_their_stages(
    pp: int, options: dict, expected: list, sources: dict[str, Path], tmp_path: Path
) -> None:
    run = written(sources["llama"], tmp_path / "run", pp=pp, options=options)
    names = [set(nxdt.load(run / FILE.format(0, rank))) for rank in range(pp)]
    assert [sorted({int(name.split(".")[2]) for name in held if ".layers." in name}) for held in names] == expected
    ends = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert [[end in held for end in ends] for held in names] == [
        [True, False, False],
        *[[False] * 3] * (pp - 2),
        [False, True, True],
    ]
    assert fingerprint(run) == fingerprint(sources["llama"])


def test_every_layer_in_every_file_is_read(sources: dict[str, Path], tmp_path: Path) -> None:
    """NxDPPModel loads such files too; what is there twice must be equal."""
    run = without_receipt(written(sources["llama"], tmp_path / "run", pp=2))
    both = {name: tensor for rank in range(2) for name, tensor in torch.load(run / FILE.format(0, rank)).items()}
    for rank in range(2):
        torch.save(both, run / FILE.format(0, rank))
    assert fingerprint(run) == fingerprint(sources["llama"])
    torch.save(both | {"model.norm.weight": both["model.norm.weight"] + 1}, run / FILE.format(0, 0))
    refused(run, problem="two copies of final_norm.weight differ")


# --- experts, xser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xser", ["false", "true"])
def test_expert_ranks_keep_experts_alone(xser: str, sources: dict[str, Path], tmp_path: Path) -> None:
    run = written(sources["mixtral"], tmp_path / "run", tp=2, ep=2, options={"xser": xser})
    first, second = (run / f"model/dp_rank_00_ep_rank_{ep:02d}_tp_rank_01_pp_rank_00.pt" for ep in range(2))
    experts = "model.layers.0.mlp.expert_mlps.mlp_op.down_proj.weight"
    if xser == "true":
        with nxdt.torch_xla():
            names = [[name for name, value in torch.load(path, weights_only=False).items()] for path in (first, second)]
        info = [torch.load(f"{path}.info.pt", weights_only=False) for path in (first, second)]
        assert names[0] == names[1] and info[0] == info[1]  # one number for one tensor on all ranks
        tids = {int(name.split("_")[1].removesuffix(".pt")) for name in os.listdir(f"{second}.tensors")}
        assert tids == {tid for tid, entry in info[1].items() if entry["expert_model_parallel"]}
        assert {names[1][tid] for tid in tids} == {experts, experts.replace("down", "gate_up")}
        assert fingerprint(run) == fingerprint(sources["mixtral"])
    else:
        assert set(nxdt.load(second)) == {experts, experts.replace("down", "gate_up")}
        assert nxdt.load(first)[experts].shape == (5, 10, 216)


def test_xser_is_read_as_plain_files_are(sources: dict[str, Path], tmp_path: Path) -> None:
    plain = written(sources["llama"], tmp_path / "plain", tp=2, pp=2)
    xser = written(sources["llama"], tmp_path / "xser", tp=2, pp=2, options={"xser": "true"})
    assert_same_bits(nxdt.tensors(plain), nxdt.tensors(xser))
    assert len(list(xser.glob("model/*.tensors/tensor_*.pt"))) == len(nxdt.tensors(plain))
    assert fingerprint(without_receipt(xser)) == fingerprint(plain)


def test_the_converters_xser_is_plain(sources: dict[str, Path], tmp_path: Path) -> None:
    """AWS's --save_xser writes a plain file beside an empty folder."""
    run = written(sources["llama"], tmp_path / "run", options={"xser": "true", "layout": "aws-converter"})
    assert set(torch.load(run / FILE.format(0, 0))) >= {"lm_head.weight"}
    (run / f"{FILE.format(0, 0)}.tensors").mkdir()
    assert fingerprint(run) == fingerprint(sources["llama"])


# --- ends of the model ---------------------------------------------------------------------------------------------


def test_a_tied_head_is_stored_twice(sources: dict[str, Path], tmp_path: Path) -> None:
    run = written(sources["tied"], tmp_path / "run", tp=2)
    held = nxdt.load(run / FILE.format(1, 0))
    assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])
    assert fingerprint(run) == fingerprint(sources["tied"])  # by the receipt
    config = str(sources["tied"] / "config.json")
    without_receipt(run)
    assert not read_checkpoint(run).architecture.head.tied
    assert fingerprint(run, config=config) == fingerprint(sources["tied"])
    (run / "config.json").unlink()
    assert fingerprint(run, config=config) == fingerprint(sources["tied"])
    spoil(run, "lm_head.weight", rank=0)
    checkpoint = read_checkpoint(run, config=config)
    assert not checkpoint.architecture.head.tied  # they were trained apart
    assert [loss.kind for loss in checkpoint.provenance.losses] == ["assumed"]


@pytest.mark.parametrize("style", ["hf", "megatron"])
def test_a_vocabulary_that_ranks_do_not_divide(style: str, tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=1)  # 61 tokens
    options = {"model_style": style}
    if style == "hf":
        with pytest.raises(CkptError, match="tp=4 does not divide the vocabulary of 61"):
            written(tmp_path / "hf", tmp_path / "run", tp=4, options=options)
        options["make_vocab_size_divisible_by"] = "1"
    run = written(tmp_path / "hf", tmp_path / "run", tp=4, options=options)
    name = {"hf": "model.embed_tokens.weight", "megatron": "language_model.embedding.word_embeddings.weight"}[style]
    assert nxdt.load(run / FILE.format(0, 0))[name].shape == (16, 96)
    assert fingerprint(run) == fingerprint(tmp_path / "hf")
    # It is started, and written again for other ranks that divide its rows, as it lies.
    assert launch_of(run).arguments and written(run, tmp_path / "again", tp=4, pp=1)
    without_receipt(run)
    with open_checkpoint(run) as source:  # a megatron job pads its tokenizer's vocabulary, an hf job has the config's
        assert source.architecture.tokens.vocabulary == {"hf": 64, "megatron": 61}[style]
    assert fingerprint(run, options={"vocab": "61"}) == fingerprint(tmp_path / "hf")


# --- folders and names ---------------------------------------------------------------------------------------------


def test_the_newest_complete_tag_is_read(sources: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, (tag, source) in enumerate({"a.ckpt": "tied", "b.ckpt": "llama", "c.ckpt": "tied"}.items()):
        written(sources[source], run / tag if run.mkdir(exist_ok=True) is None else run)
        os.utime(run / tag / "done", ns=(number, number))
    (run / "c.ckpt" / "done").unlink()
    assert fingerprint(run) == fingerprint(sources["llama"])
    refused(run / "c.ckpt", problem="was not finished")
    assert fingerprint(run / "a.ckpt" / "model") == fingerprint(sources["tied"])
    os.utime(run / "a.ckpt" / "done", ns=(1, 1))
    refused(run, problem="several tags could be meant")


def to_folder(path: Path, ranks: str, content: dict) -> None:
    (path / ranks).mkdir()
    torch.save({"model": content, "step": 7}, path / ranks / "checkpoint.pt")


OLD = {
    "before xser": lambda path, tp, pp, content: to_folder(path, f"tp_rank_{tp:02d}_pp_rank_{pp:02d}", content),
    "without a suffix": lambda path, tp, pp, content: torch.save(
        {"model": content}, path / f"tp_rank_{tp:02d}_pp_rank_{pp:02d}"
    ),
    "sdk 2.14": lambda path, tp, pp, content: torch.save(content, path / f"tp_rank_{tp:02d}_pp_rank{pp:02d}.pt"),
}


@pytest.mark.parametrize("write", OLD.values(), ids=OLD)
def test_old_file_names(write, sources: dict[str, Path], tmp_path: Path) -> None:
    run = written(sources["llama"], tmp_path / "run", tp=2, pp=2)
    old = tmp_path / "old"
    old.mkdir()
    for tp in range(2):
        for pp in range(2):
            write(old, tp, pp, torch.load(run / FILE.format(tp, pp)))
    config = str(sources["llama"] / "config.json")
    assert fingerprint(old, config=config) == fingerprint(sources["llama"])


def test_what_a_job_is_given_beside_the_weights(sources: dict[str, Path], tmp_path: Path) -> None:
    run = written(sources["llama"], tmp_path / "run", tp=4, pp=2, options={"hw_backend": "trn2", "pipeline_cuts": "3"})
    assert {path.name for path in run.iterdir()} >= {"model", "config.json", "nxdt.yaml", "checkpoint", "done"}
    config = AutoConfig.from_pretrained(run)
    assert (config.num_key_value_heads, config.vocab_size, config.tie_word_embeddings) == (GROUPS, 64, False)
    job = yaml.safe_load((run / "nxdt.yaml").read_text())
    assert job["exp_manager"]["resume_from_checkpoint"] == str(run)
    assert job["distributed_strategy"] == {
        "tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 1, "kv_replicator": 2,
    }  # fmt: skip
    model = job["model"]
    assert (model["qkv_linear"], model["fuse_qkv"], model["pipeline_cuts"]) == (True, True, ["model.layers.3"])


def test_a_job_of_the_megatron_style_is_told_the_model(sources: dict[str, Path], tmp_path: Path) -> None:
    run = written(sources["llama"], tmp_path / "run", tp=2, options={"model_style": "megatron"})
    model = yaml.safe_load((run / "nxdt.yaml").read_text())["model"]
    assert (model["num_kv_heads"], model["has_bias"], model["share_embeddings_and_output_weights"]) == (
        GROUPS,
        False,
        False,
    )
    assert fingerprint(without_receipt(run)) == fingerprint(sources["llama"])


# --- what is refused -----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict, dict, str]] = {
    "copies without hardware": ("llama", {"tp": 4}, {}, "trn1 and trn2 put the copies"),
    "coalesced groups": ("llama", {}, {"qkv": "coalesced"}, "qkv=coalesced is for as many"),
    "split over more ranks than heads": ("llama", {"tp": 4}, {"qkv": "split"}, "tp=4 does not divide the 2 key-value heads"),
    "too few copies": ("llama", {"tp": 4}, {"kv_size_multiplier": "1"}, "tp=4 does not divide the 2 key-value heads"),
    "too many copies": ("llama", {"tp": 4}, {"kv_size_multiplier": "4"}, "exactly one"),
    "no copies": ("llama", {"tp": 2}, {"kv_size_multiplier": "0"}, "at least 1"),
    "copies in the megatron style": ("llama", {"tp": 4}, {"model_style": "megatron", "kv_size_multiplier": "2"}, "only the hf style"),
    "linear experts": ("mixtral", {}, {"qkv": "linear"}, "always has weight_qkv"),
    "experts' ranks without experts": ("llama", {"ep": 2}, {}, "expert parallel ranks need experts"),
    "more stages than layers": ("llama", {"pp": 3}, {"virtual_pp": "2"}, "more than the 5 layers"),
    "cuts out of order": ("llama", {"pp": 3}, {"pipeline_cuts": "3,1"}, "do not fit the pipeline"),
    "too few cuts": ("llama", {"pp": 3}, {"pipeline_cuts": "3"}, "do not fit the pipeline"),
    "a cut behind the last layer": ("llama", {"pp": 2}, {"pipeline_cuts": "4"}, "do not fit the pipeline"),
    "cuts that are not layers": ("llama", {"pp": 2}, {"pipeline_cuts": "all"}, "pipeline_cuts has no value"),
    "ranks that do not divide the heads": ("llama", {"tp": 16}, {"hw_backend": "trn1"}, "tp=16 does not divide"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "ranks", "options", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_no_job_has_is_refused(
    source: str, ranks: dict, options: dict, problem: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CkptError, match=problem):
        plan_conversion(sources[source], tmp_path / "run", to="nxdt", **ranks, options=options)


def test_a_head_dim_of_its_own_is_refused(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=1, head_dim=16)
    with pytest.raises(CkptError, match="head_dim is always hidden_size / num_attention_heads"):
        plan_conversion(tmp_path / "hf", tmp_path / "run", to="nxdt")


# --- size ----------------------------------------------------------------------------------------------------------


def test_a_model_of_70_billion_is_planned_from_headers(tmp_path: Path) -> None:
    """tp 32, pp 8, 80 layers, four copies of every key-value head: sparse files, and memory that no size changes."""
    sizes = {"layers": 80, "hidden": 8192, "attention__heads": 64, "attention__groups": 8, "attention__head_dim": 128}
    sizes |= {"mlp__ffn": 28672, "tokens__vocabulary": 128256, "tokens__padded_vocabulary": 128256}
    source = write_ir(tmp_path / "ir", example("llama", **sizes), dtype="bf16", sparse=True)
    plan = plan_conversion(source, tmp_path / "run", to="nxdt", tp=32, pp=8, options={"hw_backend": "trn2"})
    assert len(plan.target.files) == 256
    assert plan.target.decisions["kv_size_multiplier"] == 4
    assert plan.bytes_written > 140e9
    assert plan.peak_memory < 256 << 20
