"""Samples as tensors: decode, resize, map to train ids, batch, prefetch.

A network's input is the published one: BGR minus the mean colour of ImageNet, float32, channels first. It is computed
where the network is: pictures travel there as bytes, a quarter of the size.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TypedDict, TypeVar, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.data.fetching import fetching_ahead
from esl_dist.data.images import (
    LARGEST_PIXELS,
    Label,
    Size,
    decode_image,
    decode_label,
    fitted_size,
    framed_size,
    open_picture,
    padded,
    resize_image,
    resize_label,
)
from esl_dist.data.labels import IGNORE_INDEX, ClassSet, class_names, train_id_table
from esl_dist.data.sampling import Wanted
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import ShardReader, choose_classes
from esl_dist.data.views import AS_IT_IS, Views, Window, as_shares, draw, inside, scaled, seen, window
from esl_dist.data.workers import Workers, read_ahead
from esl_dist.errors import CorruptSampleError, UserError

MEAN_COLOR = (104.00698793, 116.66876762, 122.67891434)
"""Blue, green, red; grey levels from 0 to 255, those of AdvEnt's published program."""

Pixels = TypeVar("Pixels")


class _OnHost(TypedDict):
    valid_pixels: Tensor
    positions: Tensor
    own_sizes: Tensor
    label_sizes: Tensor | None
    replaced: Tensor
    windows: Tensor
    mirrored: Tensor


class HostBatch(_OnHost):
    """Samples of one domain as they are read, in the host's memory.

    Attributes:
        pictures: uint8 (batch, height, width, 3), blue, green, red.
        labels: uint8 train ids (batch, height, width); None where the samples are used without.
        valid_pixels: int64 (batch,), the labelled pixels of each.
        positions: int64 (batch,), the samples' positions in their shards.
        own_sizes: int64 (batch, 2), width and height of each picture as packed.
        label_sizes: int64 (batch, 2), width and height of each label without its padding; None without labels.
        replaced: int64 (batch,), the position, plus 1, of the corrupt sample that the sample stands for; 0: of none.
        windows: float64 (batch, 4), left, top, right and bottom of what is seen, before it is mirrored, as shares of
            the whole picture; beyond 1 where it was padded.
        mirrored: bool (batch,), whether the mirror image is seen.
    """

    pictures: Tensor
    labels: Tensor | None


class Batch(_OnHost):
    """Samples of one domain for a network: images and labels on its device, what the host needs on the host.

    Attributes:
        images: float32 (batch, 3, height, width), as `network_input` makes them.
        labels: see `HostBatch`, as the rest.
    """

    images: Tensor
    labels: Tensor | None


def network_input(pictures: Tensor) -> Tensor:
    """Turn BGR pictures, uint8 (batch, height, width, 3), into a network's input, float32 (batch, 3, height, width)."""
    # As the network's weights are there (`models.memory_format`).
    layout = torch.channels_last if pictures.is_cuda else torch.contiguous_format
    images = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)
    for channel, mean in enumerate(MEAN_COLOR):
        images[:, channel] -= mean
    return images


def on_device(batch: HostBatch, device: torch.device) -> Batch:
    """Return a batch for a network on `device`; the host does not wait for what lies in pinned memory."""
    labels = batch["labels"]
    return Batch(
        images=network_input(batch["pictures"].to(device, non_blocking=True)),
        labels=None if labels is None else labels.to(device, non_blocking=True),
        valid_pixels=batch["valid_pixels"],
        positions=batch["positions"],
        own_sizes=batch["own_sizes"],
        label_sizes=batch["label_sizes"],
        replaced=batch["replaced"],
        windows=batch["windows"],
        mirrored=batch["mirrored"],
    )


@dataclass(frozen=True)
class LabelSource:
    """Where labels come from: the pictures' own shards, or pseudo-label shards that line up with them."""

    shards: ShardReader
    classes: ClassSet

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """The train id of every raw id (`labels.train_id_table`)."""
        return train_id_table(self.classes)

    def train_ids(self, raw: Label) -> NDArray[np.uint8]:
        """Return the train ids of raw ids, of their shape."""
        if raw.dtype == np.uint8:
            # An eighth of the time that indexing takes.
            return cv2.LUT(raw, self.table[: 2**8])  # type: ignore[return-value]
        return self.table[raw]


def raw_label(shards: ShardReader, position: int) -> Label:
    """Return a sample's label as it is packed: raw ids, (height, width).

    Raises:
        UserError: it cannot be read or decoded; the message names shard and key.
    """
    return _decoded(shards, position, "label", shards.read(position, "label"), decode_label)


def label_source(shards: ShardReader, class_set: str, classes: ClassSet) -> LabelSource:
    """Return the labels of `shards` for a network of `classes`.

    Raises:
        UserError: the shards have no class set of this name, or one of other classes.
    """
    _, own_classes = choose_classes(shards, class_set)
    if class_names(own_classes) != class_names(classes):
        raise UserError(
            f"{shards.folder}: the classes of {class_set!r} are {class_names(own_classes)}, "
            f"the network's {class_names(classes)}; choose shards of the same classes"
        )
    return LabelSource(shards, own_classes)


def refuse_mixed_sizes(shards: ShardReader, size: Size | None, key: str) -> None:
    """Make sure that samples can be put into one batch.

    Raises:
        UserError: their sizes differ and no `size` makes them the same; the message names the setting `key`.
    """
    if size is None and (shards.index.image_size is None or shards.index.label_size is None):
        raise UserError(f"{shards.folder}: its pictures have different sizes; give one as {key}=[width,height]")


@dataclass(eq=False)
class Samples:
    """The samples of a folder of shards, by position.

    Where the data set keeps aspect ratios, pictures of a given size are padded with black before the mean is taken, and
    labels with `IGNORE_INDEX`: labels at their own size to the aspect ratio of their picture.

    Attributes:
        images: the shards with the pictures.
        size: width and height at which pictures are given; None: as packed.
        labels: where labels come from; None: samples without labels.
        label_size: width and height at which labels are given; None: as packed.
        replace_corrupt: whether a corrupt sample is replaced by the next whole one, so that batches keep their size.
        views: which part of a sample is seen, if anything is drawn for it.
    """

    images: ShardReader
    size: Size | None
    labels: LabelSource | None = None
    label_size: Size | None = None
    replace_corrupt: bool = False
    views: Views = AS_IT_IS

    def __post_init__(self) -> None:
        """Check that labels line up with the pictures."""
        if self.labels is not None and self.labels.shards is not self.images:
            _refuse_misaligned(self.images, self.labels.shards)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    @property
    def size_as_read(self) -> Size | None:
        """Width and height of all pictures before a part of them is taken; None: they differ."""
        return self.size or self.images.index.image_size

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at `position` as it is; see `read`."""
        return self.read(Wanted(position))

    def read(self, wanted: Wanted) -> dict[str, Tensor]:
        """Return a sample, one of a `HostBatch`.

        Raises:
            CorruptSampleError: the sample is corrupt; the message names shard and key.
            UserError: it cannot be read for another reason or, with `replace_corrupt`, all samples are corrupt.
        """
        for number in range(len(self)):
            try:
                sample = self._whole(wanted._replace(position=(wanted.position + number) % len(self)))
                return {**sample, "replaced": torch.tensor(wanted.position + 1 if number else 0)}
            except CorruptSampleError as error:
                if not self.replace_corrupt:
                    raise
                if number == 0:
                    print(f"warning: {error}; the next whole sample takes its place", file=sys.stderr, flush=True)
        raise UserError(f"{self.images.folder}: every sample is corrupt; pack the data set again")

    def _whole(self, wanted: Wanted) -> dict[str, Tensor]:
        position, views = wanted.position, AS_IT_IS if wanted.key is None else self.views
        # Both are read before one is decoded: where a whole shard is lost, many samples are tried for each of its own.
        packed_label = None if self.labels is None else self.labels.shards.read(position, "label")
        image = _decoded(self.images, position, "image", self.images.read(position, "image"), decode_image)
        drawn = draw(views, wanted.key)
        own_size = (image.shape[1], image.shape[0])
        frame = scaled(self.size or own_size, drawn.scale)
        size = fitted_size(own_size, frame) if self.images.index.keep_aspect_ratio else frame
        label, label_size = None, size
        if packed_label is not None:
            label_frame = frame if views.give_sizes else self.label_size
            label, label_size = self._label_and_size(position, packed_label, label_frame)
        part = None if views.crop is None else window(views, drawn, size, label, wanted.train_id)
        image = padded(resize_image(image, size), frame, 0)
        sample = {
            "pictures": torch.from_numpy(seen(image, part, drawn.mirrored, 0)),
            "valid_pixels": torch.tensor(0),
            "positions": torch.tensor(position),
            "own_sizes": torch.tensor(own_size),
            "windows": torch.tensor(as_shares(part or Window(0, 0, *frame), size), dtype=torch.float64),
            "mirrored": torch.tensor(drawn.mirrored),
        }
        if label is not None:
            label = seen(label, part, drawn.mirrored, IGNORE_INDEX)
            sample |= {
                "labels": torch.from_numpy(label),
                "valid_pixels": torch.tensor(np.count_nonzero(label != IGNORE_INDEX)),
                "label_sizes": torch.tensor(label_size if part is None else inside(part, label_size)),
            }
        return sample

    def label(self, position: int) -> NDArray[np.uint8]:
        """Return a sample's label as train ids, (height, width).

        Raises:
            UserError: it cannot be read or decoded; the message names shard and key.
        """
        assert self.labels is not None
        return self._label_and_size(position, self.labels.shards.read(position, "label"), self.label_size)[0]

    def _label_and_size(self, position: int, packed: bytes, frame: Size | None) -> tuple[NDArray[np.uint8], Size]:
        """Return a sample's label at the size `frame` (None: its own), and its width and height without padding."""
        assert self.labels is not None
        shards = self.labels.shards
        raw = _decoded(shards, position, "label", packed, decode_label)
        size = own_size = (raw.shape[1], raw.shape[0])
        if shards.index.keep_aspect_ratio:
            frame = frame or framed_size(own_size, self.size or own_size)
            size = fitted_size(own_size, frame)
        elif frame is not None:
            size = frame
        return padded(self.labels.train_ids(resize_label(raw, size)), frame or size, IGNORE_INDEX), size


def _decoded(shards: ShardReader, position: int, kind: str, packed: bytes, decode: Callable[[bytes], Pixels]) -> Pixels:
    try:
        _refuse_other_size(packed, shards.index.image_size if kind == "image" else shards.index.label_size)
        return decode(packed)
    except ValueError as error:
        raise CorruptSampleError(f"{shards.where(position)}: its {kind} is damaged: {error}; pack it again") from error


def _refuse_other_size(packed: bytes, size: Size | None) -> None:
    """Hold the size in a picture's header to that of the index, before its pixels take memory."""
    try:
        with open_picture(BytesIO(packed)) as image:
            width, height = image.size
    except MemoryError:
        raise
    except Exception:
        # Pillow's readers raise whatever a damaged file makes them run into; decoding says what is wrong.
        return
    if size is not None and (width, height) != size:
        raise ValueError(f"{width}×{height} pixels, {INDEX_NAME} says {size[0]}×{size[1]}")
    if width * height > LARGEST_PIXELS:
        raise ValueError(f"{width}×{height} pixels; expected at most {LARGEST_PIXELS}")


def _refuse_misaligned(images: ShardReader, labels: ShardReader) -> None:
    if len(images) != len(labels):
        raise UserError(f"{labels.folder}: {len(labels)} labels for the {len(images)} pictures of {images.folder}")
    for position, (image_key, label_key) in enumerate(zip(images.keys(), labels.keys(), strict=True)):
        if image_key != label_key:
            raise UserError(
                f"{labels.folder}: sample {position} is {label_key!r}, but {image_key!r} in {images.folder}; "
                "the labels were made for other shards: make them again"
            )


def batches(
    samples: Samples, wanted: Iterator[list[Wanted]], workers: Workers, pin_memory: bool
) -> Generator[HostBatch]:
    """Yield the batches that are `wanted`, in this order, as `workers.read_ahead` gives and refuses them."""
    readers = [samples.images, *([] if samples.labels is None else [samples.labels.shards])]
    cache = next((reader.far.cache for reader in readers if reader.far is not None), None)
    # Closed with this generator, not when garbage is collected: then the processes end at once.
    with (
        fetching_ahead(wanted, readers, cache) as note_received,
        closing(read_ahead(samples.read, wanted, workers, samples.images, pin_memory)) as read,
    ):
        for number, tensors in enumerate(read, 1):
            note_received(number)
            yield cast(HostBatch, {"labels": None, "label_sizes": None, **tensors})
