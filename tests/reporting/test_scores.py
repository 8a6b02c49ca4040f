"""Scores from a confusion matrix are what counting pixels gives, and a table shows all of them."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.reporting.scores import (
    intersection_over_union,
    kept_table,
    mean_iou,
    percent,
    pixel_accuracy,
    score_table,
    scores_of,
)

CLASSES = 4
NAMES = ["road", "sky", "vegetation", "bus"]
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), max_size=40)
"""Label and prediction of each pixel."""


def confusion_of(pixels: list[tuple[int, int]]) -> np.ndarray:
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for label, prediction in pixels:
        confusion[label, prediction] += 1
    return confusion


@given(pairs)
@settings(deadline=None)
def test_iou_is_intersection_over_union_of_sets_of_pixels(pixels: list[tuple[int, int]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iou = intersection_over_union(confusion_of(pixels))
        mean = mean_iou(iou)
    occurring = []
    for name in range(CLASSES):
        labelled = {place for place, (label, _) in enumerate(pixels) if label == name}
        predicted = {place for place, (_, prediction) in enumerate(pixels) if prediction == name}
        if not labelled | predicted:
            assert math.isnan(iou[name])
            continue
        occurring.append(len(labelled & predicted) / len(labelled | predicted))
        assert iou[name] == pytest.approx(occurring[-1], abs=1e-12)
    assert mean == pytest.approx(np.mean(occurring), abs=1e-12) if occurring else math.isnan(mean)


@given(pairs)
@settings(deadline=None)
def test_accuracy_is_the_share_of_right_pixels(pixels: list[tuple[int, int]]) -> None:
    right = sum(label == prediction for label, prediction in pixels)
    assert pixel_accuracy(confusion_of(pixels)) == (pytest.approx(right / len(pixels)) if pixels else None)


def test_a_class_that_is_only_predicted_counts_as_0() -> None:
    scores = scores_of(confusion_of([(0, 0), (0, 1)]), NAMES)
    assert scores["iou"] == {"road": 0.5, "sky": 0.0, "vegetation": None, "bus": None}
    assert scores["miou"] == 0.25


def test_an_empty_confusion_has_no_scores() -> None:
    assert scores_of(confusion_of([]), NAMES) == {
        "miou": None,
        "miou_over": {},
        "iou": dict.fromkeys(NAMES),
        "accuracy": None,
    }


def test_scores_can_be_written_as_json_numbers() -> None:
    scores = scores_of(confusion_of([(0, 0), (1, 2)]), NAMES)
    numbers = [scores["miou"], scores["accuracy"], *scores["iou"].values()]
    assert all(number is None or type(number) is float for number in numbers)


def test_names_and_classes_have_to_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        scores_of(confusion_of([(0, 0)]), NAMES[:2])


def test_large_counts_are_exact() -> None:
    confusion = np.array([[2**53 + 2, 0], [0, 2**53]], np.int64)
    assert intersection_over_union(confusion).tolist() == [1.0, 1.0]


def test_a_table_shows_every_score_below_its_class() -> None:
    rows = {
        "source only": scores_of(confusion_of([(0, 0), (0, 1), (1, 1), (2, 2)]), NAMES),
        "advent": scores_of(confusion_of([(0, 0)] * 5 + [(0, 3)] * 3), NAMES),
    }
    header, *lines = score_table(rows).splitlines()
    assert header.split() == [*NAMES, "mIoU"]
    cells = [line.removeprefix(title).split() for line, title in zip(lines, rows, strict=True)]
    assert cells == [["50.0", "50.0", "100.0", "-", "66.7"], ["62.5", "-", "-", "0.0", "31.2"]]
    for line in lines:
        assert len(line) == len(header)
        for name, cell in zip([*NAMES, "mIoU"], line.removeprefix(line[:11]).split(), strict=True):
            end = header.index(name) + len(name)
            assert line[:end].endswith(cell), "columns are aligned at the right"


WITHOUT = {19: set(), 16: {"terrain", "truck", "train"}, 13: {"terrain", "truck", "train", "wall", "fence", "pole"}}
"""Classes of Cityscapes over which the means of the field are not taken (Zou et al., ECCV 2018)."""


def city_classes(count: int) -> list[str]:
    """Return the names of the class set with `count` classes, as the descriptions of the data sets have them."""
    content = yaml.safe_load((Path(__file__).parents[2] / "configs/datasets/cityscapes.yaml").read_text())
    return [entry["name"] for entry in content["class_sets"][f"cityscapes{count}"]]


def drawn_confusion(classes: int, seed: int) -> np.ndarray:
    random = np.random.RandomState(seed)
    confusion = random.randint(0, 1000, (classes, classes)) * (random.rand(classes, classes) < 0.5)
    absent = random.randint(0, classes, 3)
    confusion[absent] = confusion[:, absent] = 0
    return confusion.astype(np.int64)


@pytest.mark.parametrize(("count", "means"), [(19, [19, 16, 13]), (16, [16, 13]), (7, [])])
@pytest.mark.parametrize("seed", range(4))
def test_means_over_fewer_classes_of_cityscapes_are_those_of_their_ious(
    count: int, means: list[int], seed: int
) -> None:
    """In whatever order the classes come; the confusion with the others stays in the unions."""
    names = list(np.random.RandomState(seed).permutation(city_classes(count)))
    scores = scores_of(drawn_confusion(count, seed), names)
    assert list(scores["miou_over"]) == [str(fewer) for fewer in means]
    for fewer in means:
        ious = [iou for name, iou in scores["iou"].items() if name not in WITHOUT[fewer] and iou is not None]
        assert scores["miou_over"][str(fewer)] == pytest.approx(sum(ious) / len(ious), abs=1e-12)
    if count in means:
        assert scores["miou_over"][str(count)] == pytest.approx(scores["miou"], abs=1e-12)


def test_more_classes_than_those_of_cityscapes_have_its_means_too() -> None:
    names = [*city_classes(19), "caravan"]
    scores = scores_of(np.eye(20, dtype=np.int64), names)
    assert scores["miou_over"] == {"19": 1.0, "16": 1.0, "13": 1.0}
    assert scores_of(np.eye(18, dtype=np.int64), city_classes(19)[:-1])["miou_over"] == {}, "no bicycle, no mean"


def test_a_mean_over_classes_that_do_not_occur_is_none() -> None:
    names = city_classes(19)
    confusion = np.zeros((19, 19), np.int64)
    confusion[names.index("truck"), names.index("truck")] = 5
    scores = scores_of(confusion, names)
    assert scores["miou"] == 1.0
    assert scores["miou_over"] == {"19": 1.0, "16": None, "13": None}
    assert score_table({"r": scores}).splitlines()[1].split()[-3:] == ["100.0", "-", "-"]


@pytest.mark.parametrize(("count", "last"), [(19, ["mIoU", "16", "mIoU", "13"]), (16, ["mIoU", "13"]), (7, [])])
def test_a_table_has_a_column_for_every_mean_over_fewer_classes(count: int, last: list[str]) -> None:
    names = city_classes(count)
    rows = {f"step {seed}": scores_of(drawn_confusion(count, seed), names) for seed in range(2)}
    header, *lines = score_table(rows).splitlines()
    assert header.split() == [*" ".join(names).split(), "mIoU", *last]
    for line, (title, scores) in zip(lines, rows.items(), strict=True):
        fewer = [value for mean, value in scores["miou_over"].items() if int(mean) < count]
        expected = [percent(value) for value in (*scores["iou"].values(), scores["miou"], *fewer)]
        assert line.removeprefix(title).split() == expected
        assert len(line) == len(header)


def test_the_table_of_pseudo_labels_has_a_line_a_class_with_shares_and_threshold() -> None:
    rows = {
        "road": {"threshold": 0.25, "pixels_predicted": 300, "pixels_kept": 150},
        "traffic light": {"threshold": 0.1, "pixels_predicted": 0, "pixels_kept": 0},
    }
    title, *lines = kept_table(rows).splitlines()
    assert title.split() == ["predicted", "share", "%", "kept", "kept", "%", "threshold"]
    assert [line.rsplit(maxsplit=5) for line in lines] == [
        ["road", "300", "100.0", "150", "50.0", "0.2500"],
        ["traffic light", "0", "0.0", "0", "-", "0.1000"],
    ]
    assert len({len(line) for line in (title, *lines)}) == 1, "aligned"
    assert "nan" not in kept_table({"road": {"threshold": 0.1, "pixels_predicted": 0, "pixels_kept": 0}})
