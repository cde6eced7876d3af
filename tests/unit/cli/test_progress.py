"""Plain progress is sparse and says rate and time left; a terminal gets bars."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli.progress import PlainReport, reporting, seconds
from cli.table import table


def test_plain_lines_at_the_beginning_the_end_and_seldom_between() -> None:
    out = io.StringIO()
    report = PlainReport(out, every_s=3600)
    for step in range(1, 101):
        report(f"loss {1 / step:.3f}", step, 100)
    report("a plain message", 0, 0)
    for frame in range(1, 4):
        report("decode", frame, 3)
    lines = out.getvalue().splitlines()
    assert lines == ["loss 1.000: 1/100", "loss 0.010: 100/100", "a plain message", "decode: 1/3", "decode: 3/3"]


def test_plain_lines_tell_rate_and_time_left() -> None:
    out = io.StringIO()
    report = PlainReport(out, every_s=0)
    report("steps", 0, 1000)
    report("steps", 1, 1000)
    assert "/s, " in out.getvalue().splitlines()[1]
    assert out.getvalue().splitlines()[1].endswith("left")


def test_what_goes_to_a_file_has_no_control_characters() -> None:
    out = io.StringIO()
    with reporting(out) as report:
        report("steps", 1, 2)
        report("steps", 2, 2)
    assert out.getvalue() == "steps: 1/2\nsteps: 2/2\n"


def test_a_terminal_gets_a_bar(root: Path) -> None:
    code = "from cli.progress import reporting\nwith reporting() as r:\n  [r('steps', i, 9) for i in range(1, 10)]"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=environment, cwd=root, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b[" in shown
    assert "9/9" in shown
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("value", "told"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (200, "3:20 min"), (7500, "2:05 h")]
)
def test_lengths_of_time(value: float, told: str) -> None:
    assert seconds(value) == told


def test_tables_align() -> None:
    text = table(("figure", "value", "still"), [("psnr", 31.25, None), ("a longer name", 4, 12345.678)])
    assert text.splitlines() == [
        "figure         value      still",
        "-------------  -----  ---------",
        "psnr           31.25          -",
        "a longer name      4  1.235e+04",
    ]
    assert table(("a", "b"), []) == "a  b\n-  -"
