"""Every pair of formats: the same model, whichever way it goes, in whatever layout; what cannot hold it says so."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint
from ckpt_core.errors import CkptError
from ckpt_tests.formats import written
from ckpt_tests.goldens import Golden, goldens

# How each format is written: layouts that differ from each other wherever the format has one.
LAYOUTS: dict[str, dict[str, object]] = {
    "hf": {},
    "ir": {},
    "nanotron": {"tp": 2, "pp": 2},
    "megatron": {"tp": 2, "pp": 1, "options": {"container": "torch"}},
    "megatron-bridge": {},
    "nemo": {"tp": 2, "pp": 1},
    "nemo2": {},
    "nxdt": {"tp": 2, "pp": 2, "options": {"dst.hw_backend": "trn1"}},
    "megatron-deepspeed": {"tp": 2, "pp": 1},
    "deepspeed": {},
    "fsdp": {},
    "torchtitan": {},
    "gguf": {"options": {"dst.tokenizer": "none", "dst.context_length": "64"}},
}
# Neuron's jobs pad no vocabulary: 131 tokens are not divided.
UNDIVIDED: dict[tuple[str, str], dict[str, object]] = {("mixtral", "nxdt"): {"options": {"dst.hw_backend": "trn1"}}}
_MEGATRONS = {"megatron", "megatron-bridge", "nemo", "nemo2"}
# A model of each kind, and the formats that can hold it.
MODELS = {
    "llama": (
        "nanotron",
        "main_llama_tp2_pp1_bf16",
        {"hf", "ir", "nanotron", "nxdt", "deepspeed", "fsdp", "torchtitan", "gguf"} | _MEGATRONS,
    ),
    "mixtral": (
        "megatron",
        "mixtral_groupedmlp_ep2_torch",
        {"hf", "ir", "nxdt", "deepspeed", "fsdp", "gguf"} | _MEGATRONS,
    ),
    "gpt2": (
        "megatron",
        "legacy_ckptver0_gpt2_tp2",
        {"hf", "ir", "megatron-deepspeed", "deepspeed", "fsdp"} | _MEGATRONS,
    ),
}
# All pairs of the one that every format holds; of the others, every format from and to HF, as fsdp, which keeps HF's tensors.
PAIRS = [
    (model, *pair)
    for model, (_, _, holders) in MODELS.items()
    for pair in itertools.product(sorted(holders), repeat=2)
    if (model == "llama" and not {"fsdp", "torchtitan", "gguf"} & set(pair)) or "hf" in pair
]


def layout(model: str, target: str) -> dict[str, object]:
    return UNDIVIDED.get((model, target), LAYOUTS[target])


def golden(model: str) -> Golden:
    framework, case, _ = MODELS[model]
    return next(one for one in goldens(framework) if one.folder.name == case)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    return {}


@pytest.fixture
def source(
    request: pytest.FixtureRequest, made: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model in the format that the test starts from, written once."""
    model, origin = request.node.callspec.params["model"], request.node.callspec.params["origin"]
    if (model, origin) not in made:
        folder = tmp_path_factory.mktemp("any") / f"{model}-{origin}"
        convert(golden(model).checkpoint, folder, to=origin, **layout(model, origin))
        made[model, origin] = folder
    return made[model, origin]


def test_every_format_that_is_written_is_here() -> None:
    assert set(written()) == set(LAYOUTS)


@pytest.mark.parametrize(("model", "origin", "target"), PAIRS)
def test_the_fingerprint_survives(model: str, origin: str, target: str, source: Path, tmp_path: Path) -> None:
    expected = fingerprint(golden(model).checkpoint)
    receipt = convert(source, tmp_path / "out", to=target, format=origin, **layout(model, target))
    assert receipt.fingerprint == expected
    assert fingerprint(tmp_path / "out", format=target) == expected


@pytest.mark.parametrize(
    ("model", "target"),
    [(model, target) for model, (_, _, holders) in MODELS.items() for target in sorted(LAYOUTS.keys() - holders)],
)
def test_what_cannot_hold_it_refuses(model: str, target: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"cannot hold|can only hold|has no |holds this (architecture|model) exactly"):
        convert(golden(model).checkpoint, tmp_path / "out", to=target, **layout(model, target))
    assert not (tmp_path / "out").exists()
