"""The language model of a model that sees: taken out, as transformers computes it on text, and put back; all else stays as it is."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import plan_conversion
from ckpt_core.architecture import Facts
from ckpt_core.cli.main import cli
from ckpt_core.engine import run
from ckpt_core.engine.plan import make_plan
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_core.storage.bytes import Excerpt
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.testing import example, write_ir
from ckpt_hf.config import BY_TYPE
from ckpt_hf.parts import language_in
from ckpt_hf.wholes import LANGUAGES, WHOLES
from ckpt_tests.folders import assert_nothing_at, assert_same_bits, contents
from ckpt_tests.goldens import beside
from ckpt_tests.models import load, logits_of, weights
from ckpt_tests.vision import CONFIGS, made, of_text, published, saw

TOLERANCE = 1e-5
LANGUAGE = {"part": "language"}
TOKENS = torch.randint(3, 150, (2, 40), generator=torch.Generator().manual_seed(5))
(GOLDEN,) = (golden for golden in beside("families", "source_hf/config.json") if golden.case["family"] == "qwen3_vl")


@pytest.fixture(scope="module", params=CONFIGS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A folder of each class as transformers saves it, with its logits on text alone."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    model = made(request.param, WHOLES[request.param.partition("+")[0]].class_name)
    model.save_pretrained(folder)
    published(folder, request.param)
    return folder, of_text(model, TOKENS)


def test_taken_out_it_computes_the_same_and_a_changed_one_comes_back(
    whole: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, expected = whole
    receipt = convert(folder, tmp_path / "language", to="hf", options=LANGUAGE)
    model = load(tmp_path / "language")
    assert (logits_of(model, TOKENS) - expected).abs().max() <= TOLERANCE
    dropped = [loss["subject"] for loss in receipt.losses if "tower" in loss["reason"]]
    assert dropped and all("bytes" in subject for subject in dropped)

    before = contents(folder)
    convert(tmp_path / "language", tmp_path / "same", to="hf", options={"into": str(folder)})
    same = contents(tmp_path / "same")
    assert {name: same[name] for name in before} == before, "an unchanged language model changes no byte of any file"

    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))
    model.save_pretrained(tmp_path / "trained")
    convert(tmp_path / "trained", tmp_path / "back", to="hf", options={"into": str(folder)})
    trained = logits_of(model, TOKENS)
    assert (trained - expected).abs().max() > 100 * TOLERANCE
    assert (of_text(saw(tmp_path / "back"), TOKENS) - trained).abs().max() <= TOLERANCE
    was, now = weights(folder), weights(tmp_path / "back")
    others = [name for name in was if any(one.others.drops_name(name) for one in WHOLES.values())]
    assert others
    assert_same_bits({name: now[name] for name in others}, {name: was[name] for name in others})
    assert contents(folder) == before


def test_every_class_is_tried() -> None:
    """But for those whose language model is not read."""
    assert {name.partition("+")[0] for name in CONFIGS} == {
        kind for kind, one in WHOLES.items() if any(LANGUAGES[name].family in BY_TYPE for name in one.language)
    }
    named = transformers.models.auto.modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    assert {kind: one.class_name for kind, one in WHOLES.items()} == {kind: named[kind] for kind in WHOLES}


BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}}


@pytest.mark.parametrize(
    ("kind", "language"),
    [(kind, name) for kind, one in WHOLES.items() for name in one.language if name in transformers.CONFIG_MAPPING],
)
def test_what_a_config_leaves_out_is_what_its_own_class_has(kind: str, language: str) -> None:
    needed: dict[str, Any] = BASE if language.startswith("qwen3_vl") else {}
    silent = {"model_type": language, **needed}
    filled = transformers.CONFIG_MAPPING[language](**needed).to_dict()
    # the class's word on a head that is the embedding is not looked at: the files say it
    told: dict[str, Any] = {"tie_word_embeddings": False}
    told |= {"num_nextn_predict_layers": 0} if language == "deepseek_v3" else {}
    facts = [_facts(kind, {**text, **told}) for text in (silent, filled)]
    assert facts[0] == facts[1]


def _facts(kind: str, text: dict[str, Any]) -> Facts:
    said = {"text_config": text}
    said = {WHOLES[kind].inside: said} if WHOLES[kind].inside else said
    part = language_in({"model_type": kind, **said}, "config.json")
    return part.family.config.read(part.with_head(["lm_head.weight"]), "config.json")[0]


# --- names and arrangements of files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "whole"
    made("qwen2_5_vl", WHOLES["qwen2_5_vl"].class_name).save_pretrained(folder)
    return folder


def changed(
    source: Path,
    folder: Path,
    tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    **config: Any,
) -> Path:
    """A copy of a folder with other tensors, and with keys of its config changed; None removes one."""
    shutil.copytree(source, folder)
    body = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in body.items() if value is not None}))
    save_file(tensors(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def renamed(name: Callable[[str], str]) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name(key): tensor for key, tensor in tensors.items()}


def print_of(folder: Path) -> str:
    return fingerprint(folder, options=LANGUAGE)


@pytest.mark.parametrize(
    "name",
    [
        # as transformers 4.52 and later hold them, and save bare state dicts
        lambda name: "model." + name.replace("model.", "language_model.") if not name.startswith("lm_head") else name,
        lambda name: name if name.startswith("visual") else f"language_model.{name}",
        lambda name: f"module.{name}",
    ],
    ids=["held", "within", "wrapped"],
)
def test_the_language_model_is_found_under_every_name(qwen: Path, tmp_path: Path, name: Callable[[str], str]) -> None:
    other = changed(qwen, tmp_path / "other", renamed(name))
    assert print_of(other) == print_of(qwen)
    convert(qwen, tmp_path / "language", to="hf", options=LANGUAGE)
    convert(tmp_path / "language", tmp_path / "back", to="hf", options={"into": str(other)})
    assert_same_bits(weights(tmp_path / "back"), weights(other))


def test_a_config_of_the_hub_has_the_keys_of_all_parts_beside_each_other(qwen: Path, tmp_path: Path) -> None:
    text = dict(json.loads((qwen / "config.json").read_text())["text_config"])
    parameters, gone = text.pop("rope_parameters"), ("model_type", "layer_types", "dtype")
    flat = {key: value for key, value in text.items() if key not in gone}
    flat |= {"rope_theta": parameters["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}}
    other = changed(qwen, tmp_path / "flat", text_config=None, **flat, vision_token_id=151654)
    with open_checkpoint(other, options=LANGUAGE) as one, open_checkpoint(qwen, options=LANGUAGE) as two:
        assert one.architecture == two.architecture
    assert print_of(other) == print_of(qwen)
    # transformers between the two forms saved both
    both = changed(qwen, tmp_path / "both", **flat)
    assert print_of(both) == print_of(qwen)
    apart = changed(qwen, tmp_path / "apart", **flat | {"rms_norm_eps": 0.5})
    with pytest.raises(CkptError, match=r"rms_norm_eps = 0\.5 and 1e-05"):
        open_checkpoint(apart, options=LANGUAGE)


def with_input_first(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor for name, tensor in tensors.items()
    }


def square(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With experts as wide as the hidden state, so that one of the two tensors has the same shape either way."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"gate_up_proj": (6, 96, 48), "down_proj": (6, 48, 48)}
    return {
        name: torch.randn(shapes[name.rpartition(".")[2]], generator=generator) if ".experts." in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("wide", [False, True])
def test_fused_experts_of_both_arrangements_are_told_by_their_shapes(wide: bool, tmp_path: Path) -> None:
    made("qwen3_vl_moe", WHOLES["qwen3_vl_moe"].class_name).save_pretrained(tmp_path / "saved")
    config: dict[str, Any] = {}
    if wide:
        text = json.loads((tmp_path / "saved/config.json").read_text())["text_config"]
        config = {"text_config": {**text, "moe_intermediate_size": 48}}
    other = changed(tmp_path / "saved", tmp_path / "output", square if wide else dict, **config)
    hub = changed(other, tmp_path / "hub", with_input_first)
    assert print_of(hub) == print_of(other)
    convert(other, tmp_path / "language", to="hf", options=LANGUAGE)
    convert(tmp_path / "language", tmp_path / "back", to="hf", options={"into": str(hub)})
    assert_same_bits(weights(tmp_path / "back"), weights(hub))


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in WHOLES if kind not in BY_TYPE])
def test_a_whole_model_is_refused_with_the_option_that_takes_it(kind: str, qwen: Path, tmp_path: Path) -> None:
    folder = changed(qwen, tmp_path / "whole", model_type=kind, architectures=[WHOLES[kind].class_name])
    with pytest.raises(CkptError, match="-o part=language") as refusal:
        convert(folder, tmp_path / "out", to="ir")
    assert WHOLES[kind].class_name in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def _with(**text: Any) -> dict[str, Any]:
    body = json.loads((GOLDEN.source / "config.json").read_text())
    return {"text_config": {**body["text_config"], **text}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["Qwen3VLModel"]}, "taken out of Qwen3VLForConditionalGeneration alone"),
        ({"text_config": None}, "there is no text_config"),
        ({"text_config": [1]}, "'text_config' is not an object"),
        (_with(model_type="qwen3"), "this language model of Qwen3VLForConditionalGeneration is not read"),
        (_with(rope_parameters={"rope_type": "default"}), "no key says the rotary base"),
        (_with(hidden_sizes=3), "unknown config key 'hidden_sizes'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"model_type": "qwen3"}, "leave the option out"),
        ({"model_type": "florence2"}, "this is not a model that sees, as far as is known"),
    ],
)
def test_what_is_not_known_of_a_config_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(changed(GOLDEN.source, tmp_path / "whole", **config), options=LANGUAGE)
    assert words in str(refusal.value)


def test_a_key_that_the_class_does_not_look_at_says_what_it_does() -> None:
    assert _facts("qwen3_vl_moe", {**BASE})["mlp.moe.router.normalise"] is True
    with pytest.raises(CkptError, match="'norm_topk_prob' says what the class never does"):
        _facts("qwen3_vl_moe", {**BASE, "norm_topk_prob": False})


def test_a_tensor_of_no_known_part_is_named(tmp_path: Path) -> None:
    extra = changed(GOLDEN.source, tmp_path / "whole", lambda held: held | {"model.ears.weight": torch.zeros(3)})
    with pytest.raises(CkptError, match=r"model\.ears\.weight"):
        open_checkpoint(extra, options=LANGUAGE)


def test_what_is_never_read_is_not_said_to_be_asked_for(tmp_path: Path) -> None:
    made("qwen3_5", WHOLES["qwen3_5"].class_name).save_pretrained(tmp_path / "saved")
    further = changed(tmp_path / "saved", tmp_path / "whole", lambda held: held | {"mtp.fc.weight": torch.zeros(3, 4)})
    with open_checkpoint(further, options=LANGUAGE | {"predictors": "drop"}) as model:
        reasons = {loss.subject: loss.reason for loss in model.checkpoint.provenance.losses}
    assert "part=language" not in reasons["mtp.*: 48 bytes"]
    assert any("part=language" in reason for subject, reason in reasons.items() if subject.startswith("model.visual.*"))


@pytest.mark.parametrize(("outside", "inside"), [(True, False), (False, True), (None, None)])
def test_the_files_say_whether_the_head_is_the_embedding_where_the_config_does_not(
    outside: bool | None, inside: bool | None, tmp_path: Path
) -> None:
    config = {**_with(tie_word_embeddings=inside), "tie_word_embeddings": outside}
    if inside is None:
        del config["text_config"]["tie_word_embeddings"]
    own = changed(GOLDEN.source, tmp_path / "own", **config)
    without = changed(
        own, tmp_path / "without", lambda held: {name: held[name] for name in held if name != "lm_head.weight"}
    )
    for folder, tied in ((own, False), (without, True)):
        with open_checkpoint(folder, options=LANGUAGE) as model:
            assert model.architecture.head is not None and model.architecture.head.tied is tied


# --- putting back ------------------------------------------------------------------------------------------------------


@pytest.fixture
def language(tmp_path: Path) -> Path:
    convert(GOLDEN.source, tmp_path / "language", to="hf", options=LANGUAGE)
    return tmp_path / "language"


def test_the_recorded_logits_of_text_and_of_an_image(language: Path, tmp_path: Path) -> None:
    with open_checkpoint(GOLDEN.source, options=LANGUAGE) as model:
        *_, last = forward(model, Inputs(tokens=GOLDEN.input_ids.long()))
    assert GOLDEN.off_by(last.values) <= 1e-4
    convert(language, tmp_path / "megatron", to="megatron-bridge", tp=2)
    convert(tmp_path / "megatron", tmp_path / "back", to="hf", options={"into": str(GOLDEN.source)})
    recorded = load_file(GOLDEN.folder / "expected.safetensors")
    names = {"grid_thw": "image_grid_thw"}
    given = {
        names.get(end, end): tensor
        for name, tensor in recorded.items()
        if (end := name.removeprefix("image.")) != name and end != "logits"
    }
    with torch.no_grad():
        found = saw(tmp_path / "back")(**given).logits
    assert (found - recorded["image.logits"]).abs().max() <= 1e-4


def _sharded(tmp_path: Path) -> Path:
    """The golden in three shards, one of them without any tensor of the language model, with companions."""
    folder, index = tmp_path / "sharded", {}
    folder.mkdir()
    held = load_file(GOLDEN.source / "model.safetensors")
    seen = [name for name in held if "visual" in name]
    text = [name for name in held if name not in seen]
    for number, names in enumerate(([*seen[:20]], [*seen[20:], *text[::2]], text[1::2]), 1):
        file = f"model-{number:05}-of-00003.safetensors"
        save_file({name: held[name] for name in names}, folder / file, {"format": "pt", "made": "by hand"})
        index |= dict.fromkeys(names, file)
    size = sum(tensor.numel() * 4 for tensor in held.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size, "total_parameters": size // 4}, "weight_map": index})
    )
    shutil.copy(GOLDEN.source / "config.json", folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessorFast"}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    return folder


def test_every_file_of_the_folder_is_carried_bit_for_bit(language: Path, tmp_path: Path) -> None:
    folder = _sharded(tmp_path)
    save_file({"tok_embeddings.weight": torch.zeros(4)}, folder / "consolidated.safetensors")
    (language / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    before = contents(folder)
    receipt = convert(language, tmp_path / "back", to="hf", options={"into": str(folder)})
    after = contents(tmp_path / "back")
    assert {name: after.get(name) for name in before} == before | {"consolidated.safetensors": None}
    assert contents(folder) == before
    losses = [f"{loss['subject']}: {loss['reason']}" for loss in receipt.losses]
    assert any("consolidated.safetensors" in loss for loss in losses)
    assert any(loss.startswith("tokenizer_config.json: the folder that") for loss in losses)
    # what the tower's settings are for stays with it
    other = convert(
        folder, tmp_path / "again", to="hf", options={**LANGUAGE, "weight_files": "model.safetensors.index.json"}
    )
    assert not (tmp_path / "again/preprocessor_config.json").exists()
    assert any("preprocessor_config.json" in loss["subject"] for loss in other.losses)


def test_a_receipt_tells_of_a_byte_that_changed_in_another_part(
    language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(language, tmp_path / "back", to="hf", options={"into": str(GOLDEN.source)})
    command = ["verify", str(language), str(tmp_path / "back"), "-o", "dst.part=language"]
    assert cli(command, standalone_mode=False) == 0
    file = tmp_path / "back/model.safetensors"
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    place = json.loads(data[8 : 8 + header])["model.visual.pos_embed.weight"]["data_offsets"][0]
    data[8 + header + place] ^= 1
    file.write_bytes(data)
    assert cli(command, standalone_mode=False) == 3
    assert "model.safetensors" in capsys.readouterr().out


def _cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    yield "dtype", {"dtype": "bf16"}, "the language model of that folder is in fp32"
    yield "hf_class", {"options": {"hf_class": "Qwen3ForCausalLM"}}, "leaves nothing to choose"
    yield "container", {"options": {"container": "bin"}}, "container=bin"
    yield "nowhere", {"options": {"into": "nowhere"}}, "there is no such folder"


@pytest.mark.parametrize(("given", "words"), [case[1:] for case in _cases()], ids=[case[0] for case in _cases()])
def test_what_the_folder_decides_is_not_asked_for(
    given: dict[str, Any], words: str, language: Path, tmp_path: Path
) -> None:
    options = {"into": str(GOLDEN.source), **given.pop("options", {})}
    with pytest.raises(CkptError) as refusal:
        convert(language, tmp_path / "out", to="hf", options=options, **given)
    assert words in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_another_language_model_is_refused_by_its_facts(language: Path, tmp_path: Path) -> None:
    body = json.loads((language / "config.json").read_text())
    parameters = {**body["rope_parameters"], "rope_theta": 5000.0}
    (language / "config.json").write_text(
        json.dumps({**body, "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "rope_parameters": parameters})
    )
    with pytest.raises(CkptError, match="the language model of that folder is another one") as refusal:
        convert(language, tmp_path / "out", to="hf", options={"into": str(GOLDEN.source)})
    for words in (
        "attention.norm.eps = 1e-05, and 1e-06 there",
        "attention.rotary.theta = 5000.0, and 1000000.0 there",
    ):
        assert words in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_a_language_model_of_another_class_is_refused_by_its_facts(tmp_path: Path) -> None:
    model = write_ir(tmp_path / "ir", example("llama"))
    with pytest.raises(CkptError, match="the language model of that folder is another one") as refusal:
        convert(model, tmp_path / "out", to="hf", options={"into": str(GOLDEN.source)})
    for words in (str(GOLDEN.source), "attention.qk_norm.kind = None, and rms there", "hidden = ", ", and 28 there"):
        assert words in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_up_from_a_link_is_up_from_where_it_leads(language: Path, tmp_path: Path) -> None:
    """As for every path: what has the folder's name beside the link is another one."""
    shutil.copytree(GOLDEN.source, tmp_path / "elsewhere/folder")
    (tmp_path / "elsewhere/inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/inner")
    (tmp_path / "folder").mkdir()
    convert(language, tmp_path / "out", to="hf", options={"into": f"{tmp_path}/link/../folder"})
    convert(language, tmp_path / "same", to="hf", options={"into": str(GOLDEN.source)})
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "same")


def test_values_are_rounded_only_where_that_is_asked_for(language: Path, tmp_path: Path) -> None:
    held = {name: tensor.bfloat16() for name, tensor in load_file(GOLDEN.source / "model.safetensors").items()}
    norm = "model.language_model.norm.weight"  # which the folder keeps wide
    held[norm] = held[norm].float()
    folder = changed(GOLDEN.source, tmp_path / "narrow", lambda _: held, dtype="bfloat16")
    options = {"into": str(folder)}
    with pytest.raises(CkptError, match="would be rounded") as refusal:
        convert(language, tmp_path / "out", to="hf", options=options)
    assert "--dtype bf16" in str(refusal.value)
    receipt = convert(language, tmp_path / "out", to="hf", options=options, dtype="bf16")
    assert any(loss["kind"] == "rounded" for loss in receipt.losses)
    exact = load_file(GOLDEN.source / "model.safetensors")
    assert_same_bits(weights(tmp_path / "out"), held | {norm: exact[norm]})
    # the other way round nothing is lost
    convert(folder, tmp_path / "less", to="hf", options=LANGUAGE)
    convert(tmp_path / "less", tmp_path / "wide", to="hf", options={"into": str(GOLDEN.source)})
    assert weights(tmp_path / "wide")[norm].dtype == torch.float32


def test_the_folder_itself_is_never_written_to(language: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(GOLDEN.source, folder)
    for place in (folder, folder / "inside", tmp_path):
        with pytest.raises(CkptError, match="are one, or one lies in the other"):
            plan_conversion(language, place, to="hf", options={"into": str(folder)})


def test_a_folder_whose_files_hold_checksums_is_refused(language: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    shutil.copytree(GOLDEN.source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(GOLDEN.source / "model.safetensors"), folder / "pytorch_model.bin")
    assert print_of(folder) == print_of(GOLDEN.source)
    with pytest.raises(CkptError, match="needs weights in safetensors"):
        convert(language, tmp_path / "out", to="hf", options={"into": str(folder)})


def test_rows_of_padding_are_not_put_in(language: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"into": str(GOLDEN.source)}
    convert(language, tmp_path / "megatron", to="megatron", tp=4)  # which pads 110 rows to 512
    convert(tmp_path / "megatron", tmp_path / "out", to="hf", options=options)
    assert_same_bits(weights(tmp_path / "out"), weights(GOLDEN.source))

    def padded(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.cat([one, one[:18]]) if one.shape[0] == 110 else one for name, one in held.items()}

    unsaid = changed(language, tmp_path / "padded", padded, vocab_size=128)
    with pytest.raises(CkptError, match=r"tokens\.vocabulary = 128, and 110 there") as refusal:
        convert(unsaid, tmp_path / "refused", to="hf", options=options)
    assert "-o vocab=110" in str(refusal.value)


# --- excerpts of other files -------------------------------------------------------------------------------------------


def test_a_byte_of_the_folder_is_written_once_and_never_beside_a_checksum(language: Path, tmp_path: Path) -> None:
    plan = plan_conversion(language, tmp_path / "out", to="hf", options={"into": str(GOLDEN.source)})
    (file,) = plan.target.files
    twice = replace(file, excerpts=(*file.excerpts, Excerpt(8, file.excerpts[0].source, 8, 8)))
    with pytest.raises(CkptError, match=r"does not fit beside 'the bytes of .*model\.safetensors'"):
        make_plan(plan.source, replace(plan.target, files=[twice]))
    checked = replace(file, checksums=(Checksum(0, file.size, ()),))
    with pytest.raises(CkptError, match="holds checksums of what is not known"):
        make_plan(plan.source, replace(plan.target, files=[checked]))
    moved = replace(plan.target, named=())
    (tmp_path / "link").symlink_to(GOLDEN.source / "config.json")
    moved.sidecars = {"config.json": replace(plan.target.sidecars["config.json"], path=str(tmp_path / "link"))}
    with pytest.raises(CkptError, match="leads out of the checkpoint"):
        make_plan(plan.source, moved)


def test_a_run_that_broke_off_goes_on(language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.in_threads

    def full_disk(*arguments: Any, **named: Any) -> Iterator[Any]:
        with contextlib.closing(whole(*arguments, **named)) as finished:
            yield next(finished)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "in_threads", full_disk)
    options = {"into": str(GOLDEN.source)}
    with pytest.raises((CkptError, OSError), match="No space left"):
        convert(language, tmp_path / "out", to="hf", options=options)
    staged = tmp_path / "out.ckpt-partial/out/model.safetensors"
    data = staged.read_bytes()
    monkeypatch.undo()
    staged.write_bytes(b"\0" * 64 + data[64:])  # what is copied is copied again
    convert(language, tmp_path / "out", to="hf", options=options)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (GOLDEN.source / "model.safetensors").read_bytes()
    assert cli(["verify", str(language), str(tmp_path / "out"), "-o", "dst.part=language"], standalone_mode=False) == 0
