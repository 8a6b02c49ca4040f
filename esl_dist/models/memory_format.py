"""In which order a network's activations lie in memory: the one in which convolutions are fastest on a device.

Tensor cores read channels last, and cuDNN reorders whatever comes otherwise, before and after each convolution. On CPUs
oneDNN takes blocks of its own, and runs begun before keep their bits. The order is no part of a network: checkpoints,
weights and digests hold the same numbers whichever it is.
"""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the order of (batch, channels, height, width) in memory on a device."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def on_device(network: Network, device: torch.device) -> Network:
    """Move a network to a device, its convolutions' weights in the order that activations have there."""
    return network.to(device, memory_format=memory_format(device))  # type: ignore[call-overload, no-any-return]
