"""One Triton server over gRPC: what it serves, its statuses, a generation's events, models loaded and unloaded.

Written on tritonclient's own protocol messages and grpc.aio, which hand bytes through as they are. No torch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

from model.errors import InvalidRequest, MissingExtra, StillmotionError
from serving.engine.protocol import TERMINAL, EngineEvent
from serving.triton.wire import DATA, EVENT, PICTURES, REQUEST, STATE, Frame, RequestFrame, Status, unpack_event

try:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc
except ModuleNotFoundError as error:
    raise MissingExtra("serving through Triton", "triton") from error

MAX_MESSAGE: Final = 2**31 - 1
_LAST: Final = (*TERMINAL, Status)
_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
)
"""A server that comes back is seen within two seconds."""


class ServerLost(StillmotionError):
    """A Triton server cannot be reached, died, or does not serve the model any more."""

    code = "engine_lost"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the Triton server at {url} cannot serve this now: {reason}")


class Channel:
    """A connection to one server; used from one event loop.

    Args:
        url: HOST:PORT of its gRPC service, without a scheme.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the connection; its streams end."""
        await self._channel.close()

    async def versions(self) -> list[tuple[str, int]]:
        """The models that are ready, each with the numbers of its versions."""
        with self._told():
            index = await self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))
        return [(one.name, int(one.version)) for one in index.models if one.version]

    async def is_ours(self, name: str, version: int) -> bool:
        """Whether a model hosts our engine, by the tensors it takes."""
        with self._told():
            asked = service_pb2.ModelMetadataRequest(name=name, version=str(version))
            told = await self._stub.ModelMetadata(asked)
        return {one.name for one in told.inputs} == {REQUEST, PICTURES, STATE}

    async def ask(self, name: str, version: int, frame: RequestFrame) -> Status:
        """A control frame's answer.

        Raises:
            ServerLost: there is none.
        """
        async with aclosing(self._exchange(name, version, frame, "")) as events:
            async for event in events:
                if isinstance(event, Status):
                    return event
        raise ServerLost(self.url, f"{name} gave no status")

    async def generate(
        self, name: str, version: int, frame: RequestFrame, job_id: str
    ) -> AsyncGenerator[EngineEvent, None]:
        """A generation's events until its terminal one; closing it early cancels the request in the server.

        Raises:
            ServerLost: the stream broke off before its end.
        """
        async with aclosing(self._exchange(name, version, frame, job_id)) as events:
            async for event in events:
                if not isinstance(event, Status):
                    yield event
                if isinstance(event, TERMINAL):
                    return
        raise ServerLost(self.url, "the events ended without a result")

    async def load(self, name: str, config: dict[str, Any] | None = None) -> None:
        """Load a model, or what is new of it; returns once it is ready.

        Raises:
            ServerLost: it does not load; the message has the server's reason.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        if config is not None:
            request.parameters["config"].string_param = json.dumps(config)
        with self._told():
            await self._stub.RepositoryModelLoad(request)

    async def unload(self, name: str) -> None:
        """Unload a model; what it is at goes on to its end."""
        with self._told():
            await self._stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=name))

    async def _exchange(
        self, name: str, version: int, frame: RequestFrame, request_id: str
    ) -> AsyncGenerator[EngineEvent | Status, None]:
        """One request, and every answer to it."""
        with self._told():
            call = self._stub.ModelStreamInfer()
        try:
            with self._told():
                await call.write(_message(name, version, frame, request_id))
                await call.done_writing()
                async for answer in call:
                    if answer.error_message:
                        raise ServerLost(self.url, answer.error_message)
                    if answer.infer_response.outputs:
                        event = self._event(answer.infer_response)
                        if isinstance(event, _LAST):
                            await _read_out(call)
                        yield event
        finally:
            if not call.done():
                call.cancel()

    def _event(self, answer: Any) -> EngineEvent | Status:
        found = dict(zip((one.name for one in answer.outputs), answer.raw_output_contents, strict=True))
        try:
            return unpack_event(Frame(found[EVENT], found[DATA]))
        except (KeyError, InvalidRequest) as error:
            raise ServerLost(self.url, f"its answer cannot be read: {error}") from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A call's errors, as ServerLost. A call that the other side cancelled counts too; our own cancel does not."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise ServerLost(self.url, error.details() or error.code().name) from error
        except grpc.aio.UsageError as error:
            raise ServerLost(self.url, str(error)) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServerLost(self.url, "the call was cancelled") from None


async def _read_out(call: Any) -> None:
    """Wait for the end of a stream that has said its last word.

    A cancel that crosses the end of a stream can crash a Triton before 24.12 (its issue 7368), so none is sent there.
    """
    with suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(5.0):
            async for _ in call:
                pass


def _message(name: str, version: int, frame: RequestFrame, request_id: str) -> Any:
    pieces = {REQUEST: frame.told, PICTURES: frame.pictures, STATE: frame.state}
    given = {tensor: data for tensor, data in pieces.items() if data is not None}
    return service_pb2.ModelInferRequest(
        model_name=name,
        model_version=str(version),
        id=request_id,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=tensor, datatype="UINT8", shape=[len(data)])
            for tensor, data in given.items()
        ],
        raw_input_contents=list(given.values()),
    )
