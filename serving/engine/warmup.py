"""Measure a loaded model once: every network runs, and what it costs goes into its profile. Doubles as the warm-up.

Where that would take long, as full size does on a CPU, nothing runs before the service is ready: the profile begins
with estimates from counted arithmetic (model.memory.compute), and is corrected by the first requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from PIL import Image

from model.catalog import ModelEntry
from model.checkpoint import Checkpoint
from model.memory.compute import decoder_flops, denoiser_flops, device_flops
from model.params import Params
from model.platform import resident_bytes, trim_freed_memory
from model.sampling.row import Row
from model.sampling.sampler import evaluate, prepare_row
from model.shapes import chunk_sizes
from model.vae import decode_chunk
from serving.engine.backend_choice import at_hand, choose_backend, may_choose, read_choice
from serving.engine.job import synchronize
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.oom import free_cached_memory, is_out_of_memory, max_batch_size, release_traceback
from serving.engine.profile import Profile, read_profile, write_profile
from serving.engine.settings import EngineSettings
from serving.observe.logs import START

logger = logging.getLogger(START)

MAX_MEASURED_BATCH = 8
PROBE_BYTES = 2**30
"""Memory that measuring may take beside the loaded model, on a CPU: a process that fills its machine at the start, for
calls that may never come, crowds out its neighbours."""
_SLOW_S = 5.0
"""A call slower than this is not doubled again: a batch that long would hold up everybody's cancel and progress."""
_GAIN = 1.02
LONGEST_S = 30.0
"""Seconds that measuring may take before a service is ready, as estimated."""
_OVER_PEAK = 1.5
"""A network's time over what its arithmetic takes at the rate of large matrix products; rather too much."""


def load_fastest(entry: ModelEntry, settings: EngineSettings) -> LoadedModel:
    """The model, loaded; `auto` on a CPU measures first which backend is the fastest, where it has the choice."""
    model = load_model(entry, settings)
    if not may_choose(entry, settings) or read_choice(entry.path, settings) is not None or not at_hand(entry):
        return model
    params = entry.resolve(dict(entry.task.sample_request), seed=0)
    choice = choose_backend(entry, settings, model.denoiser, _dummy_row(model, params))
    if choice.backend == model.settings.backend:
        return model
    return load_model(entry, replace(settings, backend=choice.backend))


def warm_up(model: LoadedModel) -> None:
    """Run every network once at the checkpoint's own size; measure what no stored profile knows, and store it.

    On a CPU only where that takes no longer than LONGEST_S; else the profile has estimates, and nothing has run.
    """
    started = time.perf_counter()
    params = model.entry.resolve(dict(model.entry.task.sample_request), seed=0)
    stored = read_profile(model.entry.path, model.machine)
    known = stored or estimated_profile(model, params)
    if known is not None and (seconds := _warm_up_s(model, params, known, measured=stored is not None)) > LONGEST_S:
        model.profile.take(known)
        logger.info(
            "%s would take some %.0f s to measure here: it is served with estimates until requests have run",
            model.entry.name,
            seconds,
        )
        return
    row = _dummy_row(model, params)
    if stored is None:
        calibrate(model, params, row)
        if not write_profile(model.entry.path, model.machine, model.profile):
            logger.info(
                "the profile of %s cannot be stored beside it; it is measured anew at each start", model.entry.name
            )
    else:
        model.profile.take(stored)
        evaluate(model.denoiser, [row])
        _decode(model, row, _chunk(model, params))
    logger.info("warmed %s in %.1f s", model.entry.name, time.perf_counter() - started)


def estimated_profile(model: LoadedModel, params: Params) -> Profile | None:
    """What the model's arithmetic says of its cost; None where measuring is quick (a GPU) or it runs as graphs."""
    device = model.checkpoint.unet.device
    if device.type != "cpu" or model.entry.exported:
        return None
    return estimate(model.checkpoint, params, _chunk(model, params), device)


def estimate(checkpoint: Checkpoint, params: Params, chunk: int, device: torch.device) -> Profile:
    """What a checkpoint, which may be on the meta device, costs on a device by its arithmetic; rather too much.

    Args:
        chunk: frames decoded at once.
    """
    latent = params.shape.latent(checkpoint.latent_channels)
    rate = device_flops(device, checkpoint.unet.dtype) / _OVER_PEAK
    profile, call = Profile(), denoiser_flops(checkpoint.unet, latent) / rate
    for batch_size in (1, 2, 4):  # no gain from batching is promised
        profile.observe_call(latent.numel, batch_size, batch_size * call)
    decode = decoder_flops(checkpoint.vae, latent, chunk) / rate
    profile.observe_decode(chunk * params.height * params.width, decode)
    profile.observe_encode(decode / chunk)
    return profile


def _warm_up_s(model: LoadedModel, params: Params, profile: Profile, *, measured: bool) -> float:
    """Seconds that the warm-up takes by what is known: two runs of 1, 2 and 4 slots, or one of each network."""
    if model.checkpoint.unet.device.type != "cpu":
        return 0.0
    latent = params.shape.latent(model.checkpoint.latent_channels)
    call = profile.call_s(latent.numel, 1) or 0.0
    decode = profile.decode_s(_chunk(model, params) * params.height * params.width) or 0.0
    return call + decode if measured else 14 * call + 2 * decode


def probe(model: LoadedModel) -> None:
    """One short call of the denoiser, to see whether the device works again; raises what it raises."""
    params = model.entry.resolve(dict(model.entry.task.sample_request), seed=0)
    evaluate(model.denoiser, [_dummy_row(model, params)])


def _dummy_row(model: LoadedModel, params: Params) -> Row:
    started = time.perf_counter()
    grey = Image.new("RGB", (params.width, params.height), "grey")
    with model.encoding():
        row = prepare_row(model.checkpoint, params, [grey] * len(model.entry.task.pictures))
        synchronize(model.checkpoint.unet.device)
    model.profile.observe_encode(time.perf_counter() - started)
    return row


def calibrate(model: LoadedModel, params: Params, row: Row) -> None:
    """Measure calls of 1, 2, 4 ... slots, a decode chunk and an encoding into the model's profile.

    On a CPU no call that would take more than PROBE_BYTES of memory, as those before it grew; it is given back after.
    """
    begun = resident_bytes()
    profile, numel = model.profile, row.key.latent.numel
    unguided = row.unguided()
    most = min(
        MAX_MEASURED_BATCH,
        model.settings.max_batch or MAX_MEASURED_BATCH,
        max_batch_size(model.checkpoint.unet, row.key.latent, exported=model.entry.exported),
    )
    batch_size, best = 1, float("inf")
    while batch_size <= max(most, len(row.conditions)):
        seconds = None
        try:
            seconds = _timed(model, partial(evaluate, model.denoiser, [unguided] * batch_size))
        except (RuntimeError, MemoryError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            release_traceback(error)
        if seconds is None:
            free_cached_memory()
            break
        profile.set_call(numel, batch_size, seconds)
        each = seconds / batch_size
        if batch_size >= 4 and (each * _GAIN > best or seconds > _SLOW_S):
            break
        best = min(best, each)
        batch_size *= 2
        if not _fits_probe(begun, model):
            break
    size = _chunk(model, params)
    seconds = _timed(model, lambda: _decode(model, row, size))
    profile.observe_decode(size * params.height * params.width, seconds)
    if model.checkpoint.unet.device.type == "cpu":
        trim_freed_memory()


def _fits_probe(begun: int | None, model: LoadedModel) -> bool:
    """Whether a call of twice as many slots as the last one should stay within PROBE_BYTES."""
    now = resident_bytes()
    if begun is None or now is None or model.checkpoint.unet.device.type != "cpu":
        return True
    return 2 * (now - begun) <= PROBE_BYTES


def _chunk(model: LoadedModel, params: Params) -> int:
    largest = model.decode_chunk(params.decode_chunk_size)
    return chunk_sizes(params.num_frames, largest, model.settings.decode_chunk_plan)[0]


def _decode(model: LoadedModel, row: Row, size: int) -> None:
    with model.decoding():
        decode_chunk(model.checkpoint.vae, row.latents[:size])


def _timed(model: LoadedModel, work: Callable[[], object]) -> float:
    """The faster of two runs: the first also compiles, allocates and warms."""
    durations = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        if model.checkpoint.unet.device.type == "cuda":
            torch.cuda.synchronize(model.checkpoint.unet.device)
        durations.append(time.perf_counter() - started)
    return min(durations)
