"""A job of four stages around a scripted engine: one progress, one manifest, one cancel, and a resume in any stage."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.interpolation import pair_seed, plan_interpolation
from model.media.video import frames_sha256
from model.stages import NAMES, Stages, UpscaleStage, plan_extension
from serving.engine.protocol import CancelledAt, Completed, EngineEvent, Failed, PhaseStarted, Stepped
from serving.interpolation.pair_store import stored_names
from serving.interpolation.progress import stage_spans
from serving.interpolation.upscaling import runs_of
from serving.jobs.runner import RunState
from tests.unit.serving.interpolation.support import BETWEEN, STEPS, STILL, Script, chained, staged

FIRST = STILL.resolve({}, 7)
FRAMES = 11
"""Of the extended clip: 5, then 4, then 2 of 4."""
ALL = Stages(
    extend=plan_extension(STILL, FIRST, FRAMES),
    interpolate=plan_interpolation(BETWEEN, FIRST),
    upscale=UpscaleStage(2),
)
WHOLE = 4 * (FRAMES - 1) + 1
EACH = {"extend": 2 * STEPS, "interpolate": (FRAMES - 1) * STEPS, "upscale": WHOLE}


def expected() -> np.ndarray:
    """Every frame of one colour: the seed's, and between two of them the pair's."""
    colours = [7]
    for index in range(FRAMES - 1):
        colours += [pair_seed(7, index) % 256] * 3 + [7]
    return np.broadcast_to(np.array(colours, np.uint8)[:, None, None, None], (WHOLE, 128, 192, 3))


async def play(script: Script, folder: Path, stages: Stages = ALL) -> list[EngineEvent]:
    return [event async for event in chained(script, folder).submit(staged(stages))]


def phases(events: list[EngineEvent]) -> list[str]:
    return [event.phase for event in events if isinstance(event, PhaseStarted)]


async def test_four_stages_are_one_job(tmp_path: Path) -> None:
    script = Script()
    events = await play(script, tmp_path)
    assert phases(events) == ["encode", "denoise", "decode", *NAMES, "mux"]
    phase, steps = "", dict[str, list[int]]()
    for event in events:
        if isinstance(event, PhaseStarted):
            phase = event.phase
        elif isinstance(event, Stepped):
            steps.setdefault(phase, []).append(event.step)
            assert event.total == EACH.get(phase, STEPS)
            assert event.eta_s is None or event.eta_s >= 0
    for name, count in EACH.items():
        assert sorted(set(steps[name])) == list(range(1, count + 1)), name
        assert steps[name] == sorted(steps[name])
    done = events[-1]
    assert isinstance(done, Completed)
    assert (done.num_frames, done.fps, done.height, done.width) == (WHOLE, 28, 128, 192)
    assert done.frames_sha256 == frames_sha256(expected())
    assert set(NAMES) <= done.manifest.keys()
    assert set(NAMES) <= done.timings.keys()
    extend: Any = done.manifest["extend"]
    assert (extend["num_frames"], extend["begin"], len(extend["windows"])) == (FRAMES, 5, 2)
    assert extend["windows"][0]["drift"] == {"found": 0.0, "left": 0.0}
    assert done.manifest["upscale"] == {"factor": 2, "network": "lanczos", "version": ""}
    version = {"model_version": ALL.extend.version} if ALL.extend is not None else {}
    assert Stages.from_dict({"extend": {**extend, **version}, "upscale": done.manifest["upscale"]}, 7) == Stages(
        extend=ALL.extend, upscale=ALL.upscale
    )


async def test_a_window_begins_with_the_last_frame_and_the_clip_s_own_noise(tmp_path: Path) -> None:
    script = Script()
    await play(script, tmp_path, Stages(extend=ALL.extend))
    window = script.seen["job.window-1"]
    assert (window.model, window.params.seed, window.raw, len(window.images)) == ("still", 7, True, 1)
    assert set(script.seen) == {"job", "job.window-0", "job.window-1"}
    assert script.most == 1, "one window at a time"


@pytest.mark.parametrize("when", [*NAMES, "mux"])
async def test_cancel_in_each_stage_stops_it_within_a_step(tmp_path: Path, when: str) -> None:
    script, last = Script(capacity=1), None
    engine = chained(script, tmp_path)
    async for event in engine.submit(staged(ALL)):
        if event == PhaseStarted(when):
            engine.cancel("job")
        last = event
    assert isinstance(last, CancelledAt)
    before = STEPS + sum(
        count for name, count in EACH.items() if when == "mux" or NAMES.index(name) < NAMES.index(when)
    )
    assert before <= last.step <= before + 1
    assert not script.running


@pytest.mark.parametrize("stage", ["window", "pair"])
async def test_an_interrupted_stage_goes_on_in_its_middle(tmp_path: Path, stage: str) -> None:
    def stop(job_id: str, step: int) -> Failed | None:
        late = stage in job_id and not job_id.endswith("-0") and step == 3
        return Failed("engine_stopped", "it stops") if late else None

    stopped = (await play(Script(at_step=stop), tmp_path))[-1]
    assert isinstance(stopped, Failed)
    assert stopped.code == "engine_stopped"
    script = Script()
    events = await play(script, tmp_path)
    assert phases(events)[0] == "extend", "the clip is there"
    assert "job" not in script.seen
    assert f"job.{stage}-0" not in script.seen, "what was whole is not made again"
    assert script.seen[f"job.{stage}-1"].resume_from == b"3"
    done = events[-1]
    assert isinstance(done, Completed)
    assert done.frames_sha256 == frames_sha256(expected())


async def test_upscaling_goes_on_behind_the_frames_that_are_kept(tmp_path: Path) -> None:
    engine = chained(Script(), tmp_path)
    async with aclosing(engine.submit(staged(ALL))) as events:  # type: ignore[type-var]
        phase = ""
        async for event in events:
            phase = event.phase if isinstance(event, PhaseStarted) else phase
            if phase == "upscale" and isinstance(event, Stepped) and event.step == 20:
                break
    script = Script()
    again = await play(script, tmp_path)
    assert script.seen == {}
    steps = [event.step for event in again[again.index(PhaseStarted("upscale")) :] if isinstance(event, Stepped)]
    assert steps[:3] == [8, 16, 17], "two runs of eight are found whole"
    done = again[-1]
    assert isinstance(done, Completed)
    assert done.frames_sha256 == frames_sha256(expected())
    left = {path.name for path in (tmp_path / "job").iterdir()}
    assert left <= set(stored_names(FRAMES - 1, 2, runs_of(WHOLE)))


async def test_a_window_that_fails_says_which_it_was(tmp_path: Path) -> None:
    def fail(job_id: str, step: int) -> Failed | None:
        return Failed("out_of_memory", "too large") if (job_id, step) == ("job.window-1", 2) else None

    assert (await play(Script(at_step=fail), tmp_path))[-1] == Failed("out_of_memory", "window 2: too large")


async def test_an_upscaler_that_is_gone_fails_the_job(tmp_path: Path) -> None:
    gone = Stages(upscale=UpscaleStage(2, "esrgan", "0" * 12))
    last = (await play(Script(), tmp_path, gone))[-1]
    assert isinstance(last, Failed)
    assert last.code == "model_not_found"


def test_progress_of_four_stages_only_rises() -> None:
    state = RunState(job=None)  # type: ignore[arg-type]
    state.spans = stage_spans(Script(seconds=10.0), "still", FIRST, ALL)
    state.steps = {"generate": STEPS, **EACH}
    assert list(state.spans) == ["generate", *NAMES]
    shares = [state.percent("denoise", step, STEPS) for step in range(STEPS + 1)] + [state.percent("decode", 1, 1)]
    before = []
    for name, count in EACH.items():
        state.enter(name)
        before.append(state.steps_before)
        shares += [state.percent(name, step, count) for step in range(count + 1)]
    assert shares == sorted(shares)
    assert shares[-1] <= state.percent("mux") < 100
    assert before == [STEPS, STEPS + EACH["extend"], STEPS + EACH["extend"] + EACH["interpolate"]]
