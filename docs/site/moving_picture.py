"""README's moving picture: the frames of docs/assets/demo.png beside the still they were made from.

    python docs/site/moving_picture.py

`make demo` writes the contact sheet, out/demo.png; docs/assets/demo.png is a copy of it.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).resolve().parents[1] / "assets"
COLUMNS, FRAMES = 4, 14
FRAME = (224, 128)
STEP = (232, 154)
MARGIN, GAP = 8, 12
SCALE = 2
FPS = 7


def frames(sheet: Image.Image) -> list[Image.Image]:
    """The frames of a contact sheet."""
    corners = [(MARGIN + number % COLUMNS * STEP[0], MARGIN + number // COLUMNS * STEP[1]) for number in range(FRAMES)]
    return [sheet.crop((x, y, x + FRAME[0], y + FRAME[1])) for x, y in corners]


def fitted(still: Image.Image) -> Image.Image:
    """The part of the still that the clip keeps: as large as fits, from the middle."""
    width, height = still.size
    wanted = width * FRAME[1] // FRAME[0]
    top = (height - wanted) // 2
    size = FRAME[0] * SCALE, FRAME[1] * SCALE
    return still.crop((0, top, width, top + wanted)).resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    """Write docs/assets/demo.webp."""
    still = fitted(Image.open(ASSETS / "still.jpg").convert("RGB"))
    pictures = []
    for frame in frames(Image.open(ASSETS / "demo.png").convert("RGB")):
        canvas = Image.new("RGB", (still.width * 2 + GAP, still.height), (127, 127, 127))
        canvas.paste(still, (0, 0))
        canvas.paste(frame.resize(still.size, Image.Resampling.LANCZOS), (still.width + GAP, 0))
        pictures.append(canvas)
    first, *others = pictures
    first.save(ASSETS / "demo.webp", save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=70)


if __name__ == "__main__":
    main()
