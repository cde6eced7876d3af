"""What an operator may set: by argument, or by an environment variable STILLMOTION_NAME."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.image import ImageLimits
from serving.jobs.records import Terms

MAX_WAIT_S = 60


class Settings(BaseSettings):
    """Settings of the gateway. Sizes in bytes and pixels, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="STILLMOTION_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535)
    database_url: str = Field("sqlite:///stillmotion-data/jobs.db", description="SQLAlchemy URL of the job store")
    artifacts: str = Field("stillmotion-data/artifacts", description="folder or fsspec URL for pictures and videos")
    queue_limit: int = Field(100, ge=1, description="jobs that may wait; one more is answered with 429")
    max_body_bytes: int = Field(30_000_000, ge=1024, description="of a whole request")
    max_image_bytes: int = Field(20_000_000, ge=1024, description="of the picture's file")
    max_image_pixels: int = Field(50_000_000, ge=64, description="of the picture, width times height")
    min_image_side: int = Field(8, ge=1, description="pixels of the picture's shorter side")
    progress_interval_s: float = Field(0.25, ge=0, description="steps are written down at most this often")

    lease_s: float = Field(15.0, gt=0, description="a server silent for so long has lost its jobs; they run again")
    waiting_s: float = Field(7 * 86400.0, gt=0, description="a job that has not begun by then expires")
    kept_s: float | None = Field(30 * 86400.0, ge=0, description="an ended job is removed after this time; None: never")
    grace_s: float = Field(30.0, ge=0, description="running jobs have so long to end when the service is told to stop")

    @property
    def terms(self) -> Terms:
        """How long jobs and leases last."""
        return Terms(self.lease_s, self.waiting_s, self.kept_s)

    @property
    def image_limits(self) -> ImageLimits:
        """The limits on a picture."""
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.min_image_side)
