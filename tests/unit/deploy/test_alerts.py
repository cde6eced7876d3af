"""docs/operations.md has a word on every alert, and on no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.deploy.support import documents


def test_the_page_explains_every_alert(root: Path) -> None:
    (rules,) = documents(root / "deploy" / "alerts.yaml")
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    page = (root / "docs" / "operations.md").read_text()
    told = re.findall(r"^\| `(Stillmotion\w+)` \| ([^|]+) \| ([^|]+) \|$", page, flags=re.MULTILINE)
    assert {name for name, *_ in told} == names
    assert len(told) == len(names)
    assert all(len(text.strip()) > 20 for _, *texts in told for text in texts)
