"""What scorers and captioners share: the settings they know, and the versions of what they stand on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from model.errors import InvalidRequest
from training.curation.records import ToolOptions

MEASURED = "measured"
"""The captioner that needs no weights; its captions never pass for another's."""


def tool_version(name: str, distributions: Iterable[str]) -> str:
    """`NAME VERSION`, the version being that of the first of the distributions that is installed."""
    for distribution in distributions:
        try:
            return f"{name} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return name


def known_options(tool: str, options: ToolOptions, known: Iterable[str]) -> None:
    """Refuse a setting that the tool does not have.

    Raises:
        InvalidRequest: naming it and those there are.
    """
    names = tuple(known)
    for name in options:
        if name not in names:
            listed = ", ".join(names) or "none"
            raise InvalidRequest(f"{tool} has no setting {name!r}; there are: {listed}", param="tool")
