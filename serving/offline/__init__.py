"""Offline rendering on Ray Data: the same engine as behind the gateway, fed from a manifest, and no HTTP."""

from serving.offline.run import Batch, Summary, render, run

__all__ = ["Batch", "Summary", "render", "run"]
