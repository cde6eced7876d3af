"""Admission over HTTP: what cannot be done in time is refused at once, and 429 says honestly when to come again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.support import error_of, running
from tests.support.fakes import ScriptedEngine


async def test_an_infeasible_deadline_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True, estimate_s=20.0)) as app:
        answer = await app.post(deadline_s=5)
        error = error_of(answer)
        assert (answer.status_code, error.code, error.param) == (409, "deadline_infeasible", "deadline_s")
        assert "20 s" in error.message
        assert await app.stored() == (0, [])
        assert (await app.post(deadline_s=25)).status_code == 202
        second = await app.post(deadline_s=25)
        assert second.status_code == 409, "the first is in its way now"
        assert (await app.post(deadline_s=60)).status_code == 202


async def test_a_higher_class_has_less_before_it(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True, estimate_s=20.0)) as app:
        first = await app.submit()
        await app.until(first.id, "in_progress")
        for _ in range(3):
            await app.submit(priority="low")
        assert (await app.post(deadline_s=45, priority="low")).status_code == 409
        assert (await app.post(deadline_s=45, priority="normal")).status_code == 202


async def test_an_unknown_duration_is_let_in(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True, estimate_s=None)) as app:
        assert (await app.post(deadline_s=0.001)).status_code == 202


@pytest.mark.parametrize("deadline", ["0", "-1", "nan", "inf", "soon", "9999999999"])
async def test_what_is_no_deadline_is_refused(tmp_path: Path, deadline: str) -> None:
    async with running(tmp_path) as app:
        answer = await app.post(deadline_s=deadline)
        assert (answer.status_code, error_of(answer).param) == (422, "deadline_s")


async def test_a_full_queue_says_when_the_running_job_ends(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True, estimate_s=42.0), queue_limit=2) as app:
        first = await app.submit()
        await app.until(first.id, "in_progress")
        for _ in range(2):
            await app.submit()
        answer = await app.post()
        assert (answer.status_code, error_of(answer).code) == (429, "queue_full")
        assert 35 <= int(answer.headers["retry-after"]) <= 42, "the first needs 42 s, less what is done of it"
        assert answer.headers["retry-after"] in error_of(answer).message
