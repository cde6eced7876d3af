"""The playground in a real browser: every task to a finished video, faults, permalinks, a restart, a phone, axe."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from model.presets import NoiseRange, preset
from model.tasks import TASKS, task
from model.testing import build_random
from tests.conftest import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
SLOW = pytest.mark.slow
"""For `make test-slow`; the default tests make each task's video, cancel one, and see faults beside their field."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.timeout(600),  # seconds on a busy machine
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PLAYS = """() => new Promise((done) => {
    const video = document.getElementById("video");
    const check = () => (video.videoWidth > 0 ? done(true) : setTimeout(check, 50));
    check();
})"""
PATIENCE_MS = 120_000
"""For a page to show what it should, on a busy machine."""
PROVOKED = {
    "test_faults_stand_beside_their_field": "status of 4",
    "test_a_server_killed_and_back": "net::ERR|status of 503",
}
"""What a browser may write to its console in a test that provokes it: Chromium notes every answer from 400 up."""


@dataclass
class Served:
    """`stillmotion serve` of the four tasks' tiny checkpoints, on a port that stays over a restart."""

    folder: Path
    models: list[Path]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        where = ["--database-url", f"sqlite:///{self.folder}/jobs.db", "--artifacts", str(self.folder / "artifacts")]
        named = [part for model in self.models for part in ("--model", str(model))]
        command = [sys.executable, "-m", "cli", "serve", *named, "--port", str(self.port), *where]
        environment = {**os.environ, "STILLMOTION_PROGRESS_INTERVAL_S": "0", **self.environment}
        with (self.folder / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        while True:
            assert self._process.poll() is None, (self.folder / "output.txt").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)

    def wait_ready(self) -> None:
        """Until the engine is warm, which takes minutes where much else runs; the module's time limit ends it."""
        while b'"ready"' not in urllib.request.urlopen(f"{self.url}/health", timeout=60).read():
            time.sleep(0.5)

    def kill(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("playground")
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    models = [folder / name for name in TASKS]
    for number, path in enumerate(models):
        build_random(path, sized, task(path.name), seed=number)
    running = Served(folder, models, free_port())
    running.start()
    running.wait_ready()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: sync_api.Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[sync_api.Page]:
    """The playground, opened; any error on its console and any request elsewhere fails the test."""
    provoked = PROVOKED.get(request.node.originalname)

    def note(message: sync_api.ConsoleMessage) -> None:
        if message.type == "error" and not (provoked and re.search(provoked, message.text)):
            faults.append(message.text)

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", note)
    page.on("request", lambda request: faults.append(request.url) if is_elsewhere(request.url, served) else None)
    page.goto(served.url)
    page.wait_for_selector("[role=tab]")
    yield page
    context.close()
    assert not faults


def is_elsewhere(url: str, served: Served) -> bool:
    return not url.startswith((served.url, "blob:", "data:"))


def still(folder: Path, name: str = "still.png") -> Path:
    path = folder / name
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path)
    return path


def choose(page: sync_api.Page, name: str, folder: Path) -> None:
    page.click(f"#tab-{name}")
    for picture in TASKS[name].pictures:
        page.set_input_files(f"#f-{picture}", still(folder, f"{picture}.png"))
    if name == "text-to-video":
        page.fill("#f-prompt", "a grey hill")
    page.locator("#more").evaluate("one => { one.open = true; }")
    page.fill("#f-num_inference_steps", "2")


@pytest.mark.parametrize(
    "name",
    list(TASKS),
)
def test_each_task_to_a_finished_video(page: sync_api.Page, name: str, tmp_path: Path) -> None:
    choose(page, name, tmp_path)
    page.fill("#f-seed", "7")
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")
    assert "seed 7" in page.inner_text("#facts")
    assert page.evaluate(PLAYS)
    expect(page.locator("#jobs .completed").first).to_be_visible()
    page.click("#show-manifest")
    expect(page.locator("#manifest")).to_contain_text(f'"task": "{name}"')


@SLOW
def test_an_example_is_a_click(page: sync_api.Page) -> None:
    page.click("#tab-image-to-video")
    page.locator("#more").evaluate("one => { one.open = true; }")
    page.fill("#f-num_inference_steps", "1")
    page.get_by_role("button", name="Dandelions").click()
    page.wait_for_selector("#result:not([hidden])")
    assert page.evaluate(PLAYS)


@SLOW
def test_the_state_of_the_service(page: sync_api.Page) -> None:
    page.click("#open-admin")
    page.wait_for_selector("#admin table")
    shown = page.inner_text("#admin")
    assert "Jobs waiting" in shown and "multi-view" in shown and "No API keys" in shown


@SLOW
def test_a_service_that_warms_up_is_no_error_on_the_console(browser: sync_api.Browser, served: Served) -> None:
    """Two looks find it not ready; the contract tests hold that /health is a 200 then."""
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    looks: list[str] = []

    def warming(route: sync_api.Route) -> None:
        looks.append(route.request.url)
        status = "ready" if len(looks) > 2 else "not_ready"
        route.fulfill(json={"status": status, "detail": None if status == "ready" else "the engine is not warm (yet)"})

    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda one: errors.append(one.url) if "/health/ready" in one.url else None)
    page.route("**/health", warming)
    page.goto(served.url)
    expect(page.locator("#service")).to_contain_text("getting ready")
    expect(page.locator("#service")).to_contain_text("become a short video")
    assert len(looks) == 3 and not errors
    context.close()


@SLOW
def test_a_permalink_a_reload_and_reused_settings(page: sync_api.Page, tmp_path: Path) -> None:
    choose(page, "image-to-video", tmp_path)
    page.fill("#f-seed", "11")
    page.locator("#f-motion_bucket_id").fill("40")
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")
    assert re.search(r"#job=\w+", page.url)
    page.reload()
    page.wait_for_selector("#result:not([hidden])")
    assert "seed 11" in page.inner_text("#facts")
    page.click("#reuse")
    assert page.input_value("#f-seed") == "11"
    assert page.input_value("#f-motion_bucket_id") == "40"
    assert "little moves" in page.inner_text("output[for=f-motion_bucket_id]")


def test_cancel(page: sync_api.Page, tmp_path: Path) -> None:
    choose(page, "image-to-video", tmp_path)
    page.fill("#f-num_inference_steps", "50")
    page.locator("#f-num_inference_steps").evaluate("one => { one.max = 200; one.value = 200; }")
    page.click("#go")
    page.wait_for_selector("#running:not([hidden])")
    page.evaluate("document.getElementById('stop').click()")
    expect(page.locator("#problem")).to_have_text("Cancelled.")


def test_faults_stand_beside_their_field(page: sync_api.Page, tmp_path: Path) -> None:
    page.click("#tab-image-to-video")
    page.click("#go")
    assert "Choose a picture" in page.inner_text("#p-image")
    wrong = tmp_path / "notes.png"
    wrong.write_text("this is no picture")
    page.set_input_files("#f-image", wrong)
    page.click("#go")
    expect(page.locator("#p-image")).to_contain_text("no picture")
    page.set_input_files("#f-image", still(tmp_path))
    page.locator("#more").evaluate("one => { one.open = true; }")
    page.fill("#f-width", "65")
    page.click("#go")
    expect(page.locator("#p-width")).to_be_visible()


@SLOW
def test_a_dropped_mp4_gives_its_settings(page: sync_api.Page, tmp_path: Path) -> None:
    choose(page, "image-to-video", tmp_path)
    page.fill("#f-seed", "23")
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")
    page.evaluate(
        """async () => {
            const id = new URLSearchParams(location.hash.slice(1)).get("job");
            const data = await (await fetch(`/jobs/${id}/content`)).blob();
            const transfer = new DataTransfer();
            transfer.items.add(new File([data], "mine.mp4", { type: "video/mp4" }));
            document.getElementById("f-seed").value = "";
            const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true });
            document.getElementById("stage").dispatchEvent(drop);
        }"""
    )
    expect(page.locator("#facts")).to_contain_text("mine.mp4")
    assert page.input_value("#f-seed") == "23"
    expect(page.locator("#manifest")).to_contain_text('"format": "stillmotion-manifest/1"')


@SLOW
def test_two_jobs_side_by_side(page: sync_api.Page, tmp_path: Path) -> None:
    for seed in ("31", "32"):
        choose(page, "image-to-video", tmp_path)
        page.fill("#f-seed", seed)
        page.click("#go")
        expect(page.locator("#facts")).to_contain_text(f"seed {seed}")
    for seed in ("31", "32"):
        page.get_by_label(f"Mark seed {seed} to compare").first.check()
    page.click("#compare-go")
    page.wait_for_selector("#compare:not([hidden])")
    assert page.locator("#compare video").count() == 2
    assert "seed 31" in page.inner_text("#compare")


@SLOW
def test_a_server_killed_and_back(page: sync_api.Page, served: Served, tmp_path: Path) -> None:
    choose(page, "image-to-video", tmp_path)
    page.fill("#f-num_inference_steps", "50")
    page.fill("#f-seed", "5")
    page.click("#go")
    page.wait_for_selector("#running:not([hidden])")
    served.kill()
    expect(page.locator("#phase")).to_contain_text("connection is lost")
    served.start()
    page.wait_for_selector("#result:not([hidden])")
    assert "seed 5" in page.inner_text("#facts")


@SLOW
def test_tabs_by_keyboard(page: sync_api.Page) -> None:
    page.focus("[role=tab][aria-selected=true]")
    before = page.get_attribute("[role=tab][aria-selected=true]", "id")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("[role=tab][aria-selected=true]", "id") != before
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"


@SLOW
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_axe_and_the_width_of_a_phone(
    browser: sync_api.Browser, served: Served, scheme: str, size: tuple[int, int]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, bypass_csp=True)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("[role=tab]")
    page.locator("#more").evaluate("one => { one.open = true; }")
    found = axe.run(page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in {"serious", "critical"}]
    assert not serious
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    context.close()


@SLOW
def test_the_first_view_is_small(browser: sync_api.Browser, served: Served) -> None:
    """In kilobytes as transferred: nothing that the first view does not need."""
    context = browser.new_context()
    page = context.new_page()
    sizes: list[int] = []
    page.on("response", lambda response: sizes.append(len(response.body())))
    page.goto(served.url)
    page.wait_for_selector("[role=tab]")
    page.wait_for_load_state("networkidle")
    assert sum(sizes) < 300_000
    context.close()
