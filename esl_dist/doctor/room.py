"""How many bytes a training's networks, gradients and optimisers have, and its checkpoints at the most: exact numbers.

They are those of the run's own networks and optimisers on torch's meta device, where a step of an optimiser makes its
states, with shapes and without memory.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.data.labels import ClassSet
from esl_dist.runs.checkpoints import build_network


class StateBytes(NamedTuple):
    """Bytes of a training's state.

    Attributes:
        segmentation: the segmentation network's weights and statistics.
        networks: those of all networks.
        gradients: of the weights that are trained.
        optimizers: states of optimisers, after a step.
    """

    segmentation: int
    networks: int
    gradients: int
    optimizers: int

    @property
    def checkpoint(self) -> int:
        """Of one checkpoint; its files' own descriptions, some kilobytes, come on top."""
        return self.networks + self.optimizers


def state_bytes(config: settings.Train, classes: ClassSet) -> StateBytes:
    """Return the bytes of the state of the training that settings describe."""
    method = METHODS[config.method.name]
    with torch.device("meta"):
        segmentation = build_network(config.network, classes)
        networks = build_networks(method, segmentation, len(classes), config.method)
    optimizers = method.optimizers(networks, config.optimizer)
    trained = [one for item in optimizers.values() for group in item.param_groups for one in group["params"]]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    for optimizer in optimizers.values():
        optimizer.step()
    return StateBytes(
        bytes_in(networks[SEGMENTATION].state_dict()),
        bytes_in(networks.state_dict()),
        sum(parameter.nbytes for parameter in trained),
        sum(bytes_in(optimizer.state_dict()) for optimizer in optimizers.values()),
    )


def bytes_in(value: Any) -> int:
    """Return the bytes of all tensors in dictionaries and lists, one in the other."""
    if isinstance(value, Tensor):
        return value.nbytes
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(bytes_in, inner))


def most_checkpoints(steps: int, options: settings.Checkpoints, keeps_best: bool) -> int:
    """Return how many checkpoints of a run of so many steps, without stops, lie on the disk at the most.

    Those that stay beside the one that is written, which is whole before older ones go.

    Args:
        steps: of the run.
        options: when one is written, and which stay.
        keeps_best: whether that of the best validation stays, too.
    """
    saves = -(-steps // options.every)
    return _kept(saves - 1, options) + 1 + keeps_best


def _kept(saves: int, options: settings.Checkpoints) -> int:
    older = max(0, saves - options.keep_newest)
    staying = older * options.every // math.lcm(options.every, options.keep_every) if options.keep_every else 0
    return min(saves, options.keep_newest) + staying


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files in a folder, which need not be there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
