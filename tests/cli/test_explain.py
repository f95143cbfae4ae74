"""`ckpt explain`: what formats call the tensors and keys of a model, from their tables and by trying."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckpt_core import explain as explaining
from ckpt_core.architecture.examples import example
from ckpt_core.cli.main import cli
from ckpt_core.errors import UsageError
from ckpt_core.explain import NativeName, called_by_us, called_so, explain, in_format, names_everywhere
from ckpt_core.plugins.discovery import require


def said(*arguments: str) -> str:
    return CliRunner().invoke(cli, ["explain", *arguments], catch_exceptions=False).stdout


def test_one_model_in_two_formats_side_by_side() -> None:
    """What hf calls q_proj is a part of what megatron calls linear_qkv; each name has its own layout and split."""
    body = json.loads(said("hf", "megatron", "--family", "llama", "--json"))
    tensors = {line["parameter"]: line for line in body["tensors"]}
    q = tensors["layers.{l}.attention.q.weight"]
    assert q["axes"] == "g r d h"
    assert [(one["native"], one["sentence"], one["ranks"]) for one in q["names"]["hf"]] == [
        ("model.layers.{l}.self_attn.q_proj.weight", "(g r d) h", "")
    ]
    assert [(one["native"], one["sentence"], one["ranks"]) for one in q["names"]["megatron"]] == [
        ("decoder.layers.{l}.self_attention.linear_qkv.weight", "(g (q[r] + k + v) d) h", "tp=g")
    ]
    facts = {line["fact"]: line for line in body["facts"]}
    assert facts["attention.groups"]["said"]["hf"][0]["keys"] == ["num_key_value_heads"]
    assert facts["attention.groups"]["said"]["megatron"][0]["keys"] == ["group_query_attention", "num_query_groups"]
    hf, megatron = body["formats"]
    assert (hf["class"], hf["rewrites"]) == ("LlamaForCausalLM", [])
    assert megatron["rewrites"] == ["vocabulary table of 256 rows (was 212)"]


def test_the_page_has_a_line_for_each_parameter() -> None:
    lines = [" ".join(line.split()) for line in said("hf", "megatron").splitlines()]
    assert (
        "layers.{l}.mlp.up.weight f h model.layers.{l}.mlp.up_proj.weight f h "
        "decoder.layers.{l}.mlp.linear_fc1.weight ((gate + up) f) h tp=f, when mlp.gated"
    ) in lines
    assert "hidden 132 hidden_size hidden_size" in lines


def test_the_second_format_gets_what_the_first_one_holds() -> None:
    """A vocabulary that megatron pads is cut again by hf, which says so."""
    found = explain(["megatron", "hf"], "llama")
    assert found.sides[1].rewrites == ("vocabulary table of 212 rows (was 256)",)
    assert [str(loss) for loss in found.sides[1].losses] == [
        "dropped: 44 rows of the vocabulary (padding beyond the true vocabulary)"
    ]


def test_a_refusal_is_shown_where_no_variant_is_held() -> None:
    found = explain(["nanotron", "hf"], "t5")
    nanotron, hf = found.sides
    assert nanotron.refused and not nanotron.names
    assert hf.refused == () and "decoder.layers.{l}.cross_attention.q.weight" in hf.names
    assert "nanotron     refused: " in said("nanotron", "hf", "--family", "t5")


def test_a_format_without_a_size_of_heads_gets_heads_that_fill_the_width() -> None:
    assert "the kit's example llama, with hidden = 216" in said("nanotron")
    assert explain(["nanotron"]).changes == {"hidden": 216}
    assert explain(["hf"]).changes == {}


def test_rows_under_other_choices_are_shown_beside() -> None:
    nanotron = in_format(require("nanotron"), example("llama", hidden=216))
    assert [one.sentence for one in nanotron.names["layers.{l}.attention.q.weight"]] == [
        "(q[g r d] + k[g d] + v[g d]) h"
    ]
    others = {one.sentence: one for one in nanotron.elsewhere["layers.{l}.attention.q.weight"]}
    assert others["(q[g r (e c + o)] + k[g (e c + o)] + v[g d]) h"].conditions == (
        "under model=llama, qwen2; rope_interleaved=True",
    )


def test_a_format_that_declares_nothing_is_explained_by_what_it_writes() -> None:
    """Experts and layers are numbers of one name each, also where they are equal."""
    assert not require("ir").hooks.ckpt_tables()
    named = in_format(require("ir"), example("moe")).names
    assert [str(one) for one in named["layers.{l}.mlp.experts.up.weight"]] == [
        "layers.{l}.mlp.experts.up.weight  x f h"
    ]
    hf = in_format(require("hf"), example("moe")).names
    assert [one.native for one in hf["layers.{l}.mlp.experts.up.weight"]] == [
        "model.layers.{l}.mlp.experts.{x}.up_proj.weight"
    ]


def test_one_parameter_in_every_format() -> None:
    found = called_by_us(names_everywhere(), "layers.3.attention.q.weight")
    assert list(found) == ["attention.q.weight", "vision.layers.{l}.attention.q.weight"]
    native = {format: [one.native for one in names] for format, names in found["attention.q.weight"].items()}
    assert "gpt_neox.layers.{l}.attention.query_key_value.weight" in native["hf"]
    assert "model.decoder.{l}.pp_block.attn.qkv_proj.weight" in native["nanotron"]
    assert native["ir"] == ["layers.{l}.attention.q.weight"] + [
        f"{stack}.layers.{{l}}.attention.q.weight" for stack in ("encoder", "decoder")
    ]


@pytest.mark.parametrize("native", ["model.layers.7.self_attn.q_proj.weight", "q_proj.weight", "blk.0.attn_q.weight"])
def test_a_parameter_may_be_called_as_a_format_calls_it(native: str) -> None:
    """Any layer's number stands for all of them."""
    found = called_so(names_everywhere(), native)["attention.q.weight"]
    assert "model.layers.{l}.self_attn.q_proj.weight" in [name.native for name in found["hf"]]
    assert said("--parameter", native).splitlines()[1].split()[0] == "attention.q.weight"


def test_formats_are_asked_once_for_a_name_that_none_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes seconds."""
    asked = []

    def once() -> dict[str, dict[str, list[NativeName]]]:
        asked.append(1)
        return {"head.weight": {"hf": [NativeName("lm_head.weight", "v h")]}}

    monkeypatch.setattr(explaining, "names_everywhere", once)
    with pytest.raises(UsageError, match=r"did you mean head\.weight\?"):
        said("--parameter", "haed.weight")
    assert len(asked) == 1


def test_a_folder_called_as_a_format_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "CANONICAL" in said("hf")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "which formats"),
        (("hf", "--family", "lama"), "no example is called 'lama'"),
        (("hf", "--parameter", "head.weight"), "--parameter asks about every format"),
        (("hf", "--parameter", "layers.*.q"), "ckpt explain --parameter 'layers.*.q'"),
        (("--parameter", "attention.querry.weight"), "did you mean attention.q.weight or "),
        (("--parameter", "attn.q"), r"did you mean attention.q.bias or attention.q.weight or "),
        (("--parameter", "q_prj"), r"did you mean q_proj or "),
        (("--parameter", "self_atn.q_proj.weight"), r"did you mean self_attn.q_proj.weight or "),
        (("--parameter", "zzz"), "no parameter is called 'zzz', by us or by a format"),
        (("huggingface",), "unknown format"),
        ((os.path.dirname(__file__),), "is asked about formats, and this is a path"),
    ],
)
def test_what_is_asked_wrongly(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError) as error:
        said(*arguments)
    assert text in str(error.value)
