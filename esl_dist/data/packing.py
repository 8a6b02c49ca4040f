"""Pack one split of a data set into shards: check every pair first, then encode in several processes, write in order.

The order of samples and the cut into shards depend on the pairs alone, so packing twice gives the same bytes, however
many processes help. The index notes a digest of every source file, by which a later start knows whether the folder is
current; one that is not is packed anew only where that is asked for, for runs and pseudo-labels know shards by their
bytes.
"""

import hashlib
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from esl_dist.data.changes import (
    SKIPPED,
    changed_settings,
    changed_sources,
    digests,
    keys,
    noted_sources,
)
from esl_dist.data.folders import (
    REPLACEMENT,
    finished,
    remove_surplus,
    remove_unfinished,
    replacement_name,
    settle,
    sole_packing,
)
from esl_dist.data.images import (
    LARGEST_JPEG_SIDE,
    LARGEST_PIXELS,
    Label,
    Size,
    encode_jpg,
    encode_png,
    fitted_size,
    resize_image,
    resize_label,
)
from esl_dist.data.labels import RAW_IDS
from esl_dist.data.layouts import Layout, Pair
from esl_dist.data.processes import affordable, in_order, worker_processes
from esl_dist.data.shard_index import INDEX_NAME, ShardEntry, ShardIndex, read_index, write_index
from esl_dist.data.shards import Members, open_shards, packed_size, shard_name, verify, write_shard
from esl_dist.data.sources import Reading, read_label, read_picture
from esl_dist.errors import UserError

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], int, str], Iterable[Item]]
"""Wraps an iterable of known length in a progress bar with a title."""

REPORTED_PROBLEMS = 10
WAITING_RESULTS = 16
"""Results a packing process may be ahead of the writer."""


@dataclass(frozen=True)
class Encoding:
    """How a sample is read and stored; see the settings of `esl_dist.config.Prepare`."""

    size: Size | None
    label_size: Size | None
    image_format: str
    jpg_quality: int
    largest_pixels: int = LARGEST_PIXELS


@dataclass(frozen=True)
class Packed:
    """A folder's index, and whether it was written just now; if not, the folder was current."""

    index: ShardIndex
    anew: bool


@dataclass(frozen=True)
class _Task:
    """What is packed, how, and by how many processes."""

    layout: Layout
    encoding: Encoding
    shard_bytes: int
    processes: int
    progress: Progress[Any]

    def made_with(self) -> dict[str, Any]:
        """Return what decides the bytes, as the index says it; what cannot matter is left out."""
        layout, encoding = self.layout, self.encoding
        settings: dict[str, Any] = {
            "size": encoding.size,
            "image_format": encoding.image_format,
            "shard_bytes": self.shard_bytes,
            "exif_orientation": layout.exif_orientation,
        }
        if encoding.image_format == "jpg":
            settings["jpg_quality"] = encoding.jpg_quality
        if any(pair.label is not None for pair in layout.pairs):
            settings |= {
                "label_size": encoding.label_size,
                "label_channel": layout.label_channel,
                "label_colors": layout.label_colors,
                "raw_ids_of_colors": sorted([*color, one] for color, one in layout.raw_ids_of_colors.items()),
                "skip_other_sizes": layout.skip_other_sizes,
                "ignore_ids": sorted(layout.ignore_ids),
            }
        return settings

    def reading(self) -> Reading:
        """Return how files are read."""
        return Reading(
            label_channel=self.layout.label_channel,
            colors=self.layout.raw_ids_of_colors if self.layout.label_colors else None,
            exif_orientation=self.layout.exif_orientation,
            largest_pixels=self.encoding.largest_pixels,
        )


def pack(
    layout: Layout,
    folder: Path,
    encoding: Encoding,
    shard_bytes: int,
    processes: int,
    progress: Progress[Any],
    anew: bool = False,
) -> Packed:
    """Pack a split into `folder`; a folder that holds the same already is only verified.

    Args:
        layout: the split.
        folder: where the shards go; its index.json is written last.
        encoding: how samples are read and stored.
        shard_bytes: largest size of a shard in bytes, though a shard has at least one sample.
        processes: most processes that check and encode; fewer where memory is short.
        progress: see `Progress`.
        anew: whether other or damaged shards of a packing are replaced, not refused; they stay until the new are whole.

    Raises:
        UserError: pairs that cannot be packed (named, before anything is written), two names that give one key, a
            dead process, another packing in the folder, a folder whose shards shards/prepare.py did not make or,
            unless `anew`, one that holds something else: it says what.
    """
    task = _Task(layout, encoding, shard_bytes, processes, progress)
    keys(layout.pairs)
    with sole_packing(folder):
        if not (folder / INDEX_NAME).exists():
            return Packed(_pack(task, folder, shard_name), True)
        index = finished(folder, _index_of_packing(folder))
        changes = [] if anew and index.sources is None else _changes(index, task)
        if changes and not anew:
            raise UserError(
                f"{folder}: holds shards of other files or settings: {'; '.join(changes)}. repack=true packs anew in "
                "their place (what was made with the old ones will not go on with the new), or choose another output"
            )
        damage = None if changes else _damage(folder)
        if damage and not anew:
            raise UserError(f"{damage}; repack=true packs it again")
        if changes or damage or (anew and index.sources is None):
            return Packed(_replaced(task, folder, index), True)
        remove_unfinished(folder, index)
        return Packed(index, False)


def _replaced(task: _Task, folder: Path, old: ShardIndex) -> ShardIndex:
    """Pack in the place of the shards of `old`, which a failure leaves alone."""
    if any(shard.name.startswith(REPLACEMENT) for shard in old.shards):
        # Replacements that could not take their place, for some are lost: the new ones have no names to wait for.
        return _pack(task, folder, shard_name)
    try:
        index = _pack(task, folder, replacement_name)
    except BaseException:
        remove_unfinished(folder, finished(folder, read_index(folder)))
        raise
    return settle(folder, index)


def stored_size(size: Size, asked: Size | None, keep_aspect_ratio: bool) -> Size:
    """Return the size at which a picture of `size` is packed: without padding, which is added when it is read."""
    if asked is None:
        return size
    return fitted_size(size, asked) if keep_aspect_ratio else asked


def _index_of_packing(folder: Path) -> ShardIndex:
    remedy = f"delete {folder / INDEX_NAME} to have its folder packed again, or choose another output"
    try:
        index = read_index(folder)
    except UserError as error:
        raise UserError(f"{error}. If these are shards of a packing, {remedy}") from error
    if "image_format" not in index.made_with:
        raise UserError(f"{folder}: holds shards that shards/prepare.py did not make (pseudo-labels?); choose another")
    skipped = index.made_with.get(SKIPPED) or []
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise UserError(f"{folder / INDEX_NAME}: made_with: {SKIPPED}: expected a list of names; {remedy}")
    return index


def _changes(index: ShardIndex, task: _Task) -> list[str]:
    """Return what is no longer as it was packed; reads all source files, unless nobody noted their digests."""
    pairs = task.layout.pairs
    found: list[dict[str, str]] = [{}] * len(pairs)
    if index.sources is not None:
        found = list(task.progress(digests(pairs), len(pairs), "comparing"))
    sources = dict(zip(keys(pairs), found, strict=True))
    changed = changed_sources(noted_sources(index), sources)
    return changed + changed_settings(index, task.layout, task.made_with())


def _damage(folder: Path) -> str | None:
    try:
        verify(open_shards(folder))
    except UserError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Checked:
    """What the check found out about a pair.

    Attributes:
        digests: of its files, by `image` and `label`.
        size: of the picture, as it is packed if nothing is resized.
        extension: under which the picture's file can be packed as it is; None: it has to be encoded.
        problem: why the pair cannot be packed; empty if it can.
        other_size: whether the problem is that the label has another size.
    """

    digests: dict[str, str]
    size: Size = (0, 0)
    extension: str | None = None
    problem: str = ""
    other_size: bool = False


def _pack(task: _Task, folder: Path, name: Callable[[int], str]) -> ShardIndex:
    """Check and pack all pairs into shards that `name` gives names, then write the index."""
    layout, encoding, reading = task.layout, task.encoding, task.reading()
    number = affordable(task.processes, (pair.image for pair in layout.pairs), encoding.largest_pixels)
    with worker_processes(number) as workers:
        check = partial(_check, reading=reading, known_ids=layout.known_ids(), encoding=encoding)
        found = in_order(workers, check, layout.pairs, WAITING_RESULTS * number)
        checked = list(task.progress(found, len(layout.pairs), "checking"))
        _refuse_problems(checked, layout.skip_other_sizes)
        kept = [(pair, one) for pair, one in zip(layout.pairs, checked, strict=True) if not one.problem]
        skipped = [pair.name for pair, one in zip(layout.pairs, checked, strict=True) if one.problem]
        if not kept:
            raise UserError(f"{folder}: no picture of {layout.dataset} has the size of its label; nothing was written")
        encode = partial(_encode, reading=reading, encoding=encoding, keep_aspect_ratio=layout.keep_aspect_ratio)
        encoded = in_order(workers, encode, kept, WAITING_RESULTS * number)
        # Closed with the block, whatever ends it, so that no message is written into the bar.
        with closing(one for one in task.progress(encoded, len(kept), "packing")) as shown:
            samples = zip(keys(pair for pair, _ in kept), shown, strict=True)
            shards = tuple(_write_shards(folder, name, samples, task.shard_bytes))
    sizes = [one.size for _, one in kept]
    index = ShardIndex(
        dataset=layout.dataset,
        split=layout.split,
        image_size=_common(stored_size(size, encoding.size, layout.keep_aspect_ratio) for size in sizes),
        label_size=_common(stored_size(size, encoding.label_size, layout.keep_aspect_ratio) for size in sizes),
        class_sets=layout.class_sets,
        made_with=task.made_with() | {SKIPPED: skipped},
        shards=shards,
        keep_aspect_ratio=layout.keep_aspect_ratio,
        sources=dict(zip(keys(layout.pairs), (one.digests for one in checked), strict=True)),
    )
    write_index(folder, index)
    if name is shard_name:
        remove_surplus(folder, index)
    return index


@contextmanager
def _naming(pair: Pair) -> Iterator[None]:
    """Turn whatever goes wrong in a packing process into a message that names the files."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{pair.image}: too little memory for it or its label; take fewer processes") from None
    except Exception as error:
        files = " or ".join(map(str, pair.files()))
        raise UserError(f"{files}: cannot be packed ({type(error).__name__}: {error})") from error


def _check(pair: Pair, reading: Reading, known_ids: frozenset[int], encoding: Encoding) -> _Checked:
    found: dict[str, str] = {}
    file = pair.image
    with _naming(pair):
        try:
            content = file.read_bytes()
            found["image"] = _digest(content)
            pixels, extension = read_picture(content, reading)
            height, width = pixels.shape[:2]
            del pixels  # a large one, while its label is read
            size = (width, height)
            if encoding.image_format == "jpg" and encoding.size is None and max(size) > LARGEST_JPEG_SIDE:
                raise ValueError(f"{width}×{height} pixels; a JPEG has at most {LARGEST_JPEG_SIDE} a side: take png")
            if pair.label is None:
                return _Checked(found, size, extension)
            file = pair.label
            content = file.read_bytes()
            found["label"] = _digest(content)
            label = read_label(content, reading)
        except OSError as error:
            return _Checked(found, problem=f"{file}: cannot be read ({error.strerror or error})")
        except ValueError as error:
            return _Checked(found, problem=f"{file}: {error}")
        if label.shape[::-1] != size:
            shape = f"{label.shape[1]}×{label.shape[0]} pixels, its picture has {width}×{height}"
            return _Checked(found, problem=f"{file}: {shape}", other_size=True)
        unknown = sorted(set(_ids_in(label)) - known_ids)
        if unknown:
            return _Checked(
                found, problem=f"{file}: raw ids {unknown} are in no class and not in ignore_ids of the description"
            )
        return _Checked(found, size, extension)


def _ids_in(label: Label) -> list[int]:
    """Return the ids that occur; a table takes a fraction of the time and memory of sorting all pixels."""
    occurs = np.zeros(RAW_IDS, bool)
    for row in label:
        occurs[row] = True
    return np.flatnonzero(occurs).tolist()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _refuse_problems(checked: Sequence[_Checked], skip_other_sizes: bool) -> None:
    problems = [one.problem for one in checked if one.problem and not (one.other_size and skip_other_sizes)]
    if problems:
        shown = "\n  ".join(problems[:REPORTED_PROBLEMS])
        more = f"\n  and {len(problems) - REPORTED_PROBLEMS} more" if len(problems) > REPORTED_PROBLEMS else ""
        raise UserError(f"{len(problems)} samples cannot be packed; nothing was written:\n  {shown}{more}")


def _common(sizes: Iterable[Size]) -> Size | None:
    different = set(sizes)
    return different.pop() if len(different) == 1 else None


def _encode(sample: tuple[Pair, _Checked], reading: Reading, encoding: Encoding, keep_aspect_ratio: bool) -> Members:
    pair, checked = sample
    with _naming(pair):
        content = _unchanged(pair.image, checked.digests["image"])
        size = stored_size(checked.size, encoding.size, keep_aspect_ratio)
        if encoding.image_format == "keep" and size == checked.size and checked.extension is not None:
            members = {f"image.{checked.extension}": content}
        elif encoding.image_format == "jpg":
            members = {"image.jpg": encode_jpg(_resized(content, reading, size), encoding.jpg_quality)}
        else:
            members = {"image.png": encode_png(_resized(content, reading, size))}
        if pair.label is None:
            return members
        label = read_label(_unchanged(pair.label, checked.digests["label"]), reading)
        label_size = stored_size(checked.size, encoding.label_size, keep_aspect_ratio)
        return {**members, "label.png": encode_png(resize_label(label, label_size))}


def _resized(content: bytes, reading: Reading, size: Size) -> NDArray[np.uint8]:
    return resize_image(read_picture(content, reading).pixels, size)


def _unchanged(file: Path, digest: str) -> bytes:
    content = file.read_bytes()
    if _digest(content) != digest:
        raise UserError(f"{file}: changed between its check and its packing; start again when nothing writes there")
    return content


def _write_shards(
    folder: Path, name: Callable[[int], str], samples: Iterable[tuple[str, Members]], shard_bytes: int
) -> Iterator[ShardEntry]:
    for position, group in itertools.groupby(_numbered(samples, shard_bytes), key=itemgetter(0)):
        yield write_shard(folder / name(position), (sample for _, sample in group))


def _numbered(samples: Iterable[tuple[str, Members]], shard_bytes: int) -> Iterator[tuple[int, tuple[str, Members]]]:
    """Yield each sample with the position of its shard; one that does not fit into a shard begins the next."""
    # A tar ends with two blocks of zeros and is filled up to whole records.
    largest = shard_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE
    size, position = 0, 0
    for key, members in samples:
        sample_size = packed_size(key, members)
        if size and size + sample_size > largest:
            size, position = 0, position + 1
        yield position, (key, members)
        size += sample_size
