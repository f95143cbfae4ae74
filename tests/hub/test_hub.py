"""`hf://` sources: the real huggingface_hub client against a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import LlamaConfig, LlamaForCausalLM

from ckpt_core import convert, fingerprint
from ckpt_core.errors import StoreError
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.storage.bytes.remote.hub import _asked, _copies
from ckpt_tests.web import COMMIT, Site, serving

REPOSITORY = "someone/tiny-llama"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=42,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"another copy of the weights")
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[tuple[dict[str, str], Site]]:
    """The environment of a client that knows only our server, and what that is asked for."""
    with serving(model, repository=REPOSITORY) as site:
        environment = {
            **os.environ,
            "HF_ENDPOINT": site.url.rstrip("/"),
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            environment.pop(proxy, None)
        yield environment, site


def ckpt(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckpt_core", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_model_of_the_hub_converts_by_ranges(hub, model: Path, tmp_path: Path, revision: str) -> None:
    environment, site = hub
    site.expired = {"/blobs/model.safetensors?signature=1"}
    done = ckpt(
        environment, "convert", f"hf://{REPOSITORY}{revision}", str(tmp_path / "out"), "--to", "nanotron", "--tp", "3"
    )
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "out") == fingerprint(model)
    receipt = json.loads((tmp_path / "out" / RECEIPT).read_text())
    assert receipt["source"]["path"] == f"hf://{REPOSITORY}@{COMMIT}", "the receipt names the commit"
    asked = {one.name for one in site.asked}
    assert "model.safetensors" in asked
    assert not any(name.startswith("original/") for name in asked), "other copies of the weights are not read"
    assert not list((tmp_path / "home").rglob("*.safetensors")), "no copy is left"
    resolved = [path for path in site.others if path.endswith("/model.safetensors")]
    assert len(resolved) == 2, "once for its place, and once more because that had expired"


def test_the_hub_says_what_a_checkpoint_without_a_config_is(hub, model: Path, tmp_path: Path) -> None:
    """As the READMEs of formats without a config have it: `--config hf://OWNER/NAME`."""
    environment, site = hub
    convert(model, tmp_path / "dcp", to="fsdp")
    (tmp_path / "dcp/config.json").unlink()
    (tmp_path / "dcp" / RECEIPT).unlink()
    done = ckpt(environment, "fingerprint", str(tmp_path / "dcp"), "--config", f"hf://{REPOSITORY}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == fingerprint(model)
    assert not any(one.name.endswith(".safetensors") for one in site.asked)


def test_a_copy_of_the_weights_is_read_where_it_is_named(hub, model: Path, tmp_path: Path) -> None:
    """GGUF of the hub: beside weights it is another copy of them, and most repositories that have it have no others."""
    convert(model, tmp_path / "gguf", to="gguf", options={"tokenizer": "none"}, sync=False)
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    folder = tmp_path / "repository"
    shutil.copytree(model, folder)
    shutil.copy(file, folder / "model.gguf")
    environment, _ = hub
    with serving(folder, repository=REPOSITORY) as site:
        environment = {**environment, "HF_ENDPOINT": site.url.rstrip("/")}
        code = ckpt(environment, "fingerprint", f"hf://{REPOSITORY}")
        assert code.stdout.split()[0] == fingerprint(model), code.stderr
        assert not any(one.name.endswith(".gguf") for one in site.asked)
        named = ckpt(environment, "fingerprint", f"hf://{REPOSITORY}/model.gguf")
        assert named.stdout.split()[0] == fingerprint(file), named.stderr
        (folder / "model.safetensors").unlink()
        alone = ckpt(environment, "fingerprint", f"hf://{REPOSITORY}", "--from", "gguf")
        assert alone.stdout.split()[0] == fingerprint(file), alone.stderr


def test_what_the_hub_has_kept_here_is_read_here(hub, model: Path, tmp_path: Path) -> None:
    environment, site = hub
    cached = tmp_path / "home/hub" / f"models--{REPOSITORY.replace('/', '--')}/snapshots/{COMMIT}"
    cached.mkdir(parents=True)
    shutil.copy(model / "model.safetensors", cached)
    done = ckpt(environment, "fingerprint", f"hf://{REPOSITORY}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == fingerprint(model)
    assert sum(one.count for one in site.asked if one.name == "model.safetensors") == 0
    site.asked.clear()
    shutil.copy(model / "config.json", cached)
    done = ckpt({**environment, "HF_HUB_OFFLINE": "1"}, "fingerprint", f"hf://{REPOSITORY}@{COMMIT}")
    assert done.stdout.split()[0] == fingerprint(model), done.stderr
    assert not site.asked


def test_the_hubs_refusal_is_one_error(hub) -> None:
    environment, _ = hub
    done = ckpt(environment, "inspect", "hf://someone/nothing")
    assert done.returncode == 1
    assert "the hub does not give this repository" in done.stderr and "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    done = ckpt({**environment, "HF_HUB_OFFLINE": "1"}, "inspect", f"hf://{REPOSITORY}")
    assert done.returncode == 1 and "unset HF_HUB_OFFLINE" in done.stderr and "local_files_only" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (GatedRepoError, "accept its terms"),
        (RevisionNotFoundError, "behind the @ stands a branch"),
        (RepositoryNotFoundError, "see how its name is spelled"),
    ],
)
def test_each_refusal_of_the_hub_has_its_advice(kind: type[HfHubHTTPError], advice: str) -> None:
    def refuse(_: object) -> None:
        raise kind("no", response=mock.Mock(status_code=404, headers={}))

    with pytest.raises(StoreError, match="the hub does not give this repository") as error:
        _asked("hf://owner/name", refuse)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("files", "folder", "kept"),
    [
        ("config.json model.safetensors model.gguf original/a.pth", "", "config.json model.safetensors"),
        ("config.json model.safetensors model.gguf", "model.gguf", "config.json model.safetensors model.gguf"),
        ("config.json model.safetensors original/a.pth", "original", "config.json model.safetensors original/a.pth"),
        ("README.md a.Q8_0.gguf b/b.Q4_0.gguf", "", "README.md a.Q8_0.gguf b/b.Q4_0.gguf"),
        ("a.gguf b/b.gguf", "b", "b/b.gguf"),
        ("config.json flax_model.msgpack tf_model.h5", "", "config.json flax_model.msgpack tf_model.h5"),
        ("x/config.json x/model.safetensors x/model.onnx", "x", "x/config.json x/model.safetensors"),
    ],
)
def test_other_copies_of_the_weights_are_passed_over_unless_they_are_asked_for(
    files: str, folder: str, kept: str
) -> None:
    assert set(files.split()) - _copies(files.split(), folder) == set(kept.split())


def test_an_address_that_is_none_is_wrong_usage(hub) -> None:
    environment, _ = hub
    done = ckpt(environment, "inspect", "hf://only-a-name")
    assert done.returncode == 2
    assert "hf://owner/name" in done.stderr
