"""One row of a manifest becomes one request, by the very code that reads the API's requests.

A row of JSON is read as a JSON body, a row of a table (CSV, Parquet, a Ray Dataset) as a form: so a row means what the
same fields mean over HTTP. What a row has besides: `id` and `task`, and pictures named by path or
URL. Imports no torch.

How many workers, and what each of them takes: one a GPU, or one for all CPUs of a machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from stillmotion.types import REQUESTS, BatchLine, OutputFormat

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.media.upscale import Upscalers
from model.params import Params
from model.stages import NO_STAGES, Stages
from model.tasks import IMAGE_TO_VIDEO, TaskSpec, task
from serving.gateway.errors import first_problem
from serving.gateway.images import PictureFile, PictureSource, UploadRef
from serving.gateway.requests import Submission, read_json, to_job_request
from serving.interpolation.plan import plan_stages, split_frames


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The pool.

    Args:
        workers: how many.
        cpus, gpus: what Ray sets aside for each.
        threads: CPU threads of each engine; None: the engine's own choice.
    """

    workers: int
    cpus: float
    gpus: float
    threads: int | None


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    *,
    cores: int,
    device: str,
    workers: int | None,
    threads: int | None,
    deterministic: bool = False,
) -> WorkerPlan:
    """Lay out the workers.

    One CPU of each machine is left out of account for reading; a worker's engine still uses its share of all cores.

    Args:
        nodes: what each machine has, by Ray: `CPU`, `GPU`.
        cores: usable cores of this machine; engines on CPUs share out the smaller of this and the machine's `CPU`.
        device: of the engines; `auto` takes GPUs where there are any.
        workers: requested; None for one a GPU, or one a machine.
        threads: requested, of each engine.
        deterministic: engines take the threads that one alone would, since their number changes the last bits.

    Raises:
        InvalidRequest: GPUs are requested and there are none, or more workers than GPUs.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device != "cpu" and (gpus or device != "auto"):
        if (workers or 1) > gpus:
            raise InvalidRequest(f"{workers or 1} workers need as many GPUs, and there are {gpus}", param="workers")
        return WorkerPlan(workers or gpus, 1, 1, threads)
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not able:
        raise InvalidRequest("no machine of the cluster has a CPU to give", param="ray_address")
    count = workers or len(able)
    smallest = min(int(node["CPU"]) for node in able)
    each = -(-count // len(able))
    spare = (smallest - 1) / each
    # Neither 0 nor 1, which are what reading tasks ask for: Ray Data would make one task of reading and rendering.
    return WorkerPlan(
        count,
        int(spare) if spare >= 2 else min(max(spare, 0.01), 0.99),
        0,
        threads or max(1, min(cores, smallest) // (1 if deterministic else each)),
    )


OWN_COLUMNS: Final = ("id", "task")
"""What a row has and a request has not."""
_NOT_OFFLINE: Final = {
    "priority": "every row is offline work",
    "deadline_s": "offline rendering keeps no deadlines",
    "webhook": "offline rendering tells nobody; read the result table",
    "reuse": "offline rendering knows no jobs; a row that is done already is not rendered again",
}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_STEM: Final = 80
_SEED_DIGITS: Final = 20
_ID_DIGITS: Final = 10
"""After a picture's name, which alone may stand in several folders or rows."""


@dataclass(frozen=True, slots=True)
class RowContext:
    """What rows are read against.

    Args:
        entries: the checkpoints that rows may name.
        defaults: fields of every row that does not say otherwise.
        base: the folder or URL that pictures named by a relative path lie below.
        upscalers: ONNX networks that rows may name besides Lanczos: name and file.
    """

    entries: tuple[ModelEntry, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base: str = ""
    upscalers: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class RowRequest:
    """A row, checked but for its pictures.

    Args:
        id: names its files: the row's own; or else its first picture's name with digits of `content`; or digits alone.
        content: SHA-256, in hex, of what the row says and of the checkpoint's and the LoRA's versions, but for `id`
            itself. Pictures count by where they lie.
        pictures: bytes, or where they lie, in the order of the task's spec.
        stages: what follows the clip.
    """

    id: str
    content: str
    entry: ModelEntry
    params: Params
    pictures: tuple[bytes | str, ...]
    output_format: OutputFormat
    metadata: Mapping[str, str]
    stages: Stages = NO_STAGES


def read_row(values: Mapping[str, Any], reading: RowContext, *, strict: bool) -> RowRequest:
    """Read one row.

    Args:
        values: by column; None, an empty text and NaN count as absent.
        strict: read as a JSON body, where a number must be a number; otherwise as a form.

    Raises:
        InvalidRequest: `param` names the column.
    """
    values = _flat({**reading.defaults, **_present(values, strict=strict)})
    for name, why in _NOT_OFFLINE.items():
        if name in values:
            raise InvalidRequest(f"{why}; leave {name} out", code="unknown_field", param=name)
    spec = _task(values, reading)
    fields = {name: value for name, value in values.items() if name not in OWN_COLUMNS}
    submission = _read_json(fields, spec, reading.base) if strict else _read_form(fields, spec, reading.base)
    order = to_job_request(submission, spec.name)
    entry = entry_for(order.model, spec.name, reading.entries)
    settings = {name: value for name, value in order.settings.items() if value is not None}
    settings, frames = split_frames(entry, settings, order.stages)
    # Before its id is computed: a bad setting is the more useful error.
    unseeded = entry.resolve(settings, seed=0)
    settings |= _pinned(unseeded)
    upscalers = Upscalers(dict(reading.upscalers))
    plan = partial(plan_stages, reading.entries, entry, wishes=order.stages, frames=frames, upscalers=upscalers)
    stages = plan(params=unseeded)
    pictures = tuple(_local_picture(name, one) for name, one in zip(spec.pictures, order.pictures, strict=True))
    content = _hash(entry, settings, pictures, order.output_format, order.metadata, stages)
    row_id = _id(values.get("id"), content, pictures)
    params = entry.resolve(settings, settings.get("seed", _seed(row_id if "id" in values else content[:_SEED_DIGITS])))
    return RowRequest(
        row_id, content, entry, params, pictures, order.output_format, order.metadata, plan(params=params)
    )


def entry_for(name: str | None, task_name: str, entries: tuple[ModelEntry, ...]) -> ModelEntry:
    """The checkpoint of this name for the task; the first one if no name is given.

    Raises:
        InvalidRequest: there is none.
    """
    able = [entry for entry in entries if entry.task.name == task_name]
    entry = next((entry for entry in able if name in (None, entry.name)), None)
    if entry is None:
        there = ", ".join(entry.name for entry in able) or "none"
        raise InvalidRequest(
            f"no model {name or ''!r} is there for {task_name}; there are: {there}",
            code="model_not_found",
            param="model",
        )
    return entry


def as_json(values: Mapping[str, Any]) -> str:
    """A row as text, on its way to a worker; pictures given as bytes become base64."""
    return json.dumps(values, default=_plain)


def valid_row_id(value: Any) -> str | None:
    """What a row calls itself, if that can name a file."""
    return str(value) if isinstance(value, str | int) and _NAME.fullmatch(str(value)) else None


def locate(base: str, reference: str) -> str:
    """Where a picture lies: absolute paths and URLs as they are, others below `base`."""
    if not base or reference.startswith("/") or "://" in reference:
        return reference
    return f"{base.rstrip('/')}/{reference}"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"data": base64.b64encode(bytes(value)).decode("ascii")}
    if hasattr(value, "item"):  # a number of numpy's
        return value.item()
    return str(value)


def _present(values: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    """The columns that say something: in a table, an empty cell says nothing."""
    return {
        str(name): value
        for name, value in values.items()
        if value is not None and (strict or not (value == "" or (isinstance(value, float) and math.isnan(value))))
    }


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """A line of POST /batches as a row; any other row as it is."""
    if not {"custom_id", "url", "body"} <= values.keys():
        return values
    try:
        line = BatchLine.model_validate(values)
    except ValidationError as error:
        raise first_problem(error, "a batch's line") from error
    return {**line.body, "id": line.custom_id, "task": line.url.rpartition("/")[2]}


def _task(values: Mapping[str, Any], reading: RowContext) -> TaskSpec:
    """The row's task; left out, the named checkpoint's, else image-to-video."""
    if "task" in values:
        return task(str(values["task"]))
    named = next((entry for entry in reading.entries if entry.name == values.get("model")), None)
    return named.task if named is not None else IMAGE_TO_VIDEO


def _read_json(fields: dict[str, Any], spec: TaskSpec, base: str) -> Submission:
    body = dict(fields)
    for name in spec.pictures:
        value = body.get(name)
        if isinstance(value, str):
            body[name] = {"url": locate(base, value)}
        elif isinstance(value, dict) and isinstance(value.get("url"), str):
            body[name] = {**value, "url": locate(base, value["url"])}
    return read_json(json.dumps(body).encode(), spec)


def _read_form(fields: dict[str, Any], spec: TaskSpec, base: str) -> Submission:
    for name in spec.pictures:
        if name not in fields:
            raise InvalidRequest(f"{name} is required: a path or URL", code="missing_field", param=name)
    images = tuple(_picture(name, fields[name], base) for name in spec.pictures)
    values = {name: value for name, value in fields.items() if name not in spec.pictures}
    if isinstance(values.get("metadata"), str):
        try:
            values["metadata"] = json.loads(values["metadata"])
        except ValueError as error:
            raise InvalidRequest(f"metadata must be a JSON object: {error}", param="metadata") from error
    try:
        return Submission(REQUESTS[spec.name][0].model_validate(values), images)
    except ValidationError as error:
        raise first_problem(error, spec.name) from error


def _local_picture(name: str, source: PictureSource) -> bytes | str:
    if isinstance(source, UploadRef):
        raise InvalidRequest(f"{name}.upload is a server's; give a path, a URL or data", param=f"{name}.upload")
    return source.read() if isinstance(source, PictureFile) else source


def _picture(name: str, value: Any, base: str) -> bytes | str:
    if isinstance(value, str):
        return locate(base, value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("data"), str):
        try:
            return base64.b64decode(value["data"], validate=True)
        except ValueError as error:
            raise InvalidRequest(f"{name} is not base64: {error}", param=name) from error
    raise InvalidRequest(f"{name} must be a path, a URL or a picture's bytes", param=name)


def _id(value: Any, content: str, pictures: tuple[bytes | str, ...]) -> str:
    """The row's own; else the first picture's name and some digits of what the row says; else digits alone."""
    if value is None:
        source = next((one for one in pictures if isinstance(one, str)), "")
        stem = _UNSAFE.sub("-", posixpath.splitext(posixpath.basename(source.partition("?")[0]))[0]).lstrip(".-")
        return f"{stem[:_LONGEST_STEM]}-{content[:_ID_DIGITS]}" if stem else content[:_SEED_DIGITS]
    if not isinstance(value, str | int) or not _NAME.fullmatch(str(value)):
        raise InvalidRequest(
            f"id must be 1 to 120 of A-Z a-z 0-9 _ . - and begin with none of . and -, not {str(value)[:140]!r}",
            param="id",
        )
    return str(value)


def _seed(row_id: str) -> int:
    """The seed of a row that names none: always the same one, so that a row done again is the same video."""
    return int.from_bytes(hashlib.sha256(f"seed of {row_id}".encode()).digest()[:4], "big")


def _pinned(params: Params) -> dict[str, Any]:
    """The LoRA with its version and strength: another file of the same name makes another row."""
    use = params.adapter
    return {} if use is None else {"lora": f"{use.name}@{use.version}", "lora_scale": use.scale}


def _hash(
    entry: ModelEntry,
    settings: Mapping[str, Any],
    pictures: tuple[bytes | str, ...],
    output_format: str,
    metadata: Mapping[str, str],
    stages: Stages,
) -> str:
    identity: dict[str, Any] = {
        "task": entry.task.name,
        "model": f"{entry.name}@{entry.version}",
        "settings": settings,
        "pictures": [one if isinstance(one, str) else hashlib.sha256(one).hexdigest() for one in pictures],
        "output_format": output_format,
        "metadata": metadata,
        **stages.as_dict(),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
