"""The formulas of the papers in NumPy, as plainly as they are printed there."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def plogp(probabilities: Array, base: float) -> Array:
    """Return p · log p in the base, 0 where p is 0."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return probabilities * np.log(safe) / np.log(base)


def entropy(probabilities: Array) -> Array:
    """Return −Σ p·ln p / ln C over axis 1."""
    return -plogp(probabilities, probabilities.shape[1]).sum(1)


def cross_entropy(logits: Array, labels: NDArray[np.integer]) -> float:
    """Return the mean of −ln p[label] over the pixels whose label is not 255."""
    probabilities = softmax(logits)
    losses = [
        -np.log(probabilities[b, labels[b, y, x], y, x])
        for b, y, x in np.ndindex(labels.shape)
        if labels[b, y, x] != 255
    ]
    return float(np.mean(losses))


def binary_cross_entropy(logits: Array, label: float) -> float:
    probability = 1 / (1 + np.exp(-logits))
    return float(-(label * np.log(probability) + (1 - label) * np.log(1 - probability)).mean())


def bilinear(maps: Array, height: int, width: int) -> Array:
    """Resize (batch, channels, …, …), corners on corners."""

    def weights(count: int, new: int) -> Array:
        matrix = np.zeros((new, count))
        for row in range(new):
            position = row * (count - 1) / (new - 1)
            low = min(int(position), count - 2)
            matrix[row, low], matrix[row, low + 1] = 1 - (position - low), position - low
        return matrix

    rows, columns = weights(maps.shape[2], height), weights(maps.shape[3], width)
    return np.einsum("yh,bchw,xw->bcyx", rows, maps, columns)
