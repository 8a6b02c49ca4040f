"""A rank that times AdvEnt's steps and the collectives in them: `timed_step.py STEPS PICTURES WIDTH HEIGHT RANKS`.

RANKS is how many the layers are to reckon with. With RANK and WORLD_SIZE in the environment they are there, over gloo;
else a group that sends nothing stands for the others, so that a rank's own work can be timed by itself. The first rank
prints seconds as JSON: the least and the median of the steps, and of a collective by its name and bytes.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.own_step import OwnStep, micro_batch
from benchmarks.step_counts import Workload
from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.data.images import Size
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise
from esl_dist.ranks import gradients
from esl_dist.training.optimisation import Updating

CLASSES = 9
"""Of Toytown."""

WARM_UP = 3
SMALL_BYTES = 8 * 48
"""Mean and variance of a layer of 48 channels."""


def networks_of_demo() -> nn.ModuleDict:
    """Return AdvEnt's networks as in the demo: `tiny`, one level, a small discriminator."""
    network = DeepLab("tiny", CLASSES, auxiliary_head=False, per_domain=True)
    initialise(network)
    return build_networks(METHODS["advent"], network, CLASSES, settings.Method(discriminator_channels=16)).train()


def main() -> None:
    """Time, and print on the first rank."""
    steps, pictures, width, height, ranks = (int(word) for word in sys.argv[1:])
    torch.set_num_threads(1)
    sends = "RANK" in os.environ
    if sends:
        dist.init_process_group("gloo")
    elif ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        vars(gradients)["sum_over_ranks"] = _sum_of_equals
    rank = dist.get_rank() if sends else 0
    networks = networks_of_demo()
    found = {"step": timed(step_of(networks, pictures, (width, height), rank), steps)}
    if sends:
        trained = sum(one.numel() for one in networks.parameters() if one.requires_grad)
        for name, size in (("all_reduce", SMALL_BYTES), ("all_gather", SMALL_BYTES), ("all_reduce", 4 * trained)):
            found[f"{name} {size}"] = timed(collective(name, size, ranks), steps)
    if rank == 0:
        print(json.dumps({name: [min(seconds), statistics.median(seconds)] for name, seconds in found.items()}))
    if dist.is_initialized():
        dist.destroy_process_group()


def _sum_of_equals(tensor: Tensor, what: str = "") -> Tensor:
    """Stand for a sum of counts where ranks that are not there make the same passes as this one."""
    return dist.get_world_size() * tensor


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Return the seconds of each call, after some that are not counted."""
    seconds = []
    for number in range(WARM_UP + times):
        begin = time.perf_counter()
        work()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - begin)
    return seconds


def step_of(networks: nn.ModuleDict, pictures: int, size: Size, rank: int) -> OwnStep:
    """Return a whole step of the training on pictures of noise: counted pixels, passes, sum of gradients, update."""
    optimizers = METHODS["advent"].optimizers(networks, settings.Optimizer(learning_rate=1e-4))
    batch = micro_batch(Workload(source=size, target=size), range(rank * pictures, (rank + 1) * pictures))
    return OwnStep(networks, Updating(networks, optimizers, None), batch, settings.Method())


def collective(name: str, size: int, ranks: int) -> Callable[[], object]:
    """Return a collective of `size` bytes a rank, as the training calls it."""
    own = torch.zeros(size // 4)
    if name == "all_reduce":
        return lambda: dist.all_reduce(own)
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    return lambda: gather(own.new_empty(ranks * len(own)), own)


if __name__ == "__main__":
    main()
