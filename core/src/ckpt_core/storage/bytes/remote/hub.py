"""`hf://owner/name[/folder][@revision]`: repositories of the Hugging Face hub.

huggingface_hub says, once for each file, where its bytes lie (a URL that expires) and which commit they are of; ranges of them
are plain HTTP. Its own files read 5 MB ahead, for a header of 8 KB too.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import threading
from typing import Any, NamedTuple

from ckpt_core.errors import CkptError, StoreError, UsageError
from ckpt_core.storage.bytes.remote import http
from ckpt_core.storage.bytes.remote.http import Refused
from ckpt_core.storage.bytes.remote.objects import Hiccup, Listing, Object, changed

_ADDRESS = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<folder>[\w./ +-]+?))?/?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_PINNED = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})/(?P<file>.+)", re.DOTALL)
# Other copies of the same weights, where a repository has several.
_IGNORED = ["*.msgpack", "*.h5", "*.ot", "*.tflite", "*.onnx", "onnx/*", "*.gguf", "original/*"]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".nemo", ".distcp")
_EXPIRED = (401, 403, 410)
_ACCEPT = "accept its terms on its page of the hub, and log in: hf auth login, or HF_TOKEN"
_REVISION = "behind the @ stands a branch, a tag or a commit of it"
_LOG_IN = "see how its name is spelled; where it is private, log in: hf auth login, or HF_TOKEN"
_ONLINE = "unset HF_HUB_OFFLINE, or download it first where the hub can be asked: hf download OWNER/NAME"


class Repository(NamedTuple):
    """What an address names: a repository, a folder in it (or ""), and the commit."""

    name: str
    folder: str
    commit: str


def _copies(files: list[str], folder: str) -> set[str]:
    """Those of the files that are further copies of the weights: for other frameworks, as GGUF, as they were first published.

    Where `folder`, the folder or file of the address, has no other weights, its own are none: a repository of GGUF files, `original` of a Llama.
    """
    copies = {file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in _IGNORED)}
    inside = {file for file in files if not folder or file == folder or file.startswith(f"{folder}/")}
    return copies if any(file.endswith(_WEIGHTS) for file in inside - copies) else copies - inside


class Hub:
    """The hub. An object's address has the commit, so that it never changes: `hf://owner/name@COMMIT/file`."""

    def __init__(self) -> None:
        self._urls: dict[str, tuple[str, dict[str, str]]] = {}
        self._lock = threading.Lock()

    def listing(self, address: str) -> Listing:
        """The files of a repository, without further copies of the weights."""
        repository = resolved(address)
        name, commit = repository.name, repository.commit
        root = f"hf://{name}@{commit}"
        objects = []
        tree = _asked(address, lambda hub: list(hub.HfApi().list_repo_tree(name, recursive=True, revision=commit)))
        copies = _copies([entry.path for entry in tree], repository.folder)
        for entry in tree:
            size, file = getattr(entry, "size", None), entry.path
            if size is not None and file not in copies:
                lfs = getattr(entry, "lfs", None)
                version = lfs.sha256 if lfs is not None else entry.blob_id
                objects.append(Object(f"{root}/{file}", size, version, copy=_copy(repository, file)))
        return Listing(root, repository.folder, objects)

    def now(self, object: Object) -> Object:
        """The object itself: a commit does not change."""
        return object

    def read(self, object: Object, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`; a URL that expired is renewed once."""
        for renewed in (False, True):
            url, headers = self._place(object, renewed)
            try:
                http.read_range(url, headers, view, offset, object.size)
                return
            except Refused as refused:
                if renewed or refused.status not in _EXPIRED:
                    raise (
                        changed(object, str(refused))
                        if refused.status in (404, 416)
                        else StoreError("the hub does not give this file", file=object.address, found=str(refused))
                    ) from None

    def _place(self, object: Object, renewed: bool) -> tuple[str, dict[str, str]]:
        """Where the bytes of an object lie at present, and what a request for them carries."""
        with self._lock:
            known = self._urls.get(object.address)
        if known is not None and not renewed:
            return known
        found = _PINNED.fullmatch(object.address)
        if found is None:
            raise UsageError("not a file of the hub", found=object.address)

        def ask(hub: Any) -> tuple[Any, str]:
            url = hub.hf_hub_url(found["repository"], found["file"], revision=found["revision"])
            return hub.get_hf_file_metadata(url), url

        said, url = _asked(object.address, ask)
        if said.commit_hash not in (None, found["revision"]) or said.size not in (None, object.size):
            raise changed(object, f"{said.size} bytes, commit {said.commit_hash}")
        own = http.site(said.location) == http.site(url)
        place = (said.location, _headers() if own else {})  # a token is for the hub alone, not for who stores its files
        with self._lock:
            self._urls[object.address] = place
        return place


def resolved(address: str) -> Repository:
    """The repository at an address and its commit, as it is now; `UsageError` for what is no address of the hub."""
    found = _matched(address)
    info = _asked(address, lambda hub: hub.HfApi().model_info(found["repository"], revision=found["revision"]))
    return Repository(found["repository"] or "", found["folder"] or "", info.sha)


def snapshot(address: str) -> str:
    """The local snapshot of a repository, for a hub that must not be asked (HF_HUB_OFFLINE)."""
    found = _matched(address)
    local = _asked(
        address,
        lambda hub: hub.snapshot_download(
            found["repository"], revision=found["revision"], ignore_patterns=_IGNORED, local_files_only=True
        ),
    )
    return os.path.join(local, found["folder"]) if found["folder"] else local


def _matched(address: str) -> dict[str, str | None]:
    found = _ADDRESS.fullmatch(address)
    wrong = {"", ".", ".."}
    if found is None or wrong & {*(found["revision"] or "main").split("/"), *(found["folder"] or "a").split("/")}:
        expected = "hf://owner/name, hf://owner/name@revision or hf://owner/name/folder@revision"
        raise UsageError("not a hub address", found=address, expected=expected)
    return found.groupdict()


def offline() -> bool:
    """Whether the hub must not be asked."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    return bool(constants.HF_HUB_OFFLINE)


def _copy(repository: Repository, name: str) -> str | None:
    """The file in the hub's own cache, where it was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.name, name, revision=repository.commit)
    return found if isinstance(found, str) else None


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return dict(build_hf_headers())


def _asked(address: str, ask: Any) -> Any:
    """What the hub's client says; `Hiccup` where the hub is out of order, and `CkptError` for what it refuses."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise CkptError("hf:// needs huggingface_hub", file=address, fix='pip install "ckpt-convert[hub]"') from None
    refused = functools.partial(StoreError, "the hub does not give this repository", file=address)
    try:
        return ask(hub)
    except HFValidationError as error:
        raise UsageError("the hub has no such names", file=address, found=_first_line(error)) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status is not None and (status == 429 or status >= 500):
            raise Hiccup(_first_line(error)) from error
        gated, revision = isinstance(error, GatedRepoError), isinstance(error, RevisionNotFoundError)
        fix = _ACCEPT if gated else _REVISION if revision else _LOG_IN
        raise refused(found=_first_line(error), fix=fix) from error
    except LocalEntryNotFoundError as error:
        if offline():
            raise refused(found="HF_HUB_OFFLINE is set, and the cache of the hub lacks it", fix=_ONLINE) from error
        raise refused(found=_first_line(error)) from error
    except OSError as error:
        raise refused(found=_first_line(error)) from error
    except Exception as error:  # its HTTP library has errors of its own, and which one that is depends on its version
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise
        raise Hiccup(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
