"""The entry of the programs in this folder: a mistake, missing data or no device ends with one line, no traceback."""

from __future__ import annotations

from collections.abc import Callable

from cli.main import describe_error


def run_main(main: Callable[[], None]) -> None:
    """Run a program's main function; exit code 1, and one line on stderr, for an error that its user can mend."""
    try:
        main()
    except Exception as error:
        line = describe_error(error)
        if line is None:
            raise
        raise SystemExit(f"error: {line}") from error
