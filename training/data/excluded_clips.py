"""What of a dataset a run does not use: counted, named, and where too much of it cannot be read, the run stops."""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import DataError
from training.config import ProgressCallback
from training.data.config import MOST_UNREADABLE

_NAMED = 20


class ExcludedClips:
    """The clips of a run's dataset that it goes without.

    Args:
        report: called for each, with (what, 0, 0).
        most: share of the clips that may be unreadable.
    """

    def __init__(self, report: ProgressCallback = lambda *_: None, most: float = MOST_UNREADABLE) -> None:
        self._report, self._most = report, most
        self.unreadable: dict[str, str] = {}
        self.short: tuple[str, ...] = ()
        self.lost = 0
        self._items = self._unseen = 0

    def cannot_read(self, name: str, why: object, clips: int = 1, *, unseen: bool = False) -> None:
        """A clip, or a shard of so many, that cannot be read.

        Args:
            unseen: whether they are in no list of items, since their shard could not even be listed.
        """
        if name in self.unreadable:
            return
        self.unreadable[name] = str(why)
        self.lost += clips
        self._unseen += clips if unseen else 0
        clips_text = f" with its {clips} clips" if clips > 1 else ""
        self._report(f"left out {name}{clips_text}, which cannot be read ({why})", 0, 0)

    def too_short(self, names: Sequence[str], of: int, frames: int) -> None:
        """Clips that fill no stretch of `frames` frames, out of `of`."""
        self.short = (*self.short, *names)
        if names:
            shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            self._report(f"left out {len(names)} of {of} clips, which are shorter than {frames} frames: {shown}", 0, 0)

    def refuse_too_many(self, items: int) -> None:
        """Stop where too much was lost.

        Args:
            items: how many there are in the list of items, or in the part of it that was read now.

        Raises:
            DataError: the message counts and names what was lost.
        """
        self._items = max(self._items, items)
        total = self._items + self._unseen
        if self.lost > self._most * total:
            named = ", ".join(list(self.unreadable)[:_NAMED])
            raise DataError(
                f"{self.lost} of {total} items cannot be read, more than {self._most:.0%}: {named}; prepare "
                "the dataset again, or allow more with --set most_unreadable=SHARE"
            )

    def record(self) -> dict[str, object]:
        """For a run's data.json."""
        return {"unreadable": self.unreadable, "unreadable_clips": self.lost, "too_short": list(self.short)}
