"""A network whose passes are compiled: convolutions' neighbours (batch norm, ReLU, sums) become a few kernels.

Torch's compiler traces a pass when it comes for the first time, for each domain and size anew, batch norm's collectives
included: one graph without a break, forwards and backwards, or an error. It computes what the plain pass does, to
rounding. Hooks of gradients run when a compiled backward pass is over, so their sums over ranks do not overlap it. Its
import takes longer than a short training, so nothing here happens unless it is asked for.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.errors import UserError
from esl_dist.ranks.collectives import noting_progress, print_on_main

BACKEND = "inductor"
"""Of torch's, the one that writes kernels."""

Compiled = Callable[..., Any]
Compiler = Callable[[torch.fx.GraphModule, list[Tensor]], Compiled]


def compile_segmentation(networks: nn.ModuleDict, backend: str = BACKEND) -> None:
    """Have the segmentation network's passes compiled when they come first; names and weights stay as they are.

    What a method adds is not compiled: it calls parts of its networks, as AdvEnt the discriminator of a level.

    Args:
        networks: by name.
        backend: one of torch's, by name; others than the default are for tests.
    """
    from torch._dynamo.backends.registry import lookup_backend  # it imports the compiler

    compiler = lookup_backend(backend)
    networks[SEGMENTATION].compile(backend=partial(_told, compiler), dynamic=False, fullgraph=True)


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


def _told(compiler: Compiler, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
    began = time.monotonic()
    with noting_progress():
        compiled = compiler(graph, inputs)
    print_on_main(f"compiled {SEGMENTATION}: {len(graph.graph.nodes)} operations, {time.monotonic() - began:.0f} s")
    return compiled
