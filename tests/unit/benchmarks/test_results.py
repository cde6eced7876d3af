"""A program's section of RESULTS.md is added once, then replaced; what stands around it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results

BEGIN, END = "<!-- mine (1) begin -->", "<!-- mine (1) end -->"


def test_a_section_is_added_then_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text("# Results\n\nbefore\n")
    monkeypatch.setattr(results, "RESULTS", file)
    results.write_section(BEGIN, END, "one \\1")
    assert file.read_text() == f"# Results\n\nbefore\n\n{BEGIN}\none \\1\n{END}\n"
    file.write_text(file.read_text() + "\nafter\n")
    results.write_section(BEGIN, END, "two")
    assert file.read_text() == f"# Results\n\nbefore\n\n{BEGIN}\ntwo\n{END}\n\nafter\n"
