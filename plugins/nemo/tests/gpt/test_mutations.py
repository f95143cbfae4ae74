"""NeMo checkpoints that someone damaged: each is refused by name, and nothing is written."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core import convert
from ckpt_tests import nemo, refusals, tiny

refused = functools.partial(refusals.refused, format="nemo")

RANK = "tp_rank_{:02d}_pp_rank_{:03d}/model_weights.ckpt"
LAYER = "model.language_model.encoder.layers.0"
ARRAY = "model_weights/model.decoder.layers.mlp.linear_fc2.weight"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied model as rank files of two by two ranks under legacy names, and a gated one as zarr of two ranks."""
    folder = tmp_path_factory.mktemp("originals")
    tiny.build(folder / "tied", "llama", num_hidden_layers=4, tie_word_embeddings=True, num_key_value_heads=12)
    tiny.build(folder / "grouped", "llama")
    convert(folder / "tied", folder / "ranks.nemo", to="nemo", tp=2, pp=2)
    convert(folder / "grouped", folder / "zarr.nemo", to="nemo", tp=2)
    return {kind: folder / f"{kind}.nemo" for kind in ("ranks", "zarr")}


def spoiled(state: dict, name: str) -> None:
    state[name] = state[name].clone()
    state[name].view(-1)[-1] += 1


def renamed(state: dict, old: str, new: str) -> None:
    state[new] = state.pop(old)


CHANGES: dict[str, tuple[Callable[[dict], object], int, int, str]] = {
    "drop": (lambda s: s.pop(f"{LAYER}.mlp.dense_h_to_4h.weight"), 0, 1, r"layers.2.mlp.\w+.weight' is missing"),
    "drop one rank's": (lambda s: s.pop(f"{LAYER}.mlp.dense_4h_to_h.weight"), 1, 0, r"layers.0.mlp.\w+.weight' is missing"),
    "drop the tied copy of one rank": (lambda s: s.pop("model.word_embeddings.weight"), 1, 1, "'output_layer.weight' is missing"),
    "rename": (lambda s: renamed(s, f"{LAYER}.mlp.dense_4h_to_h.weight", f"{LAYER}.mlp.dense_5h_to_h.weight"), 0, 0, "dense_5h_to_h.weight"),
    "add": (lambda s: s.update({"model.language_model.extra.weight": torch.zeros(3)}), 0, 0, "extra.weight"),
    "headscale": (lambda s: s.update({f"{LAYER}.self_attention.head_scale_tensor": torch.ones(1, 6, 1, 1)}), 0, 0, "head_scale_tensor"),
    "reshape": (lambda s: s.update({f"{LAYER}.mlp.dense_4h_to_h.weight": torch.zeros(28, 96)}), 0, 0, "does not have the shape"),
    "shorten": (lambda s: s.update({"model.language_model.embedding.word_embeddings.weight": torch.zeros(100, 96)}), 0, 0, "different numbers of rows"),
    "no tensor": (lambda s: s.update({f"{LAYER}.mlp.dense_4h_to_h.weight": "gone"}), 0, 0, "is not a tensor"),
    "another dtype": (
        lambda s: s.update({f"{LAYER}.mlp.dense_4h_to_h.weight": torch.zeros(96, 28, dtype=torch.bfloat16)}), 1, 0, "different dtypes: bf16, fp32"),
    "integers": (lambda s: s.update({f"{LAYER}.input_layernorm.weight": torch.zeros(96, dtype=torch.int64)}), 0, 0, "int64|different dtypes"),
    "a replica": (lambda s: spoiled(s, f"{LAYER}.input_layernorm.weight"), 1, 0, "two copies of layers.0.attention.norm.weight differ"),
    "the tied copy": (lambda s: spoiled(s, "model.word_embeddings.weight"), 1, 1, "two copies of embedding.tokens.weight differ"),
    "twice, wrapped": (
        lambda s: s.update({f"model.module.{LAYER.removeprefix('model.')}.input_layernorm.weight": torch.zeros(96)}), 0, 0, "stored twice"),
    "a layer": (lambda s: [s.pop(name) for name in list(s) if ".layers.0." in name], 0, 0, "not numbered from 0"),
    "other frequencies": (lambda s: s.update({"model.language_model.rotary_pos_emb.inv_freq": torch.ones(4)}), 0, 0, "rotary frequencies"),
    "fewer frequencies": (lambda s: s.update({"model.language_model.rotary_pos_emb.inv_freq": torch.ones(3)}), 0, 1, "rotary frequencies"),
    "no embedding": (lambda s: s.pop("model.language_model.embedding.word_embeddings.weight"), 0, 0, "the embedding is not in the first"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_rank_file_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    change, tp, pp, problem = CHANGES[name]
    damaged = nemo.repack(
        originals["ranks"], tmp_path / "x.nemo", lambda files: nemo.changed_torch(files, RANK.format(tp, pp), change)
    )
    refused(damaged, problem=problem)


CONFIGS: dict[str, tuple[str, object, str]] = {
    # what is not there
    "num_layers": ("ranks", 3, "another number of layers"),
    "hidden_size": ("ranks", 95, "hidden|does not have the shape|head"),
    "tensor_model_parallel_size": ("ranks", 4, "tensor_model_parallel_size is 4 in the config"),
    "pipeline_model_parallel_size": ("ranks", 1, "pipeline_model_parallel_size is 1 in the config"),
    "ffn_hidden_size": ("ranks", 55, "55|does not have the shape"),
    "kv_channels": ("ranks", 10, r"rotary frequencies do not fit the config[^$]*shape \(5,\), by the width of a head \(kv_channels\)"),
    "bias": ("ranks", True, "bias"),
    "rotary_base": ("ranks", 500.0, "rotary frequencies"),
    "rotary_percentage": ("ranks", 0.5, "rotary frequencies"),
    "share_embeddings_and_output_weights": ("ranks", False, "a copy of the embedding, but the head is not tied"),
    # what would be another model
    "headscale": ("ranks", True, "'headscale'"),
    "transformer_block_type": ("ranks", "normformer", "'transformer_block_type'"),
    "attention_type": ("ranks", "multiquery", "'attention_type'"),
    "position_embedding_type": ("ranks", "kerple", "kerple"),
    "normalization": ("ranks", "groupnorm", "groupnorm"),
    "activation": ("ranks", "mish", "mish"),
    "num_query_groups": ("ranks", 4, "as many groups as heads"),
    "qkv_bias": ("ranks", True, "'qkv_bias'"),
    "num_moe_experts": ("ranks", 4, "'num_moe_experts'"),
    "fp8_params": ("ranks", True, "'fp8_params'"),
    "layernorm_epsilon": ("ranks", "tiny", "layernorm_epsilon"),
    "normalize_attention_scores": ("zarr", False, "'normalize_attention_scores'"),
    "softmax_scale": ("zarr", 0.5, "'softmax_scale'"),
    "window_size": ("zarr", [3, 3], "'window_size' looks ahead"),
    "name": ("zarr", "megatron_gemma2", "'name'"),
    "mcore_customization_config": ("zarr", {"final_logit_softcapping": 30.0}, "'mcore_customization_config'"),
    "seq_len_interpolation_factor": ("zarr", "${.nowhere}", "refers to a value that is not stored"),
    "num_attention_heads": ("zarr", None, "num_attention_heads"),
    "target": ("zarr", "nemo.collections.asr.models.EncDecCTCModel", "kind that is not supported"),
    "strange_new_key": ("zarr", 1, "unknown config key 'strange_new_key'"),
}  # fmt: skip


@pytest.mark.parametrize("key", CONFIGS)
def test_a_changed_config_is_refused(key: str, originals: dict[str, Path], tmp_path: Path) -> None:
    kind, value, problem = CONFIGS[key]
    damaged = nemo.repack(
        originals[kind], tmp_path / "x.nemo", lambda files: nemo.changed_config(files, **{key: value})
    )
    refused(damaged, problem=problem)


def test_a_key_that_has_no_effect_can_be_left_out(originals: dict[str, Path], tmp_path: Path) -> None:
    odd = nemo.repack(
        originals["zarr"], tmp_path / "x.nemo", lambda files: nemo.changed_config(files, strange_new_key=1)
    )
    convert(odd, tmp_path / "ir", to="ir", options={"ignore_keys": "strange_new_key"})


def _without_rank(files: Files) -> None:
    del files[RANK.format(1, 1)]


def _stale_rank(files: Files) -> None:
    files[RANK.format(2, 1)] = files[RANK.format(1, 1)]


def _another_layout(files: Files) -> None:
    files["mp_rank_00/model_weights.ckpt"] = files[RANK.format(0, 0)]


def _swapped_stages(files: Files) -> None:
    files[RANK.format(0, 0)], files[RANK.format(0, 1)] = files[RANK.format(0, 1)], files[RANK.format(0, 0)]


def _odd_folder(files: Files) -> None:
    files["rank_0/model_weights.ckpt"] = files.pop(RANK.format(0, 0))


def _no_weights(files: Files) -> None:
    for name in [name for name in files if name.endswith(".ckpt")]:
        del files[name]


def _bad_yaml(files: Files) -> None:
    files["model_config.yaml"] = b"!!python/object/apply:os.system ['touch /tmp/ckpt-was-here']"


FILES: dict[str, tuple[Callable[[Files], object], str]] = {
    "a missing rank": (_without_rank, "no file of tensor parallel rank 1, pipeline rank 1"),
    "a stale rank": (_stale_rank, "3 ranks"),
    "ranks of another layout": (_another_layout, "several parallel layouts"),
    "swapped stages": (_swapped_stages, "the embedding is not in the first pipeline stage"),
    "a folder of no rank": (_odd_folder, "folder of no rank"),
    "no weights": (_no_weights, "there are no weights"),
    "no config": (lambda files: files.pop("model_config.yaml"), "has no model_config.yaml|no NeMo checkpoint"),
    "a harmful config": (_bad_yaml, "not valid YAML"),
    "a config of no keys": (lambda files: files.update({"model_config.yaml": b"[1, 2]"}), "holds no keys"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_changed_files_are_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    change, problem = FILES[name]
    refused(nemo.repack(originals["ranks"], tmp_path / "x.nemo", change), problem=problem)
    assert not Path("/tmp/ckpt-was-here").exists()


def _array(files: Files, **values: object) -> None:
    files[f"{ARRAY}/.zarray"] = json.dumps(json.loads(files[f"{ARRAY}/.zarray"]) | values).encode()


def _renamed_array(files: Files) -> None:
    for name in [name for name in files if name.startswith(f"{ARRAY}/")]:
        files[name.replace("linear_fc2", "linear_fc9")] = files.pop(name)


def _fewer_layers(files: Files) -> None:
    _array(files, shape=[1, 96, 56])
    for name in [name for name in files if name.startswith((f"{ARRAY}/1.", f"{ARRAY}/2."))]:
        del files[name]


ZARR: dict[str, tuple[Callable[[Files], object], str]] = {
    "a missing chunk": (lambda files: files.pop(f"{ARRAY}/1.0.1"), r"1\.0\.1"),
    "a short chunk": (lambda files: files.update({f"{ARRAY}/1.0.1": b"\0" * 5}), "linear_fc2"),
    "no array": (lambda files: files.pop(f"{ARRAY}/.zarray"), "linear_fc2"),
    "another name": (_renamed_array, "linear_fc9.weight"),
    "another shape": (lambda files: _array(files, shape=[3, 96, 55]), "does not have the shape|linear_fc2"),
    "fewer layers": (_fewer_layers, "disagree on how many"),
    "another dtype": (lambda files: _array(files, dtype="<i4"), "int32"),
    "another backend": (lambda files: files.update({"model_weights/metadata.json": b'{"sharded_backend": "tensorstore"}'}), "tensorstore"),
    "both backends": (lambda files: files.update({"mp_rank_00/model_weights.ckpt": b""}), "the weights are there twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZARR)
def test_a_changed_distributed_checkpoint_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    change, problem = ZARR[name]
    refused(nemo.repack(originals["zarr"], tmp_path / "x.nemo", change), problem=problem)


def test_a_path_that_leaves_the_archive_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    damaged = nemo.repack(originals["zarr"], tmp_path / "x.nemo", lambda files: files.update({"../../etc/evil": b""}))
    refused(damaged, problem="points elsewhere")


def test_a_truncated_archive_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(originals["ranks"].read_bytes()[:100_000])
    refused(tmp_path / "x.nemo", problem="cut off")


def test_a_tokenizer_that_the_archive_lacks_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    name = "0" * 32 + "_tokenizer.model"
    tokenizer = {"library": "sentencepiece", "model": f"nemo:{name}"}
    damaged = nemo.repack(
        originals["ranks"], tmp_path / "x.nemo", lambda files: nemo.changed_config(files, tokenizer=tokenizer)
    )
    refused(damaged, problem="lacks the tokenizer file")


def test_no_path_of_a_config_is_followed(originals: dict[str, Path], tmp_path: Path) -> None:
    """A config from a stranger could name any file of this machine."""
    (tmp_path / "secret.model").write_bytes(b"\n\x00")
    tokenizer = {"library": "sentencepiece", "model": str(tmp_path / "secret.model")}
    odd = nemo.repack(
        originals["ranks"], tmp_path / "x.nemo", lambda files: nemo.changed_config(files, tokenizer=tokenizer)
    )
    convert(odd, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf/tokenizer.model").exists()


def test_a_tar_inside_out_reads_alike(originals: dict[str, Path], tmp_path: Path) -> None:
    """Names without `./`, gzip, an unpacked folder: NeMo takes all of them."""
    for mode, name in (("w", "plain.nemo"), ("w:gz", "zipped.nemo")):
        nemo.repack(originals["ranks"], tmp_path / name, lambda files: None, mode)
    with tarfile.open(originals["ranks"]) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    from ckpt_core import fingerprint

    expected = fingerprint(originals["ranks"], options={"vocab": "61"})
    for name in ("plain.nemo", "zipped.nemo", "unpacked"):
        assert fingerprint(tmp_path / name, options={"vocab": "61"}) == expected


def test_the_state_dict_of_a_pickle_is_never_run(originals: dict[str, Path], tmp_path: Path) -> None:
    import os

    class Harmful:
        def __reduce__(self) -> tuple:
            return os.system, ("touch /tmp/ckpt-was-here",)

    def harm(files: Files) -> None:
        out = io.BytesIO()
        torch.save({"model.language_model.output_layer.weight": Harmful()}, out)
        files[RANK.format(0, 0)] = out.getvalue()

    refused(nemo.repack(originals["ranks"], tmp_path / "x.nemo", harm), problem="system")
    assert not Path("/tmp/ckpt-was-here").exists()
