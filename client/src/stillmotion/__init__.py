"""Python client of the Stillmotion service: stills become short videos.

>>> from stillmotion import Client
>>> with Client() as client:                                    # doctest: +SKIP
...     job = client.generate("photo.jpg", seed=7)
...     client.download_to(job, "photo.mp4")
"""

from stillmotion._batches import batch_line
from stillmotion._image import ImageSource
from stillmotion._retry import RetryPolicy
from stillmotion._settings import (
    FrameInterpolationSettings,
    ImageToVideoSettings,
    MultiViewSettings,
    TextToVideoSettings,
)
from stillmotion._version import __version__
from stillmotion.async_client import AsyncClient
from stillmotion.client import Client
from stillmotion.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    BadRequest,
    BatchTimeout,
    ChecksumMismatch,
    Conflict,
    Forbidden,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotCompleted,
    JobTimeout,
    NotFound,
    RateLimited,
    ServerError,
    ServiceUnavailable,
    StillmotionError,
    TooLarge,
    Unauthorized,
    UnexpectedAnswer,
    Unprocessable,
    UnsupportedMediaType,
)
from stillmotion.types import (
    Batch,
    BatchLine,
    BatchResult,
    Job,
    JobEvent,
    JobOutput,
    LoraInfo,
    ModelInfo,
    Preview,
    Upload,
)

__all__ = [
    "APIConnectionError",
    "APIError",
    "APITimeoutError",
    "AsyncClient",
    "BadRequest",
    "Batch",
    "BatchLine",
    "BatchResult",
    "BatchTimeout",
    "ChecksumMismatch",
    "Client",
    "Conflict",
    "Forbidden",
    "FrameInterpolationSettings",
    "ImageSource",
    "ImageToVideoSettings",
    "Job",
    "JobCancelled",
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobNotCompleted",
    "JobOutput",
    "JobTimeout",
    "LoraInfo",
    "ModelInfo",
    "MultiViewSettings",
    "NotFound",
    "Preview",
    "RateLimited",
    "RetryPolicy",
    "ServerError",
    "ServiceUnavailable",
    "StillmotionError",
    "TextToVideoSettings",
    "TooLarge",
    "Unauthorized",
    "UnexpectedAnswer",
    "Unprocessable",
    "UnsupportedMediaType",
    "Upload",
    "__version__",
    "batch_line",
]
