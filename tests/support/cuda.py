"""torch.cuda without a GPU: streams, graphs and the current device as plain records, to test what is called when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class FakeCuda:
    """What was done, each with the device that was current then.

    Args:
        calls: (what, current device, details), in order.
    """

    def __init__(self) -> None:
        self.current = "cuda:0"
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.pools = 0

    def note(self, what: str, **details: Any) -> None:
        self.calls.append((what, self.current, details))

    def of(self, what: str) -> list[tuple[str, dict[str, Any]]]:
        """Current device and details of every call of a kind."""
        return [(current, details) for name, current, details in self.calls if name == what]


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put it in torch.cuda's place."""
    cuda = FakeCuda()

    class Stream:
        cuda_stream = 7

        def __init__(self, device: Any = None) -> None:
            self.device = str(device or cuda.current)

        def wait_stream(self, other: Any) -> None:
            pass

        def synchronize(self) -> None:
            cuda.note("synchronize", stream=self.device)

    class Graph:
        def replay(self) -> None:
            cuda.note("replay")

    @contextmanager
    def device(name: Any) -> Iterator[None]:
        before, cuda.current = cuda.current, str(name)
        try:
            yield
        finally:
            cuda.current = before

    @contextmanager
    def graph(_: Any, **details: Any) -> Iterator[None]:
        cuda.note("capture", **details)
        yield

    @contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    def pool() -> tuple[int, int]:
        cuda.pools += 1
        return (0, cuda.pools)

    fakes = {"Stream": Stream, "CUDAGraph": Graph, "device": device, "graph": graph, "stream": stream}
    for name, fake in {**fakes, "graph_pool_handle": pool, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return cuda
