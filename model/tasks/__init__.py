"""The task table: adding a task is one new file and one line here. Imports no torch."""

from __future__ import annotations

from model.errors import InvalidRequest
from model.tasks.frame_interpolation import FRAME_INTERPOLATION
from model.tasks.image_to_video import IMAGE_TO_VIDEO
from model.tasks.multi_view import MULTI_VIEW
from model.tasks.spec import TaskSpec
from model.tasks.text_to_video import TEXT_TO_VIDEO

TASKS: dict[str, TaskSpec] = {
    IMAGE_TO_VIDEO.name: IMAGE_TO_VIDEO,
    TEXT_TO_VIDEO.name: TEXT_TO_VIDEO,
    FRAME_INTERPOLATION.name: FRAME_INTERPOLATION,
    MULTI_VIEW.name: MULTI_VIEW,
}


def task(name: str) -> TaskSpec:
    """The spec of the task called `name`.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in TASKS:
        raise InvalidRequest(f"no task is called {name!r}; there are: {', '.join(sorted(TASKS))}", param="task")
    return TASKS[name]


__all__ = ["TASKS", "TaskSpec", "task"]
