"""A row's pictures: whatever fsspec opens, bounded in size, decoded as the API decodes an upload."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from model.errors import GenerationFailed, ImageTooLarge, InvalidRequest
from model.image import DEFAULT_LIMITS, ImageLimits, open_picture, to_png
from model.tasks import TaskSpec
from serving.batch.manifest import filesystem_of


class Unreachable(GenerationFailed):
    """A place that does not answer now, and may the next time."""

    code = "picture_unreachable"


@dataclass(frozen=True, slots=True)
class PictureReader:
    """Opens pictures.

    Args:
        limits: on each.
    """

    limits: ImageLimits = DEFAULT_LIMITS

    def read(self, spec: TaskSpec, pictures: tuple[bytes | str, ...]) -> tuple[bytes, ...]:
        """Each picture as a plain PNG; blocks.

        Raises:
            InvalidRequest: one is not there or no picture; `param` names the column.
            Unreachable: its place does not answer.
        """
        return tuple(self._clean(name, one) for name, one in zip(spec.pictures, pictures, strict=True))

    def open(self, given: bytes | str) -> Image.Image:
        """One picture, decoded; raises as `read`, not knowing the column."""
        return open_picture(given if isinstance(given, bytes) else self._fetch(given), limits=self.limits)

    def _clean(self, name: str, given: bytes | str) -> bytes:
        try:
            return to_png(self.open(given))
        except InvalidRequest as error:
            error.param = name  # who decodes one picture knows it as `image`, whichever of the row's it is
            raise

    def _fetch(self, reference: str) -> bytes:
        filesystem, path = filesystem_of(reference)
        try:
            with filesystem.open(path, "rb") as file:
                data: bytes = file.read(self.limits.max_bytes + 1)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            why = "it is not there" if isinstance(error, FileNotFoundError) else type(error).__name__
            raise InvalidRequest(f"{reference} cannot be opened: {why}", code="picture_not_found") from error
        except Exception as error:  # each protocol has errors of its own
            raise Unreachable(f"{reference} cannot be read now: {type(error).__name__}: {error}") from error
        if len(data) > self.limits.max_bytes:
            raise ImageTooLarge(f"{reference} has more than {self.limits.max_bytes} bytes: save it smaller")
        return data
