"""Which format a folder is of: every installed detector against every golden, and against folders of other tools whose files
have the same names."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ckpt_core.plugins.discovery import detect
from ckpt_tests.goldens import every_golden

OF = {"nemo-gpt": "nemo", "nemo-t5": "nemo", "nemo-vit": "nemo"}
WEIGHTS = save({"weight": torch.zeros(2, 3)}, {"format": "pt"})
HF = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
LITGPT = "name: pythia-14m\nhf_config:\n  org: EleutherAI\nn_layer: 6\n"
DIST = json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
LIGHTNING = {
    "pytorch-lightning_version": "2.0.7",
    "hyper_parameters": {"lr": 0.1},
    "state_dict": {"backbone.weight": torch.zeros(2)},
}

Files = Mapping[str, str | bytes | dict]

# fmt: off
FOREIGN: dict[str, tuple[Files, list[str]]] = {
    # what it is                            files that other tools call so                                     who takes it
    "nothing but text":                    ({"config.json": "{}", "readme.txt": "hello"},                             []),
    "litgpt":                              ({"model_config.yaml": LITGPT, "lit_model.pth": {}},                       []),
    "litgpt, as it downloads":             ({"model_config.yaml": LITGPT, "lit_model.pth": {}, "config.json": HF, "model.safetensors": WEIGHTS}, ["hf"]),
    "diffusers":                           ({"config.json": '{"_class_name": "UNet2DModel"}', "model.safetensors": WEIGHTS},  []),
    "timm":                                ({"config.json": '{"architecture": "vit_tiny"}', "pytorch_model.bin": {}}, []),
    "a config.json that is damaged":       ({"config.json": '{"model_type"', "model.safetensors": WEIGHTS},           ["hf"]),
    "another architecture.json":           ({"architecture.json": '{"nodes": []}', "tensors.index.json": "{}"},       []),
    "a run_config.yaml beside Megatron's": ({"iter_0000001/run_config.yaml": "seed: 1", "iter_0000001/metadata.json": DIST, "iter_0000001/.metadata": "",
                                             "iter_0000001/common.pt": {"iteration": 1}},                             ["megatron"]),
    "an io.json beside Megatron's":        ({"iter_0000001/io.json": "[]", "iter_0000001/metadata.json": DIST, "iter_0000001/.metadata": "",
                                             "iter_0000001/common.pt": {"iteration": 1}},                             ["megatron"]),
    "a model_config.yaml beside Megatron's": ({"model_config.yaml": LITGPT, "iter_0000001/metadata.json": DIST, "iter_0000001/.metadata": "",
                                             "iter_0000001/common.pt": {"iteration": 1}},                             ["megatron"]),
    "a torch_dist that is not Megatron's": ({"iter_0000001/metadata.json": DIST, "iter_0000001/.metadata": "",
                                             "iter_0000001/common.pt": {"epoch": 1}},                                 []),
    "rank folders of text":                ({"iter_0000001/mp_rank_00/model_optim_rng.pt": "notes"},                  []),
    "another io.json":                     ({"context/io.json": '{"inputs": []}', "weights/metadata.json": DIST},     []),
    "Lightning, of another model":         ({"checkpoints/last.ckpt": LIGHTNING},                                     []),
    "another decoder folder":              ({"model/model/decoder/0/model_weight.safetensors": WEIGHTS},              []),
    "a decoder folder of text":            ({"model/model/decoder/notes.txt": "hello"},                               []),
    "rank files of text":                  ({"model/dp_rank_00_tp_rank_00_pp_rank_00.pt": "notes"},                   []),
    "model states of text":                ({"global_step1/mp_rank_00_model_states.pt": "notes"},                     []),
    "verl's rank files of text":           ({"actor/model_world_size_1_rank_0.pt": "notes"},                          []),
    "a .metadata of text":                 ({".metadata": "notes", "__0_0.distcp": "notes"},                          []),
    "a .metadata without data":            ({".metadata": b"\x80\x02}."},                                             []),
    "layer files of text":                 ({"global_step1/layer_01-model_00-model_states.pt": "notes"},              []),
}
# fmt: on


def written(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            torch.save(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def formats(path: Path) -> list[str]:
    return [plugin.name for plugin, _ in detect(str(path))]


@pytest.mark.parametrize("golden", every_golden(), ids=str)
def test_a_golden_is_of_its_own_format_and_of_no_other(golden) -> None:
    framework = golden.folder.parent.name
    (found,) = formats(golden.checkpoint)
    assert found == OF.get(framework, framework) or (framework == "megatron-deepspeed" and found == "deepspeed")


@pytest.mark.parametrize("what", FOREIGN)
def test_a_name_alone_decides_nothing(what: str, tmp_path: Path) -> None:
    files, takers = FOREIGN[what]
    assert formats(written(tmp_path / "it", files)) == takers


FILES: dict[str, Callable[[Path], None]] = {
    "lone.safetensors": lambda path: path.write_bytes(WEIGHTS),
    "firmware.bin": lambda path: path.write_bytes(bytes(64)),
    "config.json": lambda path: path.write_text(HF),
}


@pytest.mark.parametrize("name", FILES)
def test_a_lone_file_is_of_no_format(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    assert formats(tmp_path / name) == []


def test_a_weight_file_beside_a_config_of_transformers(tmp_path: Path) -> None:
    written(tmp_path, {"config.json": HF, "lone.safetensors": WEIGHTS})
    assert formats(tmp_path / "lone.safetensors") == ["hf"]


def test_an_archive_of_litgpt(tmp_path: Path) -> None:
    folder = written(tmp_path / "it", {"model_config.yaml": LITGPT, "lit_model.pth": {}})
    with tarfile.open(tmp_path / "it.tar", "w") as tar:
        for path in folder.iterdir():
            tar.add(path, path.name)
    assert formats(tmp_path / "it.tar") == []
