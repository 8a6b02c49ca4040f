"""Batch norm for two domains and many ranks.

Its scale and shift are frozen, as in the published network; its statistics are not. Two things are added to torch's:

- *Domains.* With running statistics shared between source and target passes (as published), evaluation uses a blend
  that fits neither. A layer may keep one set a domain; a forward pass in training feeds the set of its domain. The
  published names `running_mean` and `running_var` are then those of the target: exported weights fit the target.
- *Ranks.* In training, mean and variance are those of the global batch. On CUDA this is torch's `SyncBatchNorm`, which
  refuses CPU tensors; there, the same formula is written with a differentiable sum over ranks.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

Domain = Literal["source", "target"]


class DomainBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over (batch, channels, height, width) with frozen scale and shift.

    Args:
        channels: number of channels.
        per_domain: whether source passes keep statistics of their own.
    """

    source_mean: Tensor | None
    source_var: Tensor | None

    def __init__(self, channels: int, per_domain: bool) -> None:
        """Start as the identity: scale 1, shift 0, mean 0, variance 1."""
        super().__init__(channels)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)
        self.domain: Domain = "target"
        self.synchronised = True
        self.register_buffer("source_mean", torch.zeros(channels) if per_domain else None)
        self.register_buffer("source_var", torch.ones(channels) if per_domain else None)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch's statistics in training, by the domain's running ones in evaluation."""
        mean, var = self.running_mean, self.running_var
        if self.domain == "source" and self.source_mean is not None:
            mean, var = self.source_mean, self.source_var
        assert mean is not None
        assert var is not None
        if not self.training:
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        world_size = dist.get_world_size() if self.synchronised and dist.is_initialized() else 1
        if world_size > 1 and input.is_cuda:
            return self._on_cuda(input, mean, var)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if world_size == 1:
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, factor, self.eps)
        return self._on_cpu(input, mean, var, factor, world_size)

    def _on_cuda(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Let torch's layer normalise and update, with the domain's statistics in place of its own."""
        own = self.running_mean, self.running_var
        self.running_mean, self.running_var = mean, var
        try:
            return super().forward(input)
        finally:
            self.running_mean, self.running_var = own

    def _on_cpu(self, input: Tensor, mean: Tensor, var: Tensor, factor: float, world_size: int) -> Tensor:
        """Normalise by the statistics of the global batch; every rank has as many values as this one.

        mean = Σ x / n, variance = Σ (x − mean)² / n, both sums over all ranks; running statistics take the unbiased
        variance, n / (n − 1) times as large, as torch's do.
        """
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = world_size * (values.numel() // values.shape[1])
        batch_mean = _SumOverRanks.apply(values.sum((0, 2, 3))) / count
        centred = values - batch_mean[:, None, None]
        batch_var = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            mean.lerp_(batch_mean.to(mean.dtype), factor)
            var.lerp_((batch_var * (count / (count - 1))).to(var.dtype), factor)
        scale: Tensor = torch.rsqrt(batch_var + self.eps) * self.weight
        output: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks, on every rank; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def batch_norms(network: nn.Module) -> Iterator[DomainBatchNorm2d]:
    """Yield every batch norm in `network`."""
    return (module for module in network.modules() if isinstance(module, DomainBatchNorm2d))


def set_domain(network: nn.Module, domain: Domain) -> None:
    """Name the domain of the passes that follow, for every batch norm in `network`."""
    for module in batch_norms(network):
        module.domain = domain


def copied_statistics(network: nn.Module) -> list[Tensor]:
    """Return copies of the running statistics in `network`."""
    return [buffer.clone() for norm in batch_norms(network) for buffer in norm.buffers()]


def put_back_statistics(network: nn.Module, statistics: list[Tensor]) -> None:
    """Undo what passes in training did to the running statistics since `copied_statistics` returned `statistics`."""
    buffers = [buffer for norm in batch_norms(network) for buffer in norm.buffers()]
    for buffer, before in zip(buffers, statistics, strict=True):
        buffer.copy_(before)


def estimate_anew(network: nn.Module) -> None:
    """Forget the target's running statistics; those of the passes in training that follow are averaged, each alike.

    The averages are the rank's own: passes that only estimate need no other rank.
    """
    for module in batch_norms(network):
        module.reset_running_stats()
        module.momentum = None
        module.synchronised = False
