"""Logs a machine can read: one JSON object a line, each with the id of the request it belongs to.

What is written of a request is its method, path (no query, which may hold what a caller would not want kept), status,
time, id, and the public id of its key. Headers and bodies are never written.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, TextIO

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The request being served, for every log line written meanwhile."""
ACCESS: Final = "stillmotion.access"
"""The logger of one line a request."""
JOBS: Final = "stillmotion.jobs"
"""The logger of one line a job, when it has ended or is given back to the queue."""
START: Final = "stillmotion.start"
"""The logger of what a service does until it is ready."""
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; what was given as `extra` becomes fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            fields["request_id"] = request_id
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A record as a person reads it, with the request's id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        request_id = REQUEST_ID.get()
        return super().format(record) + (f" [{request_id}]" if request_id else "")


def configure(json_lines: bool, stream: TextIO | None = None) -> logging.Handler:
    """Send every log line to `stream` (stderr), as JSON or as text. The handler, for whoever takes it off again.

    A line for each job, some while the service starts, warnings and errors; as JSON, one for each request too.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else TextFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in (JOBS, START):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(ACCESS).setLevel(logging.INFO if json_lines else logging.WARNING)
    return handler
