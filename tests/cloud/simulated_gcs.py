"""A simulation of the XML interface of Google Cloud Storage, which obstore speaks.

    python tests/cloud/simulated_gcs.py PORT

fake-gcs-server takes no uploads through that interface, and looks at no generation; Google has no emulator of it that
can be installed. So this does what Google's reference says of generations, conditions, ranges, listings, copies and
multipart uploads. It shows that our requests mean what we think, not that Google answers so.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import itertools
import re
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

PAGE = 100
"""Objects of a page of a listing; Google's have 1,000."""


@dataclass(frozen=True)
class Stored:
    """An object.

    Attributes:
        body: Its bytes.
        generation: Of all objects ever put, its number.
        written: When, as HTTP writes it.
    """

    body: bytes
    generation: int
    written: str = field(default_factory=lambda: email.utils.formatdate(usegmt=True))

    @property
    def etag(self) -> str:
        """Of the bytes, quoted."""
        return f'"{hashlib.md5(self.body).hexdigest()}"'  # noqa: S324 - as Google's are


class Bucket:
    """All objects, by bucket and key, and unfinished uploads. Thread-safety: callers hold `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._generations = itertools.count(1_700_000_000_000_000)

    def put(self, path: str, body: bytes) -> Stored:
        """Under a new generation."""
        self.objects[path] = Stored(body, next(self._generations))
        return self.objects[path]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    bucket = Bucket()

    def do_GET(self) -> None:
        path, query = self._target()
        if "list-type" in query:
            return self._list(path.strip("/"), query)
        with self.bucket.lock:
            found = self.bucket.objects.get(path)
        if found is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers.get("If-Match", found.etag) != found.etag:
            return self._answer(412)
        body, status, more = found.body, 200, {}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = asked.groups()
            start = int(first) if first else max(len(body) - int(last), 0)
            stop = min(int(last) + 1, len(body)) if first and last else len(body)
            if start >= len(body):
                return self._answer(416, more={"Content-Range": f"bytes */{len(body)}"})
            status, more = 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
            body = body[start:stop]
        return self._answer(status, body, found, more)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        (path, query), body = self._target(), self._body()
        with self.bucket.lock:
            if "uploadId" in query:
                parts = self.bucket.uploads.get(query["uploadId"])
                if parts is None:
                    return self._answer(404)
                parts[int(query["partNumber"])] = body
                return self._answer(200, found=Stored(body, 0))
            if self._is_refused(path):
                return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            source = self.headers.get("x-goog-copy-source")
            if source is not None:
                copied = self.bucket.objects.get("/" + urllib.parse.unquote(source).lstrip("/"))
                if copied is None:
                    return self._answer(404)
                return self._answer(200, b"<CopyObjectResult/>", self.bucket.put(path, copied.body))
            return self._answer(200, found=self.bucket.put(path, body))

    def do_POST(self) -> None:
        (path, query), body = self._target(), self._body()
        with self.bucket.lock:
            if "uploads" in query:
                upload = f"upload-{len(self.bucket.uploads)}"
                self.bucket.uploads[upload] = {}
                name = f"<UploadId>{upload}</UploadId>"
                return self._answer(
                    200, f"<InitiateMultipartUploadResult>{name}</InitiateMultipartUploadResult>".encode()
                )
            parts = self.bucket.uploads.get(query.get("uploadId", ""))
            if parts is None:
                return self._answer(404)
            if self._is_refused(path):
                return self._answer(412)
            wanted = map(int, re.findall(rb"<PartNumber>(\d+)</PartNumber>", body))
            found = self.bucket.put(path, b"".join(parts[number] for number in wanted))
            del self.bucket.uploads[query["uploadId"]]
            etag = f"<ETag>{escape(found.etag)}</ETag>"
            return self._answer(
                200, f"<CompleteMultipartUploadResult>{etag}</CompleteMultipartUploadResult>".encode(), found
            )

    def do_DELETE(self) -> None:
        path, query = self._target()
        with self.bucket.lock:
            if "uploadId" in query:
                gone: Any = self.bucket.uploads.pop(query["uploadId"], None)
            else:
                gone = self.bucket.objects.pop(path, None)
        return self._answer(404 if gone is None else 204)

    def _is_refused(self, path: str) -> bool:
        """Whether the object is not of the generation that it has to be of; 0 means that there is none."""
        wanted, there = self.headers.get("x-goog-if-generation-match"), self.bucket.objects.get(path)
        return wanted is not None and int(wanted) != (0 if there is None else there.generation)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = base64.b64decode(query["continuation-token"]).decode() if "continuation-token" in query else ""
        after = max(after, query.get("start-after", ""))
        with self.bucket.lock:
            objects = {key.removeprefix(f"/{bucket}/"): found for key, found in self.bucket.objects.items()}
        lines, folders, last = [], set(), ""
        keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
        for key in keys:
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            folder = prefix + head + delimiter if found else ""
            if folder and folder <= after:
                continue
            if len(lines) + len(folders | {folder} - {""}) > PAGE:
                break
            last = key
            if folder:
                folders.add(folder)
                last = folder + "\U0010ffff"
                continue
            stored = objects[key]
            lines.append(
                f"<Contents><Key>{escape(key)}</Key><Generation>{stored.generation}</Generation><ETag>"
                f"{escape(stored.etag)}</ETag><Size>{len(stored.body)}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        else:
            last = ""
        token = (
            f"<NextContinuationToken>{base64.b64encode(last.encode()).decode()}</NextContinuationToken>" if last else ""
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)
        )
        cut = f"<IsTruncated>{'true' if last else 'false'}</IsTruncated>"
        self._answer(200, f"<ListBucketResult>{cut}{token}{''.join(lines)}{common}</ListBucketResult>".encode())

    def _target(self) -> tuple[str, dict[str, str]]:
        parts = urllib.parse.urlsplit(self.path)
        return urllib.parse.unquote(parts.path), dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, status: int, body: bytes = b"", found: Stored | None = None, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        if found is not None:
            for name, value in (
                ("ETag", found.etag),
                ("Last-Modified", found.written),
                ("x-goog-generation", str(found.generation)),
            ):
                self.send_header(name, value)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
