"""Larger frames: sizes, no seams between tiles, and networks that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.errors import CheckpointError, InvalidRequest
from model.media.upscale import OVERLAP, Lanczos, OnnxUpscaler, Upscalers, parse_files, spans

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_network(path: Path, factor: int = 2, side: int | None = None) -> Path:
    """A network that blurs over three pixels and then repeats each pixel: its tiles must agree where they meet."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.zeros((3, 3, 3, 3), np.float32)
    for channel in range(3):
        kernel[channel, channel] = 1 / 9
    shape = [1, 3, side or "h", side or "w"]
    larger = [1, 3, side * factor if side else "H", side * factor if side else "W"]
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["blurred"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "Resize",
            ["blurred", "", "scales"],
            ["y"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "larger",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, larger)],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), "scales"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def blurred(frame: np.ndarray, factor: int) -> np.ndarray:
    """The same by hand, of the whole frame at once; its border is repeated."""
    padded = np.pad(frame.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width, _ = frame.shape
    mean = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9
    return np.repeat(np.repeat(np.rint(mean), factor, 0), factor, 1)


@pytest.mark.parametrize("side", [None, 64])
def test_tiles_make_what_the_whole_frame_would(tmp_path: Path, side: int | None) -> None:
    upscaler = OnnxUpscaler("net", write_network(tmp_path / "net.onnx", 2, side))
    frame = np.random.default_rng(0).integers(0, 256, (70, 301, 3), np.uint8)
    made = upscaler.larger(frame, 2)
    assert made.shape == (140, 602, 3)
    assert np.abs(made.astype(int) - blurred(frame, 2)).max() <= 1
    assert (upscaler.factors(), len(upscaler.version)) == ((2,), 12)
    with pytest.raises(InvalidRequest, match="2 times"):
        upscaler.larger(frame, 3)


def test_lanczos_keeps_a_flat_frame_flat() -> None:
    frame = np.full((10, 12, 3), 77, np.uint8)
    made = Lanczos().larger(frame, 3)
    assert made.shape == (30, 36, 3)
    assert set(np.unique(made)) == {77}


@pytest.mark.parametrize(("length", "tile"), [(1, 64), (32, 64), (33, 64), (500, 256)])
def test_spans_cover_a_side_once(length: int, tile: int) -> None:
    covered = [place for start, stop in spans(length, tile) for place in range(start, stop)]
    assert covered == list(range(length))
    assert all(stop - start <= tile - 2 * OVERLAP for start, stop in spans(length, tile))


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        OnnxUpscaler("net", tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(CheckpointError, match="does not load"):
        OnnxUpscaler("net", tmp_path / "text.onnx")
    with pytest.raises(CheckpointError, match="none of"):
        OnnxUpscaler("net", write_network(tmp_path / "five.onnx", 5))


def test_names(tmp_path: Path) -> None:
    upscalers = Upscalers({"net": write_network(tmp_path / "net.onnx")})
    assert upscalers.names == ("lanczos", "net")
    assert upscalers.find("net") is upscalers.find("net")
    with pytest.raises(InvalidRequest) as caught:
        upscalers.find("other")
    assert caught.value.param == "upscaler"
    assert parse_files("a=x.onnx, b=y=z.onnx") == {"a": Path("x.onnx"), "b": Path("y=z.onnx")}
    for wrong in ("x.onnx", "=x", "a=", "lanczos=x"):
        with pytest.raises(InvalidRequest):
            parse_files(wrong)
