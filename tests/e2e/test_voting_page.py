"""The voting page of a calibration in a real browser: the still in question, votes by key and by click, axe."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from training.curation.calibrate.page import VotingServer
from training.curation.calibrate.pairs import plan_pairs
from training.curation.calibrate.prepare import CalibrationPlan, write_clip, write_still
from training.curation.calibrate.votes import read_votes

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.timeout(600),  # seconds on a busy machine
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"),
]
PATIENCE_MS = 120_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VotingServer]:
    """A calibration of one axis, two subsets and one still."""
    pairs = plan_pairs(["a"], (0, 50), ["x"])
    plan = CalibrationPlan("d", ("a",), (0, 50), "r", tuple(pairs))
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan)))
    frames = np.full((4, 48, 64, 3), 90, np.uint8)
    write_still(tmp_path, "x", frames[0])
    for name in {one for pair in pairs for one in (pair.left, pair.right)}:
        write_clip(tmp_path, name, frames)
    with VotingServer(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_votes_by_key_and_by_click_beside_the_still(server: VotingServer) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        page.fill("#voter", "ann 1")  # a 1 in a name is no vote
        page.keyboard.press("Enter")
        page.wait_for_selector("#still:not([hidden]) img")
        page.wait_for_function("document.querySelector('#still img').naturalWidth === 64")
        serious = [
            one["id"] for one in axe.run(page).response["violations"] if one["impact"] in {"serious", "critical"}
        ]
        page.keyboard.press("ArrowRight")
        expect(page.locator("#state")).to_have_text("1 answered")
        page.click("[data-side=left]")
        expect(page.locator("#question")).to_have_text("That was all. Thank you.")
        expect(page.locator("#still")).to_be_hidden()
        browser.close()
    assert not serious and not faults
    votes = read_votes(server.folder / "votes.jsonl")
    assert [(vote.side, vote.voter) for vote in votes] == [("right", "ann 1"), ("left", "ann 1")]
