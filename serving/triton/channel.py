"""A gRPC channel to one Triton server: control frames, generations with heartbeats, loading models. No torch.

tritonclient's own protocol messages and grpc.aio, which hand bytes through as they are.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

from model.errors import InvalidRequest, MissingExtra, StillmotionError
from serving.engine.protocol import TERMINAL, EngineEvent
from serving.triton.wire import BEATS, DATA, EVENT, PICTURES, REQUEST, STATE, Frame, RequestFrame, Status, unpack_event

try:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc
except ModuleNotFoundError as error:
    raise MissingExtra("serving through Triton", "triton") from error

_log = logging.getLogger(__name__)
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


class InstanceLost(ServerLost):
    """The server gave a request to an instance of the model whose process is dead."""


_DEAD_INSTANCE: Final = "is not healthy"
"""As Triton says it: Stub process 'NAME_0_0' is not healthy."""
INSTANCE_TRIES: Final = 10
"""Times that a request is sent to a server with a dead instance: of two, it meets that one every other time."""
SILENCE_S: Final = 60.0
"""A stream of a host that sends heartbeats (every 5 s) is given up when nothing comes for so long."""


class Channel:
    """A connection to one server; used from one event loop.

    Args:
        url: HOST:PORT of its gRPC service, without a scheme.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._warned = ""
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the connection; its streams end."""
        await self._channel.close()

    async def versions(self) -> list[tuple[str, int]]:
        """The models that are ready, each with the numbers of its versions."""
        with self._rpc_errors():
            index = await self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))
        return [(one.name, int(one.version)) for one in index.models if one.version]

    async def is_ours(self, name: str, version: int) -> bool:
        """Whether a model hosts our engine, by the tensors it takes."""
        with self._rpc_errors():
            request = service_pb2.ModelMetadataRequest(name=name, version=str(version))
            metadata = await self._stub.ModelMetadata(request)
        return {one.name for one in metadata.inputs} == {REQUEST, PICTURES, STATE}

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

        A stream in which a heartbeat has come is given up when nothing comes for SILENCE_S: Triton ends no stream of an
        instance that was killed. Hosts of earlier versions send none, and are waited for.

        Raises:
            ServerLost: the stream broke off before its end, or fell silent.
        """
        beats = False
        async with aclosing(self._exchange(name, version, frame, job_id)) as events:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S if beats else None):
                        event = await anext(events)
                except TimeoutError:
                    raise ServerLost(self.url, f"nothing came for {SILENCE_S:.0f} s: its instance is gone") from None
                except StopAsyncIteration:
                    raise ServerLost(self.url, "the events ended without a result") from None
                beats = beats or event is None
                if event is not None and not isinstance(event, Status):
                    yield event
                if isinstance(event, TERMINAL):
                    return

    async def load(self, name: str, config: dict[str, Any] | None = None) -> None:
        """Load a model, or what is new of it; returns once it is ready.

        Raises:
            ServerLost: it does not load; the message has the server's reason.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        if config is not None:
            request.parameters["config"].string_param = json.dumps(config)
        with self._rpc_errors():
            await self._stub.RepositoryModelLoad(request)

    async def unload(self, name: str) -> None:
        """Unload a model; what it is at goes on to its end."""
        with self._rpc_errors():
            await self._stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=name))

    async def _exchange(
        self, name: str, version: int, frame: RequestFrame, request_id: str
    ) -> AsyncGenerator[EngineEvent | Status | None, None]:
        """One request, and every answer to it; None for a heartbeat, which has no tensors.

        A Triton that lost an instance of a model (2.51) goes on giving it requests, refuses these at once and starts no
        other one: it is asked again, until another instance takes the request.
        """
        for attempt in range(1, INSTANCE_TRIES + 1):
            began = False
            try:
                async with aclosing(self._call(name, version, frame, request_id)) as answers:
                    async for answer in answers:
                        began = True
                        yield answer
                return
            except InstanceLost as error:
                if began or attempt == INSTANCE_TRIES:
                    raise
                if self._warned != error.message:
                    _log.warning("restart the server to have all its instances back: %s", error.message)
                    self._warned = error.message

    async def _call(
        self, name: str, version: int, frame: RequestFrame, request_id: str
    ) -> AsyncGenerator[EngineEvent | Status | None, None]:
        """One try at it."""
        with self._rpc_errors():
            call = self._stub.ModelStreamInfer()
        try:
            with self._rpc_errors():
                await call.write(_message(name, version, frame, request_id))
                await call.done_writing()
                async for answer in call:
                    if answer.error_message:
                        lost = InstanceLost if _DEAD_INSTANCE in answer.error_message else ServerLost
                        raise lost(self.url, answer.error_message)
                    event = self._event(answer.infer_response) if answer.infer_response.outputs else None
                    if isinstance(event, _LAST):
                        await _read_out(call)
                    yield event
        finally:
            if not call.done():
                call.cancel()

    def _event(self, answer: Any) -> EngineEvent | Status:
        tensors = dict(zip((one.name for one in answer.outputs), answer.raw_output_contents, strict=True))
        try:
            return unpack_event(Frame(tensors[EVENT], tensors[DATA]))
        except (KeyError, InvalidRequest) as error:
            raise ServerLost(self.url, f"its answer cannot be read: {error}") from error

    @contextmanager
    def _rpc_errors(self) -> Iterator[None]:
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
    pieces = {REQUEST: frame.header, PICTURES: frame.pictures, STATE: frame.state}
    tensors = {tensor: data for tensor, data in pieces.items() if data is not None}
    request = service_pb2.ModelInferRequest(
        model_name=name,
        model_version=str(version),
        id=request_id,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=tensor, datatype="UINT8", shape=[len(data)])
            for tensor, data in tensors.items()
        ],
        raw_input_contents=list(tensors.values()),
    )
    request.parameters[BEATS].bool_param = True
    return request
