"""Pack one split of a data set into shards: check every pair first, then encode in several processes, write in order.

The order of samples and the cut into shards depend on the pairs alone, so packing twice gives the same bytes, however
many processes help.
"""

import multiprocessing
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from esl_dist.data.images import (
    Size,
    decode_image,
    decode_label,
    encode_jpg,
    encode_png,
    fitted_size,
    resize_image,
    resize_label,
)
from esl_dist.data.layouts import Layout, Pair
from esl_dist.data.shards import (
    INDEX_NAME,
    Members,
    ShardEntry,
    ShardIndex,
    packed_size,
    read_index,
    shard_name,
    verify,
    write_index,
    write_shard,
)
from esl_dist.data.shards import open_shards as open_packed
from esl_dist.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[Iterable[Item], int, str], Iterable[Item]]
"""Wraps an iterable of known length in a progress bar with a title."""

REPORTED_PROBLEMS = 10
SKIPPED = "skipped"
"""Key in an index's `made_with`: names of the samples left out because picture and label differ in size."""
WAITING_RESULTS = 16
"""Results a packing process may be ahead of the writer."""


@dataclass(frozen=True)
class Encoding:
    """How a sample is stored; see the settings of the same names in `esl_dist.config.Prepare`."""

    size: Size | None
    label_size: Size | None
    image_format: str
    jpg_quality: int


def pack(
    layout: Layout, folder: Path, encoding: Encoding, shard_bytes: int, processes: int, progress: Progress[Any]
) -> ShardIndex:
    """Pack a split into `folder`; a folder that holds the same already is only verified.

    Args:
        layout: the split.
        folder: where the shards go; its index.json is written last.
        encoding: how samples are stored.
        shard_bytes: largest size of a shard in bytes, though a shard has at least one sample.
        processes: processes that check and encode.
        progress: see `Progress`.

    Raises:
        UserError: pairs that cannot be packed (named, before anything is written), two names that give one key,
            or a folder that holds something else.
    """
    made_with = {
        "size": encoding.size,
        "label_size": encoding.label_size,
        "image_format": encoding.image_format,
        "jpg_quality": encoding.jpg_quality,
        "shard_bytes": shard_bytes,
        "label_channel": layout.label_channel,
        "skip_other_sizes": layout.skip_other_sizes,
    }
    _keys(layout.pairs)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; expected a folder for shards, or a place where there is nothing yet")
    if (folder / INDEX_NAME).exists():
        return _verify_packed(folder, layout, made_with)
    with _pool(processes) as pool:
        check = partial(_check, known_ids=layout.known_ids(), label_channel=layout.label_channel)
        found = list(progress(_in_order(pool, check, layout.pairs, processes), len(layout.pairs), "checking"))
        _refuse_problems(found, layout.skip_other_sizes)
        pairs = [pair for pair, one in zip(layout.pairs, found, strict=True) if isinstance(one, tuple)]
        skipped = [pair.name for pair, one in zip(layout.pairs, found, strict=True) if not isinstance(one, tuple)]
        if not pairs:
            raise UserError(f"{folder}: no picture of {layout.dataset} has the size of its label; nothing was written")
        encode = partial(
            _encode,
            encoding=encoding,
            label_channel=layout.label_channel,
            keep_aspect_ratio=layout.keep_aspect_ratio,
        )
        encoded = _in_order(pool, encode, pairs, processes)
        samples = zip(_keys(pairs), progress(encoded, len(pairs), "packing"), strict=True)
        shards = list(_write_shards(folder, samples, shard_bytes))
    sizes = [one for one in found if isinstance(one, tuple)]
    index = ShardIndex(
        dataset=layout.dataset,
        split=layout.split,
        image_size=_common(stored_size(size, encoding.size, layout.keep_aspect_ratio) for size in sizes),
        label_size=_common(stored_size(size, encoding.label_size, layout.keep_aspect_ratio) for size in sizes),
        class_sets=layout.class_sets,
        made_with=made_with | {SKIPPED: skipped},
        shards=tuple(shards),
        keep_aspect_ratio=layout.keep_aspect_ratio,
    )
    _remove_surplus(folder, index)
    write_index(folder, index)
    return index


def _keys(pairs: Iterable[Pair]) -> list[str]:
    keys: dict[str, str] = {}
    for pair in pairs:
        key = pair.name.replace(".", "_")
        if key in keys:
            raise UserError(f"samples {keys[key]!r} and {pair.name!r} would both have the key {key!r}; rename one")
        keys[key] = pair.name
    return list(keys)


def stored_size(size: Size, asked: Size | None, keep_aspect_ratio: bool) -> Size:
    """Return the size at which a picture of `size` is packed: without padding, which is added when it is read."""
    if asked is None:
        return size
    return fitted_size(size, asked) if keep_aspect_ratio else asked


def _verify_packed(folder: Path, layout: Layout, made_with: dict[str, Any]) -> ShardIndex:
    index = read_index(folder)
    skipped = index.made_with.get(SKIPPED) or []
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in made_with.items()}
    wanted[SKIPPED] = skipped
    packed_keys = [sample.key for shard in index.shards for sample in shard.samples]
    keys = _keys(pair for pair in layout.pairs if pair.name not in skipped)
    same = (index.dataset, index.split, index.made_with, index.keep_aspect_ratio) == (
        layout.dataset,
        layout.split,
        wanted,
        layout.keep_aspect_ratio,
    )
    if not same or packed_keys != keys or index.class_sets != layout.class_sets:
        raise UserError(f"{folder}: holds shards of other samples or settings; choose another output or delete it")
    try:
        verify(open_packed(folder))
    except UserError as error:
        raise UserError(f"{error}; delete {folder} first") from error
    return index


@dataclass(frozen=True)
class _OtherSize:
    """A pair whose label has another size than its picture."""

    message: str


def _check(pair: Pair, known_ids: frozenset[int], label_channel: str | None) -> Size | _OtherSize | str:
    """Return the size of picture and label, or what is wrong with the pair."""
    try:
        with Image.open(pair.image) as image:
            # Pillow notices a file that ends too early, which OpenCV fills with grey.
            image.load()
            image_size = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{pair.image}: not a whole picture ({error})"
    if not cv2.haveImageReader(str(pair.image)):
        return f"{pair.image}: OpenCV cannot read a picture of this format; expected png or jpg"
    if pair.label is None:
        return image_size
    try:
        label = decode_label(pair.label.read_bytes(), label_channel)
    except (OSError, ValueError) as error:
        return f"{pair.label}: {error}"
    if label.shape[::-1] != image_size:
        return _OtherSize(
            f"{pair.label}: {label.shape[1]}×{label.shape[0]} pixels, its picture has {image_size[0]}×{image_size[1]}"
        )
    unknown = sorted(set(np.unique(label).tolist()) - known_ids)
    if unknown:
        return f"{pair.label}: raw ids {unknown} are in no class and not in ignore_ids of the description"
    return image_size


def _refuse_problems(results: list[Size | _OtherSize | str], skip_other_sizes: bool) -> None:
    problems = [
        result.message if isinstance(result, _OtherSize) else result
        for result in results
        if isinstance(result, str) or (isinstance(result, _OtherSize) and not skip_other_sizes)
    ]
    if problems:
        shown = "\n  ".join(problems[:REPORTED_PROBLEMS])
        more = f"\n  and {len(problems) - REPORTED_PROBLEMS} more" if len(problems) > REPORTED_PROBLEMS else ""
        raise UserError(f"{len(problems)} samples cannot be packed; nothing was written:\n  {shown}{more}")


def _common(sizes: Iterable[Size]) -> Size | None:
    different = set(sizes)
    return different.pop() if len(different) == 1 else None


def _encode(pair: Pair, encoding: Encoding, label_channel: str | None, keep_aspect_ratio: bool) -> Members:
    content = pair.image.read_bytes()
    image = decode_image(content)
    own_size = (image.shape[1], image.shape[0])
    resized = resize_image(image, stored_size(own_size, encoding.size, keep_aspect_ratio))
    kind = pair.image.suffix.lower().lstrip(".")
    if encoding.image_format == "keep" and resized is image and kind in ("png", "jpg", "jpeg"):
        members = {f"image.{'jpg' if kind == 'jpeg' else kind}": content}
    elif encoding.image_format == "jpg":
        members = {"image.jpg": encode_jpg(resized, encoding.jpg_quality)}
    else:
        members = {"image.png": encode_png(resized)}
    if pair.label is None:
        return members
    label = decode_label(pair.label.read_bytes(), label_channel)
    label_size = stored_size(own_size, encoding.label_size, keep_aspect_ratio)
    return {**members, "label.png": encode_png(resize_label(label, label_size))}


def _write_shards(folder: Path, samples: Iterable[tuple[str, Members]], shard_bytes: int) -> Iterator[ShardEntry]:
    waiting: list[tuple[str, Members]] = []
    # A tar ends with two blocks of zeros and is filled up to whole records.
    largest = shard_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE
    size, position = 0, 0
    for key, members in samples:
        sample_size = packed_size(key, members)
        if waiting and size + sample_size > largest:
            yield write_shard(folder / shard_name(position), waiting)
            waiting, size, position = [], 0, position + 1
        waiting.append((key, members))
        size += sample_size
    yield write_shard(folder / shard_name(position), waiting)


def _remove_surplus(folder: Path, index: ShardIndex) -> None:
    """Remove tars of an earlier, interrupted packing with other settings."""
    written = {shard.name for shard in index.shards}
    for path in folder.glob("shard-*.tar"):
        if path.name not in written:
            path.unlink()


def _in_order(
    pool: Pool, function: Callable[[Pair], Result], pairs: Iterable[Pair], processes: int
) -> Iterator[Result]:
    """Yield the results in the order of `pairs`; unlike `Pool.imap`, few wait in memory for a slow reader."""
    waiting: deque[AsyncResult[Result]] = deque()
    for pair in pairs:
        waiting.append(pool.apply_async(function, (pair,)))
        if len(waiting) >= WAITING_RESULTS * processes:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()


@contextmanager
def _pool(processes: int) -> Iterator[Pool]:
    # "spawn", not "fork": OpenCV and PyTorch may hold locks in threads that a forked child would wait for.
    with multiprocessing.get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield pool
