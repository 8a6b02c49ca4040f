"""Toytown draws the same bytes every time, labels what it draws, and its two domains do not look alike."""

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.config import DOMAINS
from esl_dist.data import toytown
from esl_dist.data.toytown import CLASSES, SPLITS, draw_scene, write_toytown

ROAD, VEGETATION, SKY, UNLABELLED = 0, 5, 6, 255
KNOWN_LABELS = {*range(len(CLASSES)), UNLABELLED}

DIGEST_PROGRAM = """
import hashlib
from esl_dist.config import DOMAINS
from esl_dist.data.toytown import draw_scene
for domain in DOMAINS:
    for array in draw_scene(domain, "train", 3, seed=1):
        print(hashlib.sha256(array.tobytes()).hexdigest())
"""


def digests(**size: int) -> list[str]:
    arrays = [array for domain in DOMAINS for array in draw_scene(domain, "train", 3, seed=1, **size)]
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]


def scenes(domain: str, number: int = 8) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = zip(*(draw_scene(domain, "train", index, seed=0) for index in range(number)), strict=True)
    return np.stack(pictures), np.stack(labels)


def test_a_scene_is_a_bgr_picture_with_labels_of_its_size() -> None:
    picture, labels = draw_scene("source", "train", 0, seed=0)
    assert picture.shape == (96, 192, 3)
    assert labels.shape == (96, 192)
    assert picture.dtype == labels.dtype == np.uint8
    assert picture.flags.c_contiguous
    blue, _, red = picture[labels == SKY].mean(axis=0)
    assert blue > red + 20, "the sky of the source is blue, in BGR order"


def test_same_arguments_same_bytes_whatever_the_threads() -> None:
    threads = cv2.getNumThreads()
    expected = digests()
    try:
        for number in (1, 4):
            cv2.setNumThreads(number)
            assert digests() == expected
    finally:
        cv2.setNumThreads(threads)


def test_same_bytes_in_another_process() -> None:
    root = Path(toytown.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", DIGEST_PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == digests()


def test_a_scene_does_not_depend_on_the_scenes_before_it_or_on_global_randomness() -> None:
    expected = digests()
    np.random.seed(5)
    draw_scene("target", "val", 11, seed=9)
    assert digests() == expected


def test_every_domain_split_index_and_seed_shows_another_street() -> None:
    keys = [(d, s, i, seed) for d in DOMAINS for s in SPLITS for i in range(3) for seed in range(2)]
    labels = {draw_scene(d, s, i, seed=seed)[1].tobytes() for d, s, i, seed in keys}
    assert len(labels) == len(keys)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_has_its_share_of_the_pixels(domain: str) -> None:
    _, labels = scenes(domain, 24)
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert set(np.flatnonzero(share)) == KNOWN_LABELS
    assert share[: len(CLASSES)].min() > 0.005
    assert share[UNLABELLED] < 0.05


def test_the_domains_have_similar_layouts() -> None:
    shares = [np.bincount(scenes(domain, 24)[1].ravel(), minlength=256) / (24 * 96 * 192) for domain in DOMAINS]
    assert np.abs(shares[0] - shares[1]).max() < 0.1


@pytest.mark.parametrize("domain", DOMAINS)
def test_most_scenes_show_most_classes(domain: str) -> None:
    _, labels = scenes(domain, 24)
    present = np.array([[np.count_nonzero(scene == value) >= 30 for value in range(len(CLASSES))] for scene in labels])
    assert present.mean(axis=0).min() > 0.8


def test_the_looks_differ_by_more_than_scenes_differ_within_a_look() -> None:
    means = [scenes(domain)[0].mean(axis=(1, 2)) for domain in DOMAINS]
    spread = max(mean.std(axis=0).max() for mean in means)
    assert np.abs(means[0].mean(axis=0) - means[1].mean(axis=0)).max() > 2.0 * spread


def test_colours_of_the_source_mislead_on_the_target() -> None:
    """The class whose mean colour in the source is nearest: right more often than not there, seldom in the target."""
    pictures, labels = scenes("source")
    values = range(len(CLASSES))
    centres = np.stack([pictures[labels == value].mean(axis=0) for value in values])

    def mean_recall(domain: str) -> float:
        seen, truth = scenes(domain)
        nearest = ((seen[..., None, :].astype(np.float32) - centres.astype(np.float32)) ** 2).sum(axis=-1).argmin(-1)
        return float(np.mean([(nearest[truth == value] == value).mean() for value in values]))

    assert mean_recall("target") < 0.6 * mean_recall("source")


@pytest.mark.parametrize("domain", DOMAINS)
def test_picture_and_labels_are_aligned(domain: str) -> None:
    """The picture changes more across the edges of the labels than elsewhere, and shifted labels fit less well."""
    pictures, labels = scenes(domain)
    change = np.abs(np.diff(pictures.astype(np.float32), axis=2)).sum(axis=-1)
    edge = np.diff(labels.astype(int), axis=2) != 0
    fit = [change[np.roll(edge, shift, axis=2)].mean() for shift in (-3, 0, 3)]
    assert fit[1] > 1.5 * max(fit[0], fit[2])


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(DOMAINS), st.integers(64, 300), st.integers(32, 200), st.integers(0, 10**6))
def test_any_size_from_64x32_works(domain: str, width: int, height: int, index: int) -> None:
    picture, labels = draw_scene(domain, "val", index, seed=0, width=width, height=height)
    assert picture.shape == (height, width, 3)
    assert set(np.unique(labels)) <= KNOWN_LABELS
    assert ROAD in labels


def test_a_larger_picture_shows_the_same_street() -> None:
    _, small = draw_scene("source", "train", 2, seed=0)
    _, large = draw_scene("source", "train", 2, seed=0, width=384, height=192)
    assert (large[::2, ::2] == small).mean() > 0.93


@pytest.mark.parametrize(("width", "height"), [(63, 32), (64, 31)])
def test_too_small_a_size_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"64x32 pixels or more, not {width}x{height}"):
        draw_scene("source", "train", 0, seed=0, width=width, height=height)


@pytest.mark.parametrize(("domain", "split"), [("moon", "train"), ("source", "test")])
def test_unknown_domain_or_split_is_refused(domain: str, split: str) -> None:
    with pytest.raises(ValueError, match=r"unknown (domain 'moon'.*source, target|split 'test'.*train, val)"):
        draw_scene(domain, split, 0, seed=0)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_seed_or_index_is_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="start at 0"):
        draw_scene("source", "train", index, seed=seed)


def test_written_files_hold_the_scenes(tmp_path: Path) -> None:
    write_toytown(tmp_path, seed=4, counts={"source_train": 2, "target_train": 1, "target_val": 1}, width=96, height=48)
    names = {("source_train", 0), ("source_train", 1), ("target_train", 0), ("target_val", 0)}
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"{name}/{kind}/{index:05d}.png" for name, index in names for kind in ("images", "labels")}
    picture, labels = draw_scene("target", "val", 0, seed=4, width=96, height=48)
    folder = tmp_path / "target_val"
    np.testing.assert_array_equal(cv2.imread(str(folder / "images/00000.png"), cv2.IMREAD_UNCHANGED), picture)
    np.testing.assert_array_equal(cv2.imread(str(folder / "labels/00000.png"), cv2.IMREAD_UNCHANGED), labels)


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_toytown(tmp_path / name, seed=0, counts={"target_train": 2}, width=64, height=32)
    for path in (tmp_path / "first").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


def test_progress_sees_every_scene_once(tmp_path: Path) -> None:
    seen: list[object] = []

    def watched(scenes_to_draw: Iterable[object]) -> Iterator[object]:
        for scene in scenes_to_draw:
            seen.append(scene)
            yield scene

    counts = {"source_train": 2, "target_val": 1}
    write_toytown(tmp_path, seed=0, counts=counts, width=64, height=32, progress=watched)
    assert len(seen) == 3


def test_unknown_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'source_test'.*source_train.*target_train.*target_val"):
        write_toytown(tmp_path, seed=0, counts={"source_train": 1, "source_test": 1})
    assert list(tmp_path.iterdir()) == []
