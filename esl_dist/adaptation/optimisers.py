"""The optimisers of a run and their polynomial schedule, pure functions of the step."""

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from esl_dist import config as settings
from esl_dist.models.deeplab import DeepLab


def build_optimizers(
    network: DeepLab, discriminators: nn.ModuleDict, options: settings.Optimizer
) -> dict[str, Optimizer]:
    """Return SGD for the segmentation network and, if there are discriminators, one Adam for all of them.

    Every parameter is in one group, once; a group's `rate_factor` multiplies the scheduled learning rate.
    """
    factors = vars(options.multipliers)
    groups = [
        {"params": parameters, "rate_factor": factors[part], "name": part}
        for part, parameters in network.parameter_groups().items()
    ]
    optimizers: dict[str, Optimizer] = {
        "segmentation": SGD(
            groups, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay
        )
    }
    if len(discriminators) > 0:
        group = {"params": list(discriminators.parameters()), "rate_factor": 1.0, "name": "discriminators"}
        beta1, beta2 = options.discriminator_betas
        optimizers["discriminators"] = Adam([group], lr=options.discriminator_learning_rate, betas=(beta1, beta2))
    return optimizers


def polynomial_rate(base: float, step: int, options: settings.Optimizer) -> float:
    """Return base · (1 − step / schedule_steps) ^ schedule_power, a pure function of the step, counted from 0."""
    return float(base * (1 - step / options.schedule_steps) ** options.schedule_power)


def set_rates(optimizers: dict[str, Optimizer], step: int, options: settings.Optimizer) -> dict[str, float]:
    """Set every group's learning rate for `step` and return the rates by group name."""
    rates = {}
    for name, optimizer in optimizers.items():
        base = options.learning_rate if name == "segmentation" else options.discriminator_learning_rate
        for group in optimizer.param_groups:
            group["lr"] = polynomial_rate(base, step, options) * group["rate_factor"]
            rates[group["name"]] = group["lr"]
    return rates
