"""The gateway starts, and answers, without torch ever being imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import asyncio, sys
from pathlib import Path
import httpx2
from tests.contract.support import running
from tests.support.fakes import ScriptedEngine

async def main():
    async with running(Path(sys.argv[1]), ScriptedEngine()) as app:
        job = await app.submit()
        await app.until(job.id, "completed")
        assert (await app.client.get(job.urls.content)).status_code == 200

asyncio.run(main())
heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "diffusers", "transformers", "cv2", "av"}
sys.exit(f"imported {heavy}" if heavy else 0)
"""


@pytest.mark.slow
def test_serving_a_job_imports_no_torch(tmp_path: Path, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
