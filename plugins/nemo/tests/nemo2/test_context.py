"""What a context means: files that disagree, versions that differ, classes that do more, and damaged graphs."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import Activation, RotaryKind
from ckpt_core.errors import CkptError
from ckpt_megatron.fiddle import Call, NamedObject, read_graph, write_graph
from ckpt_nemo.nemo2.classes import defaults, is_known, lineage, refusal_of, versions
from ckpt_tests import distributed, refusals
from ckpt_tests.families import CASES, build

refused = functools.partial(refusals.refused, format="nemo2")

MODEL, CONFIG = (
    "nemo.collections.llm.gpt.model.mixtral.MixtralModel",
    "nemo.collections.llm.gpt.model.mixtral.MixtralConfig",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral, whose class has changed a default."""
    folder = tmp_path_factory.mktemp("original")
    build(CASES["mixtral"], folder / "hf", num_experts_per_tok=2)
    (folder / "hf/tokenizer.json").write_text(json.dumps({"model": {"vocab": {str(n): n for n in range(61)}}}))
    convert(folder / "hf", folder / "nemo2", to="nemo2", options={"make_vocab_size_divisible_by": "8"})
    (folder / "nemo2/ckpt-receipt.json").unlink()
    return folder / "nemo2"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def graph(run: Path, change: Callable[[dict[str, Any]], None], target: str | None = None) -> None:
    """Change the fields in io.json, and the class."""
    path = run / "context/io.json"
    model = read_graph(json.loads(path.read_text()), "io.json").arguments["model"]
    config = model.arguments["config"]
    fields = dict(config.arguments)
    change(fields)
    model.arguments["config"] = Call(target or config.target, fields)
    path.write_text(json.dumps(write_graph(Call("TrainerContext", {"model": model}))))


def dump(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the fields in model.yaml."""
    path = run / "context/model.yaml"
    body = yaml.safe_load(path.read_text())
    change(body["config"])
    path.write_text(yaml.safe_dump(body))


def without_dump(run: Path) -> None:
    (run / "context/model.yaml").unlink()


def normalises(run: Path, **options: str) -> bool:
    with open_checkpoint(run, options=options) as source:
        return source.architecture.decoder.layers[0].mlp.moe.router.normalise


def test_what_is_written_is_the_family_with_all_fields(original: Path) -> None:
    model = read_graph(json.loads((original / "context/io.json").read_text()), "io.json").arguments["model"]
    config = model.arguments["config"]
    assert (model.target, config.target) == (MODEL, CONFIG)
    told = set(defaults(CONFIG, "v2.4.0")) - {
        "bias_activation_fusion",
        "multi_latent_attention",
        "rotary_interleaved",
        "softmax_scale",
        "max_position_embeddings",
    }
    assert told <= config.arguments.keys()
    assert config.arguments["vocab_size"] is None, "64 rows are the 61 tokens of the tokenizer, padded"


# --- versions ------------------------------------------------------------------------------------------------------


def test_a_default_that_changed_is_asked_for(run: Path) -> None:
    without_dump(run)
    graph(run, lambda fields: fields.pop("moe_router_pre_softmax"))
    refused(run, "'moe_router_pre_softmax'", "v2.3.0: moe_router_pre_softmax = True", "v2.4.0", "nemo_version")
    assert normalises(run, nemo_version="v2.4.0")
    assert not normalises(run, nemo_version="v2.3.0")


def test_a_field_that_only_one_version_enters_tells_it(run: Path) -> None:
    without_dump(run)
    graph(run, lambda fields: fields.pop("moe_router_pre_softmax"))
    graph(run, lambda fields: fields.update(pipeline_model_parallel_layout=None))
    assert normalises(run)


def test_model_yaml_says_what_the_class_leaves_open(run: Path) -> None:
    graph(run, lambda fields: fields.pop("moe_router_pre_softmax"))
    for before in (True, False):
        dump(run, lambda fields, before=before: fields.update(moe_router_pre_softmax=before))
        assert normalises(run) != before


def test_a_version_without_the_class_is_refused(run: Path) -> None:
    without_dump(run)
    graph(run, lambda fields: None, "nemo.collections.llm.gpt.model.qwen3.Qwen3MoEConfig")
    refused(run, "has no Qwen3MoEConfig", options={"nemo_version": "v2.3.0"})


def test_a_default_that_a_function_makes_is_the_class_own(run: Path) -> None:
    sentinel = {"_target_": "dataclasses._HAS_DEFAULT_FACTORY_CLASS", "_call_": True}
    graph(run, lambda fields: fields.pop("window_size"))
    dump(run, lambda fields: fields.update(window_size=sentinel))
    with open_checkpoint(run) as source:
        assert source.architecture.decoder.layers[0].attention.window is None


# --- two files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rotary_base", 777.0),
        ("layernorm_epsilon", 0.5),
        ("num_query_groups", 12),
        ("activation_func", "torch.nn.functional.relu"),
    ],
)
def test_files_that_disagree_are_refused_until_one_is_believed(run: Path, key: str, value: object) -> None:
    said = {"_target_": value, "_call_": False} if key == "activation_func" else value
    dump(run, lambda fields: fields.update({key: said}))
    refused(run, f"{key!r}", "model.yaml", "io.json", "believe")
    with open_checkpoint(run, options={"believe": "io.json"}) as source:
        assert source.architecture.decoder.layers[0].mlp.activation is Activation.SILU
    if key == "rotary_base":
        with open_checkpoint(run, options={"believe": "model.yaml"}) as source:
            assert source.architecture.decoder.layers[0].attention.rotary.theta == value


def test_a_default_that_no_version_has_is_refused(run: Path) -> None:
    graph(run, lambda fields: fields.pop("rotary_base"))
    dump(run, lambda fields: fields.update(rotary_base=777.0))
    refused(run, "'rotary_base'", "777.0", "as MixtralConfig has it", "believe")
    with open_checkpoint(run, options={"believe": "io.json"}) as source:
        assert source.architecture.decoder.layers[0].attention.rotary.theta == 1000000.0


def test_two_classes_are_refused(run: Path) -> None:
    dump(run, lambda fields: fields.update(_target_="nemo.collections.llm.gpt.model.llama.LlamaConfig"))
    refused(run, "different classes", "LlamaConfig", "MixtralConfig")


# --- classes -------------------------------------------------------------------------------------------------------


def test_a_class_of_someone_else_needs_all_fields(run: Path) -> None:
    graph(run, lambda fields: None, "recipes.MyConfig")
    dump(run, lambda fields: fields.update(_target_="recipes.MyConfig"))
    with open_checkpoint(run) as source:
        assert [loss.subject for loss in source.checkpoint.provenance.losses] == ["recipes.MyConfig"]
    without_dump(run)
    refused(run, "MyConfig is not a class of NeMo's", "model.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "llama.Llama4Config",
        "ssm.NemotronHConfig8B",
        "llama_nemotron.Llama33NemotronSuper49BConfig",
    ],
)
def test_classes_that_do_more_than_their_fields_say_are_refused(run: Path, name: str) -> None:
    without_dump(run)
    graph(run, lambda fields: None, f"nemo.collections.llm.gpt.model.{name}")
    refused(run, name.partition(".")[2], "not supported")


def test_the_class_of_llama_3_1_scales_and_that_of_llama_3_does_not(tmp_path: Path) -> None:
    from ckpt_tests import tiny

    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 4.5,
        "original_max_position_embeddings": 32,
    }
    tiny.build(tmp_path / "hf", "llama", rope_parameters=rope)
    run = tmp_path / "run"
    convert(tmp_path / "hf", run, to="nemo2")
    (run / "ckpt-receipt.json").unlink()
    with open_checkpoint(run) as source:
        scaling = source.architecture.decoder.layers[0].attention.rotary.scaling
        assert (scaling.kind, scaling.low_frequency_factor, scaling.original_positions) == (RotaryKind.LLAMA3, 1.5, 32)
    without_dump(run)

    def unscaled(fields: dict[str, Any]) -> None:
        for key in ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"):
            del fields[key]

    graph(run, unscaled, "nemo.collections.llm.gpt.model.llama.Llama3Config8B")
    with open_checkpoint(run) as source:
        assert source.architecture.decoder.layers[0].attention.rotary.scaling is None
    graph(run, lambda fields: None, "nemo.collections.llm.gpt.model.llama.Llama31Config8B")
    with open_checkpoint(run) as source:
        assert source.architecture.decoder.layers[0].attention.rotary.scaling.original_positions == 8192


def test_the_table_of_classes() -> None:
    assert lineage("a.b.Llama31Config8B")[:4] == ["Llama31Config8B", "Llama31Config", "Llama3Config", "LlamaConfig"]
    assert versions("Llama32Config1B") == ["v2.1.0", "v2.2.0", "v2.3.0", "v2.4.0"]
    assert [defaults("Llama32Config1B", version)["seq_length"] for version in ("v2.1.0", "v2.4.0")] == [4096, 131072]
    assert defaults("DeepSeekV3Config", "v2.4.0")["multi_latent_attention"] is True
    assert defaults("GPTConfig", "v2.4.0")["normalization"] == "LayerNorm"
    assert is_known("x.GemmaConfig2B") and not is_known("TransformerConfig")
    assert refusal_of("BaseMambaConfig130M") and not refusal_of("MyOwnConfig")


# --- fields --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("surprising_key", 3),
        ("qk_l2_norm", True),
        ("moe_router_load_balancing_type", "sinkhorn"),
        ("moe_expert_capacity_factor", 1.25),
        ("transformer_layer_spec", "recipes.my_layer_spec"),
        ("use_transformer_engine_full_layer_spec", True),
        ("activation_func", "recipes.my_activation"),
        ("normalization", "GroupNorm"),
        ("position_embedding_type", "yarn"),
        ("vocab_size", 72),
        ("hidden_size", 95),
        ("num_layers", 3),
        ("num_layers", None),
        ("num_moe_experts", 5),
        ("kv_channels", "ten"),
        ("window_size", [4, 4]),
    ],
)
def test_a_changed_field_is_refused_by_name(run: Path, key: str, value: object) -> None:
    graph(run, lambda fields: fields.update({key: value}))
    dump(run, lambda fields: fields.update({key: value}))
    named = {"num_layers": "layers", "num_moe_experts": "experts", "hidden_size": "shape", "kv_channels": "head_dim"}
    refused(run, named.get(key, key))


def test_a_field_without_meaning_may_be_left_out(run: Path) -> None:
    graph(run, lambda fields: fields.update(surprising_key=3))
    with open_checkpoint(run, options={"ignore_keys": "surprising_key, of_nobody"}) as source:
        (loss,) = [
            loss for loss in source.checkpoint.all_losses if "_key" in loss.subject or "of_nobody" in loss.subject
        ]
        assert loss.kind == "dropped" and "ignore_keys" in loss.reason and "surprising_key" in loss.subject


def test_no_value_of_a_field_crashes_the_reader(original: Path) -> None:
    from ckpt_core.architecture import architecture_of
    from ckpt_core.config import Config
    from ckpt_megatron.transformer_config.config_fields import HARMLESS
    from ckpt_nemo.nemo2.config import GPT, MLA

    ignored = {key for entry in HARMLESS for key in entry.keys}

    config = yaml.safe_load((original / "context/model.yaml").read_text())["config"]
    fields = {
        key: value
        for key, value in config.items()
        if key not in ("_target_", "activation_func", "params_dtype", "pipeline_dtype")
    }
    known = {key: value for key, value in fields.items() if key not in ignored}
    for table in (GPT, MLA):
        told = Config(table.name, [entry for entry in table.entries if not set(entry.keys) & ignored])
        for key in sorted(told.keys):
            for wrong in (None, "x", -1, 1e99, [None], {"_target_": "x"}):
                try:
                    facts, _ = told.read({**known, key: wrong}, "model.yaml")
                    facts |= {"tokens.vocabulary": 61, "tokens.padded_vocabulary": 64}
                    architecture_of(facts, "model.yaml")
                except CkptError:
                    pass


# --- graphs --------------------------------------------------------------------------------------------------------

LEAF = {"type": "leaf", "value": 1, "paths": []}


def object_(items: list, kind: str = "builtins.list", metadata: object = None) -> dict[str, Any]:
    module, _, name = kind.rpartition(".")
    return {"type": {"type": "pyref", "module": module, "name": name}, "items": items, "metadata": metadata}


def test_a_graph_reads_back() -> None:
    call = Call(
        "a.B", {"f": NamedObject("torch.float32"), "list": [1, None, "x"], "inner": Call("c.D", {}), "none": None}
    )
    assert read_graph(json.loads(json.dumps(write_graph(call))), "io.json") == call


@pytest.mark.parametrize(
    ("root", "objects", "problem"),
    [
        ({"type": "ref", "key": "gone"}, {}, "leads nowhere"),
        (
            {"type": "ref", "key": "a"},
            {"a": object_([["Index(index=0)", {"type": "ref", "key": "a"}]])},
            "refers to itself",
        ),
        ({"type": "ref", "key": "a"}, {"a": object_([["os.system", LEAF]])}, "no name"),
        ({"type": "ref", "key": "a"}, {"a": object_([["Index(index=0)", LEAF], ["Index(index=0)", LEAF]])}, "twice"),
        ({"type": "ref", "key": "a"}, {"a": {"type": 3, "items": []}}, "has no name"),
        ({"type": "ref", "key": "a"}, {"a": {"items": 3}}, "has no items"),
        ({"type": "ref", "key": "a"}, {"a": object_([], "fiddle._src.config.Config")}, "nothing says what is called"),
        ({"type": "ref", "key": ["a"]}, {}, "leads nowhere"),
        (3, {}, "holds no model"),
    ],
)
def test_a_damaged_graph_is_refused(run: Path, root: object, objects: dict, problem: str) -> None:
    (run / "context/io.json").write_text(json.dumps({"root": root, "objects": objects}))
    refused(run, problem)


def test_a_graph_too_deep_is_refused() -> None:
    value: dict[str, Any] = LEAF
    for _ in range(80):
        value = object_([["Index(index=0)", value]])
    with pytest.raises(CkptError, match="too deep"):
        read_graph({"root": value, "objects": {}}, "io.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"objects": 3, "root": 1}'])
def test_a_file_that_is_no_graph_is_refused(run: Path, text: str) -> None:
    (run / "context/io.json").write_text(text)
    refused(run, "io.json")


# --- folders -------------------------------------------------------------------------------------------------------


def test_adapters_are_no_model(run: Path) -> None:
    (run / "weights/adapter_metadata.json").write_text('{"model_ckpt_path": "base"}')
    refused(run, "LoRA", "adapter_metadata.json")


def test_adapters_without_their_file_are_no_model(run: Path) -> None:
    old = "module.decoder.layers.self_attention.linear_proj.weight"
    new = old.replace(".weight", ".to_wrap.weight")
    distributed.changed(run / "weights", lambda metadata: distributed.renamed(metadata, old, new))
    refused(run, "LoRA", "to_wrap")


def test_an_interrupted_save_is_refused(run: Path) -> None:
    run.with_name("run-unfinished").write_text("")
    refused(run, "interrupted", "run-unfinished")


def test_weights_of_hugging_face_are_another_format(run: Path) -> None:
    (run / "weights").rename(run / "hf_weights")
    refused(run, "Hugging Face", "--from hf")


def test_a_folder_of_checkpoints(run: Path) -> None:
    """The duplicate of the last one is passed over; two different ones are not."""
    runs = run.parent
    shutil.copytree(run, runs / "run-last")
    with open_checkpoint(runs) as source:
        assert source.checkpoint.format == "nemo2"
    shutil.copytree(run, runs / "other")
    with pytest.raises(CkptError, match="several checkpoints lie here"):
        open_checkpoint(runs, format="nemo2")


def test_the_old_layout_without_inner_folders(run: Path) -> None:
    expected = open_checkpoint(run).architecture
    for folder in ("context", "weights"):
        for path in list((run / folder).iterdir()):
            path.rename(run / path.name)
        (run / folder).rmdir()
    assert open_checkpoint(run).architecture == expected


def test_keys_without_the_prefix_and_with_another(run: Path) -> None:
    old = "module.decoder.layers.mlp.router.weight"
    distributed.changed(
        run / "weights", lambda metadata: distributed.renamed(metadata, old, old.replace("router", "ruter"))
    )
    refused(run, "ruter", "router.weight' is missing")


def test_weights_in_zarr_are_the_same(run: Path) -> None:
    """save_ckpt_format="zarr": a folder per tensor, here with one chunk."""
    expected = fingerprint(run)
    weights = run / "weights"
    held = distributed.tensors(weights)
    shutil.rmtree(weights)
    for name, tensor in held.items():
        (weights / name).mkdir(parents=True)
        array = {"shape": list(tensor.shape), "chunks": list(tensor.shape), "dtype": "<f4", "order": "C"}
        rest = {"zarr_format": 2, "compressor": None, "filters": None, "fill_value": None}
        (weights / name / ".zarray").write_text(json.dumps(array | rest))
        (weights / name / ".".join("0" * tensor.dim())).write_bytes(tensor.numpy().tobytes())
    (weights / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr", "sharded_backend_version": 1}))
    assert fingerprint(run) == expected
    (weights / "metadata.json").write_text(json.dumps({"sharded_backend": "tarz"}))
    refused(run, "unknown kind", "'tarz'", "torch_dist or zarr")


# --- tokenizers ----------------------------------------------------------------------------------------------------


def vocabulary(run: Path, **options: str) -> int:
    with open_checkpoint(run, options=options) as source:
        return source.architecture.tokens.vocabulary


def test_the_tokens_are_counted_in_every_file_of_a_tokenizer(run: Path) -> None:
    folder = run / "context/nemo_tokenizer"
    assert vocabulary(run) == 61
    body = {"model": {"vocab": {str(n): n for n in range(57)}}, "added_tokens": [{"id": 58, "content": "<a>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(body))
    assert vocabulary(run) == 59
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"60": {}}}))
    assert vocabulary(run) == 61
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["x", 0.0]] * 63}}))
    assert vocabulary(run) == 63
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "vocab.json").write_text(json.dumps({str(n): n for n in range(50)}))
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": 62}))
    assert vocabulary(run) == 63
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01x" * 55 + b"\x12\x02\x08\x01")
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert vocabulary(run) == 55


def test_without_a_tokenizer_all_rows_count_and_the_user_is_told(run: Path) -> None:
    shutil.rmtree(run / "context/nemo_tokenizer")
    with open_checkpoint(run) as source:
        assert source.architecture.tokens.vocabulary == 64
        assert [loss.kind for loss in source.checkpoint.provenance.losses] == ["assumed"]
    assert vocabulary(run, vocab="59") == 59


def test_a_tokenizer_of_another_model_is_refused(run: Path) -> None:
    path = run / "context/nemo_tokenizer/tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {str(n): n for n in range(65)}}}))
    refused(run, "65 tokens, 64 rows")
    assert vocabulary(run, vocab="61") == 61


@pytest.mark.parametrize("data", [b"", b"\x0a\x7f", b"\xff" * 20, b"\x0b\x00"])
def test_a_damaged_sentencepiece_model_is_refused(run: Path, data: bytes) -> None:
    folder = run / "context/nemo_tokenizer"
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(data)
    refused(run, "SentencePiece")


@pytest.mark.parametrize("name", ["../..", "/etc", "a/b"])
def test_a_tokenizer_that_lies_elsewhere_is_not_followed(run: Path, name: str) -> None:
    path = run / "context/io.json"
    path.write_text(path.read_text().replace('"nemo_tokenizer"', json.dumps(name)))
    with open_checkpoint(run) as source:
        assert not source.checkpoint.sidecars


def test_the_files_of_a_tokenizer_are_no_links(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (run / "context/nemo_tokenizer/extra.json").symlink_to(tmp_path / "secret.json")
    refused(run, "a link that leads out of the checkpoint")


def test_half_precision_is_said(tmp_path: Path) -> None:
    build(CASES["qwen3"], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="nemo2", dtype="bf16")
    config = yaml.safe_load((tmp_path / "run/context/model.yaml").read_text())["config"]
    assert (config["bf16"], config["params_dtype"]["_target_"]) == (True, "torch.bfloat16")
    assert {tensor.dtype for tensor in distributed.tensors(tmp_path / "run/weights").values()} == {torch.bfloat16}
    assert config["vocab_size"] == 128, "no tokenizer says how many rows are real"
