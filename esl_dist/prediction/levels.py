"""Scores of a picture's pixels as 16-bit levels, without its padding, counted by the class that is predicted.

The pseudo-label job counts so to find its thresholds, and the validation of a training to say what they would keep.
"""

from collections.abc import Callable
from threading import Lock

from torch import Tensor

from esl_dist.adaptation.entropy import count_levels
from esl_dist.data.images import Size, fitted_size
from esl_dist.data.loading import Batch
from esl_dist.data.shard_index import ShardIndex

Count = Callable[[Tensor, Tensor], None]
"""Counts a picture's levels: labels, levels."""


def counting(histograms: Tensor) -> Count:
    """Return a function for several threads that counts in the same histograms."""
    lock = Lock()

    def count(labels: Tensor, levels: Tensor) -> None:
        with lock:
            count_levels(histograms, labels.to(histograms.device), levels.to(histograms.device))

    return count


def without_padding(index: ShardIndex, batch: Batch, frame: Size) -> Size:
    """Return width and height of what is no padding, at the left and the top, in a picture predicted at `frame`."""
    own = (int(batch["own_sizes"][0, 0]), int(batch["own_sizes"][0, 1]))
    return fitted_size(own, frame) if index.keep_aspect_ratio else frame
