"""Samples become tensors; the number of workers is not visible in the batches."""

import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from esl_dist.data import loading
from esl_dist.data.images import encode_png, resize_image, resize_label
from esl_dist.data.labels import SemanticClass, identity_class_set, train_id_table
from esl_dist.data.loading import (
    MEAN_COLOR,
    HostBatch,
    LabelSource,
    Samples,
    batches,
    label_source,
    network_input,
    on_device,
)
from esl_dist.data.sampling import as_they_are, endless_order, rank_batches
from esl_dist.data.shards import ShardReader
from esl_dist.data.workers import Workers
from esl_dist.errors import CorruptSampleError, UserError
from tests.builders import class_set, draw, drawn_samples, drawn_shards, write_shards


def labelled(shards: ShardReader, **options: Any) -> Samples:
    return Samples(shards, options.pop("size", None), LabelSource(shards, class_set()), **options)


def read(samples: Samples, positions: list[list[int]], workers: int = 0) -> list[HostBatch]:
    return list(batches(samples, as_they_are(positions), Workers(workers, 1), pin_memory=False))


def equal(one: HostBatch, other: HostBatch) -> bool:
    return all(torch.equal(one[key], other[key]) for key in ("pictures", "labels", "positions"))


def test_the_network_input_is_bgr_minus_the_mean_colour() -> None:
    pictures = np.stack([draw(seed)[0] for seed in range(2)])
    result = network_input(torch.from_numpy(pictures))
    assert (result.dtype, tuple(result.shape)) == (torch.float32, (2, 3, 12, 16))
    assert result.is_contiguous()
    # Subtracted in float32, as the published loader does.
    expected = pictures.astype(np.float32) - np.asarray(MEAN_COLOR, np.float32)
    np.testing.assert_array_equal(result.numpy(), expected.transpose(0, 3, 1, 2))
    assert MEAN_COLOR[0] < MEAN_COLOR[2], "blue comes first"


def test_a_batch_for_a_network_has_its_input_and_all_else_as_it_was_read(tmp_path: Path) -> None:
    (read_batch,) = read(labelled(drawn_shards(tmp_path, 3)), [[2, 0]])
    batch = on_device(read_batch, torch.device("cpu"))
    assert torch.equal(batch["images"], network_input(read_batch["pictures"]))
    for name in read_batch.keys() - {"pictures"}:
        assert torch.equal(batch[name], read_batch[name]), name  # type: ignore[literal-required]


def test_labelled_pixels_are_counted_where_they_are_read(tmp_path: Path) -> None:
    shards = drawn_shards(tmp_path, 4)
    (batch,) = read(labelled(shards), [[0, 3, 1]])
    assert batch["valid_pixels"].tolist() == (batch["labels"] != 255).sum((1, 2)).tolist()
    assert batch["valid_pixels"].min() > 0
    assert batch["valid_pixels"].max() < batch["labels"][0].numel(), "some have no label"
    (unlabelled,) = read(Samples(shards, None), [[0, 3]])
    assert unlabelled["valid_pixels"].tolist() == [0, 0]


def test_a_sample_has_its_picture_its_train_ids_and_its_position(tmp_path: Path) -> None:
    samples = labelled(drawn_shards(tmp_path, 3))
    picture, label = draw(2)
    sample = samples[2]
    np.testing.assert_array_equal(sample["pictures"].numpy(), picture)
    assert sample["labels"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["labels"].numpy(), train_id_table(class_set())[label])
    assert sample["positions"].item() == 2
    assert len(samples) == 3


def test_picture_and_label_are_resized_each_to_its_size(tmp_path: Path) -> None:
    sample = labelled(drawn_shards(tmp_path, 1), size=(8, 6), label_size=(5, 7))[0]
    picture, label = draw(0)
    np.testing.assert_array_equal(sample["pictures"].numpy(), resize_image(picture, (8, 6)))
    expected = train_id_table(class_set())[resize_label(label, (5, 7))]
    np.testing.assert_array_equal(sample["labels"].numpy(), expected)


def test_labels_of_16_bits_are_mapped(tmp_path: Path) -> None:
    label = np.array([[7, 23000], [11, 65535]], np.uint16)
    members = {"image.png": encode_png(draw(0, 2, 2)[0]), "label.png": encode_png(label)}
    sample = labelled(write_shards(tmp_path, [("a", members)]))[0]
    assert sample["labels"].tolist() == [[0, 255], [1, 255]]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_every_raw_id_has_its_train_id(tmp_path: Path, kind: type) -> None:
    raw = np.arange(np.iinfo(kind).max + 1).astype(kind).reshape(-1, 16)
    labels = LabelSource(drawn_shards(tmp_path, 1), (*class_set(), SemanticClass("gate", (0, 0, 0), (255, 40_000))))
    np.testing.assert_array_equal(labels.train_ids(raw), labels.table[raw])
    assert labels.train_ids(raw)[15, 15] == 3


def test_without_labels_no_label_is_read(tmp_path: Path) -> None:
    members = {"image.png": encode_png(draw(0)[0])}
    shards = write_shards(tmp_path, [("a", members)])
    batch = read(Samples(shards, None), [[0]])[0]
    assert batch["labels"] is None
    assert tuple(batch["pictures"].shape) == (1, 12, 16, 3)
    with pytest.raises(UserError, match="sample 'a': no label"):
        labelled(shards)[0]


def test_batches_hold_the_named_samples_in_the_named_order(tmp_path: Path) -> None:
    samples = labelled(drawn_shards(tmp_path, 5))
    first, second = read(samples, [[3, 0], [4, 4, 1]])
    assert first["positions"].tolist() == [3, 0]
    assert second["positions"].tolist() == [4, 4, 1]
    for row, position in enumerate([4, 4, 1]):
        assert torch.equal(second["pictures"][row], samples[position]["pictures"])
        assert torch.equal(second["labels"][row], samples[position]["labels"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return drawn_shards(tmp_path_factory.mktemp("loading"), 11, in_a_shard=4)


def order(first: int = 0) -> Iterator[list[int]]:
    return rank_batches(endless_order(11, 8, 2, 0, first), 3, 1, 0, 1)


def test_the_number_of_workers_does_not_change_the_batches(shards: ShardReader) -> None:
    """Over more than two epochs, from an endless order, with files opened before the workers start."""
    samples = labelled(shards)
    expected = [samples[position] for batch in islice(order(), 9) for position in batch]
    for workers in (0, 1, 3):
        found = list(islice(batches(samples, as_they_are(order()), Workers(workers, 1), pin_memory=False), 9))
        assert [batch["positions"].tolist() for batch in found] == list(islice(order(), 9))
        for key in ("pictures", "labels"):
            assert torch.equal(torch.cat([batch[key] for batch in found]), stacked(expected, key))


def stacked(samples: list[dict[str, Tensor]], key: str) -> Tensor:
    return torch.stack([sample[key] for sample in samples])


def test_reading_on_from_the_middle_gives_the_next_batch(shards: ShardReader) -> None:
    samples = labelled(shards)
    whole = list(islice(batches(samples, as_they_are(order()), Workers(0, 1), pin_memory=False), 7))
    rest = list(islice(batches(samples, as_they_are(order(first=4 * 3)), Workers(1, 1), pin_memory=False), 3))
    assert all(equal(one, other) for one, other in zip(rest, whole[4:], strict=True))


def pseudo_label_shards(folder: Path, keys: list[str]) -> ShardReader:
    samples = [(key, {"label.png": encode_png(np.full((12, 16), n % 3, np.uint8))}) for n, key in enumerate(keys)]
    return write_shards(folder, samples, in_a_shard=2, class_sets={"village3": identity_class_set(class_set())})


def test_labels_may_come_from_other_shards_cut_elsewhere(tmp_path: Path) -> None:
    pictures = drawn_shards(tmp_path / "pictures", 5, in_a_shard=3)
    labels = pseudo_label_shards(tmp_path / "labels", list(pictures.keys()))
    samples = Samples(pictures, None, LabelSource(labels, identity_class_set(class_set())))
    assert [samples[position]["labels"].unique().tolist() for position in range(5)] == [[0], [1], [2], [0], [1]]


def test_labels_of_other_pictures_are_refused(tmp_path: Path) -> None:
    pictures = drawn_shards(tmp_path / "pictures", 3)
    for folder, keys, message in (
        ("few", ["scene_000"], "few: 1 labels for the 3 pictures of .*pictures"),
        ("other", ["scene_000", "scene_002", "scene_001"], "other: sample 1 is 'scene_002', but 'scene_001' in .*"),
    ):
        labels = pseudo_label_shards(tmp_path / folder, keys)
        with pytest.raises(UserError, match=message):
            Samples(pictures, None, LabelSource(labels, class_set()))


def test_labels_of_as_many_classes_of_other_names_are_refused(tmp_path: Path) -> None:
    """Pixels of one class would be counted as those of another, without a word."""
    shards = drawn_shards(tmp_path, 1)
    road, house, sky = class_set()
    assert label_source(shards, "village3", identity_class_set(class_set())).classes == class_set(), (
        "raw ids may differ"
    )
    for classes, names in (
        ((road, house, SemanticClass("sun", sky.color, sky.ids)), "['road', 'house', 'sun']"),
        ((house, road, sky), "['house', 'road', 'sky']"),
    ):
        with pytest.raises(UserError) as error:
            label_source(shards, "village3", classes)
        assert str(error.value) == (
            f"{tmp_path}: the classes of 'village3' are ['road', 'house', 'sky'], the network's {names}; "
            "choose shards of the same classes"
        )


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_picture_of_another_size_than_the_index_says_is_corrupt_before_it_is_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes may say that they are a picture of any size."""
    for decode in ("decode_image", "decode_label"):
        monkeypatch.setattr(loading, decode, lambda content: pytest.fail("decoded"))
    shards = write_shards(tmp_path, drawn_samples(1, 16, 12), image_size=(8, 6), label_size=(8, 6))
    samples = labelled(shards)
    with pytest.raises(CorruptSampleError, match=r"sample 'scene_000': its .* is damaged: 16×12 pixels, .* says 8×6;"):
        samples.label(0) if kind == "label" else Samples(shards, None)[0]


@pytest.mark.parametrize("index_names_sizes", [True, False])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_few_bytes_that_stand_for_more_pixels_than_memory_holds_are_corrupt(
    tmp_path: Path, kind: str, index_names_sizes: bool
) -> None:
    header = bytearray(encode_png(draw(0)[1]))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    [(key, members)] = drawn_samples(1)
    size = (16, 12) if index_names_sizes else None
    shards = write_shards(
        tmp_path, [(key, {**members, f"{kind}.png": bytes(header)})], image_size=size, label_size=size
    )
    with pytest.raises(CorruptSampleError, match=rf"its {kind} is damaged: .*pixels.*; pack it again"):
        labelled(shards)[0]


@pytest.mark.parametrize("kind", ["image", "label"])
def test_whatever_a_reader_of_pictures_raises_is_a_corrupt_sample(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(key, members)] = drawn_samples(1)
    shards = write_shards(tmp_path, [(key, {**members, f"{kind}.png": b"no picture"})])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("as the reader of AVIF does")

    monkeypatch.setattr("PIL.Image.open", fail)
    samples = labelled(shards)
    with pytest.raises(CorruptSampleError, match=rf"its {kind} is damaged: .*; pack it again"):
        samples.label(0) if kind == "label" else samples[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_damaged_member_is_named_on_one_line_whoever_reads_it(tmp_path: Path, kind: str, workers: int) -> None:
    before = set(psutil.Process().children())
    good = drawn_samples(2)
    bad = ("bad/one", {**good[0][1], f"{kind}.png": b"no picture"})
    shards = write_shards(tmp_path, [*good, bad])
    message = rf"^\S*shard-000000\.tar, sample 'bad/one': its {kind} is damaged: .*; pack it again$"
    with pytest.raises(UserError, match=message) as found:
        read(labelled(shards), [[0, 1], [1, 2]], workers)
    assert "Traceback" not in str(found.value)
    assert set(psutil.Process().children()) <= before, "the workers ended with the error, not when garbage is collected"
