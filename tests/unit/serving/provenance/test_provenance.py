"""A finished video: its manifest can make it again, and a signature tells when somebody changed it."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from model.errors import InvalidRequest
from model.media.image import fit_picture, open_picture, to_png
from model.media.video import decode_video, encode_video, frames_sha256
from model.params import ImageToVideoParams, OutputFormat
from serving.engine.protocol import Completed
from serving.provenance import video_manifest
from serving.provenance.c2pa import C2paSigner
from serving.provenance.video_manifest import Finished, Signer, finish
from tests.contract.support import picture
from tests.support.fakes import DEFAULTS
from tests.unit.serving.provenance.support import certificates

PARAMS = ImageToVideoParams(**{**DEFAULTS, "num_frames": 3, "height": 64, "width": 96, "seed": 4})
FRAMES = np.random.default_rng(2).integers(0, 255, (3, 64, 96, 3), np.uint8)


@cache
def encoded(output_format: OutputFormat) -> bytes:
    return encode_video(FRAMES, 7, output_format)


def finished(
    output_format: OutputFormat = "mp4",
    signer: Signer | None = None,
    notes: dict[str, object] | None = None,
    image: bytes | None = None,
    params: ImageToVideoParams = PARAMS,
) -> Finished:
    result = Completed(
        video=encoded(output_format),
        video_sha256="of the engine's bytes",
        frames_sha256=frames_sha256(FRAMES),
        thumbnail=b"",
        frames=b"",
        width=96,
        height=64,
        num_frames=3,
        fps=7,
        degraded=False,
        manifest={"model": "m", "task": "image-to-video", "seed": 4},
    )
    return finish(result, params, (image or picture(size=(200, 70)),), output_format, notes=notes, signer=signer)


def test_the_mp4_carries_the_manifest_that_is_stored_beside_it() -> None:
    done = finished(notes={"safety": {"allowed": True}})
    assert video_manifest.read_manifest(done.video) == done.manifest
    assert done.manifest["safety"] == {"allowed": True}
    assert done.manifest["output"]["frames_sha256"] == frames_sha256(FRAMES)
    assert done == finished(notes={"safety": {"allowed": True}}), "equal results give equal bytes"


def test_the_manifest_names_a_colour_space_that_was_converted(root: Path) -> None:
    p3 = (root / "tests" / "data" / "pictures" / "swatch_p3.jpg").read_bytes()
    assert finished(image=p3).manifest["pictures_converted_from"] == ["Display P3"]
    assert "pictures_converted_from" not in finished().manifest


@pytest.mark.parametrize("output_format", ["webm", "gif"])
def test_other_containers_stay_as_they_are(output_format: OutputFormat) -> None:
    done = finished(output_format)
    assert done.video == encoded(output_format)
    assert done.manifest["output"]["frames_sha256"]


@pytest.mark.parametrize("mode", ["crop", "fit", "stretch"])
@pytest.mark.parametrize("size", [(200, 70), (96, 64), (31, 500)])
def test_a_fitted_picture_is_seen_by_the_sampler_as_the_first_was(mode: str, size: tuple[int, int]) -> None:
    params = ImageToVideoParams(
        **{**DEFAULTS, "num_frames": 3, "height": 64, "width": 96, "seed": 4, "resize_mode": mode}
    )
    first = fit_picture(open_picture(picture(size=size)), 64, 96, params.resize_mode)
    manifest = finished("gif", image=picture(size=size), params=params).manifest
    (again,) = video_manifest.manifest_pictures(manifest)
    assert fit_picture(open_picture(again), 64, 96, params.resize_mode).tobytes() == first.tobytes()
    assert finished("gif", image=to_png(first), params=params).manifest["pictures"] == manifest["pictures"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("c2pa")
    return certificates(tmp_path_factory.mktemp("certificates"))


def told(video: bytes) -> dict[str, object]:
    c2pa = pytest.importorskip("c2pa")
    with c2pa.Reader("video/mp4", io.BytesIO(video)) as reader:
        return dict(json.loads(reader.json()))


def test_a_signed_video_says_that_a_model_made_it_and_plays_as_before(chain: tuple[Path, Path]) -> None:
    signed = finished(signer=C2paSigner(*chain))
    assert frames_sha256(decode_video(signed.video)[0]) == frames_sha256(decode_video(finished().video)[0])
    assert video_manifest.read_manifest(signed.video) == signed.manifest
    said = told(signed.video)
    assert "trainedAlgorithmicMedia" in json.dumps(said)
    assert failures(said) <= {"signingCredential.untrusted"}, "nobody trusts the test's authority; all else is right"


def failures(said: dict[str, object]) -> set[str]:
    return {status["code"] for status in said.get("validation_status", [])}  # type: ignore[attr-defined]


def test_a_changed_byte_breaks_the_signature(chain: tuple[Path, Path]) -> None:
    video = bytearray(finished(signer=C2paSigner(*chain)).video)
    at = video.index(b"mdat") + 200
    video[at] ^= 1
    assert failures(told(bytes(video))) - {"signingCredential.untrusted"}


def test_files_that_do_not_sign_are_refused_at_the_start(chain: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "nonsense.pem").write_text("no certificate")
    with pytest.raises(InvalidRequest, match="cannot sign"):
        C2paSigner(tmp_path / "nonsense.pem", chain[1])
    with pytest.raises(InvalidRequest, match="cannot sign"):
        C2paSigner(chain[0], tmp_path / "absent.pem")
