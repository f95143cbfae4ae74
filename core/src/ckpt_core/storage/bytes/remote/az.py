"""`az://container/key` as a place to write to, through azure-storage-blob, Microsoft's own library.

A blob is made of blocks that the writer names: a block counts when a list of blocks names it, and until then nobody sees it. So the name of a
block says all that a part has to say, the upload, its number, and the MD5 of its bytes, which the store checks on arrival:

    UPLOAD-NUMBER-MD5        16 characters, 5 digits, 32 characters: the names of all blocks of a blob must have one length

Account, key and endpoint are those of the environment that obstore reads, too; without a key azure-identity is asked.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import logging
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ckpt_core.errors import CkptError, StoreError, UsageError
from ckpt_core.storage.bytes.remote.objects import Hiccup
from ckpt_core.storage.bytes.remote.writing import Body, Gone, Part, Read, Taken, Written

_MARK = "ckpt_plan"  # of a blob's own metadata, whose names are those of variables in C#
_FOLDER = "hdi_isfolder"  # what a store with a hierarchical namespace marks its folders with
_TIMEOUT = 60  # seconds without a byte
_SMALL = 64 << 20
_AT_ONCE = 4 << 20  # of a document: the library reads as much into memory, and sends what is longer in blocks
_NO_CONTAINER = ("ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled")
_TAKEN = ("BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet")
_PASSING = ("ServerBusy", "OperationTimedOut", "InternalError", "Md5Mismatch")
_RIGHTS = "the role Storage Blob Data Contributor, or a signature with the permissions r, w, d, l and c"
_VARIABLES = "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
# Of Azurite and of the emulator before it, the same for everybody:
# https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
_EMULATED = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)


def no_account(root: str) -> UsageError:
    """The error about a container of Azure's whose account nothing says."""
    return UsageError("no account is named", file=root, fix="set AZURE_STORAGE_ACCOUNT_NAME")


class Azure:
    """One container. There are no uploads in such a store: the name of one begins the names of its blocks."""

    def __init__(self, root: str) -> None:
        self._root, self._container = root, root.partition("://")[2]
        try:
            blobs = importlib.import_module("azure.storage.blob")
            self._named = blobs.BlobBlock
            self._library = importlib.import_module("azure.core.exceptions")
            self._unchanged = importlib.import_module("azure.core").MatchConditions.IfNotModified
        except ImportError:
            raise CkptError(
                "writing to az:// needs azure-storage-blob", file=root, fix='pip install "ckpt-convert[az]"'
            ) from None
        quiet()
        endpoint, credential = self._account()
        with self._errors(root):
            self._client: Any = blobs.ContainerClient(
                endpoint,
                self._container,
                credential=credential,
                retry_total=0,  # ours follow
                connection_timeout=_TIMEOUT,
                read_timeout=_TIMEOUT,
                max_single_put_size=_AT_ONCE,
            )

    def _account(self) -> tuple[str, Any]:
        """The address of the account, and what proves that it may be used."""
        name, key = _setting("AZURE_STORAGE_ACCOUNT_NAME"), _setting("AZURE_STORAGE_ACCOUNT_KEY")
        if (_setting("AZURE_STORAGE_USE_EMULATOR") or "").lower() in ("true", "1"):
            name, key = name or _EMULATED[0], key or _EMULATED[1]
            endpoint = f"{_setting('AZURITE_BLOB_STORAGE_URL') or 'http://127.0.0.1:10000'}/{name}"
        else:
            if not name:
                raise no_account(self._root)
            endpoint = _setting("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT") or f"https://{name}.blob.core.windows.net"
        if key:
            return endpoint, {"account_name": name, "account_key": key}
        if signature := _setting("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"):
            return endpoint, signature.removeprefix("?")
        try:
            return endpoint, importlib.import_module("azure.identity").DefaultAzureCredential()
        except ImportError:
            raise self._without(self._root, "no key, no signature, and azure-identity is not installed") from None

    def removal(self, address: str, single: bool = False) -> str:
        """See `WritableStore`."""
        if single:
            return f"az storage blob delete --container-name {self._container} --name {shlex.quote(self._key(address))}"
        key = re.sub(r"([*?[])", r"[\1]", self._key(address).rstrip("/"))
        return f"az storage blob delete-batch --source {self._container} --pattern {shlex.quote(f'{key}/*')}"

    def below(self, address: str) -> Sequence[str]:
        """See `WritableStore`; the first thousand."""
        prefix = f"{self._key(address).rstrip('/')}/"
        with self._errors(address):
            pages = self._client.list_blobs(
                name_starts_with=prefix.lstrip("/"), include=["metadata"], results_per_page=1000
            ).by_page()
            first = list(next(pages, ()))
        return [one.name.removeprefix(prefix) for one in first if not _is_folder(one)]

    def written(self, address: str) -> Written | None:
        """See `WritableStore`."""
        with contextlib.suppress(FileNotFoundError), self._errors(address):
            found = self._blob(address).get_blob_properties()
            if not _is_folder(found):
                return Written(found.size, (found.metadata or {}).get(_MARK, ""))
        return None

    def read(self, address: str) -> Read | None:
        """See `WritableStore`."""
        with contextlib.suppress(FileNotFoundError), self._errors(address):
            stream = self._blob(address).download_blob()  # the first 32 MiB, until more is read
            if stream.size > _SMALL:
                raise StoreError("the object is far too large to be what its name says", file=address)
            return Read(stream.readall(), stream.properties.etag)
        return None

    def put(self, address: str, body: Body | bytes, plan: str, over: str | None = None) -> None:
        """See `WritableStore`."""
        if not isinstance(body, bytes):
            body.seek(0)  # it was read, if this is not the first attempt
        condition = {} if over is None else {"etag": over, "match_condition": self._unchanged}
        try:
            with self._errors(address):
                self._blob(address).upload_blob(
                    body,
                    length=len(body),
                    overwrite=over is not None,  # else If-None-Match
                    metadata={_MARK: plan},
                    validate_content=True,  # an MD5 with each request
                    **condition,
                )
        except FileNotFoundError as gone:  # what was to be replaced
            raise Taken(str(gone)) from None

    def remove(self, address: str) -> None:
        """See `WritableStore`."""
        with contextlib.suppress(FileNotFoundError), self._errors(address):
            self._blob(address).delete_blob()

    def begin(self, address: str, plan: str) -> str:
        """See `WritableStore`. The store is not asked: the first block begins an upload."""
        return os.urandom(8).hex()

    def send(self, address: str, upload: str, number: int, body: Body) -> str:
        """See `WritableStore`."""
        tag = body.md5.hex()
        if not len(body):
            return tag  # an empty file is a list without blocks; there is no empty block
        body.seek(0)
        checked = {"Content-MD5": base64.b64encode(body.md5).decode()}
        with self._errors(address):
            self._blob(address).stage_block(_block(upload, number, tag), body, length=len(body), headers=checked)
        return tag

    def parts(self, address: str, upload: str) -> dict[int, Part]:
        """See `WritableStore`. A blob without blocks is one that was not begun, until there is a blob: then the upload is over."""
        found: dict[int, Part] = {}
        try:
            with self._errors(address):
                listed, waiting = self._blob(address).get_block_list("all")
        except FileNotFoundError:
            return found
        if listed or not waiting:
            raise Gone("there is a blob of this name")
        for one in waiting:
            owner, number, tag = (*str(one.id).split("-"), "", "")[:3]
            if owner == upload and number.isdecimal():
                found[int(number)] = Part(tag, one.size)
        return found

    def complete(self, address: str, upload: str, tags: Sequence[str], plan: str) -> None:
        """See `WritableStore`."""
        blocks = [_block(upload, number, tag) for number, tag in enumerate(tags, 1) if tag != _EMPTY]
        with self._errors(address):
            self._blob(address).commit_block_list(
                [self._named(block) for block in blocks],
                metadata={_MARK: plan},
                headers=_IF_NONE,
            )

    def abort(self, address: str, upload: str) -> None:
        """See `WritableStore`. Azure drops blocks a week after the last one came, or when a blob is made without them: so an empty one is made, and removed at once.

        Nothing is done if there is a blob of this name by now, or if another upload has blocks here: they would be lost with ours.
        """
        with contextlib.suppress(FileNotFoundError, Taken), self._errors(address):
            blob = self._blob(address)
            listed, waiting = blob.get_block_list("all")
            if waiting and not listed and all(str(one.id).startswith(f"{upload}-") for one in waiting):
                made = blob.commit_block_list([], headers=_IF_NONE)
                blob.delete_blob(etag=made["etag"], match_condition=self._unchanged)

    def _blob(self, address: str) -> Any:
        return self._client.get_blob_client(self._key(address))

    def _key(self, address: str) -> str:
        return address.removeprefix(self._root).removeprefix("/")

    @contextlib.contextmanager
    def _errors(self, address: str) -> Iterator[None]:
        """Have an error of the library be one of those that a `WritableStore` has, or one that says what to do."""
        library = self._library
        try:
            yield
        except library.HttpResponseError as error:
            raise self._meaning(error, address) from None
        except (library.ServiceRequestError, library.ServiceResponseError) as error:
            raise Hiccup(_said(error)) from None
        except (library.AzureError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise StoreError("the store can't be asked", file=address, found=_said(error)) from None

    def _without(self, address: str, said: str) -> StoreError:
        return StoreError(
            "there are no credentials to write there",
            file=address,
            found=said,
            fix=f"set {_VARIABLES}, or pip install azure-identity and log in (az login); then repeat the command: what is done is kept",
        )

    def _meaning(self, error: Any, address: str) -> Exception:
        status, code = error.status_code or 0, getattr(error, "error_code", None) or ""
        code = str(getattr(code, "value", code))
        said = f"{code or status}: {_said(error)}" if code or status else _said(error)
        if isinstance(error, self._library.ClientAuthenticationError) and error.response is None:
            return self._without(address, said)  # azure-identity found nothing, or the key is none
        if code in _NO_CONTAINER:
            return StoreError("there is no such container", file=self._root, found=said, fix="make it first")
        if code in _TAKEN or (status == 412 and not code):
            return Taken(said)
        if code == "InvalidBlockList":
            return Gone(said)
        if code == "InvalidBlobOrBlock":
            return StoreError(
                "another program has blocks at this name that wait for their list",
                file=address,
                found=said,
                fix="let it end, or put an object of that name and remove it; else they are gone after a week",
            )
        if status == 404:
            return FileNotFoundError(said)
        if code in _PASSING or status in (408, 429) or status < 300 or (status >= 500 and status != 501):
            return Hiccup(said)
        if status in (401, 403):
            expired = "time frame" in str(error) or "expired" in said.lower()  # Azure says so in a line of its own
            return StoreError(
                "the credentials have expired" if expired else "the store does not let you do this",
                file=address,
                found=said,
                fix="get new ones, then repeat the command: what is done is kept"
                if expired
                else f"it takes {_RIGHTS}; then repeat the command: what is done is kept",
            )
        return StoreError("the store refuses the request", file=address, found=said)


def quiet() -> None:
    """Have Azure's libraries not write to stderr what is raised as an error, too: with no handler at all, Python does that with warnings."""
    logging.getLogger("azure").addHandler(logging.NullHandler())


_IF_NONE = {"If-None-Match": "*"}
_EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
"""The MD5 of nothing."""


def _block(upload: str, number: int, tag: str) -> str:
    """The name of a block; the library writes it in base 64."""
    return f"{upload}-{number:05d}-{tag}"


def _is_folder(blob: Any) -> bool:
    return str((blob.metadata or {}).get(_FOLDER, "")).lower() == "true"


def _setting(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _said(error: Exception) -> str:
    """What the store says, in one line: the first, for the others have the number of the request and the time."""
    return " ".join((str(error).splitlines() or [""])[0].split())[:300]
