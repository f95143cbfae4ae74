"""Notes and companions: what a target does not say or hold is a loss, whoever wrote it; what a tokenizer says is found."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ckpt_core import convert
from ckpt_core.api import plan_conversion, read_checkpoint
from ckpt_core.checkpoint import Checkpoint, Loss, Sidecar, Target
from ckpt_core.cli.main import main
from ckpt_core.company.companions import companions_of, files_in, known_ids, losses_of, with_sound_ids
from ckpt_core.company.tokenizer import ids_of, size_beyond, size_of
from ckpt_core.company.vocabulary import with_sound_tokenizer
from ckpt_core.errors import CkptError, FormatError
from ckpt_core.storage.bytes.home import at_home
from ckpt_core.testing.examples import calm_numbers, example, write_ir

TOKENS = {"tokens.vocabulary": 212, "tokens.padded_vocabulary": 212}
# every format holds heads that share the hidden size
HEADS = {"hidden": 144, "attention.head_dim": 12, "layers": 2}


def files(folder: Path, **contents: object) -> dict[str, Sidecar]:
    """Sidecars by name; `__` stands for the dot."""
    found = {}
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        found[path.name] = Sidecar(str(path), path.stat().st_size)
    return found


def checkpoint(notes: dict[str, object], sidecars: dict[str, Sidecar] | None = None) -> Checkpoint:
    return Checkpoint("ir", "a", example("llama", **TOKENS), {}, [], notes=notes, sidecars=sidecars or {})


def target(**more: object) -> Target:
    return Target("toy", example("llama"), {}, [], [], **more)


class TestLosses:
    def test_an_id_that_no_key_says_is_unsaid(self) -> None:
        assert [str(loss) for loss in losses_of(checkpoint({"eos": [3, 4], "bos": 1}), target(said={"bos": 1}))] == [
            "unsaid: eos token 3, 4 (format toy: it has no key for it)"
        ]

    def test_a_list_that_is_cut_is_unsaid(self) -> None:
        found = losses_of(checkpoint({"eos": [3, 4]}), target(said={"eos": 3}))
        assert [str(loss) for loss in found] == ["unsaid: eos token 3, 4 (format toy: its config says 3)"]

    def test_a_list_of_one_is_one(self) -> None:
        assert losses_of(checkpoint({"eos": [3], "pad": None}), target(said={"eos": 3})) == []

    def test_other_notes_are_named_together(self) -> None:
        found = losses_of(checkpoint({"toy.depth": 3, "max_positions": 8}), target())
        assert [loss.subject for loss in found] == ["max_positions, toy.depth"]

    def test_a_file_is_written_held_or_named(self, tmp_path: Path) -> None:
        held = files(tmp_path, a__json={}, b__json={}, c__json={}, d__json={})
        named = Loss("dropped", "d.json", "the reason of the writer")
        found = losses_of(
            checkpoint({}, held), target(sidecars={"x/a.json": held["a.json"]}, held={"b.json"}, losses=[named])
        )
        assert [(loss.kind, loss.subject) for loss in found] == [("dropped", "c.json")]

    def test_they_are_losses_of_every_plan(self, tmp_path: Path) -> None:
        source = write_ir(
            tmp_path / "source", example("llama", **HEADS), values=calm_numbers, notes={"eos": [5, 6], "toy.depth": 3}
        )
        losses = [str(loss) for loss in plan_conversion(source, tmp_path / "out", to="nanotron").losses]
        assert any(loss.startswith("unsaid: eos token 5, 6") for loss in losses)
        assert any(loss.startswith("unsaid: toy.depth") for loss in losses)


class TestIds:
    @pytest.mark.parametrize(
        ("given", "kept", "lost"),
        [
            (211, 211, None),
            (212, None, "212"),
            (-1, None, "-1"),
            ([5, 32000, 6], [5, 6], "32000"),
            ("</s>", None, "</s>"),
            (True, None, "True"),
            ([], None, ""),
        ],
    )
    def test_an_id_outside_the_vocabulary_is_named_and_not_carried(
        self, given: object, kept: object, lost: str | None
    ) -> None:
        found = with_sound_ids(checkpoint({"pad": given}))
        assert found.notes["pad"] == kept
        assert [(loss.kind, loss.subject) for loss in found.provenance.losses] == (
            [] if lost is None else [("dropped", f"pad token {lost}")]
        )

    def test_generation_comes_before_the_tokenizer(self, tmp_path: Path) -> None:
        held = files(
            tmp_path,
            generation_config__json={"eos_token_id": [7, 8], "pad_token_id": None},
            tokenizer_config__json={"eos_token": "</s>", "bos_token": {"content": "<s>"}, "pad_token": "<none>"},
            tokenizer__json={"model": {"vocab": {"<s>": 3}}, "added_tokens": [{"id": 7, "content": "</s>"}]},
        )
        assert ids_of(held) == {"eos": ([7, 8], "generation_config.json"), "bos": (3, "tokenizer_config.json")}

    @pytest.mark.parametrize(
        "said",
        [
            {"tokenizer__json": {"added_tokens": [{"id": 9, "content": "</s>"}]}},
            {"tokenizer__json": {"model": {"vocab": [["<unk>", 0], ["</s>", -1.5]]}}},
            {"added_tokens__json": {"</s>": 9}},
            {"vocab__json": {"</s>": 9}},
            {"tokenizer_config__json": {"added_tokens_decoder": {"9": {"content": "</s>"}}}},
        ],
    )
    def test_a_token_is_found_wherever_it_is_listed(self, said: dict[str, object], tmp_path: Path) -> None:
        held = files(tmp_path, special_tokens_map__json={"eos_token": "</s>"}, **said)
        number, file = ids_of(held)["eos"]
        assert (number, file) == (
            1 if isinstance(next(iter(said.values())).get("model"), dict) else 9,
            "special_tokens_map.json",
        )

    def test_notes_stand_and_companions_fill(self, tmp_path: Path) -> None:
        held = files(tmp_path, generation_config__json={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 500})
        ids, reasons = known_ids(checkpoint({"bos": None, "max_positions": 8}, held))
        assert ids == {"bos": None, "eos": 2}
        assert reasons == [
            "eos 2: by generation_config.json",
            "pad: not by generation_config.json, whose 500 is outside the vocabulary",
        ]

    def test_a_damaged_companion_says_nothing(self, tmp_path: Path) -> None:
        held = files(tmp_path, generation_config__json="{")
        ids, reasons = known_ids(checkpoint({"bos": 1}, held))
        assert ids == {"bos": 1} and "not by the tokenizer" in reasons[0]
        with pytest.raises(FormatError, match=r"generation_config\.json"):
            ids_of(held)

    def test_the_size_counts_added_tokens(self, tmp_path: Path) -> None:
        held = files(tmp_path, vocab__json={"a": 0, "b": 1}, added_tokens__json={"<x>": 5})
        assert size_of(held) == 6
        assert size_of({}) is None


class TestTransformers:
    """The config of a written HF folder never leaves an id to the class."""

    @pytest.fixture
    def bare(self, tmp_path: Path) -> Path:
        """A model whose notes say nothing."""
        return Path(write_ir(tmp_path / "bare", example("llama"), values=calm_numbers))

    @pytest.mark.parametrize(
        "kind", ["LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM"]
    )
    def test_what_nothing_says_is_null(self, kind: str, bare: Path, tmp_path: Path) -> None:
        receipt = convert(bare, tmp_path / "out", to="hf", options={"hf_class": kind}, sync=False)
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [None] * 3
        assert receipt.body["target"]["decisions"]["tokens"] == [
            f"{role}: null, as nothing says it" for role in ("bos", "eos", "pad")
        ]

    def test_the_written_folder_loads(self, bare: Path, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        convert(bare, tmp_path / "out", to="hf", options={"hf_class": "Phi3ForCausalLM"}, sync=False)
        config = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)

    def test_what_the_tokenizer_says_is_written(self, bare: Path, tmp_path: Path) -> None:
        (bare / "sidecars").mkdir()
        (bare / "sidecars/tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        (bare / "sidecars/tokenizer.json").write_text('{"added_tokens": [{"id": 9, "content": "</s>"}]}')
        receipt = convert(bare, tmp_path / "out", to="hf", sync=False)
        assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 9
        assert "eos 9: by tokenizer_config.json" in receipt.body["target"]["decisions"]["tokens"]

    def test_every_class_with_ids_of_its_own_has_them_written(self) -> None:
        """As transformers itself has them: each key that a class would fill is one that is written as null."""
        transformers = pytest.importorskip("transformers")
        from ckpt_core.config import Note
        from ckpt_hf.config import FAMILIES

        beside = {"MiMoForCausalLM": "Qwen2ForCausalLM"}  # its class lies beside its files, and has the ids of Qwen 2's
        # their classes lie beside their files
        no_class = {"BailingMoeV2ForCausalLM", "BailingMoeV2Model", "LLaDAModelLM", "DeciLMForCausalLM"}
        families = [family for family in FAMILIES if family.class_name not in no_class]
        assert len(families) > 100
        for family in families:
            settings = getattr(transformers, beside.get(family.class_name, family.class_name)).config_class()
            written = {entry.key for entry in family.config.entries if isinstance(entry, Note) and entry.null}
            # where padding is a fact, its line writes it: as null, too, where there is none
            facts = {"classifier.padding", "positions.padding"}
            written |= {key for entry in family.config.entries if facts & {*entry.claims} for key in entry.keys}
            for role in ("bos", "eos", "pad", "decoder_start"):
                if getattr(settings, f"{role}_token_id", None) is not None:
                    assert f"{role}_token_id" in written, f"{family.class_name} has a {role} of its own"


class TestModules:
    """The folders of what sentence-transformers runs after a model."""

    def test_they_travel_with_the_model(self, tmp_path: Path) -> None:
        write_ir(tmp_path / "ir", example("llama-headless"))
        convert(tmp_path / "ir", tmp_path / "hf", to="hf", sync=False)
        modules = [
            {"path": ""},
            {"path": "1_Pooling"},
            {"path": "2_Dense"},
            {"path": "../ir"},
            {"path": ".."},
            {"path": "gone"},
        ]
        (tmp_path / "hf/modules.json").write_text(json.dumps(modules))
        held = {"1_Pooling/config.json": b"{}", "2_Dense/model.safetensors": b"a layer", "2_Dense/config.json": b"[]"}
        for name, content in held.items():
            (tmp_path / "hf" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "hf" / name).write_bytes(content)
        convert(tmp_path / "hf", tmp_path / "there", to="ir", sync=False)
        receipt = convert(tmp_path / "there", tmp_path / "back", to="hf", sync=False)
        assert {name: (tmp_path / "back" / name).read_bytes() for name in held} == held
        assert not receipt.body["losses"]
        assert not read_checkpoint(tmp_path / "hf").provenance.losses


class TestGeneration:
    @pytest.mark.parametrize("format", ["megatron-bridge", "nemo2"])
    def test_settings_of_generate_in_a_config_become_a_file_and_stay(self, format: str, tmp_path: Path) -> None:
        settings = {"eos_token_id": [5, 6], "top_p": 0.5}
        source = write_ir(
            tmp_path / "source",
            example("llama"),
            values=calm_numbers,
            notes={"eos": [5, 6], "generation": settings},
        )
        convert(source, tmp_path / "there", to=format, sync=False)
        assert read_checkpoint(tmp_path / "there", format=format).notes["generation"] == settings
        convert(tmp_path / "there", tmp_path / "hf", to="hf", format=format, sync=False)
        assert json.loads((tmp_path / "hf/generation_config.json").read_text()) == settings


class TestGivenConfig:
    """`--config` brings the notes and the companions of the model that it describes."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        source = write_ir(
            tmp_path / "source",
            example("llama", **HEADS),
            values=calm_numbers,
            notes={"eos": [5, 6]},
            sidecars={"tokenizer.json": b"{}", "private.key": b"secret"},
        )
        convert(source, tmp_path / "model", to="hf", sync=False)
        convert(source, tmp_path / "bare", to="nxdt", sync=False)
        for name in os.listdir(tmp_path / "bare"):
            if name.startswith("ckpt-receipt") or name in ("config.json", "tokenizer.json", "private.key"):
                (tmp_path / "bare" / name).unlink()
        return tmp_path / "model"

    def test_they_are_carried_along(self, model: Path, tmp_path: Path) -> None:
        found = read_checkpoint(tmp_path / "bare", format="nxdt", config=model / "config.json")
        assert found.notes["eos"] == [5, 6]
        assert sorted(found.sidecars) == ["tokenizer.json"]
        assert any("eos, " in said and "tokenizer.json" in said for said in found.provenance.evidence)

    def test_but_no_link_out_of_the_folder(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere.json").write_text("{}")
        (model / "tokenizer.json").unlink()
        (model / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
        with at_home(tmp_path / "run"), pytest.raises(CkptError, match=r"tokenizer\.json is a link that leads out"):
            companions_of(str(model / "config.json"))
        (model / "tokenizer.json").unlink()
        (model / "additional_chat_templates").symlink_to(tmp_path)
        with at_home(tmp_path / "run"), pytest.raises(CkptError, match="templates is a link that leads out"):
            companions_of(str(model / "config.json"))

    def test_in_the_hubs_cache_links_lead_to_blobs(self, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        (blobs / "123").write_text("{}")
        (snapshot / "vocab.json").symlink_to("../../blobs/123")
        assert list(companions_of(str(snapshot / "config.json"))) == ["vocab.json"]


class TestATokenizerOfAnotherSize:
    """A tokenizer with ids beyond the vocabulary goes along, and is not carried without a word."""

    def test_ids_beyond_the_vocabulary_are_said(self, tmp_path: Path) -> None:
        held = files(tmp_path, tokenizer__json={"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 212}]})
        (loss,) = with_sound_tokenizer(checkpoint({}, held)).all_losses
        assert (loss.kind, loss.subject) == ("assumed", "that the tokenizer is the model's")
        assert "go up to 212, and those of the vocabulary to 211" in loss.reason

    def test_whichever_file_has_them(self, tmp_path: Path) -> None:
        held = files(tmp_path, vocab__json={"a": 0}, tokenizer_config__json={"added_tokens_decoder": {"300": {}}})
        assert "go up to 300" in with_sound_tokenizer(checkpoint({}, held)).all_losses[0].reason

    @pytest.mark.parametrize("content", [{"model": {"vocab": {"a": 211}}}, {"model": {"vocab": {"a": 5}}}, {}, "{"])
    def test_one_that_fits_a_smaller_one_and_a_damaged_one_are_not(self, content: object, tmp_path: Path) -> None:
        given = checkpoint({}, files(tmp_path, tokenizer__json=content))
        assert with_sound_tokenizer(given) is given

    @given(
        ids=some.lists(some.integers(0, 1500), max_size=6),
        added=some.lists(some.integers(0, 1500), max_size=2),
        pieces=some.none() | some.integers(0, 30),
        vocabulary=some.integers(1, 1200),
        text=some.sampled_from(["a", ": 999999", '"vocab": [', "\\"]),
    )
    def test_what_a_search_finds_is_what_parsing_finds(
        self, ids: list[int], added: list[int], pieces: int | None, vocabulary: int, text: str
    ) -> None:
        """tokenizer.json is parsed only where a number in it is large enough: texts that look like one change nothing."""
        words = {f"{text}{number}": number for number in ids} if pieces is None else [[text, 0.0]] * pieces
        body = {"model": {"vocab": words}, "added_tokens": [{"id": number, "content": text} for number in added]}
        config = {"added_tokens_decoder": {str(number): {} for number in added[:1]}}
        held = {
            name: Sidecar.made_of("a", json.dumps(content, indent=indent).encode())
            for name, content, indent in (("tokenizer.json", body, 1), ("tokenizer_config.json", config, None))
        }
        size = size_of(held)
        assert size_beyond(held, vocabulary) == (size if size is not None and size > vocabulary else None)

    def test_a_plan_and_inspect_say_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, source = write_ir(tmp_path / "ir", example("llama", **HEADS), values=calm_numbers), tmp_path / "source"
        convert(model, source, to="hf")
        (source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 4000}}}))
        plan = plan_conversion(source, tmp_path / "out", to="hf")
        assert "tokenizer.json" in plan.target.sidecars
        assert [loss.subject for loss in plan.losses] == ["that the tokenizer is the model's"]
        assert main(["inspect", str(source)]) == 0
        assert "assumed: that the tokenizer is the model's (its ids go up to" in capsys.readouterr().out


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a.jinja").write_text("")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/additional_chat_templates").symlink_to(tmp_path / "far")
    with at_home(tmp_path / "here"), pytest.raises(CkptError, match="leads out of the checkpoint"):
        files_in(str(tmp_path / "here"), lambda name: True)


def test_an_embedded_file_that_links_out_is_refused(tmp_path: Path) -> None:
    """A .nemo holds the content of companions: their links are checked as those of copied files are."""
    source = Path(write_ir(tmp_path / "source", example("llama"), values=calm_numbers, sidecars={"a.json": b"{}"}))
    (tmp_path / "private").write_text("secret")
    (source / "sidecars/notes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(CkptError, match="leads out of the checkpoint") as caught:
        plan_conversion(source, tmp_path / "out.nemo", to="nemo")
    assert "secret" not in str(caught.value)


def test_a_vocabulary_outside_which_ids_lie_changes_no_other_note() -> None:
    source = checkpoint({"eos": 500, "max_positions": 8})
    tokens = source.architecture.tokens
    assert tokens is not None
    source = replace(source, architecture=replace(source.architecture, tokens=replace(tokens, vocabulary=100)))
    assert with_sound_ids(source).notes == {"eos": None, "max_positions": 8}


def test_a_file_that_was_made_travels_as_others_do(tmp_path: Path) -> None:
    source = read_checkpoint(write_ir(tmp_path / "source", example("llama"), values=calm_numbers))
    made = Sidecar.made_of(source.files[0].path, b'{"model": {"vocab": {"a": 7}}}')
    assert size_of({"tokenizer.json": made}) == 8 and made.extent.read() == made.made
    assert losses_of(replace(source, sidecars={"tokenizer.json": made}), target()) != []
