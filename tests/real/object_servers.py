"""Servers of objects on this machine, and what a client of its own sees in them: moto for `s3://`, Azurite, Microsoft's emulator, for `az://`.

moto comes from PyPI. Azurite is a program of Node.js (`npm install azurite`); AZURITE names its `azurite-blob`, where it is not on the PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import boto3
from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.storage.blob import ContainerClient
from obstore.store import AzureStore, S3Store

from ckpt_core.storage.bytes.remote.az import Azure
from ckpt_core.storage.bytes.remote.s3 import S3

BUCKET = "checkpoints"
SINKS = {"s3": S3, "az": Azure}


class Server:
    """A process with an empty bucket. The environment of this process leads to it, once it is asked to."""

    scheme: ClassVar[str]

    def __init__(self, *command: str | Path, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        words = [str(one).replace("PORT", str(self.port)) for one in command]
        self._process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | (environment or {})
        )
        os.environ |= self.environment(self.url)
        for _ in range(300):
            try:
                self._make()
                return
            except (OSError, AzureError):
                time.sleep(0.1)
        raise RuntimeError(f"{words[0]} does not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sink(self) -> type:
        return SINKS[self.scheme]

    def address(self, name: str) -> str:
        return f"{self.scheme}://{BUCKET}/{name}"

    def environment(self, url: str) -> dict[str, str]:
        """The variables that lead to a server at a URL."""
        raise NotImplementedError

    def _make(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Moto(Server):
    """A server of S3."""

    scheme = "s3"
    secrets = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

    def __init__(self) -> None:
        program = os.environ.get("MOTO_SERVER", Path(sys.executable).parent / "moto_server")
        small = {"S3_UPLOAD_PART_MIN_SIZE": "1"}  # parts of a small model
        super().__init__(program, "-H", "127.0.0.1", "-p", "PORT", environment=small)
        self.store: Any = S3Store(BUCKET, endpoint=self.url, client_options={"allow_http": True})

    def environment(self, url: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }

    def _make(self) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")).close()

    def seen(self, address: str) -> SeenS3:
        return SeenS3(address)


class Azurite(Server):
    """A server of Azure's blobs."""

    scheme = "az"
    secrets = ("AZURE_STORAGE_USE_EMULATOR", "AZURE_STORAGE_ACCOUNT_KEY")

    @staticmethod
    def program() -> str | None:
        """Where it is installed; None if it is not."""
        return os.environ.get("AZURITE") or shutil.which("azurite-blob")

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="azurite-")
        words = ("--blobPort", "PORT", "--location", self._folder, "--silent", "--disableTelemetry")
        # The library may speak a version of the protocol that is newer than the emulator.
        super().__init__(self.program() or "azurite-blob", *words, "--skipApiVersionCheck")
        self.store: Any = AzureStore(BUCKET, use_emulator=True, client_options={"allow_http": True})

    def environment(self, url: str) -> dict[str, str]:
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}

    def _make(self) -> None:
        Azure(f"az://{BUCKET}")._client.create_container()

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def seen(self, address: str) -> SeenAzure:
        return SeenAzure(address, self.url)


class SeenS3:
    """What boto3 sees in the bucket below an address."""

    def __init__(self, address: str) -> None:
        self.client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        self.prefix = address.removeprefix(f"s3://{BUCKET}/")

    def objects(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix):
            for one in page.get("Contents", ()):
                body = self.client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"]
                found[one["Key"].removeprefix(self.prefix)] = body.read()
        return found

    def uploads(self) -> list[tuple[str, str]]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix).get("Uploads", ())
        return [(one["Key"], one["UploadId"]) for one in found]

    def parts(self) -> int:
        found = 0
        for key, name in self.uploads():
            with contextlib.suppress(
                self.client.exceptions.NoSuchUpload
            ):  # a completion that was on its way arrived now
                found += len(self.client.list_parts(Bucket=BUCKET, Key=key, UploadId=name).get("Parts", ()))
        return found

    def clear_uploads(self) -> None:
        for key, name in self.uploads():
            self.client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=name)

    def clear(self) -> None:
        for name in self.objects():
            self.client.delete_object(Bucket=BUCKET, Key=self.prefix + name)
        self.clear_uploads()


class SeenAzure:
    """What azure-storage-blob sees in the container below an address. An upload is a blob that has nothing but blocks without a list."""

    def __init__(self, address: str, url: str) -> None:
        key = Azure(address.rpartition(BUCKET)[0] + BUCKET)._client.credential
        self.client = ContainerClient(f"{url}/devstoreaccount1", BUCKET, credential=key)
        self.prefix = address.removeprefix(f"az://{BUCKET}/")

    def objects(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for one in self.client.list_blobs(name_starts_with=self.prefix):
            found[one.name.removeprefix(self.prefix)] = self.client.download_blob(one.name).readall()
        return found

    def uploads(self) -> list[tuple[str, str]]:
        known = {one.name for one in self.client.list_blobs(name_starts_with=self.prefix)}
        every = self.client.list_blobs(name_starts_with=self.prefix, include=["uncommittedblobs"])
        return [(one.name, "") for one in every if one.name not in known]

    def parts(self) -> int:
        found = 0
        for key, _ in self.uploads():
            with contextlib.suppress(ResourceNotFoundError):
                found += len(self.client.get_blob_client(key).get_block_list("uncommitted")[1])
        return found

    def clear_uploads(self) -> None:
        for key, _ in self.uploads():
            blob = self.client.get_blob_client(key)
            blob.commit_block_list([])
            blob.delete_blob()

    def clear(self) -> None:
        for name in self.objects():
            self.client.delete_blob(self.prefix + name)
        self.clear_uploads()
