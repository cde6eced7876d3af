"""A dry run names what is wrong with each row, and its column; nothing is rendered, nothing loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.tasks import TASKS
from serving.offline.run import Batch
from serving.offline.survey import Fault, Survey, survey
from tests.unit.serving.offline.support import BAD_ROWS, GOOD, entry, stills, write_bad_manifest


def look(folder: Path) -> tuple[Survey, list[Fault]]:
    """A dry run over the folder's manifest, of which the good rows are complete: so no time is to be estimated."""
    for name in ("twice", "last"):
        record = folder / "out" / "records" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    batch = Batch(
        manifest=str(folder / "manifest.jsonl"),
        out=str(folder / "out"),
        entries=tuple(entry(task) for task in TASKS),
    )
    faults: list[Fault] = []
    return survey(batch, faults.append, lambda *_: None), faults


def test_every_kind_of_bad_row_is_named_with_its_row_and_column(tmp_path: Path) -> None:
    stills(tmp_path)
    rows = write_bad_manifest(tmp_path / "manifest.jsonl")
    found, faults = look(tmp_path)
    assert len(BAD_ROWS) >= 20
    assert found == Survey(rows, complete=2, faulty=len(BAD_ROWS), estimate_s=0.0)
    assert [(fault.row, fault.column) for fault in faults] == [
        (number, column) for number, (_, column) in enumerate(BAD_ROWS, 2)
    ]
    assert all(fault.code and fault.message for fault in faults)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".parts", "records"]


@pytest.mark.parametrize("rows", [0, 200])
def test_faults_come_in_the_manifests_order_however_long_it_is(rows: int, tmp_path: Path) -> None:
    stills(tmp_path)
    lines = [{**GOOD, "seed": seed, "image": ["half.jpg", "none.jpg"][seed % 2]} for seed in range(rows)]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found, faults = look(tmp_path)
    assert found == Survey(rows, 0, rows, 0.0)
    assert [fault.row for fault in faults] == list(range(1, rows + 1))
    assert {replace(fault, row=0) for fault in faults[::2]} == {replace(fault, row=0) for fault in faults[:1]}
