"""How large everything is: the published training on a GPU, or so small that each stage ends in seconds on a CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.step_counts import Workload

Size = tuple[int, int]
"""Width and height."""

Row = dict[str, str | float]
"""What was found about one thing, under `what`; further columns by name, with their unit."""

Rows = Iterator[Row]


@dataclass(frozen=True)
class DrawnSet:
    """A data set that is drawn in the form of a published one.

    Attributes:
        size: of its pictures.
        read_at: size at which a network sees them.
        few, many: pictures of its two splits: what a job costs a picture is the difference between both.
    """

    size: Size
    read_at: Size
    few: int
    many: int


@dataclass(frozen=True)
class Sizes:
    """What the stages take.

    Attributes:
        workload: whose step is measured.
        pictures: of each domain a step, one measurement each.
        small: the step whose results are compared between processors.
        product: rows of the square matrices that are multiplied.
        copied_bytes: on the device.
        warm_up, steps: that are not timed, and that are.
        gta5, cityscapes: see `DrawnSet`.
        jobs_on: the sets whose jobs are timed.
        workers: processes that read, of each domain.
        training_steps: of the short and of the long training, whose difference is timed.
    """

    workload: Workload
    pictures: tuple[int, ...]
    small: Workload
    product: int
    copied_bytes: int
    warm_up: int
    steps: int
    gta5: DrawnSet
    cityscapes: DrawnSet
    jobs_on: tuple[str, ...]
    workers: int
    training_steps: tuple[int, int]

    def drawn(self) -> dict[str, DrawnSet]:
        """Return the drawn sets by name."""
        return {"gta5": self.gta5, "cityscapes": self.cityscapes}


FULL = Sizes(
    workload=Workload(),
    pictures=(1, 4),
    small=Workload("resnet18", 19, (256, 128), (256, 128)),
    product=8192,
    copied_bytes=2**30,
    warm_up=3,
    steps=10,
    gta5=DrawnSet((1914, 1052), (1280, 720), 8, 40),
    cityscapes=DrawnSet((2048, 1024), (1024, 512), 8, 72),
    jobs_on=("cityscapes", "gta5"),
    workers=6,
    training_steps=(10, 90),
)
_SMALL = Workload("tiny", 19, (64, 32), (48, 32), auxiliary=True, channels=4)
TINY = Sizes(
    workload=_SMALL,
    pictures=(2,),
    small=_SMALL,
    product=64,
    copied_bytes=2**16,
    warm_up=1,
    steps=2,
    gta5=DrawnSet((96, 52), (64, 32), 2, 4),
    cityscapes=DrawnSet((128, 64), (64, 32), 2, 4),
    jobs_on=("cityscapes",),
    workers=0,
    training_steps=(1, 3),
)
