"""Values that options may take, and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class SolverChoice(StrEnum):
    """Solvers (model.params.SOLVERS)."""

    euler = "euler"
    heun = "heun"
    dpmpp_2m = "dpmpp-2m"


class ResizeChoice(StrEnum):
    """How a picture meets the clip's aspect (model.params.ResizeMode)."""

    crop = "crop"
    fit = "fit"
    stretch = "stretch"


class FormatChoice(StrEnum):
    """Containers (model.params.OutputFormat)."""

    mp4 = "mp4"
    webm = "webm"
    gif = "gif"


Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]
