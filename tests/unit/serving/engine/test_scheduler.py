"""What the scheduler makes of a share: work of the same job beyond a request counts as its remaining work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from model.params import ImageToVideoParams
from model.sampling.row import BatchKey
from model.shapes import LatentShape
from serving.engine.job import Job
from serving.engine.profile import Profile
from serving.engine.protocol import EngineRequest, Share
from serving.engine.scheduler import Scheduler
from serving.engine.settings import EngineSettings

PARAMS = ImageToVideoParams(
    num_frames=5,
    height=64,
    width=96,
    seed=1,
    fps=7,
    motion_bucket_id=127,
    noise_aug_strength=0.02,
    min_guidance_scale=1.0,
    max_guidance_scale=3.0,
    num_inference_steps=4,
    solver="euler",
    schedule="karras",
    decode_chunk_size=8,
    resize_mode="crop",
)


def job(job_id: str, arrival: int, share: Share) -> Job:
    model: Any = SimpleNamespace(estimate=lambda _: 5.0, profile=Profile(), batch_slots=lambda _: 2)
    request = EngineRequest(job_id, "m", PARAMS, (), "mp4", share)
    return Job(request, lambda _: None, arrival, model, BatchKey("m@1", LatentShape(5, 4, 8, 12), "float32"))


def test_a_piece_of_a_long_job_does_not_pass_for_a_short_one() -> None:
    piece, whole = job("piece", 0, Share(beyond_s=60.0)), job("whole", 1, Share())
    assert Scheduler(EngineSettings()).positions([piece, whole], now=whole.submitted) == {"whole": 0, "piece": 1}
    piece.request = EngineRequest("piece", "m", PARAMS, (), "mp4", Share())
    assert Scheduler(EngineSettings()).positions([piece, whole], now=whole.submitted) == {"piece": 0, "whole": 1}
