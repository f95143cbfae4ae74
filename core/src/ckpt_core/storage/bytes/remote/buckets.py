"""`s3://bucket/key`, `gs://bucket/key`, `az://container/key`: buckets, through obstore.

Credentials and endpoints are those of its environment (AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME,
...), of the machine's own role, and, where they are installed, what boto3 finds for S3 (~/.aws) and azure-identity for Azure (az login).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ckpt_core.errors import CkptError, StoreError, UsageError
from ckpt_core.storage.bytes.remote.az import no_account, quiet
from ckpt_core.storage.bytes.remote.objects import Hiccup, Listing, Object, changed

_KINDS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
_TIMEOUT = 60  # seconds for an answer
_STATUS = re.compile(r"status code: (4\d\d)")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AZURE = (
    "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_USE_EMULATOR", "AZURE_SKIP_SIGNATURE",
)  # fmt: skip
"""What obstore needs no login beside."""

_WORD = {word: re.compile(f"<{word}>(.*?)</{word}>", re.DOTALL) for word in ("Code", "Message")}
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
_QUERY = re.compile(r"(https?://[^\s?]+)\?\S*")
_SETTINGS = {
    "s3": "see that the bucket exists, and set credentials and region in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION)",
    "gs": "see that the bucket exists, and set GOOGLE_APPLICATION_CREDENTIALS to the key of a service account, or log in (gcloud auth application-default login); for a bucket that everybody may read GOOGLE_SKIP_SIGNATURE=true",
    "az": "see that the container exists, and look at AZURE_STORAGE_ACCOUNT_NAME, and at AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
"""What to do where nothing more is known, by scheme."""
_EXPIRED = (
    "the credentials have expired",
    "get new ones, then repeat the command: what is done of a conversion is kept",
)
_ELSEWHERE_CODES = (
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
    "redirect without LOCATION",
)
_ELSEWHERE = ("the bucket is in another region", "set AWS_REGION to that of the bucket")
_KEY_OF_AZURE = "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
_REFUSALS = {
    "specified time frame": (
        "the signature has expired, or is not valid yet",
        "get a new one, or set the clock of this machine right; then repeat the command: what is done of a conversion is kept",
    ),
    "AuthorizationPermissionMismatch": (
        "the store does not let you read there",
        "it takes the role Storage Blob Data Reader, or a signature with the permissions r and l",
    ),
    **dict.fromkeys(
        ("AuthenticationFailed", "AuthorizationFailure"),
        ("the store does not take the credentials", f"look at {_KEY_OF_AZURE}: a signature may have expired"),
    ),
    "ExpiredToken": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    **dict.fromkeys(_ELSEWHERE_CODES, _ELSEWHERE),
    "ClientAuthenticationError": (
        "there are no credentials for az://",
        "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or log in (az login); for a container that everybody may read AZURE_SKIP_SIGNATURE=true",
    ),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong, says the store", "set it right"),
}
"""What stores answer that has another cause than a missing right: the problem, and what to do."""
_NO_BUCKET = "look at its name, and at the region, endpoint or account (AWS_REGION, AWS_ENDPOINT_URL, AZURE_STORAGE_ACCOUNT_NAME)"
_STRANGE = "Encountered object with invalid path"  # obstore's, of a listing
_NO_BUCKET_CODES = ("NoSuchBucket", "ContainerNotFound")


class Bucket:
    """One bucket. An object's version is its ETag."""

    def __init__(self, root: str) -> None:
        scheme, _, name = root.partition("://")
        if not name:
            raise UsageError("the address names no bucket", found=root, expected=f"{scheme}://bucket/folder")
        self._root = root
        try:
            self._library = importlib.import_module("obstore")
            stores = importlib.import_module("obstore.store")
        except ImportError:
            raise CkptError(f"{scheme}:// needs obstore", file=root, fix='pip install "ckpt-convert[s3]"') from None
        try:
            self._store: Any = getattr(stores, _KINDS[scheme])(name, **_settings(scheme))
        except self._library.exceptions.BaseError as error:  # no account, a key that is none
            if "Account must be specified" in str(error):
                raise no_account(root) from None
            raise StoreError("the store can't be asked", file=root, found=_said(error), fix=_SETTINGS[scheme]) from None

    def listing(self, address: str) -> Listing:
        """The objects below a folder, or of the folder of one object, and the files directly in the two folders above."""
        key = self._key(address).strip("/")
        with self._errors(address):
            found = [one for batch in self._library.list(self._store, prefix=key or None) for one in batch]
            above, beside = key, []
            for number in range(2 if key else 0):
                above = above.rpartition("/")[0]
                level = self._library.list_with_delimiter(self._store, prefix=above or None)
                found += level["objects"]
                if number == 0:
                    beside = [name.rpartition("/")[2] for name in level["common_prefixes"]]
                if not above:
                    break
        return Listing(self._root, key, list({one["path"]: self._object(one) for one in found}.values()), beside)

    def now(self, object: Object) -> Object:
        """The object as it is now."""
        with self._errors(object.address, object):
            found = self._object(self._library.head(self._store, self._key(object.address)))
        return replace(object, size=found.size, version=found.version)

    def read(self, object: Object, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`, if the object still has this ETag."""
        options = {"range": (offset, offset + len(view)), "if_match": object.version}
        with self._errors(object.address, object):
            answer = self._library.get(self._store, self._key(object.address), options=options)
            meta = self._object(answer.meta)
            if (meta.size, meta.version) != (object.size, object.version):  # a store may know no conditions
                raise changed(object, f"{meta.size} bytes, version {meta.version}")
            if tuple(answer.range) != (offset, offset + len(view)):
                raise Hiccup(f"bytes {answer.range} for {options['range']}")
            filled = 0
            for piece in answer.stream(min_chunk_size=1 << 20):
                piece = memoryview(piece)
                if filled + len(piece) > len(view):
                    raise Hiccup("the body goes on behind its range")
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
            if filled < len(view):
                raise Hiccup(f"the body ends after {filled} of {len(view)} bytes")

    def _key(self, address: str) -> str:
        return address.removeprefix(self._root).removeprefix("/")

    def _object(self, meta: Mapping[str, Any]) -> Object:
        address, version = f"{self._root}/{meta['path']}", meta.get("e_tag") or meta.get("version")
        if version is None:
            raise StoreError(
                "the store gives no ETag", file=address, expected="one: without it a change would not be seen"
            )
        if not version.endswith('"'):  # Azure leaves the quotes out where it lists, and has them in each answer
            version = f'"{version}"'
        return Object(address, meta["size"], version, int(meta["last_modified"].timestamp() * 1e6) * 1000)

    @contextlib.contextmanager
    def _errors(self, address: str, object: Object | None = None) -> Iterator[None]:
        """Have an error of the library be a `Hiccup`, or one that says what to do."""
        errors = self._library.exceptions
        try:
            yield
        except (FileNotFoundError, errors.NotFoundError) as error:
            if object is None:
                raise StoreError(
                    "there is no such bucket", file=self._root, found=_said(error), fix=_NO_BUCKET
                ) from None
            raise changed(object, "no object of this name") from None
        except errors.PreconditionError as error:
            raise (changed(object, _said(error)) if object is not None else Hiccup(_said(error))) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError, PermissionError) as error:
            raise self._refused(address, error) from None
        except (errors.GenericError, OSError) as error:
            if (code := next((one for one in _NO_BUCKET_CODES if one in str(error)), None)) is not None:
                raise StoreError("there is no such bucket", file=self._root, found=code, fix=_NO_BUCKET) from None
            if (status := _STATUS.search(str(error))) is not None and status[1] not in ("408", "429"):
                raise self._refused(address, error) from None
            if "redirect without LOCATION" in str(error):
                raise self._refused(address, error) from None
            raise Hiccup(_said(error), look=self._look(str(error))) from None
        except errors.BaseError as error:
            if _STRANGE in str(error):
                raise StoreError(
                    "an object there, or beside it, has a name that no file can have",
                    file=address,
                    found=_said(error).removeprefix(f"{_STRANGE}: "),
                    expected="names without empty parts, '.', '..' and control characters",
                    fix="rename or remove that object, or copy the checkpoint to a place of its own",
                ) from None
            raise StoreError("the store does not answer the request", file=address, found=_said(error)) from None

    def _look(self, said: str) -> str | None:
        """What to look at on this machine where a store does not answer: the address that is set, or the credentials, where a Google library without
        any asked the metadata server of a virtual machine for its role."""
        if (named := next(filter(os.environ.get, _ENDPOINTS), None)) and self._root.startswith("s3:"):
            return f"see that {named} is where the store is"
        return _SETTINGS["gs"] if "/computeMetadata/" in said else None

    def _refused(self, address: str, error: Exception) -> StoreError:
        said = _said(error)
        code = next((one for one in _REFUSALS if one in str(error)), "")
        problem, fix = _REFUSALS.get(
            code, ("the store does not give this to you", _SETTINGS[self._root.partition("://")[0]])
        )
        if code in _ELSEWHERE_CODES and (region := _REGION.search(str(error))) is not None:
            fix = f"set AWS_REGION={region[1]}"
        return StoreError(problem, file=address, found=said, fix=fix)


def _settings(scheme: str) -> dict[str, Any]:
    """Few attempts of the library's own: ours follow, and say what they wait for."""
    endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "") if scheme == "s3" else ""
    settings: dict[str, Any] = {
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=30)},
        "client_options": {"allow_http": endpoint.startswith("http://") or scheme == "az", "timeout": f"{_TIMEOUT}s"},
    }
    if endpoint:
        settings["endpoint"] = endpoint
    if scheme == "s3" and os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes"):
        settings["skip_signature"] = True
    elif scheme == "s3" and not os.environ.get("AWS_ACCESS_KEY_ID"):
        with contextlib.suppress(ImportError):
            settings["credential_provider"] = _of_boto3(importlib.import_module("obstore.auth.boto3"))
    elif scheme == "az" and not any(map(os.environ.get, _AZURE)):
        with contextlib.suppress(ImportError):  # who logged in to write may read
            quiet()
            settings["credential_provider"] = importlib.import_module("obstore.auth.azure").AzureCredentialProvider()
    return settings


def _of_boto3(library: Any) -> Any:
    """What boto3 finds; `StoreError` if it finds nothing: without, a store would be asked again and again for minutes."""
    try:
        return library.Boto3CredentialProvider()
    except Exception as error:  # its own say that a profile is missing, a token has expired, a file is damaged; ValueError: nothing is there
        raise StoreError(
            "there are no credentials for s3://",
            found=_said(error),
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a bucket that everybody may read AWS_SKIP_SIGNATURE=true",
        ) from None


def _said(error: Exception) -> str:
    """What a store says in XML, or the library does; without the query of a URL, which may be signed."""
    text = str(error)
    words = [
        " ".join(found[1].partition("RequestId:")[0].split())
        for word in ("Code", "Message")
        if (found := _WORD[word].search(text))
    ]
    if words:
        return ": ".join(words)[:300]
    return " ".join(_QUERY.sub(r"\1", text.partition("Debug source")[0]).split())[:300]
