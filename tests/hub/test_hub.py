"""`hf://` sources: the real huggingface_hub client against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


class _Hub(BaseHTTPRequestHandler):
    """The three things a snapshot download asks a hub for: the revision, the listing, the files."""

    folder: Path
    asked: list[str]

    def _files(self) -> dict[str, Path]:
        return {
            path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*")) if path.is_file()
        }

    def _answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        files = self._files()
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
                for name, file in files.items()
            ]
            self._answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            if not path.endswith((REPOSITORY, "main", "v1", COMMIT)):
                self._answer(b'{"error": "Revision not found"}', {"X-Error-Code": "RevisionNotFound"}, 404)
                return
            body = {
                "id": REPOSITORY,
                "modelId": REPOSITORY,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            self._answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            name = path.split("/resolve/", 1)[1].split("/", 1)[1]
            self.asked.append(name)
            self._answer(files[name].read_bytes(), {"ETag": f'"{abs(hash(name)):x}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment of a client that knows only our server, and the names of the files it asked for."""
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"folder": model, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        environment.pop(proxy, None)
    yield environment, asked
    server.shutdown()
    server.server_close()


def ckpt(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckpt_core", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_model_of_the_hub_converts_like_a_local_one(hub, model: Path, tmp_path: Path, revision: str) -> None:
    environment, asked = hub
    done = ckpt(
        environment, "convert", f"hf://{REPOSITORY}{revision}", str(tmp_path / "out"), "--to", "nanotron", "--tp", "3"
    )
    assert done.returncode == 0, done.stderr
    prints = [ckpt(environment, "fingerprint", str(path)).stdout.split()[0] for path in (model, tmp_path / "out")]
    assert prints[0] == prints[1]
    assert "model.safetensors" in asked
    assert not any(name.startswith("original/") for name in asked), "other copies of the weights are not downloaded"


def test_the_hubs_refusal_is_one_error(hub) -> None:
    environment, _ = hub
    done = ckpt(environment, "inspect", "hf://someone/nothing")
    assert done.returncode == 1
    assert "the hub does not give this repository" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_none_is_wrong_usage(hub) -> None:
    environment, _ = hub
    done = ckpt(environment, "inspect", "hf://only-a-name")
    assert done.returncode == 2
    assert "hf://owner/name" in done.stderr
