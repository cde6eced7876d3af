"""How many product files one job enters: a still to mp4 on the command line and over HTTP, and a clip into training.

    python -m benchmarks.files_entered [cli] [http] [training] [--checkout DIR] [--list] [--json FILE]

A file is entered when one of its functions is called, other than by an import; how many are imported is printed beside
it. Each path runs `stillmotion` in a process of its own, whose calls on all threads are watched by a profile function:

    cli       generate docs/assets/still.jpg, from the start of the process to its end
    http      serve, from a request's arrival until its video was downloaded; start and stop are left out
    training  train mini-image-to-video-long for one iteration on a dataset of one clip, from the shipped weights

With --checkout another state of the code is measured by the same rules. Steps are few: their number changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Final

PACKAGES: Final = ("model", "training", "export", "serving", "cli", "client/src/stillmotion")
STILL: Final = "docs/assets/still.jpg"
MODEL: Final = "model/zoo/mini-image-to-video"
CLIP_FRAMES: Final = 40
TRAINING: Final = {
    "optim.iterations": 1,
    "optim.batch": 1,
    "optim.log_every": 1,
    "data.moves": 0,
    "vae": MODEL,
    "image_encoder": MODEL,
    "init": MODEL,
}
"""Settings of the recipe: one iteration, on film alone, and the shipped checkpoint's networks in place of runs."""
Entered = dict[str, list[str]]
"""What one path entered: the files, by `entered` and `imported`."""


def product_path(filename: str, checkout: Path) -> str | None:
    """A code object's file as a path in the checkout, if it is a product file."""
    try:
        path = Path(filename).relative_to(checkout).as_posix()
    except ValueError:
        return None
    return path if path.startswith(tuple(f"{package}/" for package in PACKAGES)) else None


class Watch:
    """Notes the product files whose functions are called, on the thread that makes it and on all that begin later."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self._paths: dict[str, str | None] = {}
        self._entered: set[str] = set()

    def begin(self) -> None:
        """Watch from now on."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def forget(self) -> None:
        """Begin the count anew."""
        self._entered.clear()

    def found(self) -> Entered:
        """What was entered since the last `forget`, and every product file imported by now."""
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        imported = {path for file in files if file and (path := product_path(file, self._checkout))}
        return {"entered": sorted(self._entered.copy()), "imported": sorted(imported)}

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if not code.co_flags & 0x01:  # CO_OPTIMIZED: a function; a module's or a class's body is executed by its import
            return
        filename = code.co_filename
        if filename not in self._paths:
            self._paths[filename] = product_path(filename, self._checkout)
        path = self._paths[filename]
        if path is not None and path not in self._entered and not self._is_importing(frame.f_back):
            self._entered.add(path)

    def _is_importing(self, frame: FrameType | None) -> bool:
        """Whether a product file's own top level is on the stack: what an import calls is no part of the job."""
        while frame is not None:
            if frame.f_code.co_name == "<module>" and product_path(frame.f_code.co_filename, self._checkout):
                return True
            frame = frame.f_back
        return False


def run_watched(checkout: Path, report: Path, arguments: list[str]) -> None:
    """In the child: run the command with a watch on; write what it entered at its end, or at SIGUSR2.

    SIGUSR1 begins the count anew. Both signals are answered by a file beside the report.
    """
    sys.path[0:1] = [str(checkout), str(checkout / "client/src")]
    watch = Watch(checkout)

    def write() -> None:
        part = report.with_suffix(".part")
        part.write_text(json.dumps(watch.found()))
        part.replace(report)

    def forget(*_: object) -> None:
        watch.forget()
        report.with_suffix(".ready").touch()

    signal.signal(signal.SIGUSR1, forget)
    signal.signal(signal.SIGUSR2, lambda *_: write())
    watch.begin()
    module, _, name = _entry_point(checkout).partition(":")
    command = getattr(import_module(module), name)
    if product_path(str(import_module(module).__file__), checkout) is None:
        raise SystemExit(f"{module} was not imported from {checkout}")
    sys.argv = ["stillmotion", *arguments]
    try:
        command()
    except SystemExit as ending:
        if ending.code:
            raise
    finally:
        sys.setprofile(None)
        if not report.exists():
            write()


def _entry_point(checkout: Path) -> str:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    return str(project["project"]["scripts"]["stillmotion"])


def _child(checkout: Path, report: Path, arguments: list[str]) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--child", str(checkout), str(report), *arguments]


def _finished(command: list[str], checkout: Path) -> None:
    done = subprocess.run(command, cwd=checkout, env=_environment(checkout), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _environment(checkout: Path) -> dict[str, str]:
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    fixed["STILLMOTION_CHECKPOINT_EVERY_S"] = "0.1"  # a state is stored however fast the machine is
    return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(map(str, (checkout, checkout / "client/src")))}


def through_cli(checkout: Path, folder: Path) -> Entered:
    """`stillmotion generate` of one still."""
    report, video = folder / "cli.json", folder / "clip.mp4"
    _finished(_child(checkout, report, ["generate", STILL, "-o", str(video), "--seed", "7", "--steps", "2"]), checkout)
    _check_video(video.read_bytes())
    return _read(report)


def through_http(checkout: Path, folder: Path) -> Entered:
    """One still by POST, its job, and its video by GET; by plain HTTP, so that the SDK's files do not count."""
    report, output, errors = folder / "http.json", folder / "stdout", folder / "stderr"
    store = ["--database-url", f"sqlite:///{folder}/jobs.db", "--artifacts", str(folder / "artifacts")]
    arguments = ["serve", "--port", "0", "--model", str(checkout / MODEL), *store]
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        server = subprocess.Popen(
            _child(checkout, report, arguments),
            cwd=checkout,
            env=_environment(checkout),
            stdout=stdout,
            stderr=stderr,
        )
    try:
        _wait(lambda: "ready:" in output.read_text(), server, errors)
        url = output.read_text().split()[1]
        server.send_signal(signal.SIGUSR1)
        _wait(report.with_suffix(".ready").exists, server, errors)
        still = {"image": {"data": b64encode((checkout / STILL).read_bytes()).decode()}}
        job = _json(f"{url}/generate/image-to-video", {**still, "seed": 7, "num_inference_steps": 2})
        while job["status"] in ("queued", "in_progress"):
            time.sleep(0.2)
            job = _json(f"{url}/jobs/{job['id']}")
        if job["status"] != "completed":
            raise SystemExit(f"the job ended {job['status']}: {job.get('error')}")
        with urllib.request.urlopen(f"{url}/jobs/{job['id']}/content", timeout=60) as answer:
            _check_video(answer.read())
        server.send_signal(signal.SIGUSR2)
        _wait(report.exists, server, errors)
    finally:
        server.terminate()
        server.wait(60)
    return _read(report)


def _json(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _wait(ready: Callable[[], bool], server: subprocess.Popen[bytes], errors: Path) -> None:
    while not ready():
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}:\n{errors.read_text()}")
        time.sleep(0.05)


def through_training(checkout: Path, folder: Path) -> Entered:
    """One iteration on one clip."""
    report, data, runs = folder / "training.json", folder / "data", folder / "runs"
    write_dataset(data)
    settings = [word for name, value in TRAINING.items() for word in ("--set", f"{name}={_setting(value, checkout)}")]
    arguments = ["train", "mini-image-to-video-long", "--data", str(data), "--out", str(runs), *settings]
    _finished(_child(checkout, report, arguments), checkout)
    return _read(report)


def _setting(value: object, checkout: Path) -> object:
    return checkout / MODEL if value == MODEL else value


def write_dataset(folder: Path) -> None:
    """A dataset of one clip in the starter dataset's layout: a gradient that moves over a second and a half."""
    import av
    import numpy as np

    (folder / "shots").mkdir(parents=True)
    path = folder / "shots" / "one.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 448, 256, "yuv420p"
        ramp = np.linspace(0, 255, 448)[None, :, None] + np.linspace(0, 90, 256)[:, None, None] + np.array([0, 60, 120])
        for index in range(CLIP_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(ramp, 4 * index, 1).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    item = {
        "id": "one",
        "kind": "shot",
        "file": "shots/one.mp4",
        "source": "a gradient",
        "start_s": 0.0,
        "end_s": CLIP_FRAMES / 24,
        "num_frames": CLIP_FRAMES,
        "fps": 24.0,
        "split": "train",
    }
    lines = json.dumps(item) + "\n"
    (folder / "items.jsonl").write_text(lines)
    manifest = {"name": "one clip", "items_sha256": hashlib.sha256(lines.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _check_video(data: bytes) -> None:
    if data[4:8] != b"ftyp":
        raise SystemExit("what was made is no mp4")


def _read(report: Path) -> Entered:
    found: Entered = json.loads(report.read_text())
    return found


PATHS: Final[dict[str, Callable[[Path, Path], Entered]]] = {
    "cli": through_cli,
    "http": through_http,
    "training": through_training,
}


def measure(paths: Iterable[str], checkout: Path) -> dict[str, Entered]:
    """Walk each path in a process of its own."""
    found = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            found[path] = PATHS[path](checkout, Path(folder).resolve())
    return found


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        run_watched(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)}; all if none is named")
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--list", action="store_true", help="name the files")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    options = parser.parse_args()
    if unknown := set(options.paths) - set(PATHS):
        parser.error(f"no path is called {', '.join(sorted(unknown))}; there are: {', '.join(PATHS)}")
    found = measure(options.paths or PATHS, options.checkout.resolve())
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    for path, files in found.items():
        print(f"{path:9} enters {len(files['entered']):3} files, imports {len(files['imported'])}")
        if options.list:
            print("".join(f"    {file}\n" for file in files["entered"]), end="")


if __name__ == "__main__":
    main()
