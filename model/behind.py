"""How far a step loop may run ahead of a GPU: one call.

Nothing in a step waits for the device, so a loop left alone would queue steps without end: cancel and progress would
lag, and its clock would measure the queueing. Waiting for the call BEFORE the one just queued bounds that, and the
device still always has its next call waiting; the time from one return to the next is then that of a call.
"""

from __future__ import annotations

import torch


class Behind:
    """Waits on a device's calls, one late. Of one thread."""

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None

    def one_call(self, device: torch.device) -> None:
        """A call was queued on the device: wait for the one before it. On a CPU a call is over when it returns."""
        if device.type != "cuda":
            return
        before, self._last = self._last, torch.cuda.Event()
        self._last.record(torch.cuda.current_stream(device))
        if before is not None:
            before.synchronize()
