"""Signatures after the C2PA standard, so that others' tools can tell who made a video and that a machine did.

Needs the [c2pa] extra, a certificate chain and its private key. A signed file is not repeatable byte by byte: the
standard puts a time and random bits into it. What plays, and our own manifest, stay as they were.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from model.errors import GenerationFailed, InvalidRequest, MissingExtra

Algorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]
_MP4: Final = "video/mp4"
_MADE_BY_A_MODEL: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for media made by a trained model."""


class C2paSigner:
    """Signs mp4s with one certificate.

    Args:
        certificate: PEM, the chain from the signing certificate up.
        key: PEM, the certificate's private key (PKCS 8).
        algorithm: of the key.
        timestamps: URL of a time-stamping authority; None for none, and then the signature ends with its certificate.

    Raises:
        MissingExtra: c2pa-python is not installed.
        InvalidRequest: a file cannot be read, or key and certificate do not sign.
    """

    def __init__(
        self, certificate: Path, key: Path, algorithm: Algorithm = "es256", timestamps: str | None = None
    ) -> None:
        try:
            import c2pa
        except ModuleNotFoundError as error:
            raise MissingExtra("C2PA signing", "c2pa") from error
        if algorithm not in get_args(Algorithm):
            raise InvalidRequest(f"the algorithm must be one of {', '.join(get_args(Algorithm))}", param="algorithm")
        from model.media.video import encode_video  # the gateway imports this file, and has no use for codecs

        self._c2pa: Any = c2pa
        try:
            self._info = c2pa.C2paSignerInfo(
                alg=algorithm.encode(),
                sign_cert=certificate.read_bytes(),
                private_key=key.read_bytes(),
                ta_url=None if timestamps is None else timestamps.encode(),
            )
            # Signing for real is the only way to know that the files fit each other.
            self.sign(encode_video(np.zeros((1, 16, 16, 3), np.uint8), 1, "mp4"), {})
        except (OSError, GenerationFailed) as error:
            raise InvalidRequest(f"cannot sign with {certificate} and its key: {error}", param="c2pa") from error

    def sign(self, video: bytes, manifest: Mapping[str, Any]) -> bytes:
        """The mp4 with a signature in it.

        Raises:
            GenerationFailed: it cannot be signed.
        """
        signed = io.BytesIO()
        try:
            with self._c2pa.Signer.from_info(self._info) as signer, self._builder(manifest) as builder:
                builder.sign(signer, _MP4, io.BytesIO(video), signed)
        except self._c2pa.C2paError as error:
            raise GenerationFailed(f"the video cannot be signed: {error}", code="signing_failed") from error
        return signed.getvalue()

    def _builder(self, manifest: Mapping[str, Any]) -> Any:
        definition = {
            "claim_generator_info": [{"name": "Stillmotion"}],
            "title": f"{manifest.get('task', 'video')}, {manifest.get('model', 'unknown model')}",
            "format": _MP4,
            "assertions": [
                {
                    "label": "c2pa.actions",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": _MADE_BY_A_MODEL}]},
                }
            ],
        }
        return self._c2pa.Builder(json.dumps(definition))
