"""Rare-class sampling: first a class is drawn, rare ones more often, then a picture that shows enough of it.

DAFormer (arXiv 2111.14887, section 3.3): with f_c the share of class c in all labelled pixels of the data set,

    P(c) = exp((1 − f_c) / T) / Σ_c' exp((1 − f_c') / T),

and then any picture with more than a least number of pixels of c, all as likely. Both draws are functions of the
sample's number alone, so this is another order beside `sampling.endless_order`; it has no epochs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from esl_dist.data.sampling import CHOICE, DrawKey, Wanted, random_numbers


@dataclass(frozen=True)
class RareClassSampling:
    """What is drawn from.

    Attributes:
        probabilities: float64 (classes,), those of the classes; 0 for one that no picture shows enough of.
        positions: for each class, int64 (pictures,), the samples that show enough of it.
    """

    probabilities: NDArray[np.float64]
    positions: tuple[NDArray[np.int64], ...]

    def left_out(self) -> list[int]:
        """Return the train ids of the classes that are never drawn."""
        return [train_id for train_id, shown in enumerate(self.positions) if not len(shown)]


def class_probabilities(
    pixels: NDArray[np.int64], temperature: float, is_drawn: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return P(c) of each class, over those that are drawn; 0 for the others.

    Args:
        pixels: int64 (classes,), pixels of each class in the data set; not all 0.
        temperature: T, above 0.
        is_drawn: bool (classes,), not all False.
    """
    shares = pixels / pixels.sum()
    # Relative to the rarest that is drawn, which cannot overflow.
    weights = np.exp((shares[is_drawn].min() - np.where(is_drawn, shares, np.inf)) / temperature)
    return np.asarray(weights / weights.sum(), np.float64)


def rare_classes(pixels: NDArray[np.int64], temperature: float, least_pixels: int) -> RareClassSampling:
    """Return what is drawn from; a class that no sample shows enough of is left out.

    Args:
        pixels: int64 (samples, classes), pixels of each class in each label.
        temperature: see `class_probabilities`.
        least_pixels: a sample shows a class with more pixels than this.

    Raises:
        ValueError: no sample shows enough of any class.
    """
    positions = tuple(np.flatnonzero(of_class > least_pixels) for of_class in pixels.T)
    is_drawn = np.array([len(shown) > 0 for shown in positions])
    if not is_drawn.any():
        raise ValueError(f"no sample has more than {least_pixels} pixels of any class")
    return RareClassSampling(class_probabilities(pixels.sum(axis=0), temperature, is_drawn), positions)


def rare_class_order(rare: RareClassSampling, seed: int, domain: int, first: int) -> Iterator[Wanted]:
    """Yield samples without end, each with its class, from the number `first` on."""
    bounds = np.cumsum(rare.probabilities)
    for number in count(first):
        key = DrawKey(seed, domain, number)
        of_class, of_picture = random_numbers(key, CHOICE).random_sample(2)
        # Up to the sum, which rounds: never a class of probability 0 at the end.
        train_id = int(np.searchsorted(bounds, of_class * bounds[-1], side="right"))
        shown = rare.positions[train_id]
        yield Wanted(int(shown[int(of_picture * len(shown))]), key, train_id)
