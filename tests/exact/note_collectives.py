"""A program that notes what its ranks send: `note_collectives.py FILE PROGRAM words…`.

Each rank leaves one JSON line a collective: its name, who called it (or one of the `HELPERS` for him), and the bytes.
One that goes on beside the program has another line, "wait", where the program waits for it.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")
COLLECTIVES += (
    "all_gather_single",
    "reduce_scatter",
    "all_to_all",
    "all_to_all_single",
    "gather",
    "scatter",
    "barrier",
)

HELPERS = ("begin_sum", "sum_over_ranks", "wait")

file = open(f"{sys.argv[1]}.{os.environ['RANK']}", "w", buffering=1)  # noqa: SIM115
sys.argv = sys.argv[2:]


def note(name: str, sent: int) -> None:
    caller = sys._getframe(2)
    while caller.f_code.co_name in HELPERS and caller.f_back is not None:
        caller = caller.f_back
    caller_name = f"{caller.f_globals['__name__']}.{caller.f_code.co_qualname}"
    file.write(json.dumps([name, caller_name, sent]) + "\n")


class Noted:
    """A collective that goes on beside the program."""

    def __init__(self, work: dist.Work) -> None:
        self._work = work

    def wait(self) -> None:
        note("wait", 0)
        self._work.wait()


def noting(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        tensors = [one for one in arguments if isinstance(one, Tensor)]
        # What is sent comes last, after the place for what is received.
        note(name, sum(one.numel() * one.element_size() for one in tensors[-1:]))
        result = plain(*arguments, **options)
        return Noted(result) if options.get("async_op") else result

    return noted


for name in filter(dist.__dict__.__contains__, COLLECTIVES):
    setattr(dist, name, noting(name, getattr(dist, name)))
runpy.run_path(sys.argv[0], run_name="__main__")
