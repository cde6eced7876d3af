"""The two tables: jobs, and the events each went through. The migrations make them; a test holds the two equal."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from stillmotion.types import JobPhase, JobStatus


class Base(DeclarativeBase):
    """Registry of the tables."""


class JobRow(Base):
    """One job. `seq` orders jobs by arrival; `last_event` is the id of the newest event."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_queue", "status", "priority", "seq"), {"sqlite_autoincrement": True})

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
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    last_event: Mapped[int] = mapped_column(Integer)


class EventRow(Base):
    """One event of a job; `id` counts up from 1 within the job, `job` is the job as it then was."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    event: Mapped[str] = mapped_column(String(20))
    job: Mapped[dict[str, Any]] = mapped_column(JSON)
