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
        pictures: of it that trainings read.
    """

    size: Size
    read_at: Size
    pictures: int


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
        job_pictures: of each set in the short and in the long job, whose difference is timed.
        workers: processes that read, of each domain.
        training_pictures: of each domain in the short and in the long training, whose difference is timed.
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
    job_pictures: tuple[int, int]
    workers: int
    training_pictures: tuple[int, int]

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
    gta5=DrawnSet((1914, 1052), (1280, 720), 40),
    cityscapes=DrawnSet((2048, 1024), (1024, 512), 40),
    job_pictures=(20, 420),
    workers=6,
    training_pictures=(20, 420),
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
    gta5=DrawnSet((96, 52), (64, 32), 4),
    cityscapes=DrawnSet((128, 64), (64, 32), 4),
    job_pictures=(2, 4),
    workers=0,
    training_pictures=(2, 6),
)
