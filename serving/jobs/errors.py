"""What can be wrong between a caller and a job; the gateway gives each its HTTP status."""

from __future__ import annotations

from model.errors import StillmotionError


class JobNotFound(StillmotionError):
    """No job has this id (any more)."""

    code = "job_not_found"

    def __init__(self, job_id: str, *, param: str | None = None) -> None:
        super().__init__(f"no job has the id {job_id!r}; it may have been deleted", param=param)


class BatchNotFound(StillmotionError):
    """No batch has this id (any more)."""

    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"no batch has the id {batch_id!r}; it may have been removed")


class UploadNotFound(StillmotionError):
    """No upload of the caller's has this id (any more)."""

    code = "upload_not_found"

    def __init__(self, upload_id: str, *, param: str | None = None) -> None:
        message = f"no upload has the id {upload_id[:80]!r}; it may have expired: send the picture to /uploads again"
        super().__init__(message, param=param)


class UploadsFull(StillmotionError):
    """The caller's uploads take as much room as they may.

    Args:
        limit: in bytes.
        retry_after_s: when the first of them expires.
    """

    code = "uploads_full"

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(f"your uploads take {limit} bytes, which is the limit; delete some, or wait until they expire")
        self.retry_after_s = retry_after_s


class Conflict(StillmotionError):
    """The request does not fit the job's present state."""

    code = "conflict"


class IllegalTransition(Conflict):
    """A change of status that the transition table does not have."""

    code = "illegal_transition"


class QueueFull(StillmotionError):
    """As many jobs wait as are allowed to.

    Args:
        limit: how many may wait.
        retry_after_s: when a place should be free, by how long recent jobs took.
    """

    code = "queue_full"

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(f"{limit} jobs are waiting already, which is the limit; try again in {retry_after_s} s")
        self.limit = limit
        self.retry_after_s = retry_after_s


class QuotaFull(QueueFull):
    """This caller has as many jobs open as they may have."""

    code = "quota_full"

    def __init__(self, limit: int, retry_after_s: int) -> None:
        StillmotionError.__init__(
            self, f"{limit} of your jobs wait or run, which is your limit; try again in {retry_after_s} s"
        )
        self.limit = limit
        self.retry_after_s = retry_after_s


class DatabaseBusy(StillmotionError):
    """Another process holds the job database's lock for longer than we wait."""

    code = "database_busy"
    retry_after_s = 5

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"the job database was locked for {waited_s:g} s; nothing was changed, try again in {self.retry_after_s} s"
        )


class LeaseLost(Conflict):
    """The job is not run by this server, or not in this attempt (any more): what it says of the job does not count."""

    code = "lease_lost"

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} at job {job_id} is over; it has ended, is gone, or runs elsewhere")
