"""Batch norm for two domains and many ranks.

Its scale and shift are frozen, as in the published network; its statistics are not. Two things are added to torch's:

- *Domains.* With running statistics shared between source and target passes (as published), evaluation uses a blend
  that fits neither. A layer may keep one set a domain; a forward pass in training feeds the set of its domain. The
  published names `running_mean` and `running_var` are then those of the target: exported weights fit the target.
- *Ranks.* In training, mean and variance are those of the global batch, on any device. Torch's `SyncBatchNorm` refuses
  CPU tensors, and on CUDA waits for the device three times a pass, for empty inputs that never occur here.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist.config import Domain


class DomainBatchNorm2d(nn.BatchNorm2d):
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
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if not self.synchronised or not dist.is_initialized() or dist.get_world_size() == 1:
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, factor, self.eps)
        results: tuple[Tensor, ...] = _NormaliseOverRanks.apply(input, self.weight, self.bias, self.eps)
        output, batch_mean, batch_var = results
        mean.lerp_(batch_mean, factor)
        var.lerp_(batch_var, factor)
        return output


class _NormaliseOverRanks(torch.autograd.Function):
    """Normalise by the statistics of the global batch; every rank has as many values n a channel as this one.

    With mean and variance over all N = n · ranks values x, y = (x − mean) / √(variance + ε) · scale + shift. Besides y,
    it returns what running statistics take: the mean, and the unbiased variance, N / (N − 1) times as large.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        values = input.to(scale.dtype)
        own = torch.stack(torch.var_mean(values, (0, 2, 3), correction=0))
        of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(of_ranks, own)
        variances, means = torch.stack(of_ranks, dim=1)
        # The variance within the ranks, and that between them.
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        ctx.count = len(of_ranks) * (values.numel() // values.shape[1])
        ctx.save_for_backward(input, mean, torch.rsqrt(variance + eps), scale)
        output = F.batch_norm(input, mean, variance, scale, shift, False, 0.0, eps)
        unbiased = variance * (ctx.count / (ctx.count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return output, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return dx = scale · r · (dy − Σ dy / N − z · Σ (dy · z) / N), with sums over all ranks; all else is frozen.

        Here r = 1 / √(variance + ε) and z = (x − mean) · r.
        """
        input, mean, inverse_deviation, scale = ctx.saved_tensors
        gradient = gradients[0].to(scale.dtype)
        normalised = (input.to(scale.dtype) - mean[:, None, None]) * inverse_deviation[:, None, None]
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * normalised).sum((0, 2, 3))])
        dist.all_reduce(sums)
        shared, along = (sums / ctx.count)[:, :, None, None]
        centred = gradient - shared - normalised * along
        return (centred * (scale * inverse_deviation)[:, None, None]).to(input.dtype), None, None, None


def batch_norms(network: nn.Module) -> Iterator[DomainBatchNorm2d]:
    """Yield every batch norm in `network`."""
    return (module for module in network.modules() if isinstance(module, DomainBatchNorm2d))


def set_domain(network: nn.Module, domain: Domain) -> None:
    """Name the domain of the passes that follow, for every batch norm in `network`."""
    for module in batch_norms(network):
        module.domain = domain


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return all that passes in training change of the batch norms in `network`: the tensors themselves, no copies."""
    return [buffer for norm in batch_norms(network) for buffer in norm.buffers()]


def estimate_anew(network: nn.Module) -> None:
    """Forget the target's running statistics; those of the passes in training that follow are averaged, each alike.

    The averages are the rank's own: passes that only estimate need no other rank.
    """
    for module in batch_norms(network):
        module.reset_running_stats()
        module.momentum = None
        module.synchronised = False
