"""A tritonserver from a wheel, for machines without NVIDIA's container: fetched once, checked, laid out in a cache.

The wheel (nvidia-pytriton, Linux on x86-64) carries the server, its Python backend, and a stub of that backend for each
Python. Only these are unpacked; its Python code is not used, nor are the versions it pins. No torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from model.errors import StillmotionError

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


def laid_out() -> Path | None:
    """The folder of a server that was laid out before; None where none was."""
    folder = cache_folder() / f"tritonserver-{PACKAGE}-{VERSION}"
    return folder if folder.is_dir() else None


def lay_out(told: Callable[[str], None] = lambda _: None) -> Path:
    """The server's folder; fetched first where it is not there yet.

    Args:
        told: progress, a line at a time.

    Raises:
        NoTritonServer: another platform, the download failed, or it is not the file that is expected.
    """
    if (folder := laid_out()) is not None:
        return folder
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NoTritonServer(
            f"the wheel's tritonserver runs on Linux on x86-64, not on {platform.system()} on {platform.machine()}; "
            "start NVIDIA's container"
        )
    folder = cache_folder() / f"tritonserver-{PACKAGE}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as part:
        told(f"fetching {PACKAGE} {VERSION} ({SIZE_MB} MB)")
        wheel = _download(Path(part))
        told(f"laying out {folder}")
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
    found = list(folder.glob("*.whl"))
    if done.returncode != 0 or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NoTritonServer(f"{PACKAGE} {VERSION} cannot be fetched: {lines[-1] if lines else 'pip said nothing'}")
    with found[0].open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != SHA256:
            raise NoTritonServer(f"{found[0].name} is not the file that is expected: its SHA-256 differs")
    return found[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(_WANTED)])
    program(folder).chmod(0o755)
    for stub in folder.rglob(_STUB):
        stub.chmod(0o755)
