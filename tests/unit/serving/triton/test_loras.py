"""LoRAs of a hosted model: the gateway learns of them, and a request for one arrives whole."""

from __future__ import annotations

import json
from pathlib import Path

from model.lora.catalog import LoraEntry
from serving.engine.protocol import EngineRequest
from serving.triton.wire import entry_fields, entry_from_fields, pack_request, unpack_request
from tests.support.fakes import model_entry

PAN = LoraEntry("pan", Path("/models/m/1/loras/pan.safetensors"), "0123456789ab", 16, 16.0, "image-to-video", "m@1")
HOSTED = model_entry(name="m", path=Path("/models/m/1"), version="ba9876543210", loras=(PAN,))


def test_a_server_s_loras_are_the_gateway_s_and_no_path_of_the_server_is_told() -> None:
    told = json.loads(json.dumps(entry_fields(HOSTED)))
    assert "/models" not in json.dumps(told)
    seen = entry_from_fields(told, "server:8001/m")
    (lora,) = seen.loras
    assert (lora.name, lora.version, lora.rank, lora.base) == ("pan", "0123456789ab", 16, "m@1")
    told.pop("loras")
    assert entry_from_fields(told, "an older server").loras == ()


def test_a_request_for_one_arrives_with_its_version() -> None:
    for asked in ({"lora": "pan", "lora_scale": -1.0}, {}):
        params = entry_from_fields(entry_fields(HOSTED), "server").resolve(asked, seed=5)
        frame = pack_request(EngineRequest("job", "m", params, (b"png",), "mp4"), "gateway")
        assert HOSTED.resolve(dict(unpack_request(frame).params), seed=0) == params
