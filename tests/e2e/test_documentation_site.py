"""The documentation site builds without a warning, and its pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("material")

LOADED = re.compile(r"""<(?:script|img|link|source|iframe)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
KNOWN = ("index.html", "reference/http.html", "reference/cli.html", "reference/sdk.html", "reference/settings.html")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """A broken link between pages, to a heading or to a file of the repository is a warning, and fails the build."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for name in KNOWN:
        assert (tmp_path / name).is_file(), name
    http = (tmp_path / "reference" / "http.html").read_text()
    assert "POST /generate/image-to-video" in http and "motion_bucket_id" in http
    assert "stillmotion serve" in (tmp_path / "reference" / "cli.html").read_text()
    assert "download_to" in (tmp_path / "reference" / "sdk.html").read_text()
    for page in tmp_path.rglob("*.html"):
        assert not LOADED.findall(page.read_text()), page
