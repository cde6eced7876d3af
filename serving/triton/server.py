"""The tritonserver process: found or fetched, started on a model repository, controlled, and drained. No torch.

The control functions load and unload models and drain a running server before it ends. Machines without NVIDIA's
container use the server of a wheel (nvidia-pytriton, Linux on x86-64), fetched once, checked by hash and unpacked into
a cache: the server, its Python backend, and a stub of that backend for each Python. The wheel's Python code and the
versions it pins are not used.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from model.errors import StillmotionError
from serving.triton.channel import Channel, ServerLost
from serving.triton.wire import Kind, Status, pack_control

_CLIENT: Final = "control"
_STATUS_POLL_S: Final = 0.2
_ANSWER_S: Final = 60.0


async def load(url: str, name: str) -> list[Status]:
    """Load a model, or the version its configuration names now; back once it is ready.

    What runs on the version before goes on to its end there.

    Raises:
        ServerLost: the server is not there, or the model does not load; what was served before still is.
    """
    async with _connected(url) as channel:
        await channel.load(name)
        return [status for status in await _ask_all(channel, "status") if status.entry["name"] == name]


async def unload(url: str, name: str) -> None:
    """Unload a model; what it is at goes on to its end. Raises ServerLost."""
    async with _connected(url) as channel:
        await channel.unload(name)


async def statuses(url: str) -> list[Status]:
    """What every model of ours in the server says. Raises ServerLost."""
    async with _connected(url) as channel:
        return await _ask_all(channel, "status")


async def drain(url: str, grace_s: float) -> None:
    """Take no more work, give what runs `grace_s` seconds to end, and checkpoint the rest.

    A server that does not answer (any more) has nothing to be emptied of.
    """
    async with _connected(url) as channel:
        try:
            until = time.monotonic() + grace_s
            left = await _ask_all(channel, "drain")
            while any(status.in_flight for status in left) and time.monotonic() < until:
                await asyncio.sleep(_STATUS_POLL_S)
                left = await _ask_all(channel, "status")
            await _ask_all(channel, "stop")
        except (ServerLost, TimeoutError):
            return


async def _ask_all(channel: Channel, kind: Kind) -> list[Status]:
    async with asyncio.timeout(_ANSWER_S):
        ours = [version for version in await channel.versions() if await channel.is_ours(*version)]
        return [await channel.ask(name, number, pack_control(kind, _CLIENT)) for name, number in ours]


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Channel]:
    channel = Channel(url)
    try:
        yield channel
    finally:
        await channel.close()


PACKAGE: Final = "nvidia-pytriton"
VERSION: Final = "0.7.0"
SHA256: Final = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
"""Of nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl."""
SIZE_MB: Final = 55
_WANTED: Final = ("pytriton/tritonserver/", "nvidia_pytriton.libs/", f"nvidia_pytriton-{VERSION}.dist-info/licenses/")
_STUB: Final = "triton_python_backend_stub"


class NoTritonServer(StillmotionError):
    """There is no tritonserver to start, and none can be fetched here."""

    code = "no_tritonserver"


def cache_folder() -> Path:
    """Where fetched programs are kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "stillmotion"


def cached_server() -> Path | None:
    """The folder of a server that was laid out before; None where none was."""
    folder = cache_folder() / f"tritonserver-{PACKAGE}-{VERSION}"
    return folder if folder.is_dir() else None


def fetch_server(report: Callable[[str], None] = lambda _: None) -> Path:
    """The server's folder; fetched first where it is not there yet.

    Args:
        report: called with progress, a line at a time.

    Raises:
        NoTritonServer: another platform, the download failed, or it is not the file that is expected.
    """
    if (folder := cached_server()) is not None:
        return folder
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NoTritonServer(
            f"the wheel's tritonserver runs on Linux on x86-64, not on {platform.system()} on {platform.machine()}; "
            "start NVIDIA's container"
        )
    folder = cache_folder() / f"tritonserver-{PACKAGE}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as part:
        report(f"fetching {PACKAGE} {VERSION} ({SIZE_MB} MB)")
        wheel = _download(Path(part))
        report(f"laying out {folder}")
        unpacked = Path(part) / "unpacked"
        _unpack(wheel, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:  # somebody else was faster
            if not folder.is_dir():
                raise
    return folder


def program(folder: Path) -> Path:
    """The server's program in a laid-out folder."""
    return folder / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def libraries(folder: Path) -> Path:
    """The folder of the libraries it links to."""
    return folder / "nvidia_pytriton.libs"


def backends(folder: Path) -> Path:
    """The backend folder for this Python: the Python backend beside the stub that was built for it.

    Raises:
        NoTritonServer: the wheel has no stub for this Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    ready = folder / f"backends-{version}"
    if ready.is_dir():
        return ready
    stub = folder / "pytriton" / "tritonserver" / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        raise NoTritonServer(f"the wheel's tritonserver has no stub for Python {version}; use 3.11, 3.12 or 3.13")
    part = Path(tempfile.mkdtemp(dir=folder, prefix=".backends-"))
    shutil.copytree(folder / "pytriton" / "tritonserver" / "backends" / "python", part / "python")
    shutil.copy2(stub, part / "python" / _STUB)
    part.chmod(0o755)
    try:
        part.rename(ready)
    except OSError:  # somebody else was faster
        shutil.rmtree(part)
    return ready


def _download(folder: Path) -> Path:
    """The wheel, by pip from whatever index it is set up for; its hash is checked by pip and again here."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NoTritonServer(f"{PACKAGE} {VERSION} cannot be fetched: {lines[-1] if lines else 'pip said nothing'}")
    with wheels[0].open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != SHA256:
            raise NoTritonServer(f"{wheels[0].name} is not the file that is expected: its SHA-256 differs")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(_WANTED)])
    program(folder).chmod(0o755)
    for stub in folder.rglob(_STUB):
        stub.chmod(0o755)


_ENGINES: Final = ("docker", "podman")
_READY_POLL_S: Final = 0.1
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
        options = [f"--grpc-port={self.grpc}", f"--http-port={self.http}"]
        options += [f"--grpc-address={self.host}", f"--http-address={self.host}"]
        if not self.metrics:
            return [*options, "--allow-metrics=false"]
        return [*options, f"--metrics-port={self.metrics}", f"--metrics-address={self.host}"]


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A server that can be started.

    Args:
        what: for a person.
        program: the command's beginning.
        environment: variables it needs besides this process's.
    """

    what: str
    program: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def installed() -> ServerCommand | None:
    """The tritonserver on the path, or where NVIDIA's images have it; None where there is none."""
    path = shutil.which("tritonserver") or shutil.which("/opt/tritonserver/bin/tritonserver")
    return None if path is None else ServerCommand(path, (path,))


def in_container(image: str, repository: Path) -> ServerCommand | None:
    """A container of an image that holds tritonserver and stillmotion; None where no container engine runs here."""
    for engine in _ENGINES:
        path = shutil.which(engine)
        if path is None or subprocess.run([path, "info"], capture_output=True, check=False).returncode != 0:
            continue
        gpus = ["--gpus", "all"] if shutil.which("nvidia-smi") else []
        mounted = ["-v", f"{repository.resolve()}:{repository.resolve()}"]
        command = [path, "run", "--rm", "--network", "host", "--ipc", "host", *gpus, *mounted]
        return ServerCommand(f"{engine}, {image}", (*command, "--entrypoint", "tritonserver", image))
    return None


def from_wheel(folder: Path) -> ServerCommand:
    """The server of a folder that serving.triton.server laid out, with this Python and all it can import.

    The backend's interpreter finds itself by `python3` on the path, and with it the virtual environment.

    Raises:
        NoTritonServer: it has no backend for this Python.
    """
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": f"{libraries(folder)}:{sysconfig.get_config_var('LIBDIR') or ''}",
    }
    command = (str(program(folder)), f"--backend-directory={backends(folder)}")
    return ServerCommand(f"tritonserver of {PACKAGE} {VERSION}", command, environment)


_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG: Final = 1


def _end_with_parent() -> None:
    """In the child: SIGTERM once its parent is gone (prctl(2))."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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

    command: ServerCommand
    repository: Path
    ports: Ports = field(default_factory=Ports)
    models: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: IO[bytes] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in a process group of its own: a terminal's Ctrl-C must not end it before its work is safe.

        On Linux it gets SIGTERM when the thread that calls this ends, so that a supervisor killed by SIGKILL leaves no
        server behind.
        """
        command = [
            *self.command.program,
            f"--model-repository={self.repository.resolve()}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models or ("*",)),
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={_EXIT_S}",
            *self.ports.arguments(),
        ]
        environment = {**os.environ, **self.command.environment, **self.environment}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            preexec_fn=_end_with_parent,
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
            time.sleep(_READY_POLL_S)

    def stop(self, grace_s: float = 0.0) -> None:
        """Take no more work, give what runs so long, checkpoint the rest, and end the server."""
        if self.process is None or self.process.poll() is not None:
            return
        asyncio.run(drain(self.ports.url, grace_s))
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


def find_server(how: str, repository: Path, image: str | None, may_fetch: bool) -> ServerCommand:
    """A server to start.

    Args:
        how: `installed`, `container`, `wheel`, or `auto`: the first of them there is.
        image: for a container; without one, containers are not considered.
        may_fetch: whether the wheel may be downloaded now.

    Raises:
        NoTritonServer: none of that kind; the message says what would help.
    """
    if how in ("auto", "installed") and (command := installed()) is not None:
        return command
    if how in ("auto", "container") and image is not None and (command := in_container(image, repository)) is not None:
        return command
    if how in ("auto", "wheel") and (cached_server() is not None or may_fetch):
        return from_wheel(fetch_server())
    missing = {
        "installed": "no tritonserver is on the path",
        "container": "no container engine runs here, or no --image was named",
        "wheel": f"{PACKAGE} {VERSION} was not fetched yet; --yes fetches it",
        "auto": f"no tritonserver is on the path; --yes fetches the one in {PACKAGE} {VERSION}",
    }
    raise NoTritonServer(missing[how])
