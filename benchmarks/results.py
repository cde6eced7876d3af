"""A program's own section of benchmarks/RESULTS.md, between two markers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).with_name("RESULTS.md")


def write_section(begin: str, end: str, text: str) -> None:
    """Replace what stands between the markers, which are lines of their own; or add it at the end.

    Args:
        text: Markdown, without the markers.
    """
    results, block = RESULTS.read_text(), f"{begin}\n{text}\n{end}"
    if begin in results:
        section = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        results = section.sub(lambda _: block, results)
    else:
        results = f"{results.rstrip()}\n\n{block}\n"
    RESULTS.write_text(results)
