"""`s3://bucket/key` as a place to write to, through boto3: of the libraries for S3 it is the one that sends parts by their numbers.

Credentials, region and endpoint are what boto3 finds: the environment, ~/.aws, the role of the machine.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ckpt_core.errors import CkptError, StoreError, UsageError
from ckpt_core.storage.bytes.remote.objects import Hiccup
from ckpt_core.storage.bytes.remote.writing import Body, Gone, Part, Read, Taken, Written

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the last one is obstore's
_MARK = "ckpt-plan"  # of an object's own metadata
_CONNECTIONS = 16
_TIMEOUT = 60  # seconds without a byte
_SMALL = 64 << 20
_NO_UPLOAD = ("NoSuchUpload",)
_NO_OBJECT = ("NoSuchKey", "404", "NotFound")
_PASSING = (
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "BadDigest",
)
# What boto3 raises before it asks: nothing is there, half of it, a profile or a token is missing, or nobody renews it.
_NOT_ALLOWED = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError",
)  # fmt: skip
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
_ELSEWHERE = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
_CONFLICTS = ("ConditionalRequestConflict", "OperationAborted")
_RIGHTS = "s3:PutObject, s3:GetObject, s3:ListBucket, s3:AbortMultipartUpload, s3:ListMultipartUploadParts and s3:DeleteObject"


class S3:
    """One bucket. Parts have their MD5 with them, which the store checks; that of S3 itself and all that speak its language know it."""

    def __init__(self, root: str) -> None:
        self._root, self._bucket = root, root.partition("://")[2]
        if not self._bucket:
            raise UsageError("the address names no bucket", found=root, expected="s3://bucket/folder")
        try:
            boto3 = importlib.import_module("boto3")
            config = importlib.import_module("botocore.config").Config
            self._errors_of = importlib.import_module("botocore.exceptions")
            # Of an answer that stands still halfway botocore 1.44 lets the error of its own library through.
            self._unwrapped = importlib.import_module("urllib3.exceptions").HTTPError
        except ImportError:
            raise CkptError("writing to s3:// needs boto3", file=root, fix='pip install "ckpt-convert[s3]"') from None
        endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name))), None)
        with self._errors(root):
            self._client: Any = boto3.session.Session().client(
                "s3",
                region_name=os.environ.get("AWS_REGION") or None,
                endpoint_url=endpoint,
                config=config(
                    retries={"total_max_attempts": 1},  # ours follow
                    connect_timeout=_TIMEOUT,
                    read_timeout=_TIMEOUT,
                    max_pool_connections=_CONNECTIONS,
                    # A trailer with a CRC is what servers of others refuse; the MD5 is checked by all.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if endpoint else "auto"},
                ),
            )

        if os.environ.get("AWS_REQUEST_PAYER", "").lower() in ("true", "1", "requester"):  # as obstore reads it
            self._client.meta.events.register("provide-client-params.s3", _paid)

    def removal(self, address: str, single: bool = False) -> str:
        """See `WritableStore`."""
        return f"aws s3 rm {'' if single else '--recursive '}{shlex.quote(address)}"

    def below(self, address: str) -> Sequence[str]:
        """See `WritableStore`; the first thousand."""
        prefix = self._key(address).rstrip("/") + "/"
        with self._errors(address):
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix.lstrip("/"))
        return [one["Key"].removeprefix(prefix) for one in answer.get("Contents", ())]

    def written(self, address: str) -> Written | None:
        """See `WritableStore`."""
        with contextlib.suppress(FileNotFoundError), self._errors(address):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key(address))
            return Written(answer["ContentLength"], answer["Metadata"].get(_MARK, ""))
        return None

    def read(self, address: str) -> Read | None:
        """See `WritableStore`."""
        with contextlib.suppress(FileNotFoundError), self._errors(address):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(address))
            data: bytes = answer["Body"].read(_SMALL + 1)
            if len(data) > _SMALL:
                raise StoreError("the object is far too large to be what its name says", file=address)
            if len(data) < answer["ContentLength"]:  # botocore looks only where it reads to the end
                raise Hiccup(f"the body ends after {len(data)} of {answer['ContentLength']} bytes")
            return Read(data, answer["ETag"])
        return None

    def put(self, address: str, body: Body | bytes, plan: str, over: str | None = None) -> None:
        """See `WritableStore`."""
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": over}
        digest = hashlib.md5(body, usedforsecurity=False).digest() if isinstance(body, bytes) else body.md5
        if not isinstance(body, bytes):
            body.seek(0)  # it was read, if this is not the first attempt
        try:
            with self._errors(address):
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._key(address),
                    Body=body,
                    ContentMD5=_in_base64(digest),
                    Metadata={_MARK: plan},
                    **condition,
                )
        except FileNotFoundError as gone:  # what was to be replaced
            raise Taken(str(gone)) from None

    def remove(self, address: str) -> None:
        """See `WritableStore`."""
        with self._errors(address):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(address))

    def begin(self, address: str, plan: str) -> str:
        """See `WritableStore`."""
        with self._errors(address):
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key(address), Metadata={_MARK: plan}
            )
        return str(answer["UploadId"])

    def send(self, address: str, upload: str, number: int, body: Body) -> str:
        """See `WritableStore`."""
        body.seek(0)
        with self._errors(address):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key(address),
                UploadId=upload,
                PartNumber=number,
                Body=body,
                ContentMD5=_in_base64(body.md5),
            )
        return str(answer["ETag"]).strip('"')

    def parts(self, address: str, upload: str) -> dict[int, Part]:
        """See `WritableStore`."""
        found: dict[int, Part] = {}
        where = {"Bucket": self._bucket, "Key": self._key(address), "UploadId": upload}
        with self._errors(address):
            for page in self._client.get_paginator("list_parts").paginate(**where):
                for one in page.get("Parts", ()):
                    found[one["PartNumber"]] = Part(one["ETag"].strip('"'), one["Size"])
        return found

    def complete(self, address: str, upload: str, tags: Sequence[str], plan: str) -> None:
        """See `WritableStore`. An upload has its mark since it began."""
        parts = [{"PartNumber": number, "ETag": f'"{tag}"'} for number, tag in enumerate(tags, 1)]
        with self._errors(address):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=self._key(address),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )

    def abort(self, address: str, upload: str) -> None:
        """See `WritableStore`."""
        with contextlib.suppress(Gone), self._errors(address):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key(address), UploadId=upload)

    def _key(self, address: str) -> str:
        return address.removeprefix(self._root).removeprefix("/")

    @contextlib.contextmanager
    def _errors(self, address: str) -> Iterator[None]:
        """Have an error of the library be one of those that a `WritableStore` has, or one that says what to do."""
        library = self._errors_of
        try:
            yield
        except library.ClientError as error:
            raise self._meaning(error, address) from None
        except tuple(getattr(library, name) for name in _NOT_ALLOWED) as error:
            raise self._without(address, _said(error)) from None
        except (library.HTTPClientError, library.IncompleteReadError, self._unwrapped) as error:
            raise Hiccup(_said(error)) from None
        except (
            RecursionError
        ):  # botocore 1.44 asks where the bucket is when it is redirected, and again when that request is
            raise StoreError(
                "the store redirects every request",
                file=address,
                found=f"a redirect without a region from {self._client.meta.endpoint_url}",
                fix="set AWS_ENDPOINT_URL to where it leads (https:// in place of http://, for example)",
            ) from None
        except (library.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise StoreError("the store can't be asked", file=address, found=_said(error)) from None

    def _without(self, address: str, said: str) -> StoreError:
        return StoreError(
            "there are no credentials to write there",
            file=address,
            found=said,
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, then repeat the command: what is done is kept",
        )

    def _meaning(self, error: Any, address: str) -> Exception:
        answer, status = error.response["Error"], error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code, said = str(answer.get("Code", "")), f"{answer.get('Code')}: {answer.get('Message')}"
        if code in _NO_UPLOAD:
            return Gone(said)
        if code == "NoSuchBucket":
            return StoreError("there is no such bucket", file=self._root, found=said, fix="make it first")
        if code in _NO_OBJECT:
            return FileNotFoundError(said)
        if code == "PreconditionFailed" or status == 412:
            return Taken(said)
        if code in _PASSING or code in _CONFLICTS or status in (408, 429) or (status >= 500 and status != 501):
            return Hiccup(said)
        if code in _EXPIRED:
            return self._without(address, said)
        if code in _ELSEWHERE or status in (301, 307):
            region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
            return StoreError(
                "the bucket is in another region",
                file=address,
                found=said,
                fix=f"set AWS_REGION to that of the bucket{f', {region}' if region else ''}",
            )
        if status in (401, 403):
            return StoreError(
                "the store does not let you do this",
                file=address,
                found=f"{said} ({error.operation_name})",
                fix=f"it takes the rights {_RIGHTS}; then repeat the command: what is done is kept",
            )
        return StoreError("the store refuses the request", file=address, found=f"{said} ({error.operation_name})")


def _paid(params: dict[str, Any], **_: object) -> dict[str, Any]:
    """The parameters of any request to a bucket whose requests are paid by who asks."""
    return {**params, "RequestPayer": "requester"}


def _in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
