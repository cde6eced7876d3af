"""What the take-over of a store accepts, and that it names each way of going wrong."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from stillmotion.types import Job, JobEvent

FRAMES = "f" * 64


@pytest.fixture
def take_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; its folder is no package of ours."""
    monkeypatch.syspath_prepend(str(root))
    return import_module("benchmarks.take_over")


def job(status: str, phase: str, step: int = 0, frames: str = FRAMES) -> Job:
    urls = dict.fromkeys(("self", "cancel", "events", "content"), "/")
    output = {"url": "/", "sha256": "", "frames_sha256": frames, "bytes": 1, "width": 8, "height": 8, "num_frames": 1}
    return Job.model_validate(
        {
            "id": "one",
            "task": "image-to-video",
            "status": status,
            "phase": phase,
            "progress": 0,
            "step": step,
            "total_steps": 9,
            "created_at": 0,
            "model": "m",
            "model_version": "v",
            "seed": 1,
            "params": {},
            "output": {**output, "fps": 7} if status == "completed" else None,
            "urls": urls,
        }
    )


def history(*happened: tuple[str, str, int]) -> list[JobEvent]:
    """Events of (event, phase, step), the first of a waiting job."""
    events = []
    for number, (event, phase, step) in enumerate(happened, 1):
        status = event if event in ("queued", "completed", "failed") else "in_progress"
        events.append(JobEvent.model_validate({"id": number, "event": event, "job": job(status, phase, step)}))
    return events


QUEUED, DONE = ("queued", "queued", 0), ("completed", "mux", 9)
TO_STEP_3 = (QUEUED, ("phase", "denoise", 0), ("step", "denoise", 1), ("step", "denoise", 3))
BEFORE = {"id": "one", "status": "in_progress", "stored_step": 3, "pairs": 0, "expected": FRAMES}


def judged(take_over: Any, group: str, events: list[JobEvent], before: dict[str, Any], **made: Any) -> list[str]:
    case = take_over.Case("a case", group, "image-to-video", {})
    jobs = [job(events[-1].event, "mux", 9, **made)] if events else []
    faults: list[str] = take_over.judge(case, before, jobs, events).faults
    return faults


def test_a_job_that_goes_on_behind_its_stored_step_is_right(take_over: Any) -> None:
    events = history(*TO_STEP_3, QUEUED, ("phase", "denoise", 0), ("step", "denoise", 4), DONE)
    assert judged(take_over, "half done", events, BEFORE) == []


@pytest.mark.parametrize(
    ("events", "made", "fault"),
    [
        ((*TO_STEP_3, QUEUED, ("step", "denoise", 1), DONE), {}, "went on at step 1, not 4"),
        ((*TO_STEP_3, QUEUED, ("step", "denoise", 4), DONE), {"frames": "0" * 64}, "other frames"),
        ((*TO_STEP_3, QUEUED, ("step", "denoise", 4), DONE, DONE), {}, "ended completed, completed"),
        ((*TO_STEP_3, QUEUED, ("step", "denoise", 4), ("failed", "mux", 4)), {}, "ended failed"),
    ],
)
def test_each_fault_of_a_half_done_job_is_named(
    take_over: Any, events: tuple[tuple[str, str, int], ...], made: dict[str, Any], fault: str
) -> None:
    assert any(one.startswith(fault) for one in judged(take_over, "half done", history(*events), BEFORE, **made))


def test_a_gap_in_a_history_and_a_lost_job_are_named(take_over: Any) -> None:
    events = history(*TO_STEP_3, QUEUED, ("step", "denoise", 4), DONE)
    assert judged(take_over, "half done", events[:1] + events[2:], BEFORE) == ["its history has gaps"]
    assert judged(take_over, "half done", [], BEFORE) == ["0 jobs, where there was one"]


def test_a_chained_job_keeps_its_first_stage(take_over: Any) -> None:
    begun = (*TO_STEP_3, ("phase", "interpolate", 3), QUEUED)
    before = {**BEFORE, "pairs": 1}
    right = history(*begun, ("phase", "interpolate", 3), ("step", "interpolate", 5), DONE)
    assert judged(take_over, "chained", right, before) == []
    again = history(*begun, ("phase", "denoise", 0), ("step", "denoise", 1), DONE)
    assert "made its first stage again" in judged(take_over, "chained", again, before)


def test_a_completed_job_is_left_alone(take_over: Any) -> None:
    before = {**BEFORE, "status": "completed", "stored_step": None}
    done = (*TO_STEP_3, DONE)
    assert judged(take_over, "completed", history(*done), before) == []
    assert "was run again although completed" in judged(take_over, "completed", history(*done, QUEUED, DONE), before)


@pytest.mark.parametrize("step", [0, 7, 2**40])
def test_the_step_is_read_from_a_stored_state(take_over: Any, step: int) -> None:
    tensors = {"x": torch.zeros(3, 2), "step": torch.tensor(step), "fingerprint": torch.zeros(32, dtype=torch.uint8)}
    assert take_over.stored_step(save(tensors, metadata={"model": "m@v"})) == step


def test_the_cases_have_names_and_seeds_of_their_own_and_every_group(take_over: Any) -> None:
    found = take_over.cases()
    assert len({case.name for case in found}) == len({case.settings["seed"] for case in found}) == len(found)
    assert {case.group for case in found} == {"completed", "half done", "chained", "waiting", "batch"}
