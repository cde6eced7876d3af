"""The engine's contract: a row never depends on its company, nothing is lost, all get a share, failures stay small.

On the tiny random model; test_engine_zoo.py (long) holds the first promise on the shipped checkpoint.
"""

from __future__ import annotations

import io
import json
import random
import threading
import time
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from model.catalog import SIDECAR, ModelEntry, describe
from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import generate
from serving.engine.loop import StepLoop
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    Decoded,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Previewed,
    Queued,
    Share,
    Stepped,
)
from tests.integration.engine_support import KEEP_ALL, Script, Watched, ask, largest_difference

pytestmark = pytest.mark.timeout(900)  # seconds; a minute or two on a quiet machine

PINNED = replace(KEEP_ALL, deterministic=True)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    built = build_random(folder, sized, task("image-to-video"), seed=5)
    sidecar = folder / SIDECAR
    told = json.loads(sidecar.read_text())
    channels = sized.vae.latent_channels
    told["latent_colours"] = {"weights": [[0.3, 0.1, -0.2]] * channels, "bias": [0.0, 0.1, 0.0]}
    sidecar.write_text(json.dumps(told))
    return describe(folder, built.name)


@pytest.fixture(scope="module")
def model(entry: ModelEntry) -> LoadedModel:
    return load_model(entry, KEEP_ALL)


@pytest.fixture(scope="module")
def pinned(entry: ModelEntry) -> LoadedModel:
    return load_model(entry, PINNED)


@pytest.fixture(scope="module")
def picture() -> bytes:
    out = BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def mixed(model: LoadedModel, picture: bytes, schedule: int, count: int = 8) -> list[EngineRequest]:
    """Requests that differ in everything a row may differ in."""
    rng = random.Random(schedule)
    return [
        ask(
            model,
            f"{schedule}-{n}",
            picture,
            Share(priority=rng.choice(["high", "normal", "low"])),
            num_inference_steps=rng.randint(3, 9),
            solver=rng.choice(["euler", "heun", "dpmpp-2m", "lcm"]),
            max_guidance_scale=rng.choice([1.0, 2.0, 3.5]),
            fps=rng.randint(4, 30),
            motion_bucket_id=rng.randint(1, 255),
            noise_aug_strength=rng.choice([0.0, 0.02, 0.5]),
        )
        for n in range(count)
    ]


def staggered(requests: list[EngineRequest], schedule: int) -> tuple[EngineRequest, dict[int, EngineRequest]]:
    """The first at once, each of the others after some more steps, while others still run."""
    rng, at = random.Random(schedule + 100), 0
    later = {}
    for request in requests[1:]:
        at += rng.randint(1, 3)
        later[at] = request
    return requests[0], later


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_eight_staggered_requests_equal_their_solo_runs(model: LoadedModel, picture: bytes, schedule: int) -> None:
    requests = mixed(model, picture, schedule)
    first, later = staggered(requests, schedule)
    together = Script(model, skip_decode=True)
    stats = together.run(first, after=later)
    assert stats.denoiser_calls < stats.rows_stepped, "nothing was shared"
    for request in requests:
        alone = Script(model, skip_decode=True)
        alone.run(request)
        assert largest_difference(together.latents(request.job_id), alone.latents(request.job_id)) <= 1e-5


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_deterministic_mode_gives_the_same_bits_in_company_alone_and_after_an_interruption(
    pinned: LoadedModel, picture: bytes, count: int
) -> None:
    requests = mixed(pinned, picture, schedule=4, count=count)
    first, later = staggered(requests, schedule=4)
    together = Script(pinned, PINNED)
    stats = together.run(first, after=later)
    assert stats.denoiser_calls < stats.rows_stepped, "nothing was shared"
    for n, request in enumerate(requests):
        done = together.completed(request.job_id)
        assert done.frames_sha256 == generate(pinned, request.params, request.images).completed.frames_sha256
        states = together.states(request.job_id)
        step = sorted(states)[n % len(states)]
        resumed = Script(pinned, PINNED)
        resumed.run(replace(request, resume_from=states[step]))
        assert resumed.completed(request.job_id).frames_sha256 == done.frames_sha256
        made = [event.step for event in resumed.events[request.job_id] if isinstance(event, Stepped)]
        assert made == list(range(step + 1, request.params.num_inference_steps + 1))


@pytest.fixture(scope="module")
def stored(model: LoadedModel, picture: bytes) -> tuple[EngineRequest, bytes]:
    """A request and its state after the second of its steps."""
    request = ask(model, "a", picture, num_inference_steps=3)
    script = Script(model, skip_decode=True)
    script.run(request)
    return request, script.states("a")[2]


@pytest.mark.parametrize("what", ["another seed", "another solver", "no state at all", "a cut file", "another shape"])
def test_a_state_of_something_else_is_refused(
    model: LoadedModel, stored: tuple[EngineRequest, bytes], what: str
) -> None:
    request, state = stored
    if what == "another seed":
        request = replace(request, params=replace(request.params, seed=99))
    elif what == "another solver":
        request = replace(request, params=replace(request.params, solver="heun"))
    elif what == "another shape":
        tensors = load(state)
        state = save({**tensors, "x": tensors["x"][:2].contiguous()})
    else:
        state = b"nothing" if what == "no state at all" else state[: len(state) // 2]
    again = Script(model)
    again.run(replace(request, resume_from=state))
    failure = again.last("a")
    assert isinstance(failure, Failed)
    assert "begin anew" in failure.message


def test_a_stopped_engine_hands_out_the_state_of_what_it_was_working_on(model: LoadedModel, picture: bytes) -> None:
    def stop_after_three(loop: StepLoop, _job_id: str, event: EngineEvent) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            loop.stop()

    script = Script(model, replace(KEEP_ALL, checkpoint_every_s=None), on_event=stop_after_three)
    script.run(ask(model, "a", picture, num_inference_steps=50))
    assert max(script.states("a")) == 3
    stopped = script.last("a")
    assert isinstance(stopped, Failed)
    assert stopped.code == "engine_stopped"


@pytest.mark.slow
def test_a_crash_repeats_at_most_the_interval_and_a_step(model: LoadedModel, picture: bytes) -> None:
    every = 0.2
    stepped: list[float] = []
    kept: list[float] = []

    def note(_loop: StepLoop, _job_id: str, event: EngineEvent) -> None:
        if isinstance(event, Stepped):
            stepped.append(time.perf_counter())
        elif isinstance(event, Checkpointed):
            kept.append(time.perf_counter())

    script = Script(model, replace(KEEP_ALL, checkpoint_every_s=every), skip_decode=True, on_event=note)
    script.run(ask(model, "a", picture, num_inference_steps=60))
    assert len(kept) >= 3
    longest_step = max(later - earlier for earlier, later in pairwise(stepped))
    for earlier, later in pairwise(kept):
        assert later - earlier <= every + 2 * longest_step + 0.05


@pytest.mark.slow
def test_no_call_includes_a_row_after_the_step_at_which_it_was_cancelled(model: LoadedModel, picture: bytes) -> None:
    watched = Watched(model.denoiser)
    calls_then: list[int] = []

    def cancel_at_four(loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if job_id == "a" and isinstance(event, Stepped) and event.step == 4:
            loop.cancel("a")
            calls_then.append(sum(77 in call for call in watched.calls))

    script = Script(replace(model, denoiser=watched), skip_decode=True, on_event=cancel_at_four)
    script.run(
        ask(model, "a", picture, num_inference_steps=60, motion_bucket_id=77),
        ask(model, "b", picture, num_inference_steps=20, motion_bucket_id=3),
    )
    receipt = script.last("a")
    assert isinstance(receipt, CancelledAt)
    assert receipt.step == 4
    assert receipt.compute_s > 0
    assert sum(77 in call for call in watched.calls) <= calls_then[0] + 1


@pytest.mark.slow
def test_a_short_job_behind_a_long_one_finishes_first(model: LoadedModel, picture: bytes) -> None:
    script = Script(model, replace(KEEP_ALL, max_batch=1, max_rows=1))
    script.run(
        ask(model, "long", picture, num_inference_steps=100),
        after={3: ask(model, "short", picture, num_inference_steps=4)},
    )
    finished = [job_id for job_id, event in script.timeline if isinstance(event, Completed)]
    assert finished == ["short", "long"]


@pytest.mark.slow
def test_a_flood_from_one_tenant_costs_another_at_most_a_fair_share(model: LoadedModel, picture: bytes) -> None:
    flood = [ask(model, f"flood-{n}", picture, Share("flooder"), num_inference_steps=4) for n in range(12)]
    other = ask(model, "other", picture, Share("other"), num_inference_steps=6)
    script = Script(model, replace(KEEP_ALL, max_batch=1), skip_decode=True)
    script.run(*flood, after={5: other})
    begun = script.events["other"][0]
    assert isinstance(begun, Queued)
    done = next(event for event in script.events["other"] if event == PhaseStarted("decode"))
    taken = script.steps_between(begun, done, {request.job_id for request in flood})
    assert taken <= 6 + 2, "two tenants of equal weight: as many of the flood's steps as its own, and the one under way"


@pytest.mark.slow
def test_offline_work_yields_within_one_step(model: LoadedModel, picture: bytes) -> None:
    offline = [
        ask(model, f"offline-{n}", picture, Share("night", priority="offline"), num_inference_steps=5)
        for n in range(10)
    ]
    script = Script(model, skip_decode=True)
    script.run(*offline, after={9: ask(model, "now", picture, num_inference_steps=3)})
    begun = script.events["now"][0]
    done = next(event for event in script.events["now"] if event == PhaseStarted("decode"))
    during = script.steps_between(begun, done, {request.job_id for request in offline})
    assert during <= len(offline), "the call under way, of up to all offline rows, and no other"
    assert all(isinstance(script.last(request.job_id), CancelledAt) for request in offline)


@pytest.mark.slow
def test_steps_go_on_while_a_chunk_is_decoded(model: LoadedModel, picture: bytes) -> None:
    stepped = Event()
    seen_during_decode: list[bool] = []

    class Patient(torch.nn.Module):
        """Waits in the decoder, the first time, until the other job has made a step."""

        def forward(self, *args: object) -> None:
            if not seen_during_decode:
                stepped.clear()
                seen_during_decode.append(stepped.wait(60))

    def note(_loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if job_id == "long" and isinstance(event, Stepped):
            stepped.set()

    script = Script(model, on_event=note)
    hook = model.checkpoint.vae.decoder.register_forward_pre_hook(lambda *_: Patient()())
    try:
        script.run(
            ask(model, "short", picture, num_inference_steps=1, decode_chunk_size=6),
            ask(model, "long", picture, num_inference_steps=30, decode_chunk_size=6),
        )
    finally:
        hook.remove()
    assert seen_during_decode[0], "no step was made while the first job was being decoded"


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    pytest.param(MemoryError(), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_in_a_call_ends_the_row_at_fault_alone(
    model: LoadedModel, picture: bytes, error: BaseException
) -> None:
    watched = Watched(model.denoiser, lambda buckets, _places: error if 66 in buckets else None)
    health: list[bool] = []

    def note(loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if isinstance(event, Failed | Completed):
            health.append(loop.healthy)

    script = Script(replace(model, denoiser=watched), on_event=note)
    stats = script.run(
        ask(model, "a", picture, num_inference_steps=3),
        ask(model, "bad", picture, num_inference_steps=3, motion_bucket_id=66),
        after={2: ask(model, "next", picture, num_inference_steps=2)},
    )
    failure = script.last("bad")
    assert isinstance(failure, Failed)
    assert failure.code == "out_of_memory"
    assert health == [False, True, True]
    assert (stats.completed, stats.failed, stats.out_of_memory) == (2, 1, 1)


@pytest.mark.slow
def test_out_of_memory_while_encoding_is_tried_once_more(model: LoadedModel, picture: bytes) -> None:
    left = [1]

    def run_out(*_: object) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise MemoryError

    hook = model.checkpoint.vae.encoder.register_forward_pre_hook(run_out)
    try:
        script = Script(model)
        script.run(ask(model, "once", picture, num_inference_steps=1))
        left[0] = 2
        script.run(
            ask(model, "twice", picture, num_inference_steps=1), ask(model, "after", picture, num_inference_steps=2)
        )
    finally:
        hook.remove()
    assert isinstance(script.last("once"), Completed)
    failure = script.last("twice")
    assert isinstance(failure, Failed)
    assert failure.code == "out_of_memory"
    assert isinstance(script.last("after"), Completed)


def test_out_of_memory_while_decoding_shrinks_the_chunks_and_says_so(model: LoadedModel, picture: bytes) -> None:
    def run_out(_module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        if len(args[0] if args else kwargs["sample"]) > 2:
            raise MemoryError

    hook = model.checkpoint.vae.decoder.register_forward_pre_hook(run_out, with_kwargs=True)
    try:
        script = Script(model)
        stats = script.run(ask(model, "a", picture, num_inference_steps=1, decode_chunk_size=6))
    finally:
        hook.remove()
    done = script.completed("a")
    assert done.degraded
    assert done.manifest["degraded"] is True
    assert done.manifest["decode_chunks"] == [2, 2, 2]
    assert [event.frames for event in script.events["a"] if isinstance(event, Decoded)] == [2, 4, 6]
    assert stats.degraded == 1
    asked = ask(model, "a", picture, num_inference_steps=1, decode_chunk_size=2)
    assert generate(model, asked.params, asked.images).completed.frames_sha256 == done.frames_sha256


@pytest.mark.slow
def test_out_of_memory_with_nothing_else_to_do_comes_back_by_itself(model: LoadedModel, picture: bytes) -> None:
    healthy: list[bool] = []

    def wait_for_health(loop: StepLoop, _job_id: str, event: EngineEvent) -> None:
        if isinstance(event, Failed):
            healthy.append(loop.healthy)

    broken = [True]
    watched = Watched(model.denoiser, lambda _buckets, _places: MemoryError() if broken[0] else None)
    loop = StepLoop({model.entry.name: replace(model, denoiser=watched)}, KEEP_ALL)

    def deliver(event: EngineEvent) -> None:
        wait_for_health(loop, "a", event)
        if isinstance(event, Failed):
            broken[0] = False

    worker = threading.Thread(target=loop.run)
    loop.submit(ask(model, "a", picture, num_inference_steps=1), deliver)
    worker.start()
    until = time.monotonic() + 120
    while not (healthy and loop.healthy) and time.monotonic() < until:
        time.sleep(0.02)
    came_back = loop.healthy
    loop.stop()
    worker.join()
    assert healthy == [False]
    assert came_back


def test_previews_are_small_pictures_of_what_is_coming(model: LoadedModel, picture: bytes) -> None:
    script = Script(model, skip_decode=True)
    script.run(replace(ask(model, "a", picture, num_inference_steps=3), previews=True))
    previews = [event for event in script.events["a"] if isinstance(event, Previewed)]
    assert [event.step for event in previews] == [1, 2, 3]
    with Image.open(io.BytesIO(previews[-1].jpeg)) as opened:
        assert opened.format == "JPEG"
        assert opened.size == (4 * 8 * 4, 8 * 4)
    assert not any(isinstance(event, Previewed) for event in script.events["b"])


def test_previews_of_a_checkpoint_without_a_map_are_refused(model: LoadedModel, picture: bytes) -> None:
    script = Script(replace(model, colours=None))
    script.run(replace(ask(model, "a", picture, num_inference_steps=3), previews=True))
    failure = script.last("a")
    assert isinstance(failure, Failed)
    assert "previews" in failure.message


def test_estimates_come_from_what_was_measured_and_are_judged(model: LoadedModel, picture: bytes) -> None:
    fresh = load_model(model.entry, KEEP_ALL)
    asked = ask(fresh, "a", picture, num_inference_steps=5)
    assert fresh.estimate(asked.params) is None
    script = Script(fresh)
    stats = script.run(asked)
    assert len(stats.eta_errors) == 1
    said, took = stats.eta_errors[0]
    assert said > 0
    assert took > 0
    estimate = fresh.estimate(asked.params)
    double = fresh.estimate(replace(asked.params, num_inference_steps=10))
    assert estimate is not None
    assert double is not None
    assert estimate < double < 2 * estimate + 1
