"""Which tritonserver is started and how, without starting one: tests/integration/test_triton.py does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serving.triton import server as wheel
from serving.triton.server import (
    NoTritonServer,
    Ports,
    TritonFailed,
    TritonServer,
    find_server,
    from_wheel,
    in_container,
    installed,
)

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any server: an empty path and an empty cache."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def program(path: Path, script: str) -> Path:
    """A program that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def unpacked(folder: Path) -> Path:
    """As the wheel is laid out, with a stub for this Python only."""
    server = folder / "pytriton" / "tritonserver"
    program(server / "bin" / "tritonserver", "exit 7")
    program(server / "python_backend_stubs" / VERSION / "triton_python_backend_stub", "exit 0")
    (server / "backends" / "python").mkdir(parents=True)
    (server / "backends" / "python" / "triton_python_backend_utils.py").write_text("")
    (folder / "nvidia_pytriton.libs").mkdir()
    return folder


@pytest.mark.parametrize("how", ["auto", "installed", "wheel"])
def test_where_there_is_none_the_message_says_what_would_help(bare: Path, how: str) -> None:
    with pytest.raises(NoTritonServer, match=r"no tritonserver|--yes fetches"):
        find_server(how, bare, None, may_fetch=False)


def test_a_container_needs_an_engine_that_runs_and_an_image(bare: Path) -> None:
    with pytest.raises(NoTritonServer, match="container engine"):
        find_server("container", bare, "image", may_fetch=False)
    program(bare / "bin" / "docker", "exit 1")
    assert in_container("image", bare) is None
    program(bare / "bin" / "podman", "exit 0")
    found = in_container("image", bare)
    assert found is not None
    assert found.program[0].endswith("podman")
    assert f"{bare}:{bare}" in found.program
    assert found.program[-3:] == ("--entrypoint", "tritonserver", "image")


def test_the_one_on_the_path_comes_first(bare: Path) -> None:
    place = program(bare / "bin" / "tritonserver", "exit 0")
    found = installed()
    assert found is not None
    assert found.program == (str(place),)
    assert find_server("auto", bare, "image", may_fetch=True) == found


def test_the_wheel_is_used_with_this_python(bare: Path) -> None:
    folder = unpacked(wheel.cache_folder() / f"tritonserver-{wheel.PACKAGE}-{wheel.VERSION}")
    found = find_server("auto", bare, None, may_fetch=False)
    assert found == from_wheel(folder)
    assert found.environment["PATH"].startswith(f"{Path(sys.executable).parent}:")
    assert found.environment["LD_LIBRARY_PATH"].startswith(str(folder / "nvidia_pytriton.libs"))
    backend = folder / f"backends-{VERSION}" / "python"
    assert (backend / "triton_python_backend_stub").stat().st_mode & 0o111
    assert (backend / "triton_python_backend_utils.py").exists()
    (folder / "pytriton" / "tritonserver" / "python_backend_stubs" / VERSION).rename(folder / "elsewhere")
    assert wheel.backends(folder) == backend.parent  # laid out before
    backend.parent.rename(folder / "gone")
    with pytest.raises(NoTritonServer, match=f"no stub for Python {VERSION}"):
        wheel.backends(folder)


def test_a_server_that_ends_by_itself_is_told(bare: Path) -> None:
    folder = unpacked(bare / "server")
    server = TritonServer(from_wheel(folder), bare, Ports(1, 2, 0))
    server.start()
    with pytest.raises(TritonFailed, match="exit code 7"):
        server.wait_ready(30)
    server.stop()


def test_ports_as_the_server_and_as_clients_name_them() -> None:
    assert Ports(1, 2, 3, "0.0.0.0").url == "127.0.0.1:1"
    assert Ports(1, 2, 3, "10.0.0.7").url == "10.0.0.7:1"
    assert "--allow-metrics=false" in Ports(1, 2, 0).arguments()
    assert {"--metrics-port=3", "--grpc-address=127.0.0.1"} <= set(Ports(1, 2, 3).arguments())
