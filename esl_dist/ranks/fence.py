"""How far the host may run ahead of a GPU: with no more than one step, or steps would pile up, and memory with them.

Without it, the host would launch step after step until the device's queue is full, and then wait at any place where
nobody knows of it. So it waits at one place, where it is seen to wait.
"""

import torch

from esl_dist.ranks.heartbeat import PROGRESS


class Fence:
    """Holds the host at the end of a step until a GPU is through the one before; on a CPU there is nothing to hold."""

    def __init__(self, device: torch.device) -> None:
        """Begin before the first step on `device`."""
        self._uses_gpu = device.type == "cuda"
        self._before: torch.cuda.Event | None = None

    def end_step(self) -> None:
        """Come when all work of a step is launched."""
        if not self._uses_gpu:
            return
        # Blocking: the host sleeps, and leaves the processor to those who read.
        end = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        end.record()
        if self._before is not None:
            with PROGRESS.waiting("the end of a step on the GPU"):
                self._before.synchronize()
        self._before = end
