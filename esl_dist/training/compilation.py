"""Networks whose passes are compiled: convolutions' neighbours (batch norm, ReLU, sums) become a few kernels.

Torch's compiler traces a pass when it comes for the first time, for each domain and size anew, batch norm's collectives
included: one graph without a break, forwards and backwards, or an error. It computes what the plain pass does, to
rounding. Its import takes longer than a short training, so nothing here happens unless it is asked for.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esl_dist.errors import UserError
from esl_dist.ranks.collectives import note_progress, print_on_main

BEAT_SECONDS = 1.0
MOST_BEATS = 3600
"""In which the compilation of one graph counts as progress; after that, other ranks wait for it as for a hung one."""

BACKEND = "inductor"
"""Of torch's, the one that writes kernels."""

Compiled = Callable[..., Any]
Compiler = Callable[[torch.fx.GraphModule, list[Tensor]], Compiled]


def compile_networks(networks: nn.ModuleDict, backend: str = BACKEND) -> None:
    """Have each network's passes compiled when they come first; names and weights stay as they are.

    Args:
        networks: by name.
        backend: one of torch's, by name; others than the default are for tests.
    """
    from torch._dynamo.backends.registry import lookup_backend  # it imports the compiler

    compiler = lookup_backend(backend)
    for name, network in networks.items():
        network.compile(backend=partial(_told, name, compiler), dynamic=False, fullgraph=True)


def refuse_without_compiler(device: torch.device) -> None:
    """Compile a sum: whatever is missing, be it a compiler, a header or a place for its files, shows here.

    Raises:
        UserError: the compiler does not work on `device`, such as for want of a C++ compiler.
    """
    try:
        torch.compile(_plus_one, backend=BACKEND)(torch.zeros(64, device=device))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"compile=true: torch's compiler does not work here: {reason}; on a CPU it needs g++ or clang++ (CXX names "
            "another), on a GPU triton and a C compiler: install them, or start with compile=false"
        ) from error


def _plus_one(values: Tensor) -> Tensor:
    return values + 1


def _told(name: str, compiler: Compiler, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
    began = time.monotonic()
    with _noting_progress():
        compiled = compiler(graph, inputs)
    print_on_main(f"compiled {name}: {len(graph.graph.nodes)} operations, {time.monotonic() - began:.0f} s")
    return compiled


@contextmanager
def _noting_progress() -> Iterator[None]:
    """Let the other ranks know, beat by beat, that this one gets on."""
    done = threading.Event()

    def note() -> None:
        for _ in range(MOST_BEATS):
            if done.wait(BEAT_SECONDS):
                return
            note_progress()

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
