"""Clips against the frames that a decoder gives for the whole source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.curation.film import pictures, small_film, true_cuts
from training.curation.clips import cut_clips
from training.curation.clips_plan import ClipRules, Span, plan, shots, timeline
from training.curation.probe import index_packets, probe
from training.curation.records import ClipRecord, clip_id


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, list[np.ndarray]]:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    truths = small_film(path)
    return path, true_cuts(truths), pictures(path)


def made(film: tuple, out: Path, rules: ClipRules) -> list[tuple[ClipRecord, Span]]:
    path, cuts, _ = film
    index = index_packets(path)
    line = timeline(index, end_on_keyframes=rules.end_on_keyframes)
    spans = plan(line, shots(line, cuts), rules)
    return list(zip(cut_clips(probe(path), index, spans, out), spans, strict=True))


@pytest.mark.parametrize("rules", [ClipRules(0.5, 2.0), ClipRules(0.5, 2.0, end_on_keyframes=True)])
def test_a_copied_clip_holds_the_sources_own_frames(film: tuple, tmp_path: Path, rules: ClipRules) -> None:
    clips = made(film, tmp_path, rules)
    assert clips
    for clip, span in clips:
        assert clip.encoded == "copy"
        seen = pictures(tmp_path / clip.file)
        assert len(seen) == clip.frames == span.end - span.start
        assert all(np.array_equal(a, b) for a, b in zip(seen, film[2][span.start : span.end], strict=True))
        assert clip.clip_id == clip_id(clip.source, clip.start_s, clip.end_s)
        assert 0 < clip.byte_start < clip.byte_end <= film[0].stat().st_size


def test_new_edges_lose_nothing_and_leave_the_middle_as_it_is(film: tuple, tmp_path: Path) -> None:
    clips = made(film, tmp_path, ClipRules(0.5, 4.0, max_lost_s=0.0))
    edged = [(clip, span) for clip, span in clips if clip.encoded == "edges"]
    assert edged
    for clip, span in edged:
        seen, real = pictures(tmp_path / clip.file), film[2][span.start : span.end]
        assert len(seen) == len(real)
        for k, (a, b) in enumerate(zip(seen, real, strict=True)):
            copied = span.copy_start <= span.start + k < span.copy_end
            assert np.array_equal(a, b) if copied else np.abs(a.astype(int) - b).mean() < 4
    assert sum(span.end - span.start for _, span in clips) > sum(
        span.end - span.start for _, span in made(film, tmp_path, ClipRules(0.5, 4.0))
    )


def test_a_clip_without_any_packet_to_copy_is_encoded_whole(film: tuple, tmp_path: Path) -> None:
    index = index_packets(film[0])
    (clip,) = cut_clips(probe(film[0]), index, [Span(3, 20, 20, 20)], tmp_path)
    seen = pictures(tmp_path / clip.file)
    assert clip.encoded == "whole"
    assert len(seen) == 17
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(seen, film[2][3:20], strict=True)) < 4


def test_cutting_again_gives_the_same_bytes(film: tuple, tmp_path: Path) -> None:
    rules = ClipRules(0.5, 4.0, max_lost_s=0.0)
    first = [clip for clip, _ in made(film, tmp_path / "a", rules)]
    assert first == [clip for clip, _ in made(film, tmp_path / "b", rules)]
    assert not list(tmp_path.rglob("*partial*"))
