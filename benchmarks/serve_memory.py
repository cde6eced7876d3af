"""Resident memory of `serve` and of Triton's stub, with torch and with exported graphs, at the first and second start.

    python -m benchmarks.serve_memory EXPORT [--model mini-image-to-video] [--triton]

EXPORT is the folder REPOSITORY/NAME that `stillmotion export NAME --backend onnx --out REPOSITORY` wrote. A first start
measures every network (serving.engine.warmup), a second one reads what the first one stored. Each line is a process of
its own: memory once it is ready, its peak until then, and after one video. The last line is the ratio that is promised:
the export takes at most one and a half times what torch takes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
from PIL import Image

from benchmarks.entry import run_main
from export.pipeline import install_checkpoint
from export.triton_config import Instances
from model.errors import StillmotionError
from model.sources.source import find
from serving.triton import server as wheel
from serving.triton.server import Ports, TritonServer, from_wheel

_START_S: Final = 1800.0
_MIB: Final = 2**20
_STUB: Final = "triton_python_backend_stub"
_LIMIT: Final = 1.5


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _peak_mib(pid: int) -> float:
    """The most that a process has held in memory, by the kernel's count (Linux)."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM"))
    return float(line.split()[1]) / 1024


def _held(process: psutil.Process) -> dict[str, float]:
    return {"rss_mib": round(process.memory_info().rss / _MIB), "peak_mib": round(_peak_mib(process.pid))}


async def _serve(model: Path, work: Path) -> dict[str, Any]:
    """One start of `serve`: memory when ready, the peak until then, and after a video."""
    port = _free_port()
    arguments = ["serve", "--model", f"m={model}", "--port", str(port), "--threads", "1"]
    arguments += ["--database-url", f"sqlite:///{work}/jobs.db", "--artifacts", str(work / "files")]
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *arguments, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            await _until_ready(client, child)
            seconds = time.monotonic() - began
            process = psutil.Process(child.pid)
            held = _held(process)
            still = io.BytesIO()
            Image.new("RGB", (224, 128), "teal").save(still, "PNG")
            files = {"image": ("x.png", still.getvalue(), "image/png")}
            job = (await client.post("/generate/image-to-video", files=files)).json()
            while job["status"] not in ("completed", "failed", "cancelled"):
                await asyncio.sleep(0.5)
                job = (await client.get(job["urls"]["self"])).json()
            after = _held(process)
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    return {**held, "after_video_mib": after["rss_mib"], "video": job["status"], "ready_s": round(seconds, 1)}


async def _until_ready(client: httpx2.AsyncClient, child: asyncio.subprocess.Process) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            if (await client.get("/health/ready")).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        if child.returncode is not None or time.monotonic() > until:
            raise StillmotionError("the server did not start; its words are above")
        await asyncio.sleep(0.2)


def _stub(repository: Path, work: Path) -> dict[str, Any]:
    """One start of a Triton server: its stub's memory when ready, and the peak until then."""
    ports = Ports(_free_port(), _free_port(), 0)
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (work / "triton.txt").open("wb") as log:
        server = TritonServer(from_wheel(wheel.fetch_server()), repository, ports, (), environment, log)
        try:
            server.start()
            server.wait_ready(_START_S)
            stubs = [one for one in psutil.Process().children(recursive=True) if _STUB in " ".join(one.cmdline())]
            if not stubs:
                raise StillmotionError("the Triton server runs no stub")
            return _held(max(stubs, key=lambda one: one.memory_info().rss))
        finally:
            server.kill()


def _measure(backend: str, model: Path, *, triton: bool) -> list[dict[str, Any]]:
    """First and second start with one backend, of a copy that no start has measured yet."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="serve-memory-") as folder:
        work = Path(folder)
        copy = work / "repository" / model.name  # Triton holds a folder to the name in its config.pbtxt
        shutil.copytree(model, copy, ignore=shutil.ignore_patterns("profile.json"))
        if triton and backend == "torch":
            shutil.rmtree(work / "repository")
            parameters = {"threads": "1"}
            install_checkpoint(
                find(f"m={model}"), work / "repository", parameters=parameters, instances=Instances("KIND_CPU")
            )
        for start in ("first", "second"):
            held = _stub(work / "repository", work) if triton else asyncio.run(_serve(copy, work))
            line = {"process": "triton stub" if triton else "serve", "backend": backend, "start": start, **held}
            print(json.dumps(line), flush=True)
            found.append(line)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Memory of serve and of Triton's stub by backend.")
    parser.add_argument("export", type=Path, help="REPOSITORY/NAME of an export for onnxruntime")
    parser.add_argument("--model", default="mini-image-to-video", help="what was exported")
    parser.add_argument("--triton", action="store_true", help="the stub of a Triton server, in place of serve")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch = _measure("torch", find(options.model).path, triton=options.triton)
    graphs = _measure("onnxruntime", options.export, triton=options.triton)
    ratios = {
        one["start"]: round(one["rss_mib"] / other["rss_mib"], 2) for one, other in zip(graphs, torch, strict=True)
    }
    print(json.dumps({"onnxruntime_over_torch": ratios, "limit": _LIMIT}))
    if max(ratios.values()) > _LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
