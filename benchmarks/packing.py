"""Packing at training size, on one process: beside encoding alone, and beside a plain script that does the same work.

Pictures are Toytown's streets with noise, of GTA5's size. Encoding alone is OpenCV's of the resized pixels, which lie
in memory: what packing adds to it is to read each file twice (all are checked before any is written), decode it twice,
resize, digest and write. The plain script reads, resizes, encodes and adds to a tar, and checks nothing. The members of
all three have the same bytes.
"""

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import Measure, Row, require_same, seconds, timed
from benchmarks.programs import PROJECT
from esl_dist.data.images import PNG_COMPRESSION, Size
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.shards import open_shards
from esl_dist.data.toytown import draw_scene

SPLIT = "source_train"
NOISE = 4.0
"""Standard deviation in grey levels: files are then as large as those of rendered pictures."""

LEVEL = [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION]


def rows(quick: bool) -> list[Row]:
    """Measure both, in seconds for all pictures."""
    count, size, packed, times = (2, (128, 64), (64, 32), 1) if quick else (8, (1914, 1052), (1280, 720), 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout = draw(folder / "pictures", count, size)
        pixels = [resized(file, packed) for file in files_of(layout)]
        with tarfile.open(plain_script(layout, folder / "plain.tar", packed)) as tar:
            written = [extracted(tar, member) for member in tar.getmembers()]
        require_same("packed members and those of the plain script", members_packed(layout, folder, packed), written)
        require_same("packed members and what is encoded alone", written, [encoded(one) for one in pixels])
        title = f"packing {count} pictures at {packed[0]}×{packed[1]}"
        ours = packing(layout, folder, packed)
        script = seconds(lambda: plain_script(layout, folder / "plain.tar", packed))
        alone = seconds(lambda: [encoded(one) for one in pixels])
        return [
            timed(f"{title}, beside encoding alone", ours, alone, times, goal=0.4),
            timed(f"{title}, beside a plain script", ours, script, times, goal=0.7),
        ]


def draw(root: Path, count: int, size: Size) -> Layout:
    """Write noisy streets as Toytown's description has them; returns their layout."""
    for number in range(count):
        picture, label = draw_scene("source", "train", number, seed=0, width=size[0], height=size[1])
        noise = np.random.default_rng(number).normal(0, NOISE, picture.shape)
        for kind, pixels in (("images", np.clip(picture + noise, 0, 255).astype(np.uint8)), ("labels", label)):
            file = root / SPLIT / kind / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(pixels))
    return read_layout(PROJECT / "configs/datasets/toytown.yaml", SPLIT, root)


def files_of(layout: Layout) -> Iterator[Path]:
    """Yield picture and label of each pair."""
    for pair in layout.pairs:
        assert pair.label is not None
        yield from (pair.image, pair.label)


def resized(file: Path, size: Size) -> NDArray[np.uint8]:
    """Read a picture or a label and resize it as published, by Pillow: bicubic or to the nearest."""
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    kind = Image.Resampling.BICUBIC if pixels.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, kind))


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG of the compression that packing has."""
    return cv2.imencode(".png", pixels, LEVEL)[1].tobytes()


def plain_script(layout: Layout, tar_file: Path, size: Size) -> Path:
    """Write a WebDataset tar in the obvious manner; returns it."""
    with tarfile.open(tar_file, "w") as tar:
        for file in files_of(layout):
            content = encoded(resized(file, size))
            kind = "image" if file.parent.name == "images" else "label"
            member = tarfile.TarInfo(f"{file.stem}.{kind}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tar_file


def extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a member."""
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def packing(layout: Layout, folder: Path, size: Size) -> Measure:
    """Return the packing of the project on one process, each time into a folder of its own."""
    done: list[Path] = []

    def once() -> None:
        done.append(folder / f"shards_{len(done)}")
        pack(layout, done[-1], Encoding(size, size, "png", jpg_quality=95), 1, lambda items, *_: items)

    return seconds(once)


def members_packed(layout: Layout, folder: Path, size: Size) -> list[bytes]:
    """Pack once and return all members, in the order of the pairs."""
    shards = folder / "checked"
    pack(layout, shards, Encoding(size, size, "png", jpg_quality=95), 1, lambda items, *_: items)
    reader = open_shards(shards)
    return [reader.read(number, kind) for number in range(len(reader)) for kind in ("image.png", "label.png")]
