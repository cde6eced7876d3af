"""config.pbtxt as Triton's own protobuf reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.triton_config import Instances, TritonConfig, WarmUp, check_config, labels_of
from model.errors import CheckpointError

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


def test_what_is_rendered_is_what_triton_reads() -> None:
    config = TritonConfig(
        "mini",
        7,
        labels={"stable": 7, "previous": 4},
        parameters={"backend": "onnx"},
        instances=Instances("KIND_CPU", 2),
        warm_up=(WarmUp("short", {"request": ("request", 9), "pictures": ("pictures", 70)}),),
    )
    read = check_config(config.render())
    assert (read.name, read.backend, read.max_batch_size) == ("mini", "python", 0)
    assert read.model_transaction_policy.decoupled
    assert list(read.version_policy.specific.versions) == [7]
    assert [(port.name, list(port.dims), port.optional) for port in read.input] == [
        ("request", [-1], False),
        ("pictures", [-1], True),
        ("state", [-1], True),
    ]
    assert [port.name for port in read.output] == ["event", "data"]
    assert (read.instance_group[0].kind, read.instance_group[0].count) == (2, 2)  # KIND_CPU
    assert labels_of(read) == {"stable": 7, "previous": 4}
    assert read.parameters["backend"].string_value == "onnx"
    assert list(read.model_warmup[0].inputs["pictures"].dims) == [70]
    assert read.model_warmup[0].inputs["request"].input_data_file == "request"


@given(name=NAMES, value=NAMES, version=st.integers(1, 10**6))
def test_any_printable_words_survive(name: str, value: str, version: int) -> None:
    read = check_config(TritonConfig(name, version, parameters={"told": value}).render())
    assert (read.name, read.parameters["told"].string_value) == (name, value)
    assert list(read.version_policy.specific.versions) == [version]


@pytest.mark.parametrize("text", ["nonsense: 1", "name: unquoted", 'name: "half'])
def test_what_triton_would_not_read_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="not what Triton reads"):
        check_config(text)
