"""Reuse of finished jobs: an identical request of the same owner is answered with the job that made its video.

Identical is what the video depends on: task, checkpoint and version, every effective setting and stage, the container,
and the pictures' files. Who asks, when, with which labels and at which priority is no part of it. All methods block on
the database: call them in a thread.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session
from stillmotion.types import Job

from serving.jobs import transitions
from serving.jobs.admission import IdempotentRequest, find_previous, remember
from serving.jobs.artifacts import Artifacts
from serving.jobs.database import Database
from serving.jobs.records import Lifetimes, NewJob
from serving.jobs.tables import JobRow

Origin = Literal["new", "repeated", "reused"]
"""Where a submission's job comes from: made for it, by its Idempotency-Key before, or by an identical request."""
_CANDIDATES: Final = 5
"""Finished jobs of one identity that are looked at: more than one only where files were lost."""


def clip_identity(new: NewJob, digests: Sequence[bytes]) -> str:
    """SHA-256, in hex, of all that a job's video depends on.

    Args:
        new: with every default filled in.
        digests: the SHA-256 of each picture's file; the settings say how it is fitted. (Of the fitted pixels it would
            be six times the bytes to hash, a fifth of all that a submission costs.)
    """
    fields = {"task": new.task, "model": new.model, "version": new.model_version, "params": _canonical(new.params)}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    for picture in digests:
        digest.update(picture)
    return digest.hexdigest()


def _canonical(value: Any) -> Any:
    """JSON in which equal numbers are written alike: 3.0 as 3."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ReuseStore:
    """Finds finished jobs by what they made.

    Args:
        database: open, with the tables in place.
        artifacts: where their files are.
        clock: Unix seconds.
        terms: how long ended jobs stay.
    """

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        clock: Callable[[], float] = time.time,
        terms: Lifetimes = Lifetimes(),
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock
        self._terms = terms

    def repeated(self, new: NewJob) -> Job | None:
        """The job that the request's idempotency key made before.

        Raises:
            Conflict: it came before with another request.
        """
        if new.idempotency_key is None:
            return None
        with self._database.read() as session:
            return _previous(session, new)

    def find(self, new: NewJob) -> tuple[Job, Origin] | None:
        """The owner's newest completed job with the same identity whose video is still there; None if there is none.

        It then stays as long as if it had ended now, the idempotency key is noted, and the request's webhook told.
        Degraded videos do not count: made again, there may be more memory.

        Raises:
            Conflict: the idempotency key came before with another request.
        """
        for job_id in self._candidates(new):
            with self._database.write() as session:
                self._database.serialise_admission(session)
                previous = _previous(session, new)
                if previous is not None:
                    return previous, "repeated"
                row = session.scalars(select(JobRow).where(JobRow.id == job_id).with_for_update()).first()
                if row is None:  # removed since it was found
                    continue
                remember(session, _repeat(new), row.id)
                return transitions.renew(session, row, self._clock(), self._terms.kept_s, new.webhook), "reused"
        return None

    def _candidates(self, new: NewJob) -> list[str]:
        query = (
            select(JobRow)
            .where(JobRow.owner == new.owner, JobRow.identity == new.identity, JobRow.status == "completed")
            .order_by(JobRow.seq.desc())
            .limit(_CANDIDATES)
        )
        with self._database.read() as session:
            rows = [row for row in session.scalars(query) if not (row.output or {}).get("degraded", False)]
        # Outside of the transaction: the store of files may be far away.
        named = [(row.id, row.files["video"]["name"]) for row in rows if "video" in row.files]
        return [job_id for job_id, name in named if self._artifacts.exists(job_id, name)]


def _repeat(new: NewJob) -> IdempotentRequest | None:
    return None if new.idempotency_key is None else IdempotentRequest(new.owner, new.idempotency_key, new.body_hash)


def _previous(session: Session, new: NewJob) -> Job | None:
    job_id = find_previous(session, _repeat(new))
    return None if job_id is None else transitions.wire(session, transitions.find(session, job_id, new.owner))
