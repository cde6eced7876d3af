"""config.pbtxt: a model's configuration as dataclasses, written and read as the protobuf message Triton itself reads.

A model of ours is one decoupled Python-backend model: a request goes in as JSON with its pictures as bytes, and with
the state it goes on from; events come out as JSON, each with the bytes it carries (a preview, the video). All of them
are UINT8 tensors, as in serving.triton.wire. Which of the installed versions is served is said by `version_policy`,
and a label a version by parameters `label.NAME`: one file, so that a change of both is one rename.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model.errors import CheckpointError, MissingExtra

CONFIG = "config.pbtxt"
LABEL = "label."
"""What the name of a parameter that holds a label begins with."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; -1 in `dims` is free."""

    name: str
    data_type: Literal["TYPE_UINT8", "TYPE_FP32", "TYPE_INT64"]
    dims: tuple[int, ...]
    optional: bool = False

    def fields(self) -> dict[str, Any]:
        """As Triton's ModelInput or ModelOutput."""
        port: dict[str, Any] = {"name": self.name, "data_type": self.data_type, "dims": list(self.dims)}
        return port | ({"optional": True} if self.optional else {})


@dataclass(frozen=True, slots=True)
class Instances:
    """How many engines, and where: KIND_AUTO is `count` a GPU, or `count` on the CPU where there is none.

    Args:
        gpus: numbers of the GPUs to use; empty for all that the server sees.
    """

    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU"] = "KIND_AUTO"
    count: int = 1
    gpus: tuple[int, ...] = ()

    def fields(self) -> dict[str, Any]:
        """As Triton's ModelInstanceGroup."""
        return {"kind": self.kind, "count": self.count, "gpus": list(self.gpus)}


@dataclass(frozen=True, slots=True)
class WarmUp:
    """A request Triton sends before the model is ready.

    Args:
        files: for each input, the file under NAME/warmup that holds it, and its length.
    """

    name: str
    files: Mapping[str, tuple[str, int]]

    def fields(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """As Triton's ModelWarmup."""
        ports = {port.name: port for port in inputs}
        return {
            "name": self.name,
            "inputs": {
                name: {"data_type": ports[name].data_type, "dims": [length], "input_data_file": file}
                for name, (file, length) in self.files.items()
            },
        }


REQUEST = (
    Tensor("request", "TYPE_UINT8", (-1,)),
    Tensor("pictures", "TYPE_UINT8", (-1,), optional=True),
    Tensor("state", "TYPE_UINT8", (-1,), optional=True),
)
EVENT = (Tensor("event", "TYPE_UINT8", (-1,)), Tensor("data", "TYPE_UINT8", (-1,)))


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """A model's configuration.

    Args:
        name: the model folder's.
        version: the one that is served.
        labels: words for versions, such as stable and previous.
        parameters: for the model's own code (serving.triton.hosting).
    """

    name: str
    version: int
    labels: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    instances: Instances = Instances()
    warm_up: tuple[WarmUp, ...] = ()

    def render(self) -> str:
        """The text of config.pbtxt, which `check_config` takes."""
        parameters = {f"{LABEL}{name}": str(version) for name, version in sorted(self.labels.items())}
        parameters |= dict(self.parameters)
        fields = {
            "name": self.name,
            "backend": "python",
            "max_batch_size": 0,
            "version_policy": {"specific": {"versions": [self.version]}},
            "input": [port.fields() for port in REQUEST],
            "output": [port.fields() for port in EVENT],
            "instance_group": [self.instances.fields()],
            "model_transaction_policy": {"decoupled": True},
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
            "model_warmup": [warm_up.fields(REQUEST) for warm_up in self.warm_up],
        }
        return _config_text(fields)


def _config_text(fields: Mapping[str, Any]) -> str:
    """Fields of a ModelConfig in protobuf's text format. Raises MissingExtra."""
    json_format, text_format, model_config = _protobuf("writing config.pbtxt")
    message = json_format.ParseDict(fields, model_config())
    return str(text_format.MessageToString(message, as_utf8=True))


def _protobuf(purpose: str) -> tuple[Any, Any, Any]:
    """protobuf's JSON and text formats, and Triton's ModelConfig. Raises MissingExtra."""
    try:
        from google.protobuf import json_format, text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ModuleNotFoundError as error:
        raise MissingExtra(purpose, "export") from error
    return json_format, text_format, ModelConfig


def check_config(text: str) -> Any:
    """The text as Triton's ModelConfig message.

    Raises:
        MissingExtra: tritonclient, which brings the message's definition, is not installed.
        CheckpointError: the text is none.
    """
    _, text_format, model_config = _protobuf("checking config.pbtxt")
    try:
        return text_format.Parse(text, model_config())
    except text_format.ParseError as error:
        raise CheckpointError(f"{CONFIG} is not what Triton reads: {error}", param="model") from error


def labels_of(config: Any) -> dict[str, int]:
    """The labels in a parsed config."""
    pattern = re.compile(rf"^{re.escape(LABEL)}(.+)$")
    matches = {pattern.match(name): value.string_value for name, value in config.parameters.items()}
    return {match[1]: int(value) for match, value in matches.items() if match}


def instances_of(config: Any) -> Instances:
    """The instances in a parsed config."""
    group = config.instance_group[0]
    kind = group.DESCRIPTOR.enum_types_by_name["Kind"].values_by_number[group.kind].name
    return Instances(kind, group.count, tuple(group.gpus))
