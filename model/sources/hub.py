"""Checkpoints of a model hub, through huggingface_hub: only the files that are read, into the cache it shares with all.

HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere; downloads show their progress and are resumed.
Imports no torch.

    ORG/NAME               the repository's main branch
    ORG/NAME@REVISION      a branch, a tag or a commit
    ORG/NAME/FILE          one .safetensors file of it
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.errors import CheckpointError, MissingExtra
from model.sources.architecture import check_pipeline
from model.sources.layout import (
    PICKLES,
    Precision,
    choose_weights,
    component_files,
    is_weight,
    pickle_refused,
)

_log = logging.getLogger(__name__)
_ID: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?P<file>[\w./-]+\.\w+))?(?:@(?P<revision>[\w./-]+))?"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
INDEX: Final = "model_index.json"
FOLDERS: Final = frozenset(
    {"unet", "vae", "scheduler", "image_encoder", "feature_extractor", "text_encoder", "tokenizer", "loras"}
)
"""What of a repository is read: these folders, and files beside them that are no weights."""
_WEIGHTED: Final = ("unet", "vae", "image_encoder", "text_encoder")
_OWN_WEIGHTS: Final = "conditioning.safetensors"


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository of the hub, at a revision.

    Args:
        revision: a branch, tag or commit; None for the main branch.
        file: one file of it; None for the repository.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        """How requests name its checkpoint: the repository's name, without its owner."""
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        """As it is written on a command line."""
        file = "" if self.file is None else f"/{self.file}"
        return self.repo + file + ("" if self.revision is None else f"@{self.revision}")


def parse_hub_id(text: str) -> HubId | None:
    """The hub id that a text is; None where it is none."""
    match = _ID.fullmatch(text)
    return HubId(match["repo"], match["revision"], match["file"]) if match else None


def wanted_files(names: Collection[str], precision: Precision) -> list[str]:
    """Of a repository's files those that a checkpoint of this precision is read from.

    Never the same weights twice: one variant of each network, one file or its shards; no pickles, no other formats.
    """
    wanted = [name for name in names if "/" not in name and not is_weight(name) and Path(name).suffix != ".png"]
    wanted += [_OWN_WEIGHTS] if _OWN_WEIGHTS in names else []
    for folder in sorted(FOLDERS):
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{folder}/")]
        wanted += [f"{folder}/{name}" for name in inside if folder == "loras" or not is_weight(name)]
        if folder in _WEIGHTED:
            wanted += [f"{folder}/{name}" for name in choose_weights(inside, precision)[1]]
    return wanted


def fetch(source: HubId, precision: Precision, *, to_serve: bool = True) -> Path:
    """The snapshot's folder, or the file where one is named, fetched as far as it is not in the cache.

    Without a network, or with HF_HUB_OFFLINE, what the cache holds of this revision.

    Args:
        to_serve: refuse an architecture that cannot be served; Stable Diffusion, say, can still start a training.

    Raises:
        CheckpointError: gated, missing or unknown repository or revision; no network and nothing in the cache; a
            pickle; another architecture. The message says what to do.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise MissingExtra("a checkpoint of a model hub", "engine") from error
    if source.revision and _COMMIT.fullmatch(source.revision) and (snapshot := cached(source)) is not None:
        path = _within(snapshot, source)
        if is_complete(path, precision):
            return path  # a commit never changes: nothing to ask the hub for
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        enable_progress_bars()  # transformers turns them off with its own (model.checkpoint)
    with _explained(source):
        try:
            info = huggingface_hub.HfApi().model_info(source.repo, revision=source.revision)
        except _unreachable() as error:
            if not _is_unreachable(error):
                raise
            return _from_cache(source, precision, error)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        commit = str(info.sha)
        if source.file is not None or INDEX not in names:
            file = source.file or _only_file(source, names)
            single = huggingface_hub.hf_hub_download(source.repo, file, revision=commit)
            _note_revision(source, commit)
            return Path(single)
        index = huggingface_hub.hf_hub_download(source.repo, INDEX, revision=commit)
        if to_serve:
            check_pipeline(str(source), _index_of(source, Path(index)))
        _refuse_pickles(source, names, precision)
        folder = huggingface_hub.snapshot_download(
            source.repo, revision=commit, allow_patterns=wanted_files(names, precision)
        )
        _note_revision(source, commit)
    return Path(folder)


def _index_of(source: HubId, file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{INDEX} of {source} is not valid JSON: {error}", param="model") from error
    return values if isinstance(values, dict) else {}


def _only_file(source: HubId, names: Collection[str]) -> str:
    """The one .safetensors of a repository without a pipeline's folders."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) == 1:
        return files[0]
    if not files and (pickles := sorted(name for name in names if Path(name).suffix in PICKLES)):
        raise pickle_refused(f"{source}: {pickles[0]}")
    listed = ", ".join(files[:8]) or "none"
    raise CheckpointError(
        f"{source} is no pipeline's repository (it has no {INDEX}); name one of its single files as "
        f"{source.repo}/FILE: {listed}",
        param="model",
    )


def _refuse_pickles(source: HubId, names: Collection[str], precision: Precision) -> None:
    """Refuse a repository that holds a network as pickles only, before anything large is fetched."""
    for folder in _WEIGHTED:
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{folder}/")]
        pickles = sorted(name for name in inside if Path(name).suffix in PICKLES)
        if pickles and not choose_weights(inside, precision)[1]:
            raise pickle_refused(f"{source}: {folder}/{pickles[0]}")


def cache_root() -> Path:
    """The cache that huggingface_hub shares with every program that uses it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(source: HubId) -> Path | None:
    """The folder of a revision's snapshot in the cache, complete or not; None where there is none."""
    repository = cache_root() / f"models--{source.repo.replace('/', '--')}"
    revision = source.revision or "main"
    ref = repository / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _note_revision(source: HubId, commit: str) -> None:
    """Remember which commit the revision names, as huggingface_hub does where it resolves it itself."""
    revision = source.revision or "main"
    if not _COMMIT.fullmatch(revision):
        ref = cache_root() / f"models--{source.repo.replace('/', '--')}" / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def is_complete(path: Path, precision: Precision) -> bool:
    """Whether all that is read of a snapshot is there."""
    if path.is_file():
        return True
    try:
        for folder in _WEIGHTED:
            if (path / folder).is_dir():
                component_files(path / folder, precision)
    except CheckpointError:
        return False
    return (path / INDEX).is_file() and (path / "unet").is_dir() and (path / "vae").is_dir()


def _from_cache(source: HubId, precision: Precision, error: Exception) -> Path:
    """What the cache holds while the hub cannot be reached."""
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub at {constants.ENDPOINT} cannot be reached"
    snapshot = cached(source)
    path = None if snapshot is None else _within(snapshot, source)
    if path is None or not path.exists():
        raise CheckpointError(
            f"{source} is no folder here and not in the cache ({constants.HF_HUB_CACHE}), and {why}: connect and run "
            f"`stillmotion models pull {source}`, or copy that cache from a machine that has it",
            param="model",
            code="hub_unreachable",
        ) from error
    if not is_complete(path, precision):
        raise CheckpointError(
            f"the download of {source} was interrupted, and {why}: connect and run `stillmotion models pull {source}`, "
            "which goes on where it stopped",
            param="model",
            code="incomplete_download",
        ) from error
    _log.warning("%s: %s is taken from the cache as it is", why, source)
    return path


def _within(snapshot: Path, source: HubId) -> Path:
    """What a source names in its snapshot: a file, the one file of a repository without a pipeline, or all of it."""
    if source.file is not None:
        return snapshot / source.file
    files = list(snapshot.glob("*.safetensors"))
    return files[0] if len(files) == 1 and not (snapshot / INDEX).exists() else snapshot


def _unreachable() -> tuple[type[Exception], ...]:
    """What the client raises when it cannot reach the hub, of whichever HTTP library its version uses."""
    from huggingface_hub.errors import HfHubHTTPError

    transport = next(kind for kind in HfHubHTTPError.__mro__[1:] if kind.__name__ == "HTTPError")
    return transport, OSError


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub could not be reached at all, or is down; an answer of another kind says more."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return getattr(error.response, "status_code", 0) >= 500
    return True


@contextmanager
def _explained(source: HubId) -> Iterator[None]:
    """Turn the client's errors into ours, with what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{source.repo}"
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source.repo} is gated: accept its terms at {page}, then give a token of that account in HF_TOKEN "
            "(or `hf auth login`) and run this again",
            param="model",
            code="gated",
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{source.repo} is no folder here and no repository at {constants.ENDPOINT}, or a private one: check the "
            "name; for a private one give a token that may read it in HF_TOKEN",
            param="model",
            code="model_not_found",
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{source.repo} has no revision {source.revision!r}: its branches and tags are at {page}; leave "
            f"@{source.revision} out for the main branch",
            param="model",
            code="revision_not_found",
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{source.repo} has no file {source.file}: see {page}", param="model") from error
    except HFValidationError as error:
        raise CheckpointError(
            f"{source} is no folder here and no name of a repository: {error}", param="model"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise CheckpointError(
            f"the hub answered {status} for {source}: try again later; what is fetched already stays", param="model"
        ) from error
    except _unreachable() as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk, not the network
        raise CheckpointError(
            f"the connection to {constants.ENDPOINT} broke while {source} was fetched: run this again, it goes on "
            "where it stopped",
            param="model",
            code="incomplete_download",
        ) from error


def pulled() -> list[tuple[HubId, Path]]:
    """Snapshots in the hub's cache that look like checkpoints to serve, by name; empty without huggingface_hub."""
    try:
        root = cache_root()
    except ModuleNotFoundError:
        return []
    found = []
    for index in sorted(root.glob(f"models--*/snapshots/*/{INDEX}")):
        try:
            check_pipeline("", json.loads(index.read_text()))
        except (OSError, ValueError, CheckpointError):
            continue
        snapshot = index.parent
        repo = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        found.append((HubId(repo, _revision_of(snapshot)), snapshot))
    return found


def _revision_of(snapshot: Path) -> str | None:
    """None where the snapshot is what the main branch was last seen at; else a branch or tag of it, or its commit."""
    refs = snapshot.parent.parent / "refs"
    names = {str(ref.relative_to(refs)): ref.read_text().strip() for ref in sorted(refs.rglob("*")) if ref.is_file()}
    if names.get("main") == snapshot.name:
        return None
    return next((name for name, commit in names.items() if commit == snapshot.name), snapshot.name)


def repository_name(folder: Path) -> str | None:
    """The repository's name of a folder that is a snapshot in a hub cache; None for any other folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.rpartition("--")[2]


def blob_sha256(file: Path) -> str | None:
    """The SHA-256 of a file that is a link into a hub cache, whose blobs are named by it; None for any other file."""
    target = file.resolve()
    named = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name)
    return target.name if named else None


def model_card(folder: Path) -> dict[str, Any]:
    """The front matter of a folder's README.md as far as it is `key: value` lines; empty where there is none."""
    try:
        text = (folder / "README.md").read_text(errors="replace")
    except OSError:
        return {}
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    pairs = (line.partition(":") for line in (match[1] if match else "").splitlines() if re.match(r"\w+:", line))
    return {key: value.strip() for key, _, value in pairs if value.strip()}
