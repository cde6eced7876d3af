"""LoRAs of a hosted model: the gateway learns of them, and a request for one arrives whole."""

from __future__ import annotations

import json
from pathlib import Path

from model.catalog import ModelEntry
from model.lora.catalog import LoraEntry
from model.tasks import task
from serving.engine.protocol import EngineRequest
from serving.triton.wire import entry_of, entry_told, pack_request, unpack_request

PAN = LoraEntry("pan", Path("/models/m/1/loras/pan.safetensors"), "0123456789ab", 16, 16.0, "image-to-video", "m@1")
DEFAULTS = {
    "fps": 7,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 3.0,
    "num_inference_steps": 4,
    "solver": "euler",
    "schedule": "karras",
    "decode_chunk_size": 8,
    "resize_mode": "crop",
}
HOSTED = ModelEntry(
    "m", Path("/models/m/1"), task("image-to-video"), "ba9876543210", (5,), 64, 96, 32, DEFAULTS, loras=(PAN,)
)


def test_a_server_s_loras_are_the_gateway_s_and_no_path_of_the_server_is_told() -> None:
    told = json.loads(json.dumps(entry_told(HOSTED)))
    assert "/models" not in json.dumps(told)
    seen = entry_of(told, "server:8001/m")
    (lora,) = seen.loras
    assert (lora.name, lora.version, lora.rank, lora.base) == ("pan", "0123456789ab", 16, "m@1")
    told.pop("loras")
    assert entry_of(told, "an older server").loras == ()


def test_a_request_for_one_arrives_with_its_version() -> None:
    for asked in ({"lora": "pan", "lora_scale": -1.0}, {}):
        params = entry_of(entry_told(HOSTED), "server").resolve(asked, seed=5)
        frame = pack_request(EngineRequest("job", "m", params, (b"png",), "mp4"), "gateway")
        assert HOSTED.resolve(dict(unpack_request(frame).params), seed=0) == params
