"""How many processes a program is to run in, where they compute and in what precision: what all checks ask about."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from esl_dist.config import Train
from esl_dist.config_types import TENSORBOARD, TIMM_PREFIX
from esl_dist.doctor.findings import Finding, looked_at, refused
from esl_dist.doctor.inputs import Program, shards_of
from esl_dist.environment import Launch, flag, launch
from esl_dist.errors import UserError
from esl_dist.ranks.launchers import DEVICE, asked_of_launcher
from esl_dist.ranks.precision import missing
from esl_dist.training.contradictions import refuse_missing_trackers
from esl_dist.urls import is_url, without_secrets


@dataclass(frozen=True)
class Plan:
    """How a program is to run.

    Attributes:
        launched: the first rank, among how many, in all and on this machine.
        device: what each rank computes on.
        gpus: that torch sees here.
    """

    launched: Launch
    device: torch.device
    gpus: int


def plan_of(config: Program, processes: int | None) -> Plan:
    """Return how a program is to run.

    Args:
        config: its settings.
        processes: how many; None: as many as a launcher started or, without one, as GPUs are here, those that have an
            equal share of a training's batch.
    """
    launched, uses = launch(), torch.cuda.is_available() and not _is_told_to_use_none()
    gpus = torch.cuda.device_count() if uses else 0
    device = torch.device("cuda" if gpus else "cpu")
    if processes is None and launched.world_size == 1:
        processes = _sharing(config, max(1, gpus))
    if processes in (None, launched.world_size):
        return Plan(launched, device, gpus)
    assert processes is not None
    return Plan(Launch(0, processes, min(processes, gpus) if gpus else processes), device, gpus)


def _is_told_to_use_none() -> bool:
    return flag("ACCELERATE_USE_CPU") or os.environ.get(DEVICE) == "cpu"


def _sharing(config: Program, most: int) -> int:
    if not isinstance(config, Train):
        return most
    micro_batch = config.batch_size // config.accumulate
    return max(number for number in range(1, most + 1) if number == 1 or micro_batch % number == 0)


def processes_found(plan: Plan) -> Finding:
    """Say how many processes there would be, and where."""
    here, all_of_them = plan.launched.local_world_size, plan.launched.world_size
    words = f"{all_of_them} on {'a GPU each' if plan.gpus else 'processors'}"
    if here < all_of_them:
        return Finding("note", "processes", f"{words}, {here} of them on this machine: others are not looked at")
    if here < plan.gpus:
        return Finding("note", "processes", f"{words}; {plan.gpus - here} GPUs are left: processes=… asks for more")
    return Finding("ok", "processes", words)


def precision_found(config: Program, plan: Plan) -> Finding:
    """Judge what is asked of launcher and device."""

    def look() -> str:
        zero_stage, precision = asked_of_launcher(config.precision)
        if (problem := missing(precision, plan.device)) is not None:
            raise UserError(f"precision={precision} {problem}")
        if zero_stage is not None and isinstance(config, Train):
            _refuse_with_deepspeed(config, precision)
        return f"{precision} on {plan.device.type}" + (f", DeepSpeed ZeRO {zero_stage}" if zero_stage else "")

    return looked_at("precision", look)


def _refuse_with_deepspeed(config: Train, precision: str) -> None:
    from esl_dist.training.setup import refuse_with_deepspeed

    _refuse_without("DeepSpeed", "deepspeed", ("deepspeed",))
    refuse_with_deepspeed(config, precision)


def extras_found(config: Program) -> list[Finding]:
    """Return whether what the settings ask for is there, where it comes with an extra."""
    found = [looked_at("extras", partial(_refuse_without, *one)) for one in extras_of(config)]
    if isinstance(config, Train) and (others := [name for name in config.trackers if name != TENSORBOARD]):
        found += refused("extras", [partial(refuse_missing_trackers, others)], f"trackers: {', '.join(others)} there")
    return found


def extras_of(config: Program) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the settings that ask for an extra, as they are given, its name, and what is imported of it."""
    if isinstance(config, Train) and config.network.architecture.startswith(TIMM_PREFIX):
        yield f"network.architecture={config.network.architecture}", "timm", ("timm",)
    for setting, place in shards_of(config).items():
        if is_url(place):
            protocol = "s3fs" if place.startswith("s3:") else "aiohttp"
            yield f"{setting}={without_secrets(place)}", "remote", ("fsspec", protocol)


def _refuse_without(who: str, extra: str, modules: tuple[str, ...]) -> str:
    if lacking := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise UserError(f"{who} needs {' and '.join(lacking)}: pip install 'esl-dist[{extra}]'")
    return f"{who}: {' and '.join(modules)} there"
