"""The voting page: a small server on this machine that shows pairs and takes votes. Nothing it sends tells who is who.

GET /               the page
GET /next?voter=V   the voter's next pair: its id, the question, the still's and the clips' addresses
GET /clip/ID/SIDE   a pair's clip, SIDE `left` or `right`
GET /still/ID       the still that both clips of a pair start from
POST /vote          {"pair", "side", "voter"}; answered when the vote is on the disk

It binds to loopback unless told otherwise and knows no accounts: put it behind a proxy that does to share it.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from model.errors import InvalidRequest
from training.curation.calibrate.fit import VOTES
from training.curation.calibrate.pairs import QUESTIONS
from training.curation.calibrate.prepare import read_plan
from training.curation.calibrate.votes import SIDES, VoteBook

HTML = Path(__file__).with_name("page.html")
LONGEST_BODY = 4096


class VotingServer(ThreadingHTTPServer):
    """Serves one calibration's pairs.

    Args:
        folder: the calibration.
        host, port: to listen at; port 0 takes a free one.

    Raises:
        DataError: the calibration is not prepared, or its votes cannot be read.
    """

    daemon_threads = True

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self.folder = folder
        self.book = VoteBook(folder / VOTES, read_plan(folder).pairs)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: VotingServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, a voter's next pair, a clip or a still."""
        url = urlsplit(self.path)
        parts = [part for part in url.path.split("/") if part]
        if not parts:
            self._send(HTTPStatus.OK, HTML.read_bytes(), "text/html; charset=utf-8")
        elif parts == ["next"]:
            self._json(HTTPStatus.OK, self._next(parse_qs(url.query).get("voter", [""])[0]))
        elif len(parts) == 3 and parts[0] == "clip" and parts[1] in self.server.book.pairs and parts[2] in SIDES:
            pair = self.server.book.pairs[parts[1]]
            name = pair.left if parts[2] == "left" else pair.right
            self._send(HTTPStatus.OK, (self.server.folder / "clips" / f"{name}.mp4").read_bytes(), "video/mp4")
        elif len(parts) == 2 and parts[0] == "still" and parts[1] in self.server.book.pairs and self._still(parts[1]):
            self._send(HTTPStatus.OK, self._still(parts[1]), "image/jpeg")
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})

    def do_POST(self) -> None:
        """A vote."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/vote" or not 0 < length <= LONGEST_BODY:
            self.close_connection = True
            self._json(HTTPStatus.BAD_REQUEST, {"error": "a vote is a small JSON object sent to /vote"})
            return
        try:
            vote = json.loads(self.rfile.read(length))
            self.server.book.add(str(vote["pair"]), str(vote["side"]), str(vote["voter"]), "human")
        except InvalidRequest as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": error.message})
        except (KeyError, TypeError, ValueError):
            self._json(HTTPStatus.BAD_REQUEST, {"error": 'a vote is {"pair": ID, "side": SIDE, "voter": NAME}'})
        else:
            self._json(HTTPStatus.OK, {"stored": True})

    def _next(self, voter: str) -> dict[str, Any]:
        pair = self.server.book.next_pair(voter)
        done = sum(1 for vote in self.server.book.votes if vote.voter == voter)
        if pair is None:
            return {"done": done, "pair": None}
        clips = {side: f"/clip/{pair.id}/{side}" for side in SIDES}
        still = f"/still/{pair.id}" if self._still(pair.id) else None
        return {"done": done, "pair": pair.id, "question": QUESTIONS[pair.question], "still": still, **clips}

    def _still(self, pair: str) -> bytes:
        """The JPEG of a pair's still; empty where an earlier version prepared the calibration and wrote none."""
        path = self.server.folder / "stills" / f"{self.server.book.pairs[pair].still}.jpg"
        return path.read_bytes() if path.is_file() else b""

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Votes are written down; requests are not."""
