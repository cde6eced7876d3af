"""Run flows against httpx2: once with blocking calls, once with asyncio. All the I/O of this SDK is here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx2

from stillmotion._calls import Call
from stillmotion._flows import Close, Command, Emit, Flow, Read, Send, Sleep

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done:
    """The flow has returned this."""

    value: Any


def advance(flow: Flow[Any], reply: Any, error: httpx2.RequestError | None) -> Command | Done:
    """The flow's next command, after giving it what the last one brought."""
    try:
        return flow.send(reply) if error is None else flow.throw(error)
    except StopIteration as stop:
        return Done(stop.value)


def _arguments(call: Call, timeout: httpx2.Timeout) -> dict[str, Any]:
    if call.patience_s is not None and timeout.read is not None:
        read = max(timeout.read, call.patience_s)
        timeout = httpx2.Timeout(connect=timeout.connect, read=read, write=timeout.write, pool=timeout.pool)
    # The path is relative: httpx2 joins it to the base URL, path prefix included.
    return {
        "timeout": timeout,
        "method": call.method,
        "url": call.path,
        "params": call.params,
        "headers": call.headers,
        "data": call.form,
        "files": call.files,
        "json": call.json,
        "content": call.content,
    }


class Driver:
    """Runs flows with blocking calls."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def run(self, flow: Flow[T]) -> T:
        """Run to the end; its result."""
        *_, done = self._steps(flow)
        return cast(T, done.value)

    def iterate(self, flow: Flow[None]) -> Generator[Any, None, None]:
        """What the flow emits."""
        with closing(self._steps(flow)) as steps:
            for item in steps:
                if isinstance(item, Emit):
                    yield item.value

    def _steps(self, flow: Flow[Any]) -> Generator[Emit | Done, None, None]:
        opened = _Opened()
        reply: Any = None
        error: httpx2.RequestError | None = None
        try:
            while True:
                command = advance(flow, reply, error)
                reply = error = None
                if isinstance(command, Emit | Done):
                    yield command
                    if isinstance(command, Done):
                        return
                    continue
                try:
                    reply = self._perform(command, opened)
                except httpx2.RequestError as caught:
                    error = caught
        finally:
            flow.close()
            opened.close()

    def _perform(self, command: Send | Read | Close | Sleep, opened: _Opened) -> Any:
        match command:
            case Send(call, stream):
                opened.close()
                response = self._http.send(
                    self._http.build_request(**_arguments(call, self._http.timeout)), stream=stream
                )
                if stream and response.status_code >= 300:
                    with closing(response):
                        response.read()
                elif stream:
                    opened.open(response)
                return response
            case Read():
                return next(opened.chunks, None)
            case Close():
                opened.close()
            case Sleep(seconds):
                time.sleep(seconds)
        return None


class _Opened:
    """The response a flow is streaming, if any."""

    def __init__(self) -> None:
        self._response: httpx2.Response | None = None
        self.chunks: Iterator[bytes] = iter(())

    def open(self, response: httpx2.Response) -> None:
        self._response, self.chunks = response, response.iter_bytes()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self.chunks = None, iter(())


class AsyncDriver:
    """Runs flows with asyncio."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def run(self, flow: Flow[T]) -> T:
        """Run to the end; its result."""
        *_, done = [item async for item in self._steps(flow)]
        return cast(T, done.value)

    async def iterate(self, flow: Flow[None]) -> AsyncGenerator[Any, None]:
        """What the flow emits."""
        async with aclosing(self._steps(flow)) as steps:
            async for item in steps:
                if isinstance(item, Emit):
                    yield item.value

    async def _steps(self, flow: Flow[Any]) -> AsyncGenerator[Emit | Done, None]:
        opened = _AsyncOpened()
        reply: Any = None
        error: httpx2.RequestError | None = None
        try:
            while True:
                command = advance(flow, reply, error)
                reply = error = None
                if isinstance(command, Emit | Done):
                    yield command
                    if isinstance(command, Done):
                        return
                    continue
                try:
                    reply = await self._perform(command, opened)
                except httpx2.RequestError as caught:
                    error = caught
        finally:
            flow.close()
            await opened.close()

    async def _perform(self, command: Send | Read | Close | Sleep, opened: _AsyncOpened) -> Any:
        match command:
            case Send(call, stream):
                await opened.close()
                response = await self._http.send(
                    self._http.build_request(**_arguments(call, self._http.timeout)), stream=stream
                )
                if stream and response.status_code >= 300:
                    try:
                        await response.aread()
                    finally:
                        await response.aclose()
                elif stream:
                    opened.open(response)
                return response
            case Read():
                return await anext(opened.chunks, None) if opened.chunks else None
            case Close():
                await opened.close()
            case Sleep(seconds):
                await asyncio.sleep(seconds)
        return None


class _AsyncOpened:
    """The response a flow is streaming, if any."""

    def __init__(self) -> None:
        self._response: httpx2.Response | None = None
        self.chunks: AsyncIterator[bytes] | None = None

    def open(self, response: httpx2.Response) -> None:
        self._response, self.chunks = response, response.aiter_bytes()

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
        self._response, self.chunks = None, None
