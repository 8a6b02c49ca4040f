"""Small inputs for tests: drawn pictures in folders, descriptions of data sets, folders of shards."""

import itertools
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from esl_dist.checked import Content
from esl_dist.data.images import encode_png
from esl_dist.data.labels import ClassSet, class_set_from
from esl_dist.data.loading import network_input
from esl_dist.data.shard_index import ShardIndex, write_index
from esl_dist.data.shards import ShardReader, open_shards, shard_name, write_shard

CLASS_ENTRIES: list[dict[str, Any]] = [
    {"name": "road", "color": [128, 64, 128], "ids": [7]},
    {"name": "house", "color": [70, 70, 70], "ids": [11, 12]},
    {"name": "sky", "color": [70, 130, 180], "ids": [23]},
]
RAW_IDS = (7, 11, 12, 23, 0)
"""Every raw id of `CLASS_ENTRIES`, and 0, which belongs to no class."""

SPLIT = "train"


def as_classes(entries: object) -> ClassSet:
    """Return the class set that entries of a file called "here" stand for."""
    return class_set_from(Content(entries, Path("here"), "correct it"))


def class_set() -> ClassSet:
    """Return road, house and sky, whose raw ids are not their train ids."""
    return as_classes(CLASS_ENTRIES)


def draw(seed: int, width: int = 16, height: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (BGR, uint8) and its raw ids (uint8): coloured noise, another for every seed."""
    random = np.random.RandomState(seed)
    picture = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
    return picture, np.array(RAW_IDS, np.uint8)[random.randint(0, len(RAW_IDS), (height, width))]


def input_of(picture: np.ndarray) -> torch.Tensor:
    """Return a network's input, (1, 3, height, width), for one picture."""
    return network_input(torch.from_numpy(picture)[None])


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode with Pillow, so that what is read is not what the code under test wrote; an array is taken as it is."""
    buffer = BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def description(**changes: Any) -> dict[str, Any]:
    """Return a data set's description as plain dictionaries; `changes` replace or, if None, remove a key."""
    content: dict[str, Any] = {
        "name": "village",
        "root": "nowhere",
        "image": "{split}/images/{name}.png",
        "label": "{split}/labels/{name}.png",
        "splits": {SPLIT: {"names": ["*"]}},
        "ignore_ids": [0],
        "class_sets": {"village3": CLASS_ENTRIES},
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def write_description(folder: Path, **changes: Any) -> Path:
    """Write a description beside the pictures of `write_pictures`; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "village.yaml"
    file.write_text(yaml.safe_dump(description(root=str(folder), **changes), sort_keys=False), encoding="utf-8")
    return file


def write_pictures(folder: Path, names: Sequence[str], width: int = 16, height: int = 12) -> Path:
    """Draw one picture and label a name, and describe them; returns the description."""
    for seed, name in enumerate(names):
        picture, label = draw(seed, width, height)
        for kind, array in (("images", picture), ("labels", label)):
            path = folder / SPLIT / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(array))
    return write_description(folder)


def drawn_samples(number: int, width: int = 16, height: int = 12) -> list[tuple[str, dict[str, bytes]]]:
    """Return key and members of drawn samples."""
    samples = []
    for seed in range(number):
        picture, label = draw(seed, width, height)
        members = {"image.png": encode_png(picture), "label.png": encode_png(label)}
        samples.append((f"scene_{seed:03d}", members))
    return samples


def write_shards(
    folder: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]], in_a_shard: int = 3, **changes: Any
) -> ShardReader:
    """Write samples as a folder of shards, without the check and the processes of `packing`; returns it opened."""
    cuts = range(0, len(samples), in_a_shard)
    shards = [
        write_shard(folder / shard_name(number), samples[start : start + in_a_shard])
        for number, start in enumerate(cuts)
    ]
    content = {"dataset": "village", "split": SPLIT, "image_size": None, "label_size": None, "made_with": {}}
    write_index(
        folder, ShardIndex(**{**content, "class_sets": {"village3": class_set()}, "shards": tuple(shards), **changes})
    )
    return open_shards(folder)


def drawn_shards(folder: Path, number: int, in_a_shard: int = 3, width: int = 16, height: int = 12) -> ShardReader:
    """Draw samples and write them as a folder of shards; returns it opened."""
    return write_shards(folder, drawn_samples(number, width, height), in_a_shard)


def no_progress(items: Any, total: int, title: str) -> Any:
    """Show nothing."""
    return items


def write_uneven_shards(
    folder: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]], sizes: Sequence[int]
) -> ShardReader:
    """Write samples as shards whose numbers of samples are `sizes`, over and over."""
    shards, start = [], 0
    for number, size in enumerate(itertools.cycle(sizes)):
        if start >= len(samples):
            break
        shards.append(write_shard(folder / shard_name(number), samples[start : start + size]))
        start += size
    write_index(folder, ShardIndex("village", SPLIT, (16, 12), (16, 12), {"village3": class_set()}, {}, tuple(shards)))
    return open_shards(folder)
