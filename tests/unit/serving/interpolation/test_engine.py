"""A chained job around a scripted engine: its progress, its share of others' time, its ends, and what it keeps."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.interpolation import pair_seed
from model.media.video import frames_sha256
from model.stages import NO_STAGES
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    Decoded,
    EngineEvent,
    Failed,
    PhaseStarted,
    Queued,
    Share,
    Stepped,
)
from serving.interpolation.pair_store import PairStore, Rendered, stored_names
from serving.interpolation.progress import estimate, stage_spans
from serving.jobs.artifacts import Artifacts
from tests.unit.serving.interpolation.support import PAIRS, STEPS, Script, chained, request


async def events(script: Script, folder: Path, **asked: Any) -> list[EngineEvent]:
    return [event async for event in chained(script, folder).submit(request(**asked))]


def expected() -> np.ndarray:
    colours = [7]
    for index in range(PAIRS):
        colours += [pair_seed(7, index) % 256] * 3 + [7]
    return np.broadcast_to(np.array(colours, np.uint8)[:, None, None, None], (17, 64, 96, 3))


def only_phases(told: list[EngineEvent]) -> list[str]:
    return [event.phase for event in told if isinstance(event, PhaseStarted)]


async def test_it_tells_of_one_job_whose_steps_only_rise(tmp_path: Path) -> None:
    told = await events(Script(), tmp_path)
    assert only_phases(told) == ["encode", "denoise", "decode", "interpolate", "mux"]
    assert {type(event) for event in told} == {Queued, PhaseStarted, Stepped, Checkpointed, Decoded, Completed}
    begun = told.index(PhaseStarted("interpolate"))
    first = [event for event in told[:begun] if isinstance(event, Stepped)]
    second = [event for event in told[begun:] if isinstance(event, Stepped)]
    assert [(event.step, event.total) for event in first] == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert {event.eta_s for event in first} == {1.0 + PAIRS * 10.0}, "what is left of the first stage, and the second"
    assert [(event.step, event.total) for event in second] == [(step, PAIRS * STEPS) for step in range(1, 17)]
    assert all(event.eta_s is not None and event.eta_s >= 0 for event in second)
    assert len([event for event in told if isinstance(event, Checkpointed | Queued)]) == STEPS + 1, "the first stage's"


async def test_the_result_has_every_given_frame_between_what_each_pair_s_own_seed_made(tmp_path: Path) -> None:
    script = Script()
    done = (await events(script, tmp_path))[-1]
    assert isinstance(done, Completed)
    assert done.frames_sha256 == frames_sha256(expected())
    assert (done.num_frames, done.fps, done.height, done.width) == (17, 28, 64, 96)
    assert done.degraded, "one pair was"
    assert done.manifest["model"] == "still"
    second = done.manifest["interpolate"]
    assert isinstance(second, dict)
    assert (second["model"], second["model_version"], second["device"]) == ("between", "v", "cpu")
    assert [pair["seed"] for pair in second["pairs"]] == [pair_seed(7, index) for index in range(PAIRS)]
    assert done.timings.keys() == {"denoise", "interpolate", "mux"}
    one = script.seen["job.pair-1"]
    assert len(set(one.images)) == 1, "both ends are frames of one colour"
    assert (one.model, one.raw, one.stages, one.previews) == ("between", True, NO_STAGES, False)


async def test_pairs_are_the_owner_s_in_its_class_within_its_deadline_and_no_more_than_fit(tmp_path: Path) -> None:
    script = Script(capacity=3)
    await events(script, tmp_path, share=Share("alice", 2.0, "low", 100.0))
    assert script.most == 3
    shares = [one.share for one in script.seen.values()]
    assert {(share.tenant, share.weight, share.priority) for share in shares} == {("alice", 2.0, "low")}
    first, *pairs = shares
    assert (first.deadline_s, first.beyond_s) == (100.0, PAIRS * 10.0)
    assert all(share.deadline_s is not None and 90 < share.deadline_s < 100 for share in pairs)
    assert max(share.beyond_s for share in pairs) == (PAIRS - 1) * 10.0
    assert min(share.beyond_s for share in pairs) < max(share.beyond_s for share in pairs)


async def test_a_pair_that_fails_stops_the_others_and_says_which_it_was(tmp_path: Path) -> None:
    def fail(job_id: str, step: int) -> Failed | None:
        return Failed("out_of_memory", "too large") if (job_id, step) == ("job.pair-1", 2) else None

    script = Script(capacity=4, at_step=fail)
    done = (await events(script, tmp_path))[-1]
    assert done == Failed("out_of_memory", "between frames 2 and 3: too large")
    begun = {name for name in script.seen if name.startswith("job.pair-")} - {"job.pair-1"}
    assert begun <= set(script.cancelled) | script.completed, "one that had not begun yet never does"
    assert not script.running


async def test_an_engine_that_stops_keeps_what_was_made_and_the_rest_goes_on_from_its_checkpoints(
    tmp_path: Path,
) -> None:
    def stop(job_id: str, step: int) -> Failed | None:
        late = job_id.startswith("job.pair") and not job_id.endswith("pair-0") and step == 3
        return Failed("engine_stopped", "it stops") if late else None

    first = Script(capacity=4, at_step=stop)
    assert (await events(first, tmp_path))[-1] == Failed("engine_stopped", "it stops")
    assert first.cancelled == []
    second = Script(capacity=4)
    told = await events(second, tmp_path)
    assert only_phases(told) == ["interpolate", "mux"]
    assert second.seen.keys() == {"job.pair-1", "job.pair-2", "job.pair-3"}
    assert {one.resume_from for one in second.seen.values()} == {b"3"}
    done = told[-1]
    assert isinstance(done, Completed)
    assert done.frames_sha256 == frames_sha256(expected())
    left = {path.name for path in (tmp_path / "job").iterdir()}
    assert left <= set(stored_names(PAIRS))
    assert not any(name.endswith(".state") for name in left)


async def test_a_checkpoint_that_the_engine_refuses_costs_its_pair_alone(tmp_path: Path) -> None:
    kept = PairStore(Artifacts.open(str(tmp_path)), "job")
    stop = Script(at_step=lambda job_id, _: Failed("engine_stopped", "x") if "pair" in job_id else None)
    await events(stop, tmp_path)
    mark = f"between@{'b' * 12} of {hashlib.sha256(np.full((5, 64, 96, 3), 7, np.uint8).tobytes()).hexdigest()}"
    assert kept.state(0, mark) == b"1"

    class Picky(Script):
        async def _play(self, request: Any) -> Any:
            if request.resume_from is not None:
                yield Failed("invalid_value", "of another checkpoint")
                return
            async for event in super()._play(request):
                yield event

    done = (await events(Picky(), tmp_path))[-1]
    assert isinstance(done, Completed)
    assert done.frames_sha256 == frames_sha256(expected())


@pytest.mark.parametrize("when", ["denoise", "decode", "interpolate", "mux"])
async def test_cancel_stops_it_in_any_phase(tmp_path: Path, when: str) -> None:
    script, last = Script(capacity=2), None
    engine = chained(script, tmp_path)
    async for event in engine.submit(request()):
        if event == PhaseStarted(when):
            engine.cancel("job")
        last = event
    assert isinstance(last, CancelledAt)
    whole = STEPS + PAIRS * STEPS
    low, high = {"denoise": (0, 1), "decode": (STEPS, STEPS), "interpolate": (STEPS, STEPS + 4)}.get(
        when, (whole, whole)
    )
    assert low <= last.step <= high
    assert not script.running


async def test_who_stops_listening_leaves_nothing_running(tmp_path: Path) -> None:
    script = Script()
    async with aclosing(chained(script, tmp_path).submit(request())) as told:  # type: ignore[type-var]
        async for event in told:
            if event == PhaseStarted("interpolate"):
                break
    await asyncio.sleep(0.01)
    assert not script.running


async def test_a_plain_request_passes_untouched(tmp_path: Path) -> None:
    script = Script()
    plain = request()
    object.__setattr__(plain, "stages", NO_STAGES)
    told = [event async for event in chained(script, tmp_path).submit(plain)]
    assert script.seen["job"] is plain
    assert only_phases(told) == ["encode", "denoise", "decode", "mux"]
    assert list(tmp_path.iterdir()) == []


async def test_the_files_of_another_version_or_first_stage_are_as_good_as_none(tmp_path: Path) -> None:
    kept = PairStore(Artifacts.open(str(tmp_path)), "job")
    made = Rendered(np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3), True, {"a": [1]}, {"compute": 2.0})
    kept.put("stage.kept", "one", made)
    kept.put_state(3, "one", b"\n\0\n")
    assert kept.rendered("stage.kept", "other") is None
    assert kept.state(3, "other") is None
    found = kept.rendered("stage.kept", "one")
    assert found is not None
    assert np.array_equal(found.frames, made.frames)
    assert (found.degraded, found.manifest, found.compute_s) == (True, {"a": [1]}, 2.0)
    assert kept.state(3, "one") == b"\n\0\n"


def test_estimates_and_shares_count_both_stages() -> None:
    asked = request()
    stages, params = asked.stages, asked.params
    measured, unknown = Script(seconds=10.0), Script(seconds=None)
    assert estimate(measured, "still", params, stages) == 10.0 + PAIRS * 10.0
    assert estimate(measured, "still", params, NO_STAGES) == 10.0
    assert estimate(unknown, "still", params, stages) is None
    both = stage_spans(measured, "still", params, stages)
    assert both == {"generate": (0.0, pytest.approx(1 / (1 + PAIRS))), "interpolate": (pytest.approx(0.2), 1.0)}
    by_frames = stage_spans(unknown, "still", params, stages)["generate"][1]
    assert by_frames == pytest.approx(5 * STEPS / (5 * STEPS + PAIRS * 5 * STEPS))
    assert stage_spans(unknown, "still", params, NO_STAGES) == {"generate": (0.0, 1.0)}
