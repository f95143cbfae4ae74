"""What it costs to read from a bucket and to write to one, beside the same conversion on the disk and beside the library alone; and what lies on this machine meanwhile.

    python benchmarks/sinks.py [--size GB] [--rounds N]      CPU seconds, against a server of this machine
    python benchmarks/sinks.py --held                        the most that lies in the spool, from the plans of the largest models

The server speaks as much of S3 as a conversion asks for, sends with `sendfile`, drops the bytes of parts, and is not counted. It speaks http, so that each body is
hashed for its signature, which over https it is not. boto3 alone sends as many bytes in parts of the same size, with their MD5; obstore alone reads
all of the source's files in ranges, into memory that it forgets.
"""

from __future__ import annotations

import argparse
import http.server
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench import Spent, measure
from plan_time import CASES, source_of
from synthetic import write_hf

PART = 16 << 20
READ = 8 << 20
_SMALL = 64 << 10
TARGETS = {"nanotron": ["--to", "nanotron", "--tp", "2"], "nemo": ["--to", "nemo", "--tp", "2"], "hf": ["--to", "hf"]}
FLOOR = """
import os, sys, hashlib, base64, boto3
from concurrent.futures import ThreadPoolExecutor
from botocore.config import Config
size, part = int(sys.argv[1]), int(sys.argv[2])
s3 = boto3.client("s3", config=Config(max_pool_connections=16, request_checksum_calculation="when_required", s3={"addressing_style": "path"}))
upload = s3.create_multipart_upload(Bucket="b", Key="floor")["UploadId"]
data = os.urandom(part)
def send(number):
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    s3.upload_part(Bucket="b", Key="floor", UploadId=upload, PartNumber=number, Body=data, ContentMD5=md5)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(send, range(1, -(-size // part) + 1)))
"""

READ_FLOOR = """
import sys, os, obstore
from concurrent.futures import ThreadPoolExecutor
from obstore.store import S3Store
part = int(sys.argv[1])
store = S3Store("source", endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True})
files = [(one["path"], one["size"]) for batch in obstore.list(store) for one in batch]
def read(where):
    path, start, size = where
    for _ in obstore.get(store, path, options={"range": (start, min(start + part, size))}).stream(min_chunk_size=1 << 20):
        pass
with ThreadPoolExecutor(4) as pool:
    list(pool.map(read, [(path, start, size) for path, size in files for start in range(0, size, part)]))
"""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes] = {}  # noqa: RUF012
    source = Path()  # what lies at s3://source
    buffer = bytearray(1 << 20)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: str = "", **headers: str) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _drop(self) -> bytes:
        """Read the body; returns that of a claim or a document, and nothing of a part."""
        left = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        if left <= _SMALL:
            return self.rfile.read(left)
        while left:
            left -= self.rfile.readinto(memoryview(self.buffer)[: min(left, len(self.buffer))])
        return b""

    def handle_expect_100(self) -> bool:
        return True

    def do_PUT(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        body = self._drop()
        if "partNumber" in query:
            return self._answer(200, ETag=f'"{uuid.uuid4().hex}"')
        if path in self.objects and self.headers.get("If-None-Match"):
            return self._answer(412, "<Error><Code>PreconditionFailed</Code></Error>")
        self.objects[path] = body
        return self._answer(200, ETag=_TAG)

    def do_POST(self) -> None:
        self._drop()
        if "uploads" in urlsplit(self.path).query:
            name = "<UploadId>u</UploadId>"
            return self._answer(200, f"<InitiateMultipartUploadResult>{name}</InitiateMultipartUploadResult>")
        return self._answer(200, "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        self.objects.pop(urlsplit(self.path).path, None)
        self._answer(204)

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        if path.startswith("/source"):
            return self._listed() if "list-type" in query else self._sent(path.removeprefix("/source/"))
        if "list-type" in query:
            return self._answer(200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        if "uploadId" in query:
            return self._answer(200, "<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>")
        if path in self.objects:
            return self._answer(200, self.objects[path].decode(), ETag=_TAG)
        return self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")

    do_HEAD = do_GET

    def _listed(self) -> None:
        found = "".join(
            f"<Contents><Key>{one.name}</Key><Size>{one.stat().st_size}</Size><ETag>{_TAG}</ETag><LastModified>{_DAY}</LastModified></Contents>"
            for one in sorted(self.source.iterdir())
        )
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>")

    def _sent(self, name: str) -> None:
        file = self.source / name
        if not file.is_file():
            return self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        said = {"ETag": _TAG, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Content-Length": str(last + 1 - first)}
        for header, value in (said | ({"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {})).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.flush()
            with file.open("rb") as opened:
                while first <= last:
                    first += os.sendfile(self.connection.fileno(), opened.fileno(), first, last + 1 - first)
        return None


_TAG, _DAY = '"tag"', "2024-01-01T00:00:00.000Z"


def serve(port: multiprocessing.Queue[int], source: Path) -> None:
    Handler.source = source
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()


def costs(size: float, rounds: int, work: Path) -> None:
    """Print the table of CPU seconds."""
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ports, work / "hf"), daemon=True)
    server.start()
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports.get()}",
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "OMP_NUM_THREADS": "1",
    }
    source = work / "hf"
    write_hf(source, "llama", size)
    total = sum(one.stat().st_size for one in source.iterdir())
    ckpt = [sys.executable, "-m", "ckpt_core", "convert", str(source)]
    rows: dict[str, list[Spent]] = {}
    for number in range(rounds):
        rows.setdefault("boto3 alone", []).append(
            measure([sys.executable, "-c", FLOOR, str(total), str(PART)], environment)
        )
        rows.setdefault("obstore alone", []).append(measure([sys.executable, "-c", READ_FLOOR, str(READ)], environment))
        rows.setdefault("from s3://, to nanotron on the disk", []).append(
            measure([*ckpt[:-1], "s3://source", str(work / "out-read"), *TARGETS["nanotron"], "--no-sync"], environment)
        )
        for name, words in TARGETS.items():
            out = work / f"out-{name}"
            rows.setdefault(f"to {name}, on the disk", []).append(
                measure([*ckpt, str(out), *words, "--no-sync"], environment)
            )
            shutil.rmtree(out) if out.is_dir() else out.unlink()
            address = f"s3://b/{name}-{number}"
            asked = [*ckpt, address, *words, "--spool", str(work / "spool")]
            rows.setdefault(f"to {name}, s3://", []).append(measure(asked, environment))
        for left in work.glob("out-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    server.terminate()
    print(f"{total / 1e9:.2f} GB\n\n| | CPU s | CPU s for each GB | peak private MB |\n| --- | ---: | ---: | ---: |")
    for name, taken in rows.items():
        cpu, peak = statistics.median(one.cpu for one in taken), statistics.median(one.private for one in taken)
        print(f"| {name} | {cpu:.2f} | {cpu / total * 1e9:.2f} | {peak / 1e6:.0f} |", flush=True)


def held(work: Path) -> None:
    """Print the table of what lies in the spool at most."""
    import time

    from ckpt_core.api import plan_conversion
    from ckpt_core.engine.spool import Spool
    from ckpt_core.storage.bytes.remote import writable

    writable._s3 = lambda root: None  # type: ignore[assignment]
    print(
        "| conversion | output GB | files | most in the spool GB | CPU s to know it |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, (model, written, asked) in CASES.items():
        if "FP8" in name:
            continue
        plan = plan_conversion(source_of(model, written, work), "s3://b/out", **asked)  # type: ignore[arg-type]
        began = time.process_time()
        most = Spool(None, "s3://b/out", plan, str(work)).most_held  # type: ignore[arg-type]
        taken = time.process_time() - began
        files = len(plan.target.files)
        print(f"| {name} | {plan.bytes_written / 1e9:.0f} | {files} | {most / 1e9:.1f} | {taken:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=0.4, metavar="GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--held", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if options.held:
            held(Path(work))
        else:
            costs(options.size, options.rounds, Path(work))


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
