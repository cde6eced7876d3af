"""Start a Triton server on a model repository, wherever one is found, and end it without losing work. No torch."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from model.errors import StillmotionError
from serving.triton import wheel
from serving.triton.control import empty
from serving.triton.wheel import NoTritonServer

_ENGINES: Final = ("docker", "podman")
_LOOK_S: Final = 0.1
_EXIT_S: Final = 30
"""Seconds Triton waits at its end for what is still in flight."""


class TritonFailed(StillmotionError):
    """The server did not start, or ended by itself."""

    code = "triton_failed"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens; metrics 0 for none."""

    grpc: int = 8001
    http: int = 8003
    metrics: int = 8002
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Of its gRPC service, as clients on this machine reach it."""
        return f"{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.grpc}"

    def arguments(self) -> list[str]:
        """As the server's options."""
        told = [f"--grpc-port={self.grpc}", f"--http-port={self.http}"]
        told += [f"--grpc-address={self.host}", f"--http-address={self.host}"]
        if not self.metrics:
            return [*told, "--allow-metrics=false"]
        return [*told, f"--metrics-port={self.metrics}", f"--metrics-address={self.host}"]


@dataclass(frozen=True, slots=True)
class Found:
    """A server that can be started.

    Args:
        what: for a person.
        program: the command's beginning.
        environment: variables it needs besides this process's.
    """

    what: str
    program: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def installed() -> Found | None:
    """The tritonserver on the path, or where NVIDIA's images have it; None where there is none."""
    place = shutil.which("tritonserver") or shutil.which("/opt/tritonserver/bin/tritonserver")
    return None if place is None else Found(place, (place,))


def in_container(image: str, repository: Path) -> Found | None:
    """A container of an image that holds tritonserver and stillmotion; None where no container engine runs here."""
    for engine in _ENGINES:
        place = shutil.which(engine)
        if place is None or subprocess.run([place, "info"], capture_output=True, check=False).returncode != 0:
            continue
        gpus = ["--gpus", "all"] if shutil.which("nvidia-smi") else []
        mounted = ["-v", f"{repository.resolve()}:{repository.resolve()}"]
        command = [place, "run", "--rm", "--network", "host", "--ipc", "host", *gpus, *mounted]
        return Found(f"{engine}, {image}", (*command, "--entrypoint", "tritonserver", image))
    return None


def from_wheel(folder: Path) -> Found:
    """The server of a folder that serving.triton.wheel laid out, with this Python and all it can import.

    The backend's interpreter finds itself by `python3` on the path, and with it the virtual environment.

    Raises:
        NoTritonServer: it has no backend for this Python.
    """
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": f"{wheel.libraries(folder)}:{sysconfig.get_config_var('LIBDIR') or ''}",
    }
    command = (str(wheel.program(folder)), f"--backend-directory={wheel.backends(folder)}")
    return Found(f"tritonserver of {wheel.PACKAGE} {wheel.VERSION}", command, environment)


@dataclass(slots=True, eq=False)
class TritonServer:
    """A server's process, in explicit model control mode: models are loaded and unloaded while it runs.

    Args:
        found: which server.
        repository: the model repository.
        ports: where it listens.
        models: loaded at the start; empty for all.
        environment: further variables, such as OMP_NUM_THREADS.
        log: where its output goes; this process's own if None.
    """

    found: Found
    repository: Path
    ports: Ports = field(default_factory=Ports)
    models: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: IO[bytes] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in a process group of its own: a terminal's Ctrl-C must not end it before its work is safe."""
        command = [
            *self.found.program,
            f"--model-repository={self.repository.resolve()}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models or ("*",)),
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={_EXIT_S}",
            *self.ports.arguments(),
        ]
        environment = {**os.environ, **self.found.environment, **self.environment}
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def ready(self) -> bool:
        """Whether it serves.

        Raises:
            TritonFailed: it has ended.
        """
        self._check_running()
        host = self.ports.url.rpartition(":")[0]
        try:
            with urllib.request.urlopen(f"http://{host}:{self.ports.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout_s: float) -> None:
        """Come back once it serves.

        Raises:
            TritonFailed: it ended, or takes longer.
        """
        until = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > until:
                raise TritonFailed(f"the Triton server is not ready after {timeout_s:g} s; its log says why")
            time.sleep(_LOOK_S)

    def stop(self, grace_s: float = 0.0) -> None:
        """Take no more work, give what runs so long, checkpoint the rest, and end the server."""
        if self.process is None or self.process.poll() is not None:
            return
        asyncio.run(empty(self.ports.url, grace_s))
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_EXIT_S + 10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, whatever it is at, to the processes that host its models too."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _check_running(self) -> None:
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise TritonFailed(f"the Triton server ended (exit code {code}); its log says why")


def find(how: str, repository: Path, image: str | None, may_fetch: bool) -> Found:
    """A server to start.

    Args:
        how: `installed`, `container`, `wheel`, or `auto`: the first of them there is.
        image: for a container; without one, containers are not considered.
        may_fetch: whether the wheel may be downloaded now.

    Raises:
        NoTritonServer: none of that kind; the message says what would help.
    """
    if how in ("auto", "installed") and (found := installed()) is not None:
        return found
    if how in ("auto", "container") and image is not None and (found := in_container(image, repository)) is not None:
        return found
    if how in ("auto", "wheel") and (wheel.laid_out() is not None or may_fetch):
        return from_wheel(wheel.lay_out())
    missing = {
        "installed": "no tritonserver is on the path",
        "container": "no container engine runs here, or no --image was named",
        "wheel": f"{wheel.PACKAGE} {wheel.VERSION} was not fetched yet; --yes fetches it",
        "auto": f"no tritonserver is on the path; --yes fetches the one in {wheel.PACKAGE} {wheel.VERSION}",
    }
    raise NoTritonServer(missing[how])
