"""The pages of the formats: what a plugin says of itself, its options, its config keys and its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from cells import anchor, code, codes, table
from tables_in_words import Sheet, choice_table, config_table, row_table, sentence_table

from ckpt_core.config import Config
from ckpt_core.config.lines import one_by_one
from ckpt_core.explain import declared_families
from ckpt_core.layout import Tables
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.request import option_table
from ckpt_core.plugins.tables import FamilyTables
from ckpt_core.verify.declared import Sentences

# The families of transformers by page: its title, and the values of `model_type`. What is named nowhere is on the last.
HF_PAGES: dict[str, tuple[str, str]] = {
    "llama": (
        "Llama, Mistral, and what is built like them",
        "llama iquestcoder internlm3 exaone llama4_text mistral ministral ministral3 mixtral mistral3 smollm3 cwm arcee seed_oss"
        " helium jais2 apertus mellum flint hyperclovax nemotron-nas llada",
    ),
    "qwen": ("Qwen and MiMo", "qwen2 qwen2_moe qwen3 qwen3_moe mimo qwen3_next qwen3_5_text qwen3_5_moe_text"),
    "qwen-vl": (
        "Qwen that sees",
        "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe exaone4_5",
    ),
    "gemma": ("Gemma", "gemma gemma2 gemma3_text vaultgemma gemma3"),
    "deepseek": (
        "DeepSeek, Kimi, and other mixtures of experts",
        "deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2 sarvam_mla youtu kimi_linear dots1 bailing_moe sarvam_moe minimax_m2 hy_v3 afmoe gpt_oss",
    ),
    "glm": ("GLM", "glm glm4 glm4_moe solar_open glm4_moe_lite glm_moe_dsa glm4v_moe"),
    "olmo": ("OLMo and Granite", "olmo olmo2 olmo3 olmoe flex_olmo olmo_hybrid granite granitemoe granitemoeshared granite_swa granitemoe_swa"),
    "phi": ("Phi, StableLM, Nemotron", "phi phi3 phimoe persimmon stablelm nemotron"),
    "cohere": (
        "Cohere, ERNIE, EXAONE, Hunyuan",
        "cohere cohere2 ernie4_5 ernie4_5_moe exaone4 exaone_moe hunyuan_v1_dense hunyuan_v1_moe",
    ),
    "mamba": ("Mamba-2 and its hybrids", "mamba2 nemotron_h granitemoehybrid bamba falcon_h1"),
    "gpt": (
        "GPT-2 and its relatives, BLOOM, Falcon",
        "gpt2 gpt_neo gptj gpt_neox gpt_bigcode starcoder2 biogpt opt bloom mpt falcon",
    ),
    "t5": ("T5 and Blenderbot", "t5 umt5 mt5 blenderbot"),
    "bert": (
        "BERT and its relatives",
        "bert megatron-bert ernie roberta xlm-roberta camembert data2vec-text roberta-prelayernorm modernbert eurobert distilbert",
    ),
    "others": ("Others", "vit"),
}  # fmt: skip


def format_top(name: str) -> str:
    """What a format is, its families, and the options that go with `-o`."""
    return "\n\n".join([_summary(name), *_listed(require(name).info.families), *_options(name)])


def _summary(name: str) -> str:
    summary = require(name).info.summary.replace("*", "\\*")
    return f"{summary[0].upper()}{summary[1:]}."


def _listed(families: Sequence[str]) -> list[str]:
    if len(families) > 24:
        return [f"<details markdown>\n<summary>{len(families)} classes</summary>\n\n{codes(families)}\n\n</details>"]
    return [f"Families: {codes(families)}."]


def _options(name: str) -> list[str]:
    info = require(name).info
    sides = {option.name: {"read": "reading", "write": "writing"}.get(option.side, "both") for option in info.options}
    rows = [(code(n), code(values), code(default), sides[n], text) for n, values, default, text in option_table(info.options)]  # fmt: skip
    return ["## Options", table(("`-o`", "values", "default", "side", "what it does"), rows)] if rows else []


def format_page(name: str) -> str:
    """Options, families, config keys and rows of one plugin."""
    kinds = [family for family in declared_families(require(name)) if not family.like]
    return "\n\n".join([format_top(name), *_configs(kinds), *choice_table(kinds), *_tables(kinds, name)])


def _configs(families: Sequence[FamilyTables]) -> list[str]:
    """The config tables of a plugin; each after the first shows where it differs from the one it was made from."""
    found: list[Config] = list({id(family.config): family.config for family in families if family.config}.values())
    sheet, parts = Sheet(), ["## Config keys"] if found else []
    for config in found:
        parts += [f"### {config.name}", *sheet.config(config.name, config.entries)]
    return parts


def _tables(families: Sequence[FamilyTables], name: str) -> list[str]:
    """The tensor tables of a plugin; without tables of its own, the declared sentences say all of its rows."""
    sheet, parts = Sheet(), []
    for family in families:
        known = {*sheet.tables}
        lines = sheet.tensors(family.name, [one for one in family.tables if one not in known])
        parts += [f"### Tensors of {family.name}", *lines] if lines else []
    if parts:
        return ["## Tensors", *parts]
    declared = list(Sentences.beside(require(name).module))
    return ["## Tensors", sentence_table(declared)] if declared else []


# The pages of hf, by family


def _hf_families() -> dict[str, list[tuple[str, FamilyTables]]]:
    """By page: the heading of each family, which has the `model_type` where a class stands for several, and its tables."""
    from ckpt_hf.config import FAMILIES

    plain = [family for family in FAMILIES if not family.like]
    names = [family.class_name for family in plain]
    pages: dict[str, list[tuple[str, FamilyTables]]] = {page: [] for page in HF_PAGES}
    places = {kind: page for page, (_, kinds) in HF_PAGES.items() for kind in kinds.split()}
    order = {kind: place for place, kind in enumerate(places)}
    for family in sorted(plain, key=lambda one: order.get(one.model_type, len(order))):
        name, kind = family.class_name, family.model_type
        heading = f"{name} ({kind})" if names.count(name) > 1 else name
        pages[places.get(kind, "others")].append((heading, FamilyTables(name, family.config, family.tables)))
    return pages


def hf_index() -> str:
    """The pages of the families, and what is on each."""
    rows = [
        (
            f"[{HF_PAGES[page][0]}]({page}.md)",
            ", ".join(f"[{code(heading)}]({page}.md#{anchor(heading)})" for heading, _ in families),
        )
        for page, families in _hf_families().items()
    ]
    return table(
        ("page", "classes of transformers"),
        [*rows, ("[Other heads](heads.md)", "bare models, classifiers of texts and of tokens")],
    )


def hf_families(page: str) -> str:
    """A page of families: each with its config keys and its tensors."""
    from ckpt_hf.common import GENERIC

    families, sheet, parts = _hf_families()[page], Sheet(linked=True), []
    sheet.assume("[every class](index.md#keys-of-every-class)", one_by_one(GENERIC))
    for heading, family in families:
        assert family.config is not None
        parts += [
            f"## {heading}",
            *sheet.config(heading, family.config.entries),
            *sheet.tensors(heading, family.tables),
        ]
    return "\n\n".join([*choice_table([family for _, family in families]), *parts])


def hf_keys() -> str:
    """The config keys that every class of transformers has."""
    from ckpt_hf.common import GENERIC

    return config_table(one_by_one(GENERIC))


def hf_heads() -> str:
    """The kinds that are another one but for their head: what each head has is said once, of the first kind that has it."""
    families = declared_families(require("hf"))
    plain = {family.name: family for family in reversed(families) if not family.like}
    kinds_by_head: dict[tuple[object, ...], list[FamilyTables]] = {}
    for family in families:
        if family.like and family.config and isinstance(family.tables, Tables):
            rows = [one for each in family.tables for one in each.rows if one.canonical.startswith("classifier.")]
            kinds_by_head.setdefault((*rows, len(family.name) - len(stem(family))), []).append(family)
    parts = []
    for (*rows, _), kinds in kinds_by_head.items():
        first = kinds[0]
        base = plain[first.like].config
        assert base is not None and first.config is not None
        known = {(entry.keys, entry.words()) for entry in base.entries}
        said = [entry for entry in first.config.entries if (entry.keys, entry.words()) not in known]
        names = (
            "its tensors have the names that they have there"
            if rows
            else "without the prefix in the names of its tensors"
        )
        parts += [
            f"## {first.name}",
            f"As {code(first.like)} but for its head, and {names}{':' if said or rows else '.'}",
        ]
        parts += [config_table(said)] if said else []
        parts += [row_table(rows, ())] if rows else []
        parts += [f"Likewise {codes(kind.name for kind in kinds[1:])}."] if kinds[1:] else []
    return "\n\n".join(parts)


def stem(family: FamilyTables) -> str:
    """What the name of a kind of transformers begins with: the family, and not its head."""
    for ending in ("ForCausalLM", "LMHeadModel", "ForMaskedLM"):
        if family.like.endswith(ending):
            return family.like.removesuffix(ending)
    return family.like
