"""Options that several commands share: their values, and the files that `-o` and `--overwrite` are about.

No file is replaced unless the user says so, folders are checked before the work, and writes are atomic.
"""

from __future__ import annotations

import inspect
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from model.errors import InvalidRequest, StillmotionError

if TYPE_CHECKING:
    from serving.engine.settings import EngineOption
    from serving.gateway.settings import Settings


class SolverChoice(StrEnum):
    """Solvers (model.params.SOLVERS)."""

    euler = "euler"
    heun = "heun"
    dpmpp_2m = "dpmpp-2m"
    lcm = "lcm"


class ScheduleChoice(StrEnum):
    """Schedules (model.params.SCHEDULES)."""

    karras = "karras"
    align_your_steps = "align-your-steps"
    lcm = "lcm"


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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def engine_options(command: str) -> Callable[[Callable[..., None]], EngineCommand]:
    """Give a command's function the engine's options in place of its parameter `engine_options`, a dict of settings.

    Args:
        command: its name, as serving.engine.settings.EngineOption.commands has it.
    """
    return lambda function: EngineCommand(function, command)


class EngineCommand:
    """A command whose signature is completed from EngineSettings when Typer reads it, not when it is imported.

    Args:
        function: its parameter `engine_options` becomes one option for each setting that the command offers.
        command: the command's name.
    """

    def __init__(self, function: Callable[..., None], command: str) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__annotations__: dict[str, Any] = {}  # the signature's are resolved already
        self._function = function
        self._command = command

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's own parameters, and the options."""
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(self._function, eval_str=True).parameters.items():
            parameters += self._options().values() if name == "engine_options" else [parameter]
        return inspect.Signature(parameters)

    def __call__(self, **values: Any) -> None:
        """Run the command."""
        settings = {setting: values.pop(option.name) for setting, option in self._options().items()}
        plain = {name: value.value if isinstance(value, Enum) else value for name, value in settings.items()}
        self._function(**values, engine_options=plain)

    def _options(self) -> dict[str, inspect.Parameter]:
        from serving.engine.settings import EngineSettings, engine_options

        hints, defaults = get_type_hints(EngineSettings), EngineSettings()
        return {
            setting: _parameter(option, hints[setting], getattr(defaults, setting))
            for setting, option in engine_options()
            if self._command in option.commands
        }


def _parameter(option: EngineOption, hint: Any, default: Any) -> inspect.Parameter:
    """The parameter from which Typer makes the option."""
    if option.choices:
        make: Any = StrEnum  # its functional form, which mypy wants literals for
        hint = make(option.name, {choice.replace("-", "_"): choice for choice in option.choices})
        default = hint(default)
    names = ("--" + option.name.replace("_", "-"),)  # a flag without its --no- form
    info = typer.Option(*names, help=option.help, min=option.minimum, metavar=option.metavar)
    annotation = Annotated[hint, info]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def gateway_settings(values: Mapping[str, Any]) -> Settings:
    """The gateway's settings from options that are not None, and STILLMOTION_* variables.

    Raises:
        InvalidRequest: a value that its setting cannot have.
    """
    from pydantic import ValidationError

    from serving.gateway.settings import Settings

    try:
        return Settings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        where = f"{name} (STILLMOTION_{name.upper()}): " if name else ""
        raise InvalidRequest(f"{where}{first['msg']}", param=name or None) from error


def check_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace files; on a terminal, ask.

    Raises:
        InvalidRequest: a file is there, and neither `overwrite` nor an answer says that it may go.
    """
    existing = [path for path in dict.fromkeys(paths) if path.exists()]
    if not existing or overwrite:
        return
    names = " and ".join(map(str, existing))
    if sys.stdin.isatty() and sys.stderr.isatty() and typer.confirm(f"Replace {names}?", err=True):
        return
    raise InvalidRequest(
        f"{names} already {'exists' if len(existing) == 1 else 'exist'}: name another file with -o, or replace with "
        "--overwrite",
        param="out",
    )


def check_writable(folder: Path) -> None:
    """Create the folder, and see that a file can be created in it.

    Raises:
        StillmotionError: it cannot; raised before the work whose result would have nowhere to go.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".stillmotion-"):
            pass
    except OSError as error:
        raise StillmotionError(
            f"cannot write to the folder {folder} ({error.strerror}); name another one", param="out"
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
