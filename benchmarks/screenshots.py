"""Screenshots of the playground's views, desktop and phone, in the light and the dark theme.

    python -m benchmarks.screenshots [--out docs/assets/playground] [--png FOLDER] [--only form result ...] [--axe]

Serves the shipped checkpoints on a free port from a temporary folder, makes a few videos, and writes
VIEW-SIZE-THEME.webp, each below 150 KB; `--png` writes the same pictures as PNG too. Needs Chromium and playwright
(`make browser`, extra [dev]). `--axe` also runs axe on every view, prints its serious findings, and ends with 1 if
there are some. Takes minutes on two cores: nine videos are sampled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from benchmarks.entry import run_main

ROOT: Final = Path(__file__).resolve().parents[1]
SIZES: Final = {"desktop": (1280, 900), "phone": (390, 844)}
THEMES: Final = ("light", "dark")
LARGEST: Final = 150_000
"""Bytes of one picture."""
PATIENCE_MS: Final = 300_000
HALF_WAY: Final = """document.querySelectorAll("video").forEach((one) => {
    one.pause();
    if (one.duration) one.currentTime = one.duration / 2;
})"""
Take = Callable[[str], None]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`stillmotion serve` of the shipped checkpoints, with its jobs below the folder; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "cli", "serve", "--port", str(port), "--artifacts", str(folder / "artifacts")]
    command += ["--database-url", f"sqlite:///{folder}/jobs.db"]
    environment = {**os.environ, "STILLMOTION_PROGRESS_INTERVAL_S": "0", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        while "ready:" not in (folder / "output.txt").read_text():
            if process.poll() is not None:
                raise RuntimeError((folder / "output.txt").read_text())
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)  # its folder goes too, so there is nothing to finish
        process.wait()


def make_key(folder: Path, name: str, *options: str) -> str:
    """A new API key of the service whose jobs are in the folder."""
    command = [sys.executable, "-m", "cli", "keys", "create", name, "--database-url", f"sqlite:///{folder}/jobs.db"]
    return subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[0]


def wait_result(page: Any) -> None:
    """Until the video can be seen."""
    page.wait_for_selector("#result:not([hidden])")
    page.wait_for_function("document.getElementById('video').readyState >= 2")


def make_videos(page: Any, url: str) -> dict[str, str]:
    """A video of each task and a second seed of the first, by clicks on the examples; returns links to the jobs."""
    links = {}
    for task in ("multi-view", "frame-interpolation", "text-to-video", "image-to-video"):
        page.goto(url)
        page.click(f"#tab-{task}")
        page.fill("#f-seed", "7")
        page.locator("#example-tiles .tile").first.click()
        wait_result(page)
        links[task] = page.url
    for seed, motion in ((11, 60), (12, 200)):
        page.fill("#f-seed", str(seed))
        page.locator("#f-motion_bucket_id").fill(str(motion))
        page.click("#go")
        page.wait_for_selector("#running:not([hidden])")
        wait_result(page)
    return links


def start_long_job(page: Any, url: str) -> str:
    """A job of many steps, to be looked at while it runs; returns its link."""
    page.goto(url)
    page.locator("#more").evaluate("one => { one.open = true; }")
    page.locator("#f-num_inference_steps").evaluate("one => { one.max = 200; one.value = 120; }")
    page.locator("#example-tiles .tile").nth(2).click()
    page.wait_for_selector("#coming:not([hidden])")
    return str(page.url)


def settle(page: Any) -> None:
    """Until pictures are there; videos stand at their middle, so that a picture does not depend on the moment."""
    page.wait_for_timeout(600)
    page.evaluate(HALF_WAY)
    page.wait_for_timeout(400)


def fresh(page: Any, url: str) -> None:
    """The page anew: a change of the part behind # alone loads nothing."""
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector("[role=tab]")
    page.wait_for_selector("#jobs li")


def form_views(page: Any, url: str, take: Take) -> None:
    """The first view, each task's form, all settings, and a fault beside its field."""
    fresh(page, url)
    take("first")
    page.set_input_files("#f-image", ROOT / "docs" / "assets" / "still.jpg")
    page.locator("#more").evaluate("one => { one.open = true; }")
    page.select_option("#f-resize_mode", "crop")
    page.fill("#f-width", "96")
    page.fill("#f-height", "96")
    page.evaluate("scrollTo(0, 0)")
    take("crop")
    page.locator("#more").scroll_into_view_if_needed()
    page.fill("#f-width", "65")
    page.click("#go")
    page.wait_for_selector("#p-width:not([hidden])")
    take("fault")
    for task in ("text-to-video", "frame-interpolation", "multi-view"):
        fresh(page, url)
        page.click(f"#tab-{task}")
        take(task)


def job_views(page: Any, links: dict[str, str], take: Take) -> None:
    """A finished video, its manifest, the gallery and two jobs side by side."""
    fresh(page, links["image-to-video"])
    wait_result(page)
    page.locator("#stage").scroll_into_view_if_needed()
    take("result")
    page.click("#show-manifest")
    page.wait_for_selector("#manifest:not([hidden])")
    page.locator("#manifest").scroll_into_view_if_needed()
    take("manifest")
    page.locator(".gallery").scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.completed img')].every((one) => one.naturalWidth)")
    take("gallery")
    for seed in (11, 12):
        page.get_by_label(f"Mark seed {seed} to compare").first.check()
    page.click("#compare-go")
    page.wait_for_selector("#compare:not([hidden]) video")
    page.locator("#stage").scroll_into_view_if_needed()
    take("compare")


def running_view(page: Any, link: str, take: Take) -> None:
    """A job on its way, with a preview of what is coming."""
    page.goto(link)
    page.wait_for_selector("#coming:not([hidden])")
    page.locator("#stage").scroll_into_view_if_needed()
    take("running")


def key_views(page: Any, url: str, key: str, take: Take) -> None:
    """A service that wants a key, and the service's state as an operator sees it."""
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector("#access[open]")
    page.locator("#access").scroll_into_view_if_needed()
    take("key")
    page.fill("#key", key)
    page.locator("#key").dispatch_event("change")
    page.wait_for_selector("[role=tab]")
    page.click("#open-admin")
    page.wait_for_selector("#admin table")
    page.locator("#stage").scroll_into_view_if_needed()
    take("service")


class Album:
    """Takes pictures of pages, one context for each size and theme.

    Args:
        out: where the WebP files go.
        png: where the same go as PNG, if anywhere.
        only: views to take; empty for all.
        axe: runs on every view, if given.
    """

    def __init__(self, browser: Any, out: Path, png: Path | None, only: list[str], axe: Any = None) -> None:
        self.browser, self.out, self.png, self.only, self.axe = browser, out, png, only, axe
        self.views, self.findings = 0, list[str]()
        for folder in filter(None, (out, png)):
            folder.mkdir(parents=True, exist_ok=True)

    def each(self, views: Callable[[Any, Take], None]) -> None:
        """The views in each size and theme."""
        for size, (width, height) in SIZES.items():
            for theme in THEMES:
                context = self.browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=theme,
                    bypass_csp=self.axe is not None,  # axe is a script of none of our files
                )
                context.set_default_timeout(PATIENCE_MS)
                page = context.new_page()
                views(page, lambda view, page=page, name=f"{size}-{theme}": self.take(page, view, name))  # type: ignore[misc]
                context.close()

    def take(self, page: Any, view: str, name: str) -> None:
        """One picture of what is to be seen now."""
        if self.only and view not in self.only:
            return
        settle(page)
        picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
        path = self.out / f"{view}-{name}.webp"
        picture.save(path, quality=70, method=6)
        if path.stat().st_size > LARGEST:
            raise RuntimeError(f"{path} has {path.stat().st_size:,} bytes, more than {LARGEST:,}")
        if self.png:
            picture.save(self.png / f"{view}-{name}.png")
        print(f"{path}: {path.stat().st_size:,} bytes", flush=True)
        if self.axe:
            self.check(page, f"{view}-{name}")

    def check(self, page: Any, name: str) -> None:
        """Serious findings of axe in what is to be seen now."""
        self.views += 1
        for one in self.axe.run(page).response["violations"]:
            if one["impact"] in {"serious", "critical"}:
                self.findings.append(f"{name}: {one['id']}: {one['nodes'][0]['html'][:200]}")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and take the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets" / "playground")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--axe", action="store_true")
    options = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        links = make_videos(page, url)
        album = Album(browser, options.out, options.png, options.only, axe_runner() if options.axe else None)
        album.each(lambda page, take: form_views(page, url, take))
        album.each(lambda page, take: job_views(page, links, take))
        running = start_long_job(page, url)
        album.each(lambda page, take: running_view(page, running, take))
        key = make_key(Path(name), "operator", "--operator")
        make_key(Path(name), "studio", "--weight", "2", "--per-minute", "60", "--max-jobs", "20")
        time.sleep(3)  # a running service notices keys within two seconds
        album.each(lambda page, take: key_views(page, url, key, take))
        browser.close()
    if options.axe:
        print(*album.findings, f"axe: {album.views} views, {len(album.findings)} serious findings", sep="\n")
        if album.findings:
            raise SystemExit(1)


def axe_runner() -> Any:
    """axe-core for pages of playwright (extra [dev])."""
    from axe_playwright_python.sync_playwright import Axe

    return Axe()


if __name__ == "__main__":
    run_main(main)
