"""A client of OpenAI's chat completions, as vLLM and SGLang serve them, for the captioners that ask a model there.

What passes by itself (a connection that breaks, 429, 5xx) is tried again with growing pauses, or after the pause that
the server names. A request that the server refuses for its content is that clip's fault; a server that cannot be
reached, does not know the model or wants another key is nobody's, and ends the run: it goes on when run again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from model.errors import DataError, InvalidRequest
from training.curation.protocols import ToolUnavailable
from training.curation.records import ToolOptions

OPTIONS: Final = ("url", "model", "key_env")
"""Settings of every captioner that asks an endpoint."""
TIMEOUT_S: Final = 60.0
TRIES: Final = 4
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_REFUSED_FOR_ITS_CONTENT: Final = frozenset({400, 413, 422})


class ChatEndpoint:
    """A model behind an endpoint. Safe to call from several threads.

    Args:
        name: of the captioner, for what is said of a failure.
        url: up to and with `/v1`.
        model: as the endpoint knows it.
        key: sent as a bearer token, if there is one.
        sleep: between two tries, in seconds.
    """

    def __init__(
        self, name: str, url: str, model: str, key: str | None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._name, self._model, self._sleep = name, model, sleep
        self._url = url.rstrip("/") + "/chat/completions"
        self.tool = f"{model} at {url}"

    @classmethod
    def from_options(cls, name: str, options: ToolOptions) -> ChatEndpoint:
        """The endpoint that `--tool NAME.url`, `NAME.model` and `NAME.key_env` name.

        Raises:
            InvalidRequest: no model is named, or the key's variable is not set.
        """
        if "model" not in options:
            message = f"{name}.url needs {name}.model: the name the endpoint knows its model by"
            raise InvalidRequest(message, param="tool")
        return cls(name, options["url"], options["model"], _key_of(name, options))

    def complete(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
        """The model's greedy answer.

        Raises:
            DataError: the endpoint refuses this request, or answers with no chat completion.
            ToolUnavailable: it cannot be reached, or refuses every request.
        """
        body = {"model": self._model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        answer = self._post(body)
        try:
            return str(answer.json()["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"captions of {self._name}: {self._url} gave no chat completion") from error

    def _post(self, body: Mapping[str, Any]) -> Any:
        import httpx2

        for attempt in range(TRIES):
            pause = _FIRST_PAUSE_S * 2**attempt
            try:
                answer = httpx2.post(self._url, json=body, headers=self._headers, timeout=TIMEOUT_S)
            except httpx2.TransportError as error:
                problem = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    return answer
                problem = f"{answer.status_code}: {answer.text[:200]}"
                if answer.status_code in _REFUSED_FOR_ITS_CONTENT:
                    raise DataError(f"captions of {self._name}: {self._url} answered {problem}")
                if answer.status_code != 429 and answer.status_code < 500:
                    break
                pause = _named_pause(answer.headers.get("Retry-After"), pause)
            if attempt + 1 < TRIES:
                self._sleep(min(pause, _LONGEST_PAUSE_S))
        raise ToolUnavailable(
            f"captions of {self._name}: {self._url} failed ({problem}); see that the server runs, that "
            f"{self._name}.model is a model it serves and {self._name}.key_env its key, and run again: what is done "
            "stays"
        )


def _named_pause(header: str | None, otherwise: float) -> float:
    return float(header) if header is not None and header.isdecimal() else otherwise


def _key_of(name: str, options: ToolOptions) -> str | None:
    if "key_env" not in options:
        return None
    key = os.environ.get(options["key_env"])
    if not key:
        raise InvalidRequest(f"{name}.key_env names {options['key_env']!r}, which is not set", param="tool")
    return key
