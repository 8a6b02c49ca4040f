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
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from esl_dist.data.changes import SKIPPED, changed_settings, changed_sources
from esl_dist.data.class_counts import count_ids
from esl_dist.data.folders import (
    finished,
    names_replacements,
    remove_leftovers,
    replacement_name,
    settle,
    sole_packing,
)
from esl_dist.data.images import (
    LARGEST_JPEG_SIDE,
    Size,
    encode_jpg,
    encode_png,
    fitted_size,
    resize_image,
    resize_label,
)
from esl_dist.data.labels import RAW_IDS
from esl_dist.data.layouts import Layout, Pair
from esl_dist.data.processes import affordable, in_threads, worker_processes
from esl_dist.data.shard_index import INDEX_NAME, IdPixels, ShardIndex, read_index, write_index
from esl_dist.data.shards import Members, open_shards, packed_size, shard_name, verify, write_shard
from esl_dist.data.sources import read_label, read_picture
from esl_dist.errors import UserError
from esl_dist.files import sha256_of_file

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar with a title."""

REPORTED_PROBLEMS = 10


@dataclass(frozen=True)
class Encoding:
    """How samples are read and stored; see the settings of `esl_dist.config.Prepare`.

    `shard_bytes` is the largest size of a shard, though a shard has at least one sample.
    """

    size: Size | None
    label_size: Size | None
    image_format: str
    jpg_quality: int
    shard_bytes: int = 256 * 10**6


@dataclass(frozen=True)
class Packed:
    """A folder's index, and whether it was written just now; if not, the folder was current."""

    index: ShardIndex
    anew: bool


def pack(
    layout: Layout, folder: Path, encoding: Encoding, processes: int, progress: Progress, anew: bool = False
) -> Packed:
    """Pack a split into `folder`; a folder that holds the same already is only verified.

    Args:
        layout: the split.
        folder: where the shards go; its index.json is written last.
        encoding: how samples are read and stored.
        processes: most processes that check and encode; fewer where memory is short.
        progress: see `Progress`.
        anew: whether other or damaged shards of a packing are replaced, not refused; they stay until the new are whole.

    Raises:
        UserError: pairs that cannot be packed (named, before anything is written), a dead process, another packing in
            the folder, a folder whose shards esl-dist pack did not make or, unless `anew`, one that holds something
            else: it says what.
    """
    with sole_packing(folder):
        name = shard_name
        if (folder / INDEX_NAME).exists():
            index = finished(folder, _index_of_packing(folder))
            # Of shards whose sources nobody noted, nobody can say that they are current.
            if not (anew and index.sources is None):
                problem = _problem(folder, index, layout, encoding, progress)
                if problem is None:
                    remove_leftovers(folder, index)
                    return Packed(index, False)
                if not anew:
                    raise UserError(problem)
            # Replacements that did not take their place, for some are lost, have the other names.
            name = shard_name if names_replacements(index) else replacement_name
        try:
            return Packed(_pack(layout, folder, encoding, processes, progress, name), True)
        except BaseException:
            if name is replacement_name:
                remove_leftovers(folder, read_index(folder))
            raise


def _index_of_packing(folder: Path) -> ShardIndex:
    remedy = f"delete {folder / INDEX_NAME} to have its folder packed again, or choose another output"
    try:
        index = read_index(folder)
    except UserError as error:
        raise UserError(f"{error}. If these are shards of a packing, {remedy}") from error
    if "image_format" not in index.made_with:
        raise UserError(f"{folder}: holds shards that esl-dist pack did not make (pseudo-labels?); choose another")
    skipped = index.made_with.get(SKIPPED) or []
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise UserError(f"{folder / INDEX_NAME}: made_with: {SKIPPED}: expected a list of names; {remedy}")
    return index


def _problem(folder: Path, index: ShardIndex, layout: Layout, encoding: Encoding, progress: Progress) -> str | None:
    """Return what is no longer as it was packed; reads all source files, unless nobody noted their digests."""
    digests: Iterable[dict[str, str]] = [{}] * len(layout.pairs)
    if index.sources is not None:
        digests = progress(in_threads(_digests, layout.pairs), len(layout.pairs), "comparing")
    changes = changed_sources(index, {pair.key: one for pair, one in zip(layout.pairs, digests, strict=True)})
    changes += changed_settings(index, layout, _made_with(layout, encoding))
    if changes:
        return (
            f"{folder}: holds shards of other files or settings: {'; '.join(changes)}. repack=true packs anew in "
            "their place (what was made with the old ones will not go on with the new), or choose another output"
        )
    try:
        verify(open_shards(folder))
    except UserError as error:
        return f"{error}; repack=true packs it again"
    return None


def _digests(pair: Pair) -> dict[str, str]:
    return {kind: sha256_of_file(file) for kind, file in pair.files().items()}


def _made_with(layout: Layout, encoding: Encoding) -> dict[str, Any]:
    """Return what decides the bytes, as the index says it; what cannot matter is left out."""
    reading = layout.reading
    settings: dict[str, Any] = {
        "size": encoding.size,
        "image_format": encoding.image_format,
        "shard_bytes": encoding.shard_bytes,
        "exif_orientation": reading.exif_orientation,
    }
    if encoding.image_format == "jpg":
        settings["jpg_quality"] = encoding.jpg_quality
    if any(pair.label is not None for pair in layout.pairs):
        settings |= {
            "label_size": encoding.label_size,
            "label_channel": reading.label_channel,
            "label_colors": reading.colors is not None,
            "raw_ids_of_colors": sorted([*color, one] for color, one in (reading.colors or {}).items()),
            "skip_other_sizes": layout.skip_other_sizes,
            "ignore_ids": sorted(layout.ignore_ids),
        }
    return settings


def _pack(
    layout: Layout, folder: Path, encoding: Encoding, processes: int, progress: Progress, name: Callable[[int], str]
) -> ShardIndex:
    pairs = layout.pairs
    work = _Work(replace(layout, pairs=()), encoding)
    number = affordable(processes, (pair.image for pair in pairs), layout.reading.largest_pixels)
    with worker_processes(number) as in_processes:
        found = progress(in_processes(work.check, pairs), len(pairs), "checking")
        checked = list(zip(pairs, found, strict=True))
        _refuse_problems([one.problem for _, one in checked if one.problem])
        kept = [(pair, one) for pair, one in checked if one.fits]
        if not kept:
            raise UserError(f"{folder}: no picture of {layout.dataset} has the size of its label; nothing was written")
        encoded = progress(in_processes(work.encode, kept), len(kept), "packing")
        label_pixels: dict[str, IdPixels] = {}
        # Closed with the block, whatever ends it, so that no message is written into the bar.
        with closing(one for one in encoded) as shown:
            samples = _counted(zip((pair.key for pair, _ in kept), shown, strict=True), label_pixels)
            shards = tuple(
                write_shard(folder / name(position), (sample for _, sample in group))
                for position, group in itertools.groupby(_numbered(samples, encoding.shard_bytes), key=itemgetter(0))
            )
    index = ShardIndex(
        dataset=layout.dataset,
        split=layout.split,
        image_size=_common(work.stored(one.size, encoding.size) for _, one in kept),
        label_size=_common(work.stored(one.size, encoding.label_size) for _, one in kept),
        class_sets=layout.class_sets,
        made_with=_made_with(layout, encoding) | {SKIPPED: [pair.name for pair, one in checked if not one.fits]},
        shards=shards,
        keep_aspect_ratio=layout.keep_aspect_ratio,
        sources={pair.key: one.digests for pair, one in checked},
        label_pixels=label_pixels if len(label_pixels) == len(kept) else None,
    )
    write_index(folder, index)
    return settle(folder, index)


def _refuse_problems(problems: Sequence[str]) -> None:
    if problems:
        shown = "\n  ".join(problems[:REPORTED_PROBLEMS])
        more = f"\n  and {len(problems) - REPORTED_PROBLEMS} more" if len(problems) > REPORTED_PROBLEMS else ""
        raise UserError(f"{len(problems)} samples cannot be packed; nothing was written:\n  {shown}{more}")


def _common(sizes: Iterable[Size]) -> Size | None:
    different = set(sizes)
    return different.pop() if len(different) == 1 else None


def _counted(
    encoded: Iterable[tuple[str, tuple[Members, IdPixels | None]]], label_pixels: dict[str, IdPixels]
) -> Iterator[tuple[str, Members]]:
    """Yield each sample, and note the pixels of its label's raw ids, if it has one."""
    for key, (members, pixels) in encoded:
        if pixels is not None:
            label_pixels[key] = pixels
        yield key, members


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


@dataclass
class _Checked:
    """What the check found out about a pair: digests of its files by `image` and `label`, and whether it can be packed.

    Attributes:
        extension: under which the picture's file can be packed as it is; None: it has to be encoded.
        fits: whether picture and label have one size; if not, and if this is no `problem`, the pair is left out.
    """

    digests: dict[str, str] = field(default_factory=dict)
    size: Size = (0, 0)
    extension: str | None = None
    problem: str = ""
    fits: bool = True


@dataclass(frozen=True)
class _Work:
    """What packing processes do with a pair of a layout; the layout that is sent to them has none."""

    layout: Layout
    encoding: Encoding

    def check(self, pair: Pair) -> _Checked:
        found = _Checked()
        with _naming(pair):
            for kind, file in pair.files().items():
                try:
                    content = file.read_bytes()
                    found.digests[kind] = _digest(content)
                    if kind == "image":
                        found.size, found.extension = self._check_picture(content)
                    else:
                        found.fits = self._check_label(content, found.size)
                except (OSError, ValueError) as error:
                    reason = f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else error
                    found.problem = f"{file}: {reason}"
                    break
        return found

    def _check_picture(self, content: bytes) -> tuple[Size, str | None]:
        pixels, extension = read_picture(content, self.layout.reading)
        height, width = pixels.shape[:2]
        is_jpg = self.encoding.image_format == "jpg"
        if is_jpg and self.encoding.size is None and max(width, height) > LARGEST_JPEG_SIDE:
            raise ValueError(f"{width}×{height} pixels; a JPEG has at most {LARGEST_JPEG_SIDE} a side: take png")
        return (width, height), extension

    def _check_label(self, content: bytes, size: Size) -> bool:
        """Say whether a label has the picture's size; what cannot be packed is a ValueError."""
        label = read_label(content, self.layout.reading)
        height, width = label.shape
        if (width, height) != size:
            if self.layout.skip_other_sizes:
                return False
            raise ValueError(f"{width}×{height} pixels, its picture has {size[0]}×{size[1]}")
        # A table takes a fraction of the time and memory of sorting all pixels.
        occurs = np.zeros(RAW_IDS, bool)
        for row in label:
            occurs[row] = True
        if unknown := sorted(set(np.flatnonzero(occurs).tolist()) - self.layout.known_ids()):
            raise ValueError(f"raw ids {unknown} are in no class and not in ignore_ids of the description")
        return True

    def encode(self, sample: tuple[Pair, _Checked]) -> tuple[Members, IdPixels | None]:
        """Return a sample's files, and the pixels of its label's raw ids as it is packed."""
        pair, checked = sample
        with _naming(pair):
            content = _unchanged(pair.image, checked.digests["image"])
            size = self.stored(checked.size, self.encoding.size)
            if self.encoding.image_format == "keep" and size == checked.size and checked.extension is not None:
                members = {f"image.{checked.extension}": content}
            else:
                pixels = resize_image(read_picture(content, self.layout.reading).pixels, size)
                is_jpg, quality = self.encoding.image_format == "jpg", self.encoding.jpg_quality
                members = {"image.jpg": encode_jpg(pixels, quality)} if is_jpg else {"image.png": encode_png(pixels)}
            if pair.label is None:
                return members, None
            label = read_label(_unchanged(pair.label, checked.digests["label"]), self.layout.reading)
            label = resize_label(label, self.stored(checked.size, self.encoding.label_size))
            return {**members, "label.png": encode_png(label)}, count_ids(label)

    def stored(self, size: Size, asked: Size | None) -> Size:
        """Return the size at which a picture of `size` or its label is packed: without padding."""
        if asked is None:
            return size
        return fitted_size(size, asked) if self.layout.keep_aspect_ratio else asked


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
        files = " or ".join(map(str, pair.files().values()))
        raise UserError(f"{files}: cannot be packed ({type(error).__name__}: {error})") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unchanged(file: Path, digest: str) -> bytes:
    content = file.read_bytes()
    if _digest(content) != digest:
        raise UserError(f"{file}: changed between its check and its packing; start again when nothing writes there")
    return content
