"""config.pbtxt from dataclasses, checked by parsing it as the protobuf Triton itself reads.

A model of ours is one decoupled Python-backend model: a request goes in as JSON with its pictures as bytes, and with
the state it goes on from; events come out as JSON, each with the bytes it carries (a preview, the video). All of them
are UINT8 tensors, as serving.triton.wire tells. Which of the installed versions is served is said by `version_policy`,
and a label a version by parameters `label.NAME`: one file, so that a change of both is one rename.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model.errors import CheckpointError, MissingExtra

CONFIG = "config.pbtxt"
LABEL = "label."
"""What the name of a parameter that holds a label begins with."""


class Symbol(str):
    """A word that is written without quotes: an enum's value."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; -1 in `dims` is free."""

    name: str
    data_type: Literal["TYPE_UINT8", "TYPE_FP32", "TYPE_INT64"]
    dims: tuple[int, ...]
    optional: bool = False

    def fields(self) -> dict[str, Any]:
        """As Triton's ModelInput or ModelOutput."""
        told: dict[str, Any] = {"name": self.name, "data_type": Symbol(self.data_type), "dims": list(self.dims)}
        return told | ({"optional": True} if self.optional else {})


@dataclass(frozen=True, slots=True)
class Instances:
    """How many engines, and where: KIND_AUTO is one a GPU, or one on the CPU where there is none."""

    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU"] = "KIND_AUTO"
    count: int = 1

    def fields(self) -> dict[str, Any]:
        """As Triton's ModelInstanceGroup."""
        return {"kind": Symbol(self.kind), "count": self.count}


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
            "inputs": [
                {
                    "key": name,
                    "value": {
                        "data_type": Symbol(ports[name].data_type),
                        "dims": [length],
                        "input_data_file": file,
                    },
                }
                for name, (file, length) in self.files.items()
            ],
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
        parameters: what the model's own code is told.
    """

    name: str
    version: int
    labels: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    instances: Instances = Instances()
    warm_up: tuple[WarmUp, ...] = ()

    def render(self) -> str:
        """The text of config.pbtxt, which `check_config` takes."""
        told = {f"{LABEL}{name}": str(version) for name, version in sorted(self.labels.items())}
        told |= dict(self.parameters)
        fields = {
            "name": self.name,
            "backend": "python",
            "max_batch_size": 0,
            "version_policy": {"specific": {"versions": [self.version]}},
            "input": [port.fields() for port in REQUEST],
            "output": [port.fields() for port in EVENT],
            "instance_group": [self.instances.fields()],
            "model_transaction_policy": {"decoupled": True},
            "parameters": [{"key": name, "value": {"string_value": value}} for name, value in told.items()],
            "model_warmup": [warm_up.fields(REQUEST) for warm_up in self.warm_up],
        }
        return "\n".join(_lines(fields, 0)) + "\n"


def _lines(fields: Mapping[str, Any], depth: int) -> list[str]:
    """Fields in protobuf's text format; a list of messages is its field repeated."""
    indent, lines = "  " * depth, []
    for name, value in fields.items():
        many = value if isinstance(value, list) else [value]
        if many and not isinstance(many[0], Mapping):
            shown = ", ".join(map(_scalar, many))
            lines.append(f"{indent}{name}: " + (f"[{shown}]" if isinstance(value, list) else shown))
            continue
        for message in many:
            lines += [f"{indent}{name} {{", *_lines(message, depth + 1), f"{indent}}}"]
    return lines


def _scalar(value: object) -> str:
    if isinstance(value, Symbol | int) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value)


def check_config(text: str) -> Any:
    """The text as Triton's ModelConfig message.

    Raises:
        MissingExtra: tritonclient, which brings the message's definition, is not installed.
        CheckpointError: the text is none.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ModuleNotFoundError as error:
        raise MissingExtra("checking config.pbtxt", "export") from error
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise CheckpointError(f"{CONFIG} is not what Triton reads: {error}", param="model") from error


def labels_of(config: Any) -> dict[str, int]:
    """The labels in a parsed config."""
    pattern = re.compile(rf"^{re.escape(LABEL)}(.+)$")
    found = {pattern.match(name): value.string_value for name, value in config.parameters.items()}
    return {match[1]: int(value) for match, value in found.items() if match}


def instances_of(config: Any) -> Instances:
    """The instances in a parsed config."""
    group = config.instance_group[0]
    return Instances(group.DESCRIPTOR.enum_types_by_name["Kind"].values_by_number[group.kind].name, group.count)
