"""The tables: jobs and their events, idempotency keys, webhooks to deliver, batches, uploads, API keys and their rates.

The migrations make them; a test holds the two equal.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from stillmotion.types import JobPhase, JobStatus


class Base(DeclarativeBase):
    """Registry of the tables."""


class JobRow(Base):
    """One job.

    `seq` orders jobs by arrival; `last_event` is the id of the newest event. `owner` is the API key's id, empty where
    there are no keys. While the job runs, `lease_owner` names the server that runs it, until `lease_until` unless it
    says more; `attempt` counts the leases, so a lease is told from a later one of the same server. `expires_at` is
    when a waiting job is given up and an ended one removed. `identity` is the hash of all that its video depends on
    (`serving.jobs.reuse`), null in rows of earlier versions. `engine` says what ran it, once it is completed.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_queue", "status", "priority", "seq"),
        Index("jobs_owner", "owner", "seq"),
        Index("jobs_expiry", "expires_at"),
        Index("jobs_started", "started_at"),
        Index("jobs_batch", "batch_id", "batch_row"),
        Index("jobs_identity", "owner", "identity"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    task: Mapped[str] = mapped_column(String(40))
    status: Mapped[JobStatus] = mapped_column(String(20))
    phase: Mapped[JobPhase] = mapped_column(String(20))
    progress: Mapped[int] = mapped_column(Integer)
    step: Mapped[int] = mapped_column(Integer)
    total_steps: Mapped[int] = mapped_column(Integer)
    eta_s: Mapped[float | None] = mapped_column(Float)
    engine_position: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    completed_at: Mapped[float | None] = mapped_column(Float)
    model: Mapped[str] = mapped_column(String(200))
    model_version: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    output_format: Mapped[str] = mapped_column(String(10))
    priority: Mapped[int] = mapped_column(Integer)
    labels: Mapped[dict[str, str]] = mapped_column("metadata", JSON)
    timings: Mapped[dict[str, float]] = mapped_column(JSON)
    cancel_requested: Mapped[bool] = mapped_column(Boolean)
    cancelled_at_step: Mapped[int | None] = mapped_column(Integer)
    output: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    files: Mapped[dict[str, Any]] = mapped_column(JSON)
    error_code: Mapped[str | None] = mapped_column(String(80))
    error_message: Mapped[str | None] = mapped_column(Text)
    last_event: Mapped[int] = mapped_column(Integer)
    owner: Mapped[str] = mapped_column(String(64), server_default="")
    weight: Mapped[float] = mapped_column(Float, server_default="1")
    deadline_s: Mapped[float | None] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    lease_owner: Mapped[str | None] = mapped_column(String(100))
    lease_until: Mapped[float | None] = mapped_column(Float)
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    webhook_url: Mapped[str | None] = mapped_column(Text)
    webhook_secret: Mapped[str | None] = mapped_column(Text)
    batch_id: Mapped[str | None] = mapped_column(String(40), ForeignKey("batches.id", name="jobs_batch_id"))
    batch_row: Mapped[int | None] = mapped_column(Integer)
    custom_id: Mapped[str | None] = mapped_column(String(255))
    previews: Mapped[bool] = mapped_column(Boolean, server_default=false())
    identity: Mapped[str | None] = mapped_column(String(64))
    engine: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))


class EventRow(Base):
    """One event of a job; `id` counts up from 1 within the job, `job` is the job as it then was."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    event: Mapped[str] = mapped_column(String(20))
    job: Mapped[dict[str, Any]] = mapped_column(JSON)


class IdempotencyRow(Base):
    """What an Idempotency-Key made: `target` is a job's or a batch's id, `request_hash` tells a repeat from another."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("idempotency_target", "target"),)

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(40))


class DeliveryRow(Base):
    """A webhook message that waits to be delivered: written with the event it tells of, gone once delivered."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("deliveries_due", "next_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(40))
    url: Mapped[str] = mapped_column(Text)
    secret: Mapped[str | None] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    next_at: Mapped[float] = mapped_column(Float)
    attempts: Mapped[int] = mapped_column(Integer)


class BatchRow(Base):
    """One batch; its rows are jobs."""

    __tablename__ = "batches"
    __table_args__ = (Index("batches_owner", "owner", "created_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)
    total: Mapped[int] = mapped_column(Integer)


class UploadRow(Base):
    """A picture that was sent apart from a request; `id` has the SHA-256 of its bytes, `file` its name in the store.

    Until a picture that goes to S3 directly has come, its row is there and its file is not.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index("uploads_expiry", "expires_at"),)

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    file: Mapped[str] = mapped_column(String(40))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)


class RateRow(Base):
    """A key's token bucket, where several gateways share it; `at` is in the database's own seconds."""

    __tablename__ = "rates"

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    level: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)


class ApiKeyRow(Base):
    """One API key; of its secret only a salted hash (`serving.keys` says why that one)."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    salt: Mapped[str] = mapped_column(String(32))
    hash: Mapped[str] = mapped_column(String(64))
    weight: Mapped[float] = mapped_column(Float)
    per_minute: Mapped[int | None] = mapped_column(Integer)
    max_jobs: Mapped[int | None] = mapped_column(Integer)
    operator: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)
