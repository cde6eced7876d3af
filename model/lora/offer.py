"""Which checkpoint offers which LoRA: those named to a command find the checkpoint that they belong to. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.lora.entry import LoraEntry, describe_lora, offered_in
from model.params import settings_of


def offer(entries: Sequence[ModelEntry], given: Sequence[str]) -> list[ModelEntry]:
    """The checkpoints, with the LoRAs that are named added to those in their own folders.

    A LoRA goes to the checkpoint that its file says it was trained on; where that is not served, or not said, to the
    only one that could take it.

    Args:
        given: NAME=FILE, FILE, or a folder of files each; a name takes the place of the same name in a folder of the
            checkpoint's own.

    Raises:
        CheckpointError: a file cannot be used.
        InvalidRequest: a path that is not there, a name that is given twice, or no one checkpoint to take it.
    """
    found = [one for text in given for one in _named(text)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"two LoRAs are called {name!r}: name them with NAME=FILE", param="lora")
    served = {entry.name: entry for entry in entries}
    for one in found:
        entry = _home(one, list(served.values()))
        served[entry.name] = adding(entry, one)
    return list(served.values())


def adding(entry: ModelEntry, lora: LoraEntry) -> ModelEntry:
    """The checkpoint with one more LoRA, in place of one of the same name."""
    others = tuple(one for one in entry.loras if one.name != lora.name)
    return replace(entry, loras=(*others, lora))


def _named(text: str) -> tuple[LoraEntry, ...]:
    name, separator, place = text.partition("=")
    if separator and not Path(text).exists():
        path = Path(place)
    else:
        name, path = "", Path(text)
    if path.is_dir() and not name:
        return offered_in(path)
    if not path.is_file():
        raise InvalidRequest(f"{path} is no file: --lora takes NAME=FILE, FILE or a folder of files", param="lora")
    return (describe_lora(path, name or None),)


def _home(lora: LoraEntry, entries: Sequence[ModelEntry]) -> ModelEntry:
    """The checkpoint that is to offer it."""
    able = [
        entry
        for entry in entries
        if "lora" in settings_of(entry.task.name) and lora.task in ("", entry.task.name) and not entry.exported
    ]
    based = [entry for entry in able if entry.name == lora.base.partition("@")[0]]
    chosen = based or able
    if len(chosen) != 1:
        which = ", ".join(entry.name for entry in able) or "none that could"
        raise InvalidRequest(
            f"it cannot be told which checkpoint the LoRA {lora.name!r} (of {lora.base or 'an unnamed one'}) is for; "
            f"served: {which}. Name its checkpoint alone with --model",
            param="lora",
        )
    return chosen[0]
