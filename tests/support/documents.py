"""Code in the README and the documents: fenced blocks and indented ones, and the reason why one is not run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "client/README.md", "benchmarks/RESULTS.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "extras").rglob("*.md"),
    ]
)
FENCED = re.compile(
    r"(<!-- not run: (?P<reason>[^>]+) -->\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A code block: `language` is "indented" for one without a fence; `reason` says why it is not run, if so."""

    document: Path
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def name(self) -> str:
        """For a message."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    """Every block of a document, in order of their kinds."""
    text = document.read_text()
    for match in FENCED.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(document, line, match["language"], body, (match["reason"] or "").strip())
    plain = FENCED.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(plain.split("\n\n")):
        if line.strip("\n").startswith("    "):
            yield Block(
                document,
                plain.count("\n", 0, len("\n\n".join(plain.split("\n\n")[:number]))) + 1,
                "indented",
                _dedent(line),
            )


def _dedent(text: str) -> str:
    return "\n".join(line[4:] for line in text.strip("\n").splitlines())


def commands(text: str) -> list[str]:
    """The command lines of a shell block: continued lines joined, comments and prompts gone."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        line.strip().removeprefix("$ ")
        for line in joined.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]
