"""Videos of six coloured blocks, made here from formulas: every way of storing them is to be displayed alike.

The conversion to Y'CbCr, PQ and HLG is written out after ITU-R BT.601, BT.709, BT.2020 and BT.2100, apart from the code
that is tested.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

COLOURS = ((220, 30, 40), (40, 200, 60), (30, 60, 210), (250, 250, 250), (128, 128, 128), (224, 172, 105))
BLOCK, FPS = 32, 24
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
        9: (0.2627, 0.0593)}  # fmt: skip
"""Kr and Kb by the matrix's number in ITU-T H.273."""
BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def bars(height: int = 2 * BLOCK, width: int = 3 * BLOCK) -> np.ndarray:
    """Two rows of three blocks, [H, W, 3]."""
    rows = [np.concatenate([np.full((BLOCK, BLOCK, 3), c, np.uint8) for c in COLOURS[k : k + 3]], 1) for k in (0, 3)]
    picture = np.concatenate(rows)
    return picture[np.arange(height) * picture.shape[0] // height][:, np.arange(width) * picture.shape[1] // width]


def hdr(picture: np.ndarray, transfer: int) -> np.ndarray:
    """sRGB pictures with white at 203 cd/m2 as BT.2020 in PQ (16) or HLG on a display of 1,000 cd/m2 (18), 0 to 1."""
    code = picture / 255
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4) @ BT709_TO_BT2020.T * 203
    if transfer == 16:
        y = (light / 10_000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    scene = (light / 1000) ** (1 / 1.2)
    above = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), above)


def stored_codes(path: Path) -> np.ndarray:
    """The Y'CbCr codes of the first frame of a ten-bit 4:2:0 video, [H, W, 3]."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        height, width, array = frame.height, frame.width, frame.to_ndarray()
    chroma = array[height:].reshape(2, height // 2, width // 2).repeat(2, 1).repeat(2, 2)
    return np.stack([array[:height], *chroma], -1).astype(np.float64)


def hdr_to_srgb(codes: np.ndarray, transfer: int) -> np.ndarray:
    """The inverse of `hdr` and `planes` in floating point: ten-bit BT.2020 codes of limited range as sRGB, 0 to 255."""
    kr, kb = LUMA[9]
    y, cb, cr = (codes[..., 0] - 64) / 876, (codes[..., 1] - 512) / 896, (codes[..., 2] - 512) / 896
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    code = np.stack([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], -1).clip(0, 1)
    if transfer == 16:
        power = code ** (32 / 2523)
        light = 10_000 * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)
    else:
        above = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = 1000 * np.where(code <= 0.5, code**2 / 3, above) ** 1.2
    linear = light / 203 @ np.linalg.inv(BT709_TO_BT2020).T
    linear = (linear / np.maximum(linear.max(-1, keepdims=True), 1)).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def planes(unit: np.ndarray, matrix: int, *, full: bool, bits: int) -> np.ndarray:
    """RGB of 0 to 1 as planar 4:2:0, [H * 3 / 2, W], H and W even."""
    kr, kb = LUMA[matrix]
    y = unit @ np.array([kr, 1 - kr - kb, kb])
    chroma = [(unit[..., c] - y) / (2 * (1 - k)) for c, k in ((2, kb), (0, kr))]
    top, half = 2**bits - 1, 2 ** (bits - 1)
    scale = (top, top) if full else (219 * 2 ** (bits - 8), 224 * 2 ** (bits - 8))
    luma = y * scale[0] + (0 if full else 16 * 2 ** (bits - 8))
    small = [one.reshape(one.shape[0] // 2, 2, -1, 2).mean((1, 3)) * scale[1] + half for one in chroma]
    flat = np.concatenate([one.ravel() for one in (luma, *small)])
    return flat.round().clip(0, top).reshape(-1, unit.shape[1])


def write_bars(
    path: Path,
    picture: np.ndarray,
    *,
    matrix: int = 1,
    tagged: bool = True,
    full: bool = False,
    transfer: int = 1,
    primaries: int = 1,
    display: tuple[int, int, int, int] | None = None,
    aspect: Fraction | None = None,
    count: int = 40,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """A video that stores the picture; `display` is the a, b, c, d of its display matrix."""
    deep = transfer in (16, 18)
    unit = hdr(picture, transfer) if deep else picture / 255
    array = planes(unit, matrix, full=full, bits=10 if deep else 8)
    pix_fmt = "yuv420p10le" if deep else "yuv420p"
    with av.open(str(path), "w") as container:
        defaults = {"qp": "4", "preset": "fast", "sc_threshold": "0"} if codec == "libx264" else {}
        stream: Any = container.add_stream(codec, rate=FPS, options={**defaults, **options})
        context = stream.codec_context
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt, stream.gop_size = pix_fmt, 10
        context.color_range = 2 if full else 1
        if tagged:
            context.colorspace, context.color_trc, context.color_primaries = matrix, transfer, primaries
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if display is not None:
            a, b, c, d = (value << 16 for value in display)
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        for k in range(count):
            frame: Any = av.VideoFrame.from_ndarray(array.astype(np.uint16 if deep else np.uint8), format=pix_fmt)
            frame.pts, frame.time_base = k, Fraction(1, FPS)
            frame.color_range = 2 if full else 1
            if tagged:
                frame.colorspace = matrix
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def colours_of(picture: np.ndarray, rows: int = 2, columns: int = 3) -> np.ndarray:
    """The mean colour in the middle of each block, [rows, columns, 3]."""
    height, width = picture.shape[0] / rows, picture.shape[1] / columns

    def middle(row: int, column: int) -> np.ndarray:
        tall = slice(round((row + 0.3) * height), round((row + 0.7) * height))
        wide = slice(round((column + 0.3) * width), round((column + 0.7) * width))
        return picture[tall, wide].reshape(-1, 3).mean(0)

    return np.array([[middle(row, column) for column in range(columns)] for row in range(rows)])
