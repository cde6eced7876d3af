"""A model hub on the loopback interface that speaks the API of the real one, for the real huggingface_hub client.

GET  /api/models/ORG/NAME[/revision/REV]        commit and files
GET  /api/models/ORG/NAME/tree/COMMIT           files with sizes and hashes
HEAD, GET /ORG/NAME/resolve/REV/FILE            content, with ranges
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A folder as a repository: `main` is its one commit."""

    folder: Path
    gated: bool = False
    commit: str = "1234567890abcdef1234567890abcdef12345678"

    def files(self) -> list[Path]:
        """All of its files, in order."""
        return sorted(file for file in self.folder.rglob("*") if file.is_file())


@dataclass
class LoopbackHub:
    """What it serves, and the requests it had."""

    repositories: dict[str, Repository]
    url: str = ""
    token: str = "good-token"
    requests: list[tuple[str, str]] = field(default_factory=list)
    break_after: int | None = None
    """Bytes of a weight file after which the connection is cut, once."""

    def fetched(self) -> set[str]:
        """Files whose content was sent."""
        return {
            path.split("/resolve/", 1)[1].partition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        }


@contextmanager
def serving(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Serve while the block runs; `hub.url` is its endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
                self._api(hub.repositories.get(match[1]), match[1], match[2], match[3] or "main")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(hub.repositories.get(match[1]), match[2], match[3], body)
            else:
                self._refuse(404, "EntryNotFound")

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _known(self, repository: Repository | None, revision: str) -> bool:
            if repository is None:
                self._refuse(404, "RepoNotFound")
            elif revision not in ("main", repository.commit):
                self._refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def _api(self, repository: Repository | None, name: str, kind: str | None, revision: str) -> None:
            if not self._known(repository, revision):
                return
            assert repository is not None
            names = [(file, file.relative_to(repository.folder).as_posix()) for file in repository.files()]
            if kind == "tree":
                answer: object = [
                    {"type": "file", "path": path, "size": file.stat().st_size, "oid": "0" * 40, **_lfs(file)}
                    for file, path in names
                ]
            else:
                answer = {
                    "id": name,
                    "sha": repository.commit,
                    "private": False,
                    "gated": "auto" if repository.gated else False,
                    "tags": [],
                    "siblings": [{"rfilename": path} for _, path in names],
                }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _file(self, repository: Repository | None, revision: str, name: str, body: bool) -> None:
            if not self._known(repository, revision):
                return
            assert repository is not None
            if repository.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._refuse(403, "GatedRepo")
                return
            file = repository.folder / name
            if not file.is_file():
                self._refuse(404, "EntryNotFound")
                return
            size = file.stat().st_size
            first = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))) else 0
            self.send_response(206 if first else 200)
            self.send_header("ETag", f'"{_etag(file)}"')
            self.send_header("X-Repo-Commit", repository.commit)
            self.send_header("X-Linked-Size", str(size))
            self.send_header("Accept-Ranges", "bytes")
            if first:
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - first))
            self.end_headers()
            if body:
                self._content(file, first)

        def _content(self, file: Path, first: int) -> None:
            with file.open("rb") as stream:
                stream.seek(first)
                if hub.break_after is not None and file.suffix == ".safetensors" and not first:
                    self.wfile.write(stream.read(hub.break_after))
                    hub.break_after = None
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.close()
                    return
                copyfileobj(stream, self.wfile, 1 << 20)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_large(file: Path) -> bool:
    """Whether a repository stores it as a large file, as weights are."""
    return file.suffix in {".safetensors", ".bin"}


def _lfs(file: Path) -> dict[str, object]:
    """The entry of a large file; empty for others."""
    if not _is_large(file):
        return {}
    return {"lfs": {"oid": _etag(file), "size": file.stat().st_size, "pointerSize": 134}}


def _etag(file: Path) -> str:
    """SHA-256 of a large file, git's hash of any other: what the real hub sends, and what a cache names blobs by."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


@cache
def _digest(file: Path, size: int, _modified: int) -> str:
    with file.open("rb") as stream:
        if _is_large(file):
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % size + stream.read()).hexdigest()
