"""Batch norm for two domains and many ranks.

Its scale and shift are frozen, as in the published network, unless they are given back their gradients; its statistics
are not. Three things are added to torch's:

- *Domains.* With running statistics shared between source and target passes (as published), evaluation uses a blend
  that fits neither. A layer may keep one set a domain; a forward pass in training feeds the set of its domain. The
  published names `running_mean` and `running_var` are then those of the target: exported weights fit the target.
- *Ranks.* In training, mean and variance are those of the global batch, on any device. Torch's `SyncBatchNorm` refuses
  CPU tensors, and on CUDA waits for the device three times a pass, for empty inputs that never occur here.
- *Pictures.* Or each picture is normalised by its own mean and variance, as in published trainings, whose batch is one
  picture, whatever the batch is here. No layer waits for other ranks then; running statistics take the mean over the
  global batch's pictures, those of all layers in one sum.

What layers have seen in a pass, `finish_pass` feeds to the running statistics of all of them at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist.config import Domain
from esl_dist.errors import UserError


class DomainBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over (batch, channels, height, width) with frozen scale and shift.

    Args:
        channels: number of channels.
        per_domain: whether source passes keep statistics of their own.
        per_picture: whether in training each picture is normalised by itself, not by the global batch.
    """

    source_mean: Tensor | None
    source_var: Tensor | None

    def __init__(self, channels: int, per_domain: bool, per_picture: bool = False) -> None:
        """Start as the identity: scale 1, shift 0, mean 0, variance 1."""
        super().__init__(channels)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)
        self.domain: Domain = "target"
        self.per_picture = per_picture
        self.synchronised = self.feeds = True
        self.passes_averaged = 0
        self.seen: tuple[Tensor, Tensor] | None = None
        self.register_buffer("source_mean", torch.zeros(channels) if per_domain else None)
        self.register_buffer("source_var", torch.ones(channels) if per_domain else None)

    def running(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance of the domain: the tensors themselves."""
        mean, var = self.running_mean, self.running_var
        if self.domain == "source" and self.source_mean is not None:
            mean, var = self.source_mean, self.source_var
        assert mean is not None
        assert var is not None
        return mean, var

    def factor(self) -> float:
        """Return the weight of a pass in the running statistics; 1 / passes where they are estimated anew."""
        # Counted on the host: to read torch's own count would wait for the device in every layer.
        return 1.0 / (self.passes_averaged + 1.0) if self.momentum is None else self.momentum

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch's or the picture's statistics in training, by the domain's running ones in evaluation.

        A pass in training ends with `finish_pass`.

        Raises:
            UserError: in training, there is one value a channel.
        """
        if not self.training:
            return F.batch_norm(input, *self.running(), self.weight, self.bias, False, 0.0, self.eps)
        ranks = ranks_together() if self.synchronised else 1
        places = input.shape[2] * input.shape[3]
        if places == 1 and (self.per_picture or ranks * len(input) == 1):
            raise UserError(
                "batch norm over one value a channel (a picture's map of 1×1) has no variance: give larger pictures "
                "or, if maps are pooled, a larger batch_size with network.normalise_over=batch, or another "
                "network.architecture"
            )
        if self.per_picture and ranks * len(input) > 1:
            return self._by_picture(input)
        if ranks > 1:
            return self._over_ranks(input)
        # Copies take what is not to be fed: a weight of 0 would make NaN of what an overflow has left.
        mean, var = self.running() if self.feeds else [one.clone() for one in self.running()]
        return F.batch_norm(input, mean, var, self.weight, self.bias, True, self.factor(), self.eps)

    def _by_picture(self, input: Tensor) -> Tensor:
        """Normalise one picture after the other, in the memory format of the input."""
        # Running statistics in which a pass has all the weight: they become mean and unbiased variance.
        mean, var = torch.zeros(2, *input.shape[:2], dtype=self.weight.dtype, device=input.device).unbind()
        if len(input) == 1:
            # Put together again, forwards and backwards, it would be copied twice.
            self.seen = mean[0], var[0]
            return F.batch_norm(input, *self.seen, self.weight, self.bias, True, 1.0, self.eps)
        output = [
            F.batch_norm(picture, *own, self.weight, self.bias, True, 1.0, self.eps)
            for picture, own in zip(torch.split(input, 1), zip(mean, var, strict=True), strict=True)
        ]
        self.seen = mean.mean(0), var.mean(0)
        return torch.cat(output)

    def _over_ranks(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            mean, variance = _global_mean_and_variance(input, self.weight.dtype)
            count = ranks_together() * (input.numel() // self.num_features)
            self.seen = mean, variance * (count / (count - 1))
        output: Tensor = _NormaliseOverRanks.apply(input, (mean, variance), self.weight, self.bias, self.eps)
        return output


def ranks_together() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


_UPDATE_STATS = "aten::batch_norm_update_stats"


if not torch._C._dispatch_has_kernel_for_dispatch_key(_UPDATE_STATS, "Meta"):

    @torch.library.register_fake(_UPDATE_STATS)  # type: ignore[untyped-decorator]
    def _(input: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        # Without it torch can neither compile the layer nor follow its shapes on tensors without numbers.
        return torch.empty_like(running_mean), torch.empty_like(running_var)


def _global_mean_and_variance(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over all ranks' values, (channels,) each, in one gather.

    In half precision too they are taken in `dtype`, without a copy of the input in it. Every rank has as many values a
    channel as this one, so the variance is the mean of the ranks' plus that between their means.
    """
    unused = torch.empty(2, input.shape[1], dtype=dtype, device=input.device).unbind()
    own = torch.cat(torch.ops.aten.batch_norm_update_stats(input, *unused, 0.0))
    of_ranks = own.new_empty(dist.get_world_size() * len(own))
    # Torch 2.14 has renamed it, and warns of the old name.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(of_ranks, own)
    of_ranks = of_ranks.view(dist.get_world_size(), 2, -1)
    mean, within = of_ranks.mean(0).unbind()
    return mean, within + of_ranks[:, 0].var(0, correction=0)


class _NormaliseOverRanks(torch.autograd.Function):
    """y = z · scale + shift, z = (x − mean) · r, r = 1 / √(variance + ε), by statistics of all ranks' values x."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, statistics: tuple[Tensor, Tensor], scale: Tensor, shift: Tensor, eps: float
    ) -> Tensor:
        mean, variance = statistics
        ctx.save_for_backward(input, mean, variance, scale)
        ctx.eps = eps
        return F.batch_norm(input, mean, variance, scale, shift, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return dx = scale · r · (dy − Σ dy / N − z · Σ (dy · z) / N), with sums over all N values.

        A layer in evaluation has these sums as the gradients of its scale and shift, gives a · z + b, and takes
        gradients times scale · r: its kernels do all of it, in any precision, without copies. Before they are summed
        over ranks, they are this rank's share of the gradients of scale and shift.
        """
        input, mean, variance, scale = ctx.saved_tensors
        # On CUDA what a training layer would have saved may be empty, but has to be there.
        layer = (scale, mean, variance, mean.new_empty(0), mean.new_empty(0), False, ctx.eps)
        _, along, shared = torch.ops.aten.native_batch_norm_backward(gradients[0], input, *layer, [False, True, True])
        affine = along if ctx.needs_input_grad[2] else None, shared if ctx.needs_input_grad[3] else None
        sums = torch.cat([along, shared])
        dist.all_reduce(sums)
        along, shared = sums.div_(-dist.get_world_size() * (input.numel() // len(mean))).view(2, -1)
        centred = F.batch_norm(input, mean, variance, along, shared, False, 0.0, ctx.eps).add_(gradients[0])
        result, _, _ = torch.ops.aten.native_batch_norm_backward(centred, input, *layer, [True, False, False])
        return result, None, *affine, None


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


@torch.no_grad()
def finish_pass(network: nn.Module) -> None:
    """Come after a pass of `network` in training: count it, and feed to running statistics what its layers have seen.

    What is each picture's own is averaged over the ranks, which have as many pictures each, in one sum for all layers.
    Layers that are `unfed` stay as they were.
    """
    norms = [norm for norm in batch_norms(network) if norm.feeds]
    if seen := [(norm, *norm.seen) for norm in norms if norm.seen is not None]:
        fed, means, variances = zip(*seen, strict=True)
        values, running = [*means, *variances], [norm.running() for norm in fed]
        if fed[0].per_picture and fed[0].synchronised and ranks_together() > 1:
            together = torch.cat(values)
            dist.all_reduce(together)
            values = list(torch.split(together.div_(ranks_together()), [len(value) for value in values]))
        torch._foreach_lerp_([one[0] for one in running] + [one[1] for one in running], values, fed[0].factor())
    for norm in norms:
        norm.seen = None
        # A number that changes would have a compiled pass compiled anew; those that estimate are not compiled.
        if norm.momentum is None:
            norm.passes_averaged += 1
    if norms:
        torch._foreach_add_([norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None], 1)


@contextmanager
def unfed(network: nn.Module) -> Iterator[None]:
    """Let passes in training feed no running statistics: they repeat one, or see what no prediction will."""
    norms = list(batch_norms(network))
    before = [norm.feeds for norm in norms]
    for norm in norms:
        norm.feeds = False
    try:
        yield
    finally:
        for norm, feeds in zip(norms, before, strict=True):
            norm.feeds, norm.seen = feeds, None


def estimate_anew(network: nn.Module) -> None:
    """Forget the target's running statistics; those of the passes in training that follow are averaged, each alike.

    The averages are the rank's own: passes that only estimate need no other rank.
    """
    for module in batch_norms(network):
        module.reset_running_stats()
        module.momentum, module.passes_averaged = None, 0
        module.synchronised = False
