"""What an operator may set: by argument, or by an environment variable STILLMOTION_NAME."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.media.image import ImageLimits
from serving.gateway.images import UrlChoice
from serving.gateway.safety import SafetyChoice
from serving.jobs.records import Lifetimes
from serving.jobs.uploads import UploadTerms
from serving.net import AddressPolicy, networks
from serving.provenance.c2pa import Algorithm

MAX_WAIT_S = 60


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on the connections of one server (serving.gateway.connections).

    Args:
        head_bytes: of a request's line and headers.
        head_s: from a connection's beginning, or a request's first byte, until its headers are complete.
        body_bytes_per_s: of a request's body, averaged over ten seconds; 0 for no limit.
        stall_s: during which a client reads nothing of a response that waits for it.
        connections: at once; fewer where the process may open fewer files.
        per_address: connections of one address at once.
    """

    head_bytes: int = 64 * 1024
    head_s: float = 10.0
    body_bytes_per_s: int = 1000
    stall_s: float = 60.0
    connections: int = 8192
    per_address: int = 4096


class Settings(BaseSettings):
    """Settings of the gateway. Sizes in bytes and pixels, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="STILLMOTION_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535)
    database_url: str = Field("sqlite:///stillmotion-data/jobs.db", description="SQLAlchemy URL of the job store")
    artifacts: str = Field("stillmotion-data/artifacts", description="folder or fsspec URL for pictures and videos")
    queue_limit: int = Field(100, ge=1, description="jobs that may wait; one more is answered with 429")
    max_body_bytes: int = Field(30_000_000, ge=1024, description="of a whole request in JSON, which lies in memory")
    max_form_bytes: int = Field(
        210_000_000, ge=1024, description="of a multipart form; its pictures lie in temporary files until decoded"
    )
    max_uploads_bytes: int = Field(1_000_000_000, ge=1024, description="of all requests' bodies at once; beyond: 503")
    max_batch_bytes: int = Field(100_000_000, ge=1024, description="of a whole batch")
    max_upload_bytes: int = Field(100_000_000, ge=1024, description="of one picture sent to /uploads")
    max_key_uploads_bytes: int = Field(
        20_000_000_000, ge=1024, description="of all uploads of one API key that have not expired; beyond: 429"
    )
    upload_kept_s: float = Field(86400.0, gt=0, description="an upload is removed after this time")
    signed_url_s: int = Field(
        900, ge=1, le=604_800, description="a URL of S3 that is given to a caller is good so long"
    )
    max_header_bytes: int = Field(64 * 1024, ge=4096, description="of a request's line and headers")
    header_timeout_s: float = Field(10.0, gt=0, description="from a connection's begin, or a request's, to its headers")
    min_body_bytes_per_s: int = Field(1000, ge=0, description="slower uploads are closed; averaged over ten seconds")
    stall_timeout_s: float = Field(60.0, gt=0, description="a caller who reads nothing of an answer is closed")
    max_connections: int = Field(8192, ge=1, description="at once; fewer where fewer files may be open")
    max_connections_per_address: int = Field(4096, ge=1, description="at once; a proxy counts as one address")
    max_image_bytes: int = Field(100_000_000, ge=1024, description="of the picture's file")
    max_image_pixels: int = Field(65_000_000, ge=64, description="of the picture, width times height")
    min_image_side: int = Field(8, ge=1, description="pixels of the picture's shorter side")
    decoders: int = Field(2, ge=1, description="pictures decoded at once, each at most max_image_pixels large")
    image_urls: UrlChoice = Field("off", description="pictures by URL: off, https, or http too; public addresses only")
    image_fetch_s: float = Field(20.0, gt=0, description="for fetching a picture, redirects included")
    upscalers: str = Field("", description="ONNX super-resolution networks that requests may name: NAME=FILE,NAME=FILE")
    safety: SafetyChoice = Field("off", description="filter for input pictures: off, or opennsfw ([safety] extra)")
    safety_threshold: float = Field(0.8, gt=0, le=1, description="pictures are refused from this score on")
    allow_unkeyed: bool = Field(False, description="serve a public address although no API key was made")
    traces: bool = Field(False, description="send OpenTelemetry traces ([otel] extra; OTEL_* variables say where)")
    log_json: bool = Field(False, description="one JSON object a log line, one for each request too")
    c2pa_certificate: Path | None = Field(None, description="PEM chain; with c2pa_key, mp4s are signed ([c2pa] extra)")
    c2pa_key: Path | None = Field(None, description="PEM, the certificate's private key")
    c2pa_algorithm: Algorithm = Field("es256", description="of the key")
    c2pa_timestamps: str | None = Field(None, description="URL of a time-stamping authority")
    progress_interval_s: float = Field(0.25, ge=0, description="steps are written down at most this often")

    batch_rows: int = Field(1000, ge=1, description="rows of one batch")
    offline_limit: int = Field(10_000, ge=1, description="rows of all batches that may wait; beyond it: 429")
    webhook_secret: SecretStr | None = Field(None, description="whsec_...; signs webhooks that bring no secret")
    webhook_http: bool = Field(False, description="webhooks may go to http:// too")
    webhook_allow: str = Field("", description="private networks webhooks may go to: 10.0.0.0/8,fd00::/8")
    lease_s: float = Field(15.0, gt=0, description="a server silent for so long has lost its jobs; they run again")
    waiting_s: float = Field(7 * 86400.0, gt=0, description="a job that has not begun by then expires")
    kept_s: float | None = Field(30 * 86400.0, ge=0, description="an ended job is removed after this time; None: never")
    attempts: int = Field(50, ge=1, description="a job whose server was lost so often fails")
    checkpoint_every_s: float = Field(5.0, ge=0, description="a running job is checkpointed so often")
    grace_s: float = Field(30.0, ge=0, description="running jobs have so long to end when the service is told to stop")

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("signing needs both c2pa_certificate and c2pa_key")
        return self

    @property
    def webhook_policy(self) -> AddressPolicy:
        """Where webhooks may go."""
        schemes = frozenset({"https", "http"} if self.webhook_http else {"https"})
        return AddressPolicy(schemes, networks([text for text in self.webhook_allow.split(",") if text.strip()]))

    @property
    def terms(self) -> Lifetimes:
        """How long jobs and leases last."""
        return Lifetimes(self.lease_s, self.waiting_s, self.kept_s, self.attempts)

    @property
    def connection_limits(self) -> ConnectionLimits:
        """The limits on connections."""
        return ConnectionLimits(
            head_bytes=self.max_header_bytes,
            head_s=self.header_timeout_s,
            body_bytes_per_s=self.min_body_bytes_per_s,
            stall_s=self.stall_timeout_s,
            connections=self.max_connections,
            per_address=self.max_connections_per_address,
        )

    @property
    def upload_terms(self) -> UploadTerms:
        """What uploads may take."""
        return UploadTerms(self.upload_kept_s, self.max_key_uploads_bytes, self.signed_url_s)

    @property
    def image_limits(self) -> ImageLimits:
        """The limits on a picture."""
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.min_image_side)
