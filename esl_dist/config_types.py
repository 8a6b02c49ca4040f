"""Types of settings: what a number, a folder or a size may be, with the bounds of each."""

import math
from typing import Annotated, Literal

from esl_dist.config_values import FAR, FOLDER, LOCAL, Bound, limits, one_of, two_values

# Every number has an upper bound, so that a slip of the keyboard is told at once and neither fills the memory nor
# overflows in a step. Each is chosen a hundred times or more beyond what published trainings use and what one machine
# has, and such that what is computed from several of them (rate · multiplier in float32, steps · batch in int64,
# ten times the timeout) still fits its type. Whether a value in bounds fits the machine is seen when it is used.
MOST_STEPS = 10**9
LARGEST_FACTOR = 1e6
LONGEST_SIDE = 2**15
MOST_PIXELS = Bound("at most 268_435_456 pixels together", lambda size: math.prod(size) <= 2**28, is_of_list=True)
PRECISIONS = ("no", "tf32", "bf16", "fp16")

RESIDUAL_NETWORKS = ("resnet152", "resnet101", "resnet50", "resnet34", "resnet18", "tiny")
TIMM_PREFIX = "timm/"
A_NETWORK = Bound(
    f"one of {', '.join(RESIDUAL_NETWORKS)}, or {TIMM_PREFIX} and the name of one of timm's models",
    lambda value: value in RESIDUAL_NETWORKS or (value.startswith(TIMM_PREFIX) and value != TIMM_PREFIX),
    choices=RESIDUAL_NETWORKS,
)
A_STRIDE = Bound("at least 8, at most 32, a power of two", lambda value: value in (8, 16, 32))

Domain = Literal["source", "target"]
DOMAINS: tuple[Domain, Domain] = ("source", "target")

Folder = Annotated[str, FOLDER, LOCAL]
ShardFolder = Annotated[str, FOLDER, FAR]
LocalPath = Annotated[str, LOCAL]
Architecture = Annotated[str, A_NETWORK]
Stride = Annotated[int, A_STRIDE]
Precision = Annotated[str, one_of(*PRECISIONS)]
DomainChoice = Annotated[str, one_of(*DOMAINS)]
Steps = Annotated[int, limits(at_least=1, at_most=MOST_STEPS)]
StepsOrNone = Annotated[int, limits(at_least=0, at_most=MOST_STEPS)]
Samples = Annotated[int, limits(at_least=1, at_most=2**16)]
Size = Annotated[list[int], two_values("[width, height]"), limits(at_least=1, at_most=LONGEST_SIDE), MOST_PIXELS]
ScaleRange = Annotated[
    list[float],
    two_values("[least, greatest]"),
    limits(more_than=0, at_most=10),
    Bound("the least first", lambda factors: factors[0] <= factors[1], is_of_list=True),
]
Margins = Annotated[
    list[float],
    Bound("4 values, [top, bottom, left, right]", lambda values: len(values) == 4, is_of_list=True),
    limits(at_least=0, less_than=1),
    Bound(
        "opposite ones less than 1 together", lambda values: max(sum(values[:2]), sum(values[2:])) < 1, is_of_list=True
    ),
]
Workers = Annotated[int, limits(at_least=0, at_most=256)]
Seed = Annotated[int, limits(at_least=0, at_most=2**32 - 1)]
Share = Annotated[float, limits(at_least=0, at_most=1)]
ShareBelowOne = Annotated[float, limits(at_least=0, less_than=1)]
Rate = Annotated[float, limits(more_than=0, at_most=1e30)]
Betas = Annotated[list[float], two_values(), limits(at_least=0, less_than=1)]
Weight = Annotated[float, limits(at_least=0, at_most=LARGEST_FACTOR)]
Multiplier = Annotated[float, limits(more_than=0, at_most=LARGEST_FACTOR)]
LargestMegapixels = Annotated[int, limits(at_least=1, at_most=1073)]
A_YEAR = 525_600.0
Timeout = Annotated[float, limits(more_than=0, at_most=A_YEAR)]
