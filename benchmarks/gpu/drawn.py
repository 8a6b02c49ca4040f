"""Data sets of the published sizes and folder forms, drawn: pictures that compress about as photographs do.

A picture is noise in octaves, each of half the width and more strength than the finer one, as in photographs. Its PNG
takes about 1.1 bytes a pixel, as those of GTA5 (58 GB) and Cityscapes do. A label is the class of the highest of some
smooth fields: regions with curved edges.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.sizes import Size
from benchmarks.programs import PROJECT, run
from esl_dist.data.images import encode_png

DISTINCT = 3
"""Pictures that are drawn of a data set; the others are copies."""

RAW_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
OCTAVES, FINEST, GROWTH = 8, 1.5, 1.65
"""Of noise: how many, the deviation of the finest in grey levels, and by what each coarser one is stronger."""

TINT = 0.15
"""Of the noise of each colour, beside that of all."""

FORMS = {
    "gta5": ("all", "images/{}.png", "labels/{}.png"),
    "cityscapes": (
        "train",
        "leftImg8bit/train/city/{}_leftImg8bit.png",
        "gtFine/train/city/{}_gtFine_labelIds.png",
    ),
}
"""Split and files of each data set, as its description in configs/datasets has them."""


def picture(seed: int, size: Size) -> NDArray[np.uint8]:
    """Draw a picture, uint8 (height, width, 3)."""
    random, (width, height) = np.random.default_rng(seed), size
    canvas = np.full((height, width, 3), 110, np.float32)
    for octave in range(OCTAVES):
        shape, strength = (max(height >> octave, 2), max(width >> octave, 2)), FINEST * GROWTH**octave
        grey, tint = (random.standard_normal((*shape, channels), np.float32) for channels in (1, 3))
        canvas += cv2.resize(strength * (grey + TINT * tint), size, interpolation=cv2.INTER_LINEAR)
    pixels: NDArray[np.uint8] = canvas.clip(0, 255).astype(np.uint8)
    return pixels


def label(seed: int, size: Size) -> NDArray[np.uint8]:
    """Draw raw ids, uint8 (height, width)."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((len(RAW_IDS), 9, 17), np.float32)
    half = (size[0] // 2, size[1] // 2)
    highest = np.argmax(np.stack([cv2.resize(field, half, interpolation=cv2.INTER_CUBIC) for field in coarse]), axis=0)
    classes = cv2.resize(highest.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    raw_ids: NDArray[np.uint8] = np.array(RAW_IDS, np.uint8)[classes]
    return raw_ids


def draw(root: Path, data_set: str, size: Size, count: int) -> None:
    """Draw so many pairs in the form of a data set."""
    _, images, labels = FORMS[data_set]
    for number in range(count):
        for form, drawing in ((images, picture), (labels, label)):
            file = root / form.format(f"{number:05d}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_encoded(drawing, number % DISTINCT, size))


@cache
def _encoded(drawing: Callable[[int, Size], NDArray[np.uint8]], seed: int, size: Size) -> bytes:
    return encode_png(drawing(seed, size))


def drawn_shards(folder: Path, data_set: str, size: Size, count: int, *words: str) -> Path:
    """Draw so many pairs, once, and pack them as `words` say; returns the folder of the shards."""
    root = folder / f"{data_set}_{count}"
    if not root.exists():
        draw(root, data_set, size, count)
    output = folder / f"{data_set}_{count}_shards_{'_'.join(words)}"
    if not output.exists():
        description = PROJECT / f"configs/datasets/{data_set}.yaml"
        own = [f"dataset={description}", f"root={root}", f"split={FORMS[data_set][0]}", f"output={output}"]
        run("shards/prepare.py", [*own, *words])
    return output
