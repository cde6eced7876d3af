"""Footage as phones, cameras and discs store it: clips, tables and training frames show what a player shows."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import Interpolation

from tests.unit.training.curation.colour_bars import bars, colours_of, hdr_to_srgb, planes, stored_codes, write_bars
from tests.unit.training.curation.film import pictures
from training.curation.clips import cut_clips
from training.curation.clips_plan import ClipRules, Span, plan, timeline
from training.curation.pipeline import Settings, curate
from training.curation.probe import index_packets, probe
from training.curation.records import CaptionRecord, ClipRecord, SourceRecord
from training.curation.tables import read_table
from training.data.display import Display, DisplayedFrame
from training.data.frames import read_shot, shown_size
from training.data.starter import Item

CASES = Path(__file__).parents[3] / "data" / "footage"
TOLERANCE = 3
HDR_TOLERANCE = 2
"""Between a clip of 8 bits and the exact colours of its source's ten-bit codes."""
ROUNDED = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Without these swscale truncates, and is 1.2 levels too dark on average."""
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def cut(path: Path, out: Path) -> dict[str, list[ClipRecord]]:
    """Clips of a source in each of the three ways: copied, with new edges, encoded whole."""
    source, index = probe(path), index_packets(path)
    assert source.error is None
    line, count = timeline(index), len(index.pts)
    spans = {
        "copy": plan(line, [(0, count)], ClipRules(0.2, 10)),
        "edges": plan(line, [(3, count - 3)], ClipRules(0.2, 10, max_lost_s=0.0)),
        "whole": [Span(3, 12, 12, 12)],
    }
    return {way: cut_clips(source, index, one, out) for way, one in spans.items()}


def check(
    path: Path, shown: np.ndarray, tmp_path: Path, rows: int = 2, columns: int = 3, tolerance: int = TOLERANCE
) -> None:
    """Every frame of the source and of each clip has the colours of `shown`; tables name the size it is shown at."""
    right = colours_of(shown, rows, columns)
    record = probe(path)
    assert (record.height, record.width) == shown.shape[:2]
    clips = [clip for some in cut(path, tmp_path / "D").values() for clip in some]
    assert len(clips) == 3
    for file, height, width in [(path, *shown.shape[:2])] + [
        (tmp_path / "D" / c.file, c.height, c.width) for c in clips
    ]:
        frames = pictures(file)
        assert frames
        for frame in frames:
            assert frame.shape[:2] == (height, width)
            assert np.abs(colours_of(frame, rows, columns) - right).max() <= tolerance, file
        training = read_shot(file, 64, 64)
        assert training.shape == (len(frames), 64, 64, 3)
        assert all(abs(side - own) <= 1 for side, own in zip((height, width), shown.shape[:2], strict=True))


ORIENTATIONS = {
    "as-stored": ((1, 0, 0, 1), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside-down-mirrored": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half-turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "counter-clockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transposed-across": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", sorted(ORIENTATIONS))
def test_every_orientation_is_shown_upright(name: str, tmp_path: Path) -> None:
    display, turned = ORIENTATIONS[name]
    path = write_bars(tmp_path / "film.mp4", bars(), display=display)
    rows, columns = (3, 2) if 0 in display[:1] else (2, 3)
    check(path, turned(bars()), tmp_path, rows, columns)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 4, 5, 6, 7, 9])
def test_every_matrix_and_range_is_kept(matrix: int, full: bool, tmp_path: Path) -> None:
    check(write_bars(tmp_path / "film.mp4", bars(), matrix=matrix, full=full), bars(), tmp_path)


@pytest.mark.parametrize(("size", "matrix"), [((64, 96), 6), ((720, 1280), 1)])
def test_an_untagged_matrix_is_what_players_take_it_for(size: tuple[int, int], matrix: int, tmp_path: Path) -> None:
    path = write_bars(tmp_path / "film.mp4", bars(*size), matrix=matrix, tagged=False, count=16)
    assert np.abs(colours_of(pictures(path)[0]) - colours_of(bars())).max() <= TOLERANCE
    check(path, bars(*size), tmp_path)


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_becomes_bt709(transfer: int, tmp_path: Path) -> None:
    path = write_bars(tmp_path / "film.mp4", bars(), matrix=9, primaries=9, transfer=transfer)
    check(path, bars(), tmp_path)
    import av

    for clips in cut(path, tmp_path / "D").values():
        for clip in clips:
            with av.open(str(tmp_path / "D" / clip.file)) as container:  # by a reader that knows of no high range
                rgb = next(container.decode(video=0)).reformat(format="rgb24", interpolation=ROUNDED)
            assert np.abs(colours_of(rgb.to_ndarray()) - colours_of(bars())).max() <= TOLERANCE
            assert clip.encoded == "whole"


@pytest.mark.parametrize("transfer", [16, 18])
def test_a_clip_of_high_dynamic_range_is_what_its_ten_bit_codes_say(transfer: int, tmp_path: Path) -> None:
    """Ten bits of PQ lie up to 5 levels from the colours that they stand for; a clip adds what 8-bit video does."""
    colours = np.random.default_rng(1).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    picture = colours.repeat(32, 0).repeat(32, 1)
    path = write_bars(tmp_path / "film.mp4", picture, matrix=9, primaries=9, transfer=transfer, count=20, qp="1")
    exact = colours_of(hdr_to_srgb(stored_codes(path), transfer), 4, 6)
    assert 1 < np.abs(exact - colours).max() <= 5  # what storing alone costs
    assert np.abs(colours_of(pictures(path)[0], 4, 6) - exact).max() <= 0.75
    for clips in cut(path, tmp_path / "D").values():
        for clip in clips:
            assert np.abs(colours_of(pictures(tmp_path / "D" / clip.file)[0], 4, 6) - exact).max() <= HDR_TOLERANCE


@pytest.mark.parametrize("codec_bits", [8, 10])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_colours_are_read_without_bias(matrix: int, codec_bits: int, tmp_path: Path) -> None:
    colours = np.random.default_rng(2).integers(0, 256, (6, 10, 3)).astype(np.uint8)
    array = planes(colours.repeat(16, 0).repeat(16, 1) / 255, matrix, full=False, bits=codec_bits)
    kind, name = (np.uint8, "yuv420p") if codec_bits == 8 else (np.uint16, "yuv420p10le")
    frame = VideoFrame.from_ndarray(array.astype(kind), format=name)
    frame.colorspace, frame.color_range = matrix, 1
    display = Display(name, 160, 96, None, Fraction(1), matrix, 1, 1, 1)
    wrong = colours_of(DisplayedFrame(frame, display).rgb(), 6, 10) - colours
    assert np.abs(wrong).max() <= 2
    assert np.abs(wrong.mean((0, 1))).max() <= 0.2


@pytest.mark.parametrize("matrix", [8, 14])
def test_colours_that_nothing_here_converts_are_left_out_with_the_reason(matrix: int, tmp_path: Path) -> None:
    from tests.unit.training.curation.colour_bars import LUMA

    LUMA_OF = LUMA | {matrix: LUMA[1]}
    path = tmp_path / "film.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.training.curation.colour_bars.LUMA", LUMA_OF)
        write_bars(path, bars(), matrix=matrix)
    assert "not converted here" in (probe(path).error or "")


@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(45, 64), Fraction(4, 3), Fraction(1)])
def test_pixels_of_any_aspect_are_shown_square(aspect: Fraction, tmp_path: Path) -> None:
    height = round(64 / aspect) if aspect < 1 else 64
    width = round(96 * aspect) if aspect > 1 else 96
    path = write_bars(tmp_path / "film.mp4", bars(), aspect=aspect)
    check(path, bars(height, width), tmp_path)
    item = Item("a", "shot", path.name, "s", 0, 1, 40, 24.0, "train")
    assert shown_size(tmp_path, item) == (height, width)


@pytest.mark.parametrize("name", ["film.mkv", "film.mp4", "film.ts"])
def test_frames_out_of_order_and_without_decoding_times(name: str, tmp_path: Path) -> None:
    check(write_bars(tmp_path / name, bars(), bf="2"), bars(), tmp_path)


@pytest.mark.parametrize(("height", "width"), [(63, 95), (64, 95), (63, 96)])
def test_odd_sizes(height: int, width: int, tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 10
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bars(height, width), format="rgb24")))
        container.mux(stream.encode(None))
    source, index = probe(path), index_packets(path)
    (clip,) = cut_clips(source, index, [Span(3, 12, 12, 12)], tmp_path / "D")
    assert (clip.height, clip.width) == (height // 2 * 2, width // 2 * 2)
    frames = pictures(tmp_path / "D" / clip.file)
    assert len(frames) == 9
    assert all(np.abs(colours_of(f) - colours_of(bars(height, width))).max() <= TOLERANCE for f in frames)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[ClipRecord]]]:
    """All cases in one run, with their clips by the file's name."""
    out = tmp_path_factory.mktemp("cases") / "D"
    rules = ClipRules(1.0, 10.0, max_lost_s=0.05)
    outcome = curate([CASES], out, Settings(rules=rules, scorers=(), captioners=("measured",)))
    assert outcome.broken == ()
    assert outcome.damaged == ()
    clips = read_table(out / "clips.parquet", ClipRecord)
    sources = read_table(out / "sources.parquet", SourceRecord)
    return out, {
        Path(s.path).name: sorted((c for c in clips if c.source == s.sha256), key=lambda c: c.start_s) for s in sources
    }


def corners(picture: np.ndarray) -> list[np.ndarray]:
    """Top left, top right, bottom left, bottom right."""
    return [picture[y, x].astype(int) for y in (5, -5) for x in (5, -5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bframes.mkv", "odd_vp9.webm", "plain.mp4", "full709.mp4", "rot90.mp4"])
def test_each_case_gives_two_clips_of_sixty_frames(name: str, curated: tuple) -> None:
    out, clips = curated
    assert [clip.frames for clip in clips[name]] == [60, 60]
    assert all(len(pictures(out / clip.file)) == 60 for clip in clips[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain.mp4", "full709.mp4", "bframes.mkv"])
def test_corners_keep_their_colours_in_every_frame(name: str, curated: tuple) -> None:
    out, clips = curated
    for clip in clips[name]:
        for frame in pictures(out / clip.file):
            for seen, right in zip(corners(frame), (RED, GREEN, BLUE), strict=False):
                assert np.abs(seen - right).max() <= TOLERANCE


@pytest.mark.slow
def test_a_portrait_is_upright_in_tables_and_training(curated: tuple) -> None:
    out, clips = curated
    for clip in clips["rot90.mp4"]:
        assert (clip.width, clip.height) == (112, 192)
        for frame in (*pictures(out / clip.file), *read_shot(out / clip.file, 192, 112)):
            top_left, top_right, _, bottom_right = corners(frame)
            for seen, right in ((top_left, BLUE), (top_right, RED), (bottom_right, GREEN)):
                assert np.abs(seen - right).max() <= TOLERANCE


@pytest.mark.slow
def test_how_a_camera_moves_is_told_as_it_is_seen(curated: tuple, tmp_path: Path) -> None:
    """The same film stored upright and turned has captions of the same motion once turned back by hand."""
    out, clips = curated
    captions = {one.clip_id: one.text or "" for one in read_table(out / "captions.parquet", CaptionRecord)}
    across = {"left": "up", "right": "down", "up": "right", "down": "left"}
    for plain, turned in zip(clips["plain.mp4"], clips["rot90.mp4"], strict=True):
        said = captions[plain.clip_id].rpartition("; ")[2]
        expected = " ".join(across.get(word, word) for word in said.split())
        swapped = expected.replace("pans", "?").replace("tilts", "pans").replace("?", "tilts")
        assert captions[turned.clip_id].rpartition("; ")[2] in (swapped, said if "camera" not in said else swapped)


@pytest.mark.slow
def test_an_anamorphic_ball_is_round(curated: tuple) -> None:
    out, clips = curated
    assert {clip.width for clip in clips["anam.mp4"]} == {228}
    for clip in clips["anam.mp4"]:
        frame = read_shot(out / clip.file, 128, 228)[0]
        inside = frame.astype(int).min(axis=-1) > 150
        tall, wide = inside.any(axis=1).sum(), inside.any(axis=0).sum()
        assert abs(tall - wide) <= 4


@pytest.mark.slow
def test_hdr10_bars_are_bt709(curated: tuple) -> None:
    out, clips = curated
    assert clips["pq.mp4"]
    for clip in clips["pq.mp4"]:
        bar = pictures(out / clip.file)[0][56, 16::32].astype(int)
        for seen, right in zip(bar[:3], ((255,) * 3, (128,) * 3, RED), strict=True):
            assert np.abs(seen - right).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "codec"), [("film.ts", "mpeg2video"), ("film.ts", "libx264"), ("film.mpg", "mpeg2video")]
)
def test_no_frame_is_lost_of_containers_without_an_index(name: str, codec: str, tmp_path: Path) -> None:
    """MPEG-TS has no index: looking for its first keyframe lands behind it."""
    path = write_bars(tmp_path / name, bars(), codec=codec)
    clips = [clip for some in cut(path, tmp_path / "D").values() for clip in some]
    assert [clip.frames for clip in clips] == [40, 34, 9]
    for clip in clips:
        assert len(pictures(tmp_path / "D" / clip.file)) == clip.frames


def test_a_clip_that_cannot_be_cut_leaves_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.curation import clips as module

    shutil.copy(CASES / "plain.mp4", tmp_path / "plain.mp4")
    real = module._cut

    def failing(source: SourceRecord, work: object, span: Span, dataset: Path) -> ClipRecord:
        if span.start == 0:
            raise TypeError("an odd packet")
        return real(source, work, span, dataset)

    monkeypatch.setattr(module, "_cut", failing)
    settings = Settings(rules=ClipRules(1.0, 10.0, max_lost_s=0.05), scorers=(), captioners=())
    outcome = curate([tmp_path / "plain.mp4"], tmp_path / "D", settings)
    assert [clip.frames for clip in read_table(tmp_path / "D" / "clips.parquet", ClipRecord)] == [60]
    ((_, warning),) = outcome.damaged
    assert "the clip at 0.00 s" in warning
    assert "(clips: TypeError)" in warning
    assert "(clips: TypeError)" in (tmp_path / "D" / "report.html").read_text()
