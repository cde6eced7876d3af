"""Encodings that are computed once: embeddings and latents of what was encoded before, within a budget of bytes.

An encoding is known by what goes into the network, byte for byte: the pixels fitted to the clip (so the picture, the
fit and the size are in it) or the prompt. Many seeds of one still have one embedding. Their image latents differ where
noise is added to the pixels before the autoencoder (image-to-video and multi-view with a noise_aug_strength above 0:
that is the published model, and the seed draws that noise); between two stills the noise comes after it, and their
latents are encoded once too.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

EncodingKind = Literal["embedding", "latent", "prompt"]
BUDGET: Final = 64 * 2**20
"""Bytes of a checkpoint's encodings: some 400 stills at 1024 x 576."""


class EncodingCache:
    """The encodings of one checkpoint, the least recently used dropped first. Safe to use from several threads.

    Args:
        budget: bytes of results; an encoding beyond it is never stored.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._results: OrderedDict[tuple[EncodingKind, str], Tensor] = OrderedDict()
        self._bytes = 0
        self._computed: Counter[str] = Counter()
        self._reused: Counter[str] = Counter()

    def once(self, kind: EncodingKind, source: Tensor | str, encode: Callable[[], Tensor]) -> Tensor:
        """What `encode` makes of `source`, or made of the same before; nobody may write into it.

        Args:
            source: all that the result depends on besides the checkpoint.
        """
        key = kind, _digest(source)
        with self._lock:
            found = self._results.get(key)
            if found is not None:
                self._results.move_to_end(key)
                self._reused[kind] += 1
                return found
        result = encode()
        with self._lock:
            self._computed[kind] += 1
            if key not in self._results:
                self._store(key, result)
        return result

    def counts(self) -> dict[str, int]:
        """How often each kind was computed and reused: `embedding computed`, `embedding reused` and so on."""
        with self._lock:
            both = (("computed", self._computed), ("reused", self._reused))
            return {f"{kind} {how}": count for how, counter in both for kind, count in sorted(counter.items())}

    @property
    def stored_bytes(self) -> int:
        """Bytes of results that are stored now."""
        with self._lock:
            return self._bytes

    def _store(self, key: tuple[EncodingKind, str], result: Tensor) -> None:
        size = result.nbytes
        if size > self._budget:
            return
        self._results[key] = result
        self._bytes += size
        while self._bytes > self._budget:
            _, dropped = self._results.popitem(last=False)
            self._bytes -= dropped.nbytes


def _digest(source: Tensor | str) -> str:
    if isinstance(source, str):
        return hashlib.sha256(source.encode()).hexdigest()
    pixels = source.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.numpy().data)
    return digest.hexdigest()
