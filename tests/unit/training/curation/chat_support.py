"""A loopback server that speaks OpenAI's chat completions, before whatever says the answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, JSON."""


def completion(text: str) -> Answer:
    """A chat completion that says this."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, {"object": "chat.completion", "choices": [choice]}


@dataclass
class ChatServer:
    """What was sent to it, and how it answers.

    Args:
        respond: one request's body to an answer.
        together: the most requests that were answered at the same time.
    """

    respond: Callable[[dict[str, Any]], Answer]
    url: str = ""
    requests: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)
    together: int = 0
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append((handler.path, handler.headers.get("Authorization"), body))
            self.running += 1
            self.together = max(self.together, self.running)
        status, headers, content = self.respond(body)
        with self.lock:
            self.running -= 1
        data = json.dumps(content).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def chat_server(respond: Callable[[dict[str, Any]], Answer]) -> Iterator[ChatServer]:
    """A server on a free port, for as long as it is entered."""
    server = ChatServer(respond)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        server.url = f"http://127.0.0.1:{running.server_port}/v1"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
