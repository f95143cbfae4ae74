"""Nothing of a NeMo T5 is taken on trust: every tensor, every key and every rank that is not as it must be is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import ckpt_nemo
from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import facts_of
from ckpt_core.errors import CkptError
from ckpt_core.sdk import ReadRequest
from ckpt_tests import nemo_t5
from ckpt_tests.damage import tensor_mutations
from ckpt_tests.seq2seq import build

LAYER = "enc_dec_model.enc_dec_model.decoder.model.layers.1."
QUERY = f"{LAYER}inter_attention.query.weight"
TABLE = "enc_dec_model.decoder_relative_position_embedding.relative_position_embedding.weight"
HEAD_BIAS = "enc_dec_model.tokens_head.bias"


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 1.1 of two tensor parallel ranks, as a folder."""
    folder = tmp_path_factory.mktemp("t5")
    build("t5_v1.1", folder / "hf")
    convert(folder / "hf", folder / "nemo", to="nemo", tp=2, options={"container": "folder", "layout": "native"})
    (folder / "nemo" / "ckpt-receipt.json").unlink()
    return folder / "nemo"


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 1.0 of three pipeline stages, one of the encoder and two of the decoder."""
    folder = tmp_path_factory.mktemp("t5")
    build("t5_v1.0", folder / "hf")
    convert(folder / "hf", folder / "nemo", to="nemo", pp=3, options={"container": "folder", "split": "1"})
    (folder / "nemo" / "ckpt-receipt.json").unlink()
    return folder / "nemo"


@pytest.fixture
def copy(nemo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nemo, tmp_path / "nemo"))


def edit_rank(folder: Path, change: Callable[[dict], object], rank: str = "mp_rank_01") -> None:
    file = folder / rank / "model_weights.ckpt"
    held = torch.load(file)
    change(held)
    torch.save(held, file)


def edit_config(folder: Path, **changes: object) -> None:
    """Change keys; `encoder__x` is x of that section, and `...` removes a key."""
    file = folder / "model_config.yaml"
    config = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        section, sunk, rest = key.partition("__")
        place, name = (config[section], rest) if sunk else (config, key)
        if value is ...:
            del place[name]
        else:
            place[name] = value
    file.write_text(yaml.safe_dump(config))


# --- tensors -------------------------------------------------------------------------------------------------------------

TENSORS = tensor_mutations(QUERY)


@pytest.mark.parametrize("mutation", TENSORS)
def test_a_tensor_that_is_not_as_it_must_be_is_refused_by_name(mutation: str, copy: Path) -> None:
    edit_rank(copy, TENSORS[mutation])
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(copy)
    assert "inter_attention.query" in str(refusal.value) or "decoder.layers.1.cross_attention.q" in str(refusal.value)


COPIES = {
    f"{LAYER}post_inter_attention_layernorm.weight": "decoder.layers.1.mlp.norm.weight",
    "enc_dec_model.decoder_embedding.word_embeddings.weight": "embedding.tokens.weight",
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_that_differ_are_refused_when_they_are_read(name: str, copy: Path, tmp_path: Path) -> None:
    edit_rank(copy, lambda held: held[name].view(-1)[:1].add_(1))
    with pytest.raises(CkptError, match=f"two copies of {COPIES[name]}"):
        convert(copy, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


def test_each_rank_gives_the_relative_bias_of_its_own_heads_alone(copy: Path, nemo: Path) -> None:
    edit_rank(copy, lambda held: held[TABLE][:, :2].add_(1))  # the other rank's
    assert fingerprint(copy) == fingerprint(nemo)
    edit_rank(copy, lambda held: held[TABLE][:, 3:].add_(1))
    assert fingerprint(copy) != fingerprint(nemo)


# Those that the reader looks into before the core knows whether they are part of the model.
LOOKED_INTO: dict[str, tuple[Callable[[dict], object], str]] = {
    "a table for more heads": (lambda held: held.update({TABLE: held[TABLE].repeat(1, 2)}), "does not have the shape"),
    "a table of no matrix": (lambda held: held.update({TABLE: held[TABLE].flatten()}), "does not have the shape"),
    "a bias of the head": (lambda held: held.update({HEAD_BIAS: torch.ones(3, dtype=torch.int64)}), f"{HEAD_BIAS}' is not part"),
    "an empty bias of the head": (lambda held: held.update({HEAD_BIAS: torch.ones(0)}), f"{HEAD_BIAS}' is not part"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKED_INTO)
def test_a_tensor_that_the_reader_looks_into_is_refused_as_any_other(name: str, copy: Path) -> None:
    change, problem = LOOKED_INTO[name]
    edit_rank(copy, change)
    with pytest.raises(CkptError, match=problem):
        open_checkpoint(copy)


def test_names_of_the_half_precision_wrapper_are_read(copy: Path, nemo: Path) -> None:
    for rank in ("mp_rank_00", "mp_rank_01"):

        def wrap(held: dict) -> None:
            for name in list(held):
                held[name.replace("enc_dec_model.", "enc_dec_model.module.", 1)] = held.pop(name)

        edit_rank(copy, wrap, rank)
    assert fingerprint(copy) == fingerprint(nemo)


# --- ranks and stages ------------------------------------------------------------------------------------------------------


def test_a_missing_rank_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "mp_rank_01")
    with pytest.raises(CkptError, match="tensor_model_parallel_size"):
        open_checkpoint(copy)


def test_exchanged_stages_are_refused(staged: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(staged, tmp_path / "nemo"))
    one, two = (folder / f"tp_rank_00_pp_rank_00{stage}" for stage in (0, 2))
    one.rename(folder / "other")
    two.rename(one)
    (folder / "other").rename(two)
    with pytest.raises(CkptError, match="encoder_embedding"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("split", "named"), [(2, "divide"), (0, "without a stage"), (3, "without a stage"), (None, "without a stage")]
)
def test_a_split_that_the_files_contradict_is_refused(
    split: int | None, named: str, staged: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(staged, tmp_path / "nemo"))
    edit_config(folder, pipeline_model_parallel_split_rank=split)
    with pytest.raises(CkptError, match=named):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [
        "enc_dec_model.word_embeddings.weight",
        "enc_dec_model.decoder_relative_position_embedding.relative_position_embedding.weight",
    ],
)
def test_copies_on_other_stages_are_compared(name: str, staged: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(staged, tmp_path / "nemo"))
    edit_rank(folder, lambda held: held[name].view(-1)[:1].add_(1), "tp_rank_00_pp_rank_002")
    with pytest.raises(CkptError, match="two copies of"):
        convert(folder, tmp_path / "hf", to="hf")


def test_a_copy_of_another_dtype_does_not_change_that_of_the_model(staged: Path, tmp_path: Path) -> None:
    """The one in which the model is written again; what the copy holds is compared when it is read."""
    folder, name = Path(shutil.copytree(staged, tmp_path / "nemo")), "enc_dec_model.word_embeddings.weight"
    edit_rank(folder, lambda held: held.update({name: held[name].bfloat16()}), "tp_rank_00_pp_rank_002")
    assert ckpt_nemo.ckpt_read(path=str(folder), request=ReadRequest()).hints["dtype"] == "fp32"


# --- the config ------------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, object]] = [
    ("arch", "perceiver"), ("transformer_block_type", "normformer"), ("transformer_block_type", "post_ln"), ("num_moe_experts", 4),
    ("position_embedding_type", "alibi"), ("normalization", "batchnorm"), ("activation", "mish"), ("activation", "fast-swiglu"),
    ("bias_activation_fusion", True), ("normalize_attention_scores", "yes"), ("headscale", "no"), ("layernorm_epsilon", "tiny"),
    ("num_attention_heads", 6), ("hidden_size", 40), ("ffn_hidden_size", 44), ("kv_channels", 12), ("kv_channels", None), ("num_layers", 4), ("num_layers", 10**9), ("num_layers", [2]), ("activation", ["geglu"]), ("kv_channels", -8),
    ("normalization", "layernorm"), ("bias", True), ("headscale", True), ("relative_attention_num_buckets", 10), ("activation", "gelu"),
    ("position_embedding_type", "learned_absolute"), ("relative_position_bias_self_attention_only", False), ("layer_scale", 0.1),
]  # fmt: skip
NAMED = {
    "num_attention_heads": "heads|query|relative", "hidden_size": "widths", "ffn_hidden_size": "dense_h_to_4h", "kv_channels": "query|head_dim|kv_channels",
    "num_layers": "layers.3|num_layers", "bias": "bias", "headscale": "head_?scale", "relative_attention_num_buckets": "relative_position_embedding",
    "relative_position_bias_self_attention_only": "cross_attention_relative", "position_embedding_type": "position",
    "normalization": "normalization|layernorm", "activation": "activation|dense_h_to_4h",
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_a_config_that_says_another_model_is_refused_by_what_contradicts_it(
    key: str, value: object, copy: Path
) -> None:
    edit_config(copy, **{f"decoder__{key}": value})
    with pytest.raises(CkptError, match=NAMED.get(key, key)):
        open_checkpoint(copy)


# keys that change what is computed and no tensor: the facts that must follow
FACTS: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"normalize_attention_scores": True}, {"attention.scale": None, "cross_attention.scale": None}),
    ({"apply_query_key_layer_scaling": True}, {"attention.relative_bias_scale": (1.0, 2.0), "attention.scale": (1.0, 2.0), "cross_attention.scale": (1.0, 2.0)}),
    ({"normalize_attention_scores": ..., "apply_query_key_layer_scaling": ...}, {"attention.scale": None, "attention.relative_bias_scale": (1.0, 2.0)}),
    ({"openai_gelu": False}, {"mlp.activation": "gelu_erf"}),
    ({"openai_gelu": ...}, {"mlp.activation": "gelu_erf"}),
    ({"activation": "swiglu"}, {"mlp.activation": "gelu_tanh"}),
    ({"activation": "swiglu", "openai_gelu": False}, {"mlp.activation": "silu"}),
    ({"activation": "reglu", "openai_gelu": False}, {"mlp.activation": "relu"}),
    ({"layernorm_epsilon": 1e-3}, {"final_norm.eps": 1e-3, "attention.norm.eps": 1e-3}),
    ({"layernorm_epsilon": ...}, {"final_norm.eps": 1e-5}),
    ({"relative_attention_max_distance": 20}, {"relative_bias.max_distance": 20}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "facts"), FACTS, ids=str)
def test_a_key_means_what_the_code_makes_of_it(changes: dict, facts: dict, copy: Path) -> None:
    edit_config(copy, **{f"decoder__{key}": value for key, value in changes.items()})
    with open_checkpoint(copy) as found:
        said = facts_of(found.architecture)
    assert {path: said.get(f"decoder.{path}") for path in facts} == facts


def test_every_key_left_out_of_the_config_is_a_default_or_an_error_that_names_it(nemo: Path, tmp_path: Path) -> None:
    """No key is decoration by accident: what can be left out is a default of the code, or on the list of what has no effect."""
    with open_checkpoint(nemo) as found:
        whole = facts_of(found.architecture)
    changed, refused = set(), set()
    for key in nemo_t5.config(nemo)["decoder"]:
        folder = Path(shutil.copytree(nemo, tmp_path / key))
        edit_config(folder, **{f"decoder__{key}": ...})
        try:
            with open_checkpoint(folder) as found:
                if facts_of(found.architecture) != whole:
                    changed.add(key)
        except CkptError as problem:
            refused.add(key)
            assert key in str(problem) or key in (
                "kv_channels",
                "normalization",
                "bias",
                "activation",
                "position_embedding_type",
                "relative_attention_num_buckets",
            )
    # layernorm_epsilon is 1e-5 here, which is the code's default too
    assert changed == {
        "normalize_attention_scores",
        "apply_query_key_layer_scaling",
        "openai_gelu",
        "relative_attention_max_distance",
    }
    assert refused >= {
        "num_layers",
        "num_attention_heads",
        "hidden_size",
        "ffn_hidden_size",
        "kv_channels",
        "normalization",
        "bias",
        "activation",
        "position_embedding_type",
    }


def test_unequal_stacks_are_refused_by_the_key_that_says_so(copy: Path, tmp_path: Path) -> None:
    edit_config(
        copy, decoder__layernorm_epsilon=1e-3, decoder__openai_gelu=False, decoder__relative_attention_max_distance=20
    )
    with pytest.raises(CkptError) as refusal:
        convert(copy, tmp_path / "hf", to="hf")
    for key in (
        "layer_norm_epsilon",
        "feed_forward_proj",
        "relative_attention_max_distance",
        "decoder.layernorm_epsilon: 0.001",
    ):
        assert key in str(refusal.value)


def test_a_config_without_sections_is_that_of_both_stacks(copy: Path, nemo: Path) -> None:
    """Before NeMo 1.11. The head then always had a bias where it was tied, and here it is not."""
    file = copy / "model_config.yaml"
    config = yaml.safe_load(file.read_text())
    section = config.pop("decoder")
    encoder = config.pop("encoder")
    assert {**section, "num_layers": 3} == encoder
    file.write_text(
        yaml.safe_dump({**config, **section, "num_layers": 2, "encoder_arch": "transformer", "tokens_head_bias": True})
    )
    with pytest.raises(CkptError, match=r"encoder\.model\.layers\.2"):  # this decoder has fewer layers
        open_checkpoint(copy)
    for rank in ("mp_rank_00", "mp_rank_01"):
        edit_rank(copy, lambda held: [held.pop(name) for name in list(held) if "encoder.model.layers.2." in name], rank)
    with open_checkpoint(copy) as found, open_checkpoint(nemo) as whole:
        assert found.architecture.decoder == whole.architecture.decoder
        assert not found.architecture.head.bias


def test_unknown_keys_are_errors_unless_they_are_named(copy: Path) -> None:
    edit_config(copy, encoder__wobble=3, wibble=4)
    with pytest.raises(CkptError, match="wibble") as refusal:
        open_checkpoint(copy)
    assert "encoder.wobble" in str(refusal.value)
    open_checkpoint(copy, options={"ignore_keys": "encoder.wobble,wibble"}).close()


def test_blocks_before_1_13_were_those_of_the_self_attention_alone(copy: Path) -> None:
    edit_config(copy, decoder__megatron_legacy=True, nemo_version=..., target="a.b.MegatronT5Model")
    with open_checkpoint(copy) as found:
        since = found["decoder.layers.0.cross_attention.k.weight"].numpy().copy()
    with open_checkpoint(copy, options={"nemo_version": "1.12.0"}) as found:
        before = found["decoder.layers.0.cross_attention.k.weight"].numpy()
        assert not (before == since).all()
    edit_config(copy, decoder__normalize_attention_scores=...)
    with pytest.raises(CkptError, match=r"megatron_legacy.*1\.13"):
        open_checkpoint(copy)


def test_a_config_that_is_not_there_is_said_so(copy: Path) -> None:
    (copy / "model_config.yaml").write_text("{}\n")
    with pytest.raises(CkptError, match="no config is stored"):
        open_checkpoint(copy)
