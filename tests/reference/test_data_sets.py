"""The four data sets, described by their YAML files and packed, give what the published loaders give."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from esl_dist.data.images import Size
from esl_dist.data.labels import train_id_table
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.loading import LabelSource, Samples, network_input
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.shards import ShardReader, choose_classes, open_shards
from tests.builders import no_progress
from tests.reference.arrays import FOLDER, ROOT, arrays, needs_reference

pytestmark = [pytest.mark.reference, needs_reference]

SIZE = (40, 24)
SPLITS = {"GTA5": "all", "SYNTHIA": "all", "Cityscapes": "val", "Mapillary": "validation"}


def layout_of(name: str) -> Layout:
    return read_layout(ROOT / f"configs/datasets/{name.lower()}.yaml", SPLITS[name], FOLDER / "datasets" / name)


def expected_arrays(name: str) -> list[dict[str, NDArray]]:
    """Return, for each sample of a data set, what the published loader makes of it."""
    samples: dict[int, dict[str, NDArray]] = {}
    for key, values in arrays("datasets").items():
        data_set, number, kind = key.split("/")
        if data_set == name:
            samples.setdefault(int(number), {})[kind] = values
    return [samples[number] for number in sorted(samples)]


def packed(folder: Path, name: str, size: Size | None) -> ShardReader:
    pack(layout_of(name), folder, Encoding(size, None, "keep", 95), 1, no_progress)
    return open_shards(folder)


def labels_of(shards: ShardReader, classes: str, label_size: Size | None) -> list[NDArray]:
    _, class_set = choose_classes(shards, f"cityscapes{classes}")
    samples = Samples(shards, SIZE, LabelSource(shards, class_set), label_size)
    return [samples.label(position) for position in range(len(samples))]


@pytest.mark.parametrize("packed_size", [None, SIZE], ids=["resized when read", "resized when packed"])
@pytest.mark.parametrize("name", SPLITS)
def test_pictures_are_the_published_ones(name: str, packed_size: Size | None, tmp_path: Path) -> None:
    expected = expected_arrays(name)
    samples = Samples(packed(tmp_path / "shards", name, packed_size), SIZE)
    assert len(samples) == len(expected) > 0
    for position, arrays_of_sample in enumerate(expected):
        image = network_input(samples[position]["pictures"][None])[0].numpy()
        assert image.shape == arrays_of_sample["image"].shape
        assert np.abs(image - arrays_of_sample["image"]).max() <= 1


@pytest.mark.parametrize("name", SPLITS)
def test_labels_are_the_published_ones(name: str, tmp_path: Path) -> None:
    shards = packed(tmp_path / "shards", name, None)
    compared = 0
    for position, arrays_of_sample in enumerate(expected_arrays(name)):
        for kind, expected in arrays_of_sample.items():
            if kind == "image":
                continue
            classes, _, form = kind.removeprefix("labels").partition("_")
            # Labels are scored at their own size in Cityscapes, and at their own size with padding in Mapillary.
            full = form == "full_padded" or (name == "Cityscapes" and form == "")
            label = labels_of(shards, classes, None if full else SIZE)[position]
            assert np.array_equal(label, expected), kind
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("name", SPLITS)
def test_the_descriptions_hold_the_published_label_maps(name: str) -> None:
    published = json.loads((FOLDER / "label_maps.json").read_text())
    layout = layout_of(name)
    assert set(layout.class_sets) == {f"cityscapes{classes}" for classes in published["label_ids"][name]}
    for classes, train_ids in published["label_ids"][name].items():
        class_set = layout.class_sets[f"cityscapes{classes}"]
        assert [{"name": one.name, "color": list(one.color)} for one in class_set] == published["classes"][classes]
        table = train_id_table(class_set)
        numbers = raw_ids(name, train_ids)
        assert {raw: int(table[raw]) for raw in np.flatnonzero(table != 255)} == numbers


def raw_ids(name: str, train_ids: dict[str, int]) -> dict[int, int]:
    """Return raw id → train id; Mapillary's map has names, whose numbers are in its config.json."""
    if name != "Mapillary":
        return {int(raw): train_id for raw, train_id in train_ids.items()}
    labels = json.loads((FOLDER / "datasets/Mapillary/config.json").read_text())["labels"]
    numbers = {label["readable"].lower(): number for number, label in enumerate(labels)}
    return {numbers[label]: train_id for label, train_id in train_ids.items()}
