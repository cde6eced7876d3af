"""The wire format between the gateway and Triton: requests and events as JSON, with their bytes beside it. No torch.

A frame is two byte tensors (UINT8): a JSON object, and everything too large for JSON, one piece after another; the
object's `parts` says how long each piece is. UINT8 and not BYTES, because a Python backend built against numpy 1
misreads BYTES tensors under numpy 2.

    request    {"kind": "generate", "id", "params", "output_format", "share", "previews", "parts"}   pictures, state
               and "raw": true where the frames go into another stage
    event      {"kind": "Stepped", "step": 3, "total": 25, "eta_s": 1.5, "parts": {}}                data

One request of kind `generate` is answered by many events, the last a terminal one. The other kinds (`status`, `cancel`,
`drain`, `stop`) are answered by one Status. A status carries the checkpoint's description, since the gateway has no
folder of it. A stored state resumes only where the same weights are served; which checkpoint made it is read from the
safetensors header: its length in 8 bytes, little-endian, then JSON with `__metadata__`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from model.catalog import ModelEntry
from model.errors import CheckpointError, InvalidRequest
from model.lora.catalog import LoraEntry
from model.params import OutputFormat
from model.tasks import TASKS
from serving.engine.protocol import EngineEvent, EngineRequest, Share


def entry_fields(entry: ModelEntry) -> dict[str, Any]:
    """What the gateway needs of it, as JSON-ready values."""
    return {
        "name": entry.name,
        "task": entry.task.name,
        "version": entry.version,
        "num_frames": list(entry.num_frames),
        "height": entry.height,
        "width": entry.width,
        "unit": entry.unit,
        "defaults": entry.defaults,
        "exported": entry.exported,
        "fixed_size": entry.fixed_size,
        "previews": entry.previews,
        "loras": [asdict(one) | {"path": one.path.name} for one in entry.loras],
    }


def entry_from_fields(message: Mapping[str, Any], source: str) -> ModelEntry:
    """The checkpoint that a server described; its path names the server, and no file.

    Raises:
        CheckpointError: it is of a task that is not known here, or not complete.
    """
    try:
        values = dict(message)
        values["identity"] = str(values.pop("version"))
        values["task"] = TASKS[str(values["task"])]
        values["num_frames"] = tuple(values["num_frames"])
        values["loras"] = tuple(LoraEntry(**one | {"path": Path(source)}) for one in values.get("loras", ()))
        return ModelEntry(**values | {"path": Path(source)})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{source} serves a model that this version does not know: {error}") from error


MODEL_KEY: Final = "model"
"""As model.sampling.row writes it: NAME@VERSION."""


def state_version(state: bytes) -> str | None:
    """The version of the checkpoint that made a state; None where the state does not tell."""
    length = int.from_bytes(state[:8], "little")
    try:
        message = json.loads(state[8 : 8 + length])["__metadata__"][MODEL_KEY]
    except (ValueError, KeyError, TypeError):
        return None
    return str(message).rpartition("@")[2]


REQUEST: Final = "request"
PICTURES: Final = "pictures"
STATE: Final = "state"
EVENT: Final = "event"
DATA: Final = "data"

Kind = Literal["generate", "status", "cancel", "drain", "stop"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
EVENTS: Final[dict[str, type[EngineEvent]]] = {kind.__name__: kind for kind in get_args(EngineEvent)}


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as a server reads it.

    Args:
        kind: `generate`; `status` (how are you); `cancel` (stop the job `id` at its next step); `drain` (expect no more
            work: tell everybody who asks); `stop` (checkpoint what runs, and end it as stopped).
        id: of the job.
        params: settings by name; those left out are the checkpoint's defaults, and a seed left out is 0.
        client: the caller; a status reports how much work of others there is.
        raw: whether the frames are wanted as they are (serving.engine.protocol.EngineRequest).
    """

    kind: Kind = "generate"
    id: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[bytes, ...] = ()
    output_format: OutputFormat = "mp4"
    share: Share = field(default_factory=Share)
    previews: bool = False
    state: bytes | None = None
    client: str = ""
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """What a hosted model says of itself.

    Args:
        entry: the checkpoint, as `entry_told` writes it.
        repository_version: the number of its folder in the model repository.
        capacity: requests it takes in flight at once.
        in_flight: requests it has.
        others_s: seconds of work left in requests of other clients, by its own measured times.
        fixed_s, step_s: seconds of a request with the checkpoint's defaults: once, and for each evaluation of the
            denoiser; None while nothing was measured.
        draining: whether it wants no more work.
        stats: the engine's counts (serving.engine.stats.EngineStats).
    """

    entry: dict[str, Any]
    repository_version: int
    capacity: int
    in_flight: int
    others_s: float
    fixed_s: float | None
    step_s: float | None
    draining: bool
    stats: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Frame:
    """A JSON object and the bytes beside it."""

    header: bytes
    data: bytes = b""


HEARTBEAT: Final = Frame(b"", b"")
"""Says only that the instance is alive. Sent as an answer without tensors, to callers that ask for it."""
BEATS: Final = "heartbeats"
"""The request's parameter, as Triton knows them, by which a caller asks for heartbeats. Earlier hosts pass it over."""


@dataclass(frozen=True, slots=True)
class RequestFrame:
    """A request's three inputs; the last two are left out where there are none."""

    header: bytes
    pictures: bytes | None = None
    state: bytes | None = None


def pack_request(request: EngineRequest, client: str) -> RequestFrame:
    """A generation, as it crosses the wire."""
    message = {
        "kind": "generate",
        "id": request.job_id,
        "params": asdict(request.params),
        "output_format": request.output_format,
        "share": _share_fields(request.share),
        "previews": request.previews,
        "client": client,
        "parts": [len(image) for image in request.images],
    }
    if request.raw:  # else left out: a server of an earlier version does not know it
        message["raw"] = True
    return RequestFrame(_json(message), b"".join(request.images) or None, request.resume_from)


def _share_fields(share: Share) -> dict[str, Any]:
    """A share without what an earlier version does not know, where it says nothing."""
    message = asdict(share)
    return message if share.beyond_s else {name: value for name, value in message.items() if name != "beyond_s"}


def pack_control(kind: Kind, client: str, job_id: str = "") -> RequestFrame:
    """A request that generates nothing."""
    return RequestFrame(_json({"kind": kind, "id": job_id, "client": client}))


def unpack_request(frame: RequestFrame) -> ReceivedRequest:
    """What a client asks. Pictures without `parts` are one picture.

    Raises:
        InvalidRequest: it is none of ours; the message says what is wrong.
    """
    message = _object(frame.header)
    pictures = frame.pictures or b""
    sizes = message.pop("parts", [len(pictures)] if pictures else [])
    unknown = message.keys() - {one.name for one in fields(ReceivedRequest)} - {"state", "pictures"}
    if unknown:
        raise InvalidRequest(f"a request has no field {min(unknown)!r}; leave it out", param=min(unknown))
    if message.get("kind", "generate") not in KINDS:
        raise InvalidRequest(f"kind must be one of {', '.join(KINDS)}, not {message['kind']!r}", param="kind")
    if message.get("output_format", "mp4") not in get_args(OutputFormat):
        raise InvalidRequest(f"output_format must be one of {', '.join(get_args(OutputFormat))}", param="output_format")
    try:
        share = Share(**message.pop("share", {}))
        return ReceivedRequest(**message, share=share, pictures=tuple(_cut(pictures, sizes)), state=frame.state)
    except TypeError as error:
        raise InvalidRequest(f"the request cannot be read: {error}") from error


def pack_event(event: EngineEvent | Status) -> Frame:
    """An event, as it crosses the wire."""
    values = {one.name: getattr(event, one.name) for one in fields(event)}
    parts = {name: value for name, value in values.items() if isinstance(value, bytes)}
    message = {name: value for name, value in values.items() if name not in parts}
    message |= {"kind": type(event).__name__, "parts": {name: len(value) for name, value in parts.items()}}
    return Frame(_json(message), b"".join(parts.values()))


def unpack_event(frame: Frame) -> EngineEvent | Status:
    """The event that was sent.

    Raises:
        InvalidRequest: it is none of ours.
    """
    message = _object(frame.header)
    sizes = message.pop("parts", {})
    kind = cast(Any, {**EVENTS, Status.__name__: Status}.get(message.pop("kind", "")))
    if kind is None or not isinstance(sizes, dict):
        raise InvalidRequest("the server's answer is no event of ours; is it of another version of stillmotion?")
    parts = dict(zip(sizes, _cut(frame.data, list(sizes.values())), strict=True))
    try:
        return cast(EngineEvent | Status, kind(**message, **parts))
    except TypeError as error:
        raise InvalidRequest(f"the server's {kind.__name__} cannot be read: {error}") from error


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _object(text: bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"the frame is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise InvalidRequest("the frame is no JSON object")
    return message


def _cut(data: bytes, sizes: list[Any]) -> list[bytes]:
    """The pieces of so many bytes each that lie one after another in `data`."""
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise InvalidRequest("parts must be lengths in bytes", param="parts")
    if sum(sizes) != len(data):
        raise InvalidRequest(f"parts add up to {sum(sizes)} bytes, and {len(data)} came with them", param="parts")
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return pieces
