"""Batch norm on several ranks: what each of them runs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esl_dist.models.batch_norm import DomainBatchNorm2d, batch_norms, estimate_anew, finish_pass, set_domain

PASSES = ("source", "target", "source", "target")
"""Domains of the passes, in training."""

Results = dict[str, Tensor]


def small_network(per_domain: bool, per_picture: bool = False) -> nn.Sequential:
    """Return two convolutions with a batch norm each, whose scales and shifts are not those of the identity."""
    generator = torch.Generator().manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        DomainBatchNorm2d(5, per_domain, per_picture),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, bias=False),
    )
    network.append(DomainBatchNorm2d(4, per_domain, per_picture)).double()
    for tensor in network.parameters():
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return network.train()


def global_batches() -> list[Tensor]:
    """Return a batch of six pictures for each pass; far from mean 0, and every picture another mean."""
    generator = torch.Generator().manual_seed(4)
    offsets = torch.arange(6)[:, None, None, None] * 3.0
    return [torch.randn(6, 3, 6, 7, generator=generator, dtype=torch.float64) + offsets + 5 * i for i in range(4)]


@dataclass(frozen=True)
class Case:
    """How the layers of a network normalise, and whether their statistics are estimated anew."""

    per_domain: bool
    per_picture: bool
    anew: bool


def run_passes(case: Case, rank: int, world_size: int, device: str = "cpu") -> Results:
    """Run every pass on this rank's part of the batches: outputs, gradients of a sum over pixels, and the state."""
    network = small_network(case.per_domain, case.per_picture).to(device)
    if case.anew:
        estimate_anew(network)
        for norm in batch_norms(network):
            norm.synchronised = True
    results: Results = {}
    for number, (domain, batch) in enumerate(zip(PASSES, global_batches(), strict=True)):
        share = len(batch) // world_size
        part = batch[rank * share : (rank + 1) * share].clone().to(device).requires_grad_()
        set_domain(network, domain)
        output = network(part)
        finish_pass(network)
        # Not a plain square: batch norm makes its sum constant, and with it the gradient zero.
        (output**3 + output.sin()).sum().backward()
        results[f"output {number}"] = output.detach()
        results[f"gradient {number}"] = part.grad
    results |= {f"state {name}": tensor for name, tensor in network.state_dict().items()}
    results |= {f"sum {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: tensor.cpu() for name, tensor in results.items()}


HALF_PRECISIONS = (torch.float16, torch.bfloat16)


def half_batch(precision: torch.dtype) -> Tensor:
    """Return a batch of six pictures far from 0, where half precision has few numbers; their sum has many digits."""
    generator = torch.Generator().manual_seed(5)
    return (100 + torch.randn(6, 3, 6, 7, generator=generator)).to(precision)


def run_half_pass(precision: torch.dtype, rank: int, world_size: int, device: str) -> Results:
    """Run a pass in half precision on this rank's part of the batch: its output, and the state of the layer."""
    norm = DomainBatchNorm2d(3, per_domain=False).to(device).train()
    share = 6 // world_size
    output = norm(half_batch(precision)[rank * share : (rank + 1) * share].to(device))
    finish_pass(norm)
    return {name: tensor.detach().cpu() for name, tensor in {"output": output, **norm.state_dict()}.items()}


def results_of_rank(cases: list[Case], device: str = "cpu") -> dict[Any, Results]:
    """Return what this rank gets, case by case, and in half precision by its type. All ranks share one GPU."""
    torch.set_num_threads(1)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results: dict[Any, Results] = {case: run_passes(case, rank, world_size, device) for case in cases}
    return results | {precision: run_half_pass(precision, rank, world_size, device) for precision in HALF_PRECISIONS}
