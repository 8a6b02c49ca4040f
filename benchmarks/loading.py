"""Reading a pair of GTA5 for training at 1280×720: the published loader, decoding alone, and MosaicML Streaming.

The published loader (AdvEnt's) opens the original files with Pillow, resizes, maps ids one after the other and takes
the mean colour away. Ours reads shards, packed at the training's size, as they come, or as JPEG, and gives the bytes
that go to the network's device. Decoding alone is OpenCV's of the same members, which lie in memory. Streaming reads
the same members from its own shards on the same disk, and the rest is written out as a user of it would.

Pictures are drawn: seven octaves of smooth colour, a shade for each class, and noise of one grey level, so that a PNG
of 1914×1052 has 2.5 MB, as one of GTA5 has; labels are warped patches of the data set's ids. All is measured on one
thread, in processor time, for other work on the machine takes turns with it and not with each side alike.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import Row, UnequalError, compared
from benchmarks.programs import PROJECT
from esl_dist.data.images import Size
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.loading import MEAN_COLOR, Samples, batches, label_source, network_input
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.sampling import as_they_are
from esl_dist.data.shards import ShardReader, choose_classes, open_shards
from esl_dist.data.workers import Workers

CLASSES = "cityscapes19"
DESCRIPTION = PROJECT / "configs/datasets/gta5.yaml"
OCTAVES = (4, 8, 16, 32, 64, 128, 256)
"""Cells across a picture."""
NOISE = 1.0
"""Standard deviation in grey levels."""
QUALITY = 95
STREAMING = "mosaicml-streaming"

Pair = tuple[NDArray[Any], NDArray[Any]]
"""A picture and its label."""
Read = Callable[[int], object]
"""Reads the pair of a number, or its bytes."""


class Sizes(NamedTuple):
    """How much is measured: pictures, their size, that of the training, and how often each is read."""

    pictures: int
    original: Size
    training: Size
    times: int


FULL, QUICK = Sizes(10, (1914, 1052), (1280, 720), 5), Sizes(2, (96, 54), (64, 36), 1)


def rows(quick: bool) -> list[Row]:
    """Measure all; `quick`: at sizes that only show that it runs.

    Raises:
        UnequalError: two sides do not give the same pixels.
    """
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as name, one_thread():
        layout = draw(Path(name) / "pictures", sizes)
        as_it_is = packed(layout, Path(name) / "as_it_is", Encoding(None, None, "keep", QUALITY))
        png = packed(layout, Path(name) / "png", Encoding(sizes.training, sizes.training, "png", QUALITY))
        jpg = packed(layout, Path(name) / "jpg", Encoding(sizes.training, sizes.training, "jpg", QUALITY))
        return [
            beside_published("packed at that size as PNG", png, layout, sizes, 3.0),
            beside_published("packed as it is", as_it_is, layout, sizes, None),
            beside_published(f"packed at that size as JPEG of quality {QUALITY}", jpg, layout, sizes, None),
            beside_decoding("PNG", png, sizes),
            beside_decoding("JPEG", jpg, sizes),
            *beside_streaming(png, Path(name) / "streaming", sizes),
        ]


def beside_published(how: str, reader: ShardReader, layout: Layout, sizes: Sizes, goal: float | None) -> Row:
    """Return the row of shards beside the published loader of the original files; JPEG changes pictures, not labels."""
    samples = samples_of(reader, sizes.training)
    files = [(pair.image, pair.label) for pair in layout.pairs]
    train_ids = {raw: number for number, item in enumerate(choose_classes(reader, CLASSES)[1]) for raw in item.ids}

    def published(number: int) -> Pair:
        return published_pair(files[number], sizes.training, train_ids)

    for number in range(sizes.pictures):
        (picture, label), (image, expected) = read_pair(samples, number), published(number)
        require_same(f"label {number}, {how}", label, expected)
        if "JPEG" not in how:
            require_same(f"picture {number}, {how}", network_input(torch.from_numpy(picture)[None])[0].numpy(), image)
    return row(f"{how}, beside the published loader", lambda number: read_pair(samples, number), published, sizes, goal)


def beside_decoding(kind: str, reader: ShardReader, sizes: Sizes) -> Row:
    """Return the row of shards beside OpenCV's decoding of the same members, which lie in memory."""
    samples = samples_of(reader, sizes.training)
    members = [(reader.read(number, "image"), reader.read(number, "label")) for number in range(sizes.pictures)]
    for number, member in enumerate(members):
        picture, label = decoded(member)
        found = read_pair(samples, number)
        require_same(f"picture {number}, decoded", found[0], picture)
        require_same(f"label {number}, decoded", found[1], train_ids_of(samples)[label])
    title = f"packed at that size as {kind}, beside decoding alone"
    return row(title, lambda number: read_pair(samples, number), lambda number: decoded(members[number]), sizes, 0.8)


def beside_streaming(reader: ShardReader, folder: Path, sizes: Sizes) -> list[Row]:
    """Return the rows of the same members in MosaicML Streaming's shards: their bytes, and pairs made of them.

    Streaming takes a member's bytes as they are; ours are held to their checksum, which is most of what they cost.
    """
    names = ("bytes of a pair, beside MosaicML Streaming", "packed at that size as PNG, beside MosaicML Streaming")
    if find_spec("streaming") is None:
        missing = f" (not measured: {STREAMING} is not installed)"
        return [Row(name + missing, None, None, "ms", None, None) for name in names]
    from streaming import LocalDataset, MDSWriter

    def members(number: int) -> tuple[bytes, bytes]:
        return reader.read(number, "image"), reader.read(number, "label")

    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "bytes"}) as writer:
        for number in range(sizes.pictures):
            writer.write(dict(zip(("image", "label"), members(number), strict=True)))
    streamed = LocalDataset(str(folder))

    def streamed_members(number: int) -> tuple[bytes, bytes]:
        sample = streamed[number]
        return sample["image"], sample["label"]

    samples = samples_of(reader, sizes.training)
    table = train_ids_of(samples)

    def streamed_pair(number: int) -> Pair:
        picture, label = decoded(streamed_members(number))
        return picture, table[label]

    for number in range(sizes.pictures):
        if members(number) != streamed_members(number):
            raise UnequalError(f"the bytes of pair {number} are not those that Streaming reads")
        for one, other in zip(read_pair(samples, number), streamed_pair(number), strict=True):
            require_same(f"pair {number} of Streaming", one, other)
    return [
        row(names[0], members, streamed_members, sizes, None),
        row(names[1], lambda number: read_pair(samples, number), streamed_pair, sizes, None),
    ]


def row(name: str, ours: Read, plain: Read, sizes: Sizes, goal: float | None) -> Row:
    """Measure both sides picture by picture in turn, so that the machine's moods meet both alike; medians of all."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(sizes.times):
        for number in range(sizes.pictures):
            # Neither is always the one that finds the caches as the other has left them.
            for side in (0, 1) if (turn + number) % 2 == 0 else (1, 0):
                found[side].append(milliseconds((ours, plain)[side], number))
    title = f"a GTA5 pair at {sizes.training[0]}×{sizes.training[1]}: {name}"
    return compared(title, (median(found[0]), median(found[1])), "ms", goal)


def milliseconds(read: Read, number: int) -> float:
    """Return the processor time of reading a pair."""
    begin = time.process_time()
    read(number)
    return 1000 * (time.process_time() - begin)


def require_same(what: str, one: NDArray[Any], other: NDArray[Any]) -> None:
    """Make sure that two arrays hold the same values.

    Raises:
        UnequalError: they do not.
    """
    if not np.array_equal(one, other):
        raise UnequalError(f"{what}: ours and the plain one are not the same")


def samples_of(reader: ShardReader, size: Size) -> Samples:
    """Return shards as a training reads them."""
    return Samples(reader, size, label_source(reader, CLASSES, choose_classes(reader, CLASSES)[1]), size)


def train_ids_of(samples: Samples) -> NDArray[np.uint8]:
    """Return the train id of every raw id."""
    assert samples.labels is not None
    return samples.labels.table


def read_pair(samples: Samples, number: int) -> Pair:
    """Read a batch of one as a process that reads does, until it hands it over: BGR bytes and train ids."""
    (batch,) = batches(samples, as_they_are([[number]]), Workers(0, 1), pin_memory=False)
    assert batch["labels"] is not None
    return batch["pictures"][0].numpy(), batch["labels"][0].numpy()


def decoded(members: tuple[bytes, bytes]) -> Pair:
    """Decode a picture's and a label's bytes with OpenCV."""
    kinds = (cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, cv2.IMREAD_UNCHANGED)
    both = (cv2.imdecode(np.frombuffer(one, np.uint8), kind) for one, kind in zip(members, kinds, strict=True))
    picture, label = both
    assert picture is not None
    assert label is not None
    return picture, label


def published_pair(files: tuple[Path, Path | None], size: Size, train_ids: dict[int, int]) -> Pair:
    """Read a pair as the published loader does (AdvEnt, `dataset/base_dataset.py` and `gta5.py`)."""
    image_file, label_file = files
    assert label_file is not None
    colors = Image.open(image_file).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    image = np.asarray(colors, np.float32)[:, :, ::-1]
    image = image - np.array(MEAN_COLOR, np.float32)
    label = np.asarray(Image.open(label_file).resize(size, Image.Resampling.NEAREST), np.float32)
    label_copy = IGNORE_INDEX * np.ones(label.shape, np.float32)
    for raw_id, train_id in train_ids.items():
        label_copy[label == raw_id] = train_id
    return image.transpose((2, 0, 1)).copy(), label_copy.copy()


def draw(root: Path, sizes: Sizes) -> Layout:
    """Draw pairs and write them with Pillow as GTA5's files are; returns their layout."""
    for number in range(sizes.pictures):
        picture, label = drawn_pair(number, sizes.original)
        palette = Image.fromarray(label)
        palette.putpalette(list(range(256)) * 3)
        for kind, image in (("images", Image.fromarray(picture)), ("labels", palette)):
            file = root / kind / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return read_layout(DESCRIPTION, "all", root)


def drawn_pair(seed: int, size: Size) -> Pair:
    """Draw a picture, RGB (height, width, 3), and its raw ids (height, width), both uint8."""
    random = np.random.default_rng(seed)
    width, height = size

    def smooth(rows: int, columns: int, channels: int) -> NDArray[np.float32]:
        coarse = random.normal(size=(rows, columns, channels)).astype(np.float32)
        return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.float32)

    ids = random.choice(34, size=(40, 60)).astype(np.uint8)
    warp = smooth(20, 30, 2)
    down, right = np.mgrid[0:height, 0:width].astype(np.float32)
    patch_rows = np.clip(down * (40 / height) + warp[:, :, 0], 0, 39).astype(np.intp)
    label = ids[patch_rows, np.clip(right * (60 / width) + warp[:, :, 1], 0, 59).astype(np.intp)]
    picture = 128 + 30 * random.normal(size=(34, 3))[label]
    for cells in OCTAVES:
        # The finer, the fainter.
        picture += smooth(cells * height // width + 2, cells + 2, 3) * (160 / cells**0.8)
    picture += random.normal(0, NOISE, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), label


def packed(layout: Layout, folder: Path, encoding: Encoding) -> ShardReader:
    """Pack the pairs as `shards/prepare.py` does; returns the shards."""
    pack(layout, folder, encoding, 1, lambda items, *_: items)
    return open_shards(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenCV and torch compute on one thread, as in a process that reads."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
