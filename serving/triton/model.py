"""What Triton's Python backend loads: our engine in one instance, many requests in flight, events streamed.

A thin shell: tensors become frames and back, everything else is serving.triton.hosting's. Tensors cross by DLPack
through torch, because the backend's own numpy bridge, built against numpy 1, misreads arrays under numpy 2.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as backend  # there only inside Triton
from torch.utils.dlpack import from_dlpack

from model.backends.registry import with_usable_loras
from model.catalog import describe
from model.platform import resolve_dtype
from serving.engine.inprocess import InProcessEngine
from serving.triton.hosting import LAST_WORDS_S, Host, settings_from
from serving.triton.wire import BEATS, DATA, EVENT, HEARTBEAT, PICTURES, REQUEST, STATE, Frame, RequestFrame

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """The interface Triton's Python backend asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version's checkpoint, and warm it.

        Raises:
            StillmotionError: the folder or the configuration is at fault; Triton reports the model as not loaded.
        """
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {args['model_name']} %(message)s", force=True
        )
        parameters = json.loads(args["model_config"]).get("parameters", {})
        values = {name: value["string_value"] for name, value in parameters.items()}
        settings = settings_from(values, args["model_instance_kind"], int(args["model_instance_device_id"]))
        precision = resolve_dtype(settings.dtype, settings.device)
        entry = describe(Path(args["model_repository"]) / args["model_version"], args["model_name"], precision)
        entry = with_usable_loras(entry, settings.backend, settings.fp8)
        self._engine = InProcessEngine((entry,), settings)
        asyncio.run(self._engine.start())
        self._host = Host(entry, self._engine, int(args["model_version"]), self._engine.stats)
        _log.info("version %s serves %s@%s on %s", args["model_version"], entry.name, entry.version, settings.device)

    async def execute(self, requests: list[Any]) -> None:
        """Answer requests side by side; Triton calls it again while earlier ones still run."""
        await asyncio.gather(*(self._answer(request) for request in requests))
        await self._host.leave_if_broken()

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()

        def send(frame: Frame) -> None:
            tensors = [] if frame == HEARTBEAT else [_tensor(EVENT, frame.header), _tensor(DATA, frame.data)]
            sender.send(backend.InferenceResponse(tensors))

        try:
            beats = bool(json.loads(request.parameters() or "{}").get(BEATS))
            await self._host.answer(_frame(request), send, request.is_cancelled, beats=beats)
        except Exception:
            _log.exception("a request met an unexpected error")
            raise
        finally:
            sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        """Stop between two steps: what runs is checkpointed, and its last event sent, before the device is released."""
        asyncio.run(self._engine.stop())
        until = time.monotonic() + LAST_WORDS_S
        while self._host.in_flight and time.monotonic() < until:
            time.sleep(0.05)


def _frame(request: Any) -> RequestFrame:
    def read(name: str) -> bytes | None:
        tensor = backend.get_input_tensor_by_name(request, name)
        return None if tensor is None else from_dlpack(tensor.to_dlpack()).numpy().tobytes()

    return RequestFrame(read(REQUEST) or b"", read(PICTURES), read(STATE))


def _tensor(name: str, content: bytes) -> Any:
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return backend.Tensor.from_dlpack(name, values)
