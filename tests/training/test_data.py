"""Folders that a training reads may lack samples up to the share that may be corrupt; they fit, and have labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from esl_dist.adaptation.methods import METHODS
from esl_dist.data import loading
from esl_dist.data.labels import SemanticClass
from esl_dist.data.loading import HostBatch, on_device
from esl_dist.data.rare_classes import RareClassSampling
from esl_dist.data.shards import open_shards
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.training import data as training_data
from esl_dist.training.agreement import CorruptSamples
from esl_dist.training.data import TrainingData, open_training_data
from tests.builders import class_set, draw, drawn_samples, drawn_shards, encoded, write_shards
from tests.exact.shards import corrupt
from tests.training.small_runs import configuration

FOLDERS = ("source", "target", "pseudo_labels")
SAMPLES, IN_A_SHARD = 8, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the place of source, target and pseudo-labels, each of four shards."""
    drawn_shards(tmp_path / "source", SAMPLES, IN_A_SHARD)
    drawn_shards(tmp_path / "target", SAMPLES, IN_A_SHARD)
    write_pseudo_labels(tmp_path)
    return tmp_path


def write_pseudo_labels(folder: Path, **changes: Any) -> None:
    labels = [(key, {"label.png": encoded(draw(0)[1] % 3)}) for key, _ in drawn_samples(SAMPLES)]
    made_with = {"target": open_shards(folder / "target").fingerprint()}
    write_shards(folder / "pseudo_labels", labels, IN_A_SHARD, **{"made_with": made_with, **changes})


def sized(folder: Path) -> dict[str, Any]:
    return {"path": str(folder), "size": [16, 12]}


def opened(folder: Path, skip_corrupt: float) -> TrainingData:
    config = configuration(
        source=sized(folder / "source"),
        target=sized(folder / "target"),
        pseudo_labels=str(folder / "pseudo_labels"),
        loader={"skip_corrupt": skip_corrupt},
    )
    return open_training_data(config, METHODS["minent"])


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_may_lack_shards_up_to_the_share(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = opened(folder, 0).fingerprints
    lost = folder / name / "shard-000002.tar"
    lost.unlink()
    damage = f"{lost}: is missing, the index says 10240; 2 of its 2 samples are lost, 'scene_004' first"
    for share, message in ((0.0, "; pack the data set again"), (0.2, "; over all shards 2 of 8 samples are lost")):
        with pytest.raises(UserError) as error:
            opened(folder, share)
        assert str(error.value).startswith(damage + message)
    assert capsys.readouterr().err == ""

    data = opened(folder, 0.25)
    assert capsys.readouterr().err == f"warning: {damage}; whole samples stand for them\n"
    assert data.fingerprints == fingerprints
    samples = data.source if name == "source" else data.target
    assert samples is not None
    decoded = []
    monkeypatch.setattr(loading, "decode_image", lambda packed: decoded.append(packed) or draw(0)[0])
    found = samples[4]
    assert bool(found["replaced"])
    assert int(found["positions"]) == 6
    assert len(decoded) == 1, "samples that are tried in vain cost no decoding"


def test_pseudo_labels_of_as_many_classes_of_other_names_are_refused(folder: Path) -> None:
    road, house, sky = class_set()
    write_pseudo_labels(folder, class_sets={"village3": (road, sky, house)})
    with pytest.raises(UserError) as error:
        opened(folder, 0)
    assert str(error.value) == (
        f"{folder / 'pseudo_labels'}: the classes of 'village3' are ['road', 'sky', 'house'], "
        "the network's ['road', 'house', 'sky']; choose shards of the same classes"
    )


def test_the_sources_own_shards_are_no_pseudo_labels(folder: Path) -> None:
    first, *others = drawn_samples(SAMPLES)
    write_shards(folder / "target", [(first[0], others[0][1]), *others], IN_A_SHARD)
    config = configuration(
        source=sized(folder / "source"), target=sized(folder / "target"), pseudo_labels=str(folder / "source")
    )
    with pytest.raises(UserError, match=r"^pseudo_labels=.*: these are the source's shards, whose labels are not the"):
        open_training_data(config, METHODS["minent"])


def test_labels_that_no_network_has_made_are_told_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pseudo_labels(folder, made_with={})
    opened(folder, 0)
    assert capsys.readouterr().err == (
        f"warning: {folder / 'pseudo_labels'}: no pseudo-labels of esl-dist pseudo-label; its labels are learned as "
        "those of the target's pictures with the same names\n"
    )


def test_pseudo_labels_of_other_pictures_with_the_same_keys_are_warned_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(folder, 0)
    assert capsys.readouterr().err == ""
    first, *others = drawn_samples(SAMPLES)
    write_shards(folder / "target", [(first[0], others[0][1]), *others], IN_A_SHARD)
    opened(folder, 0)
    assert capsys.readouterr().err == (
        f"warning: {folder / 'pseudo_labels'}: its labels were made for other shards than {folder / 'target'}; make "
        "sure that the pictures are the same, packed anew, or label these\n"
    )


def test_exactly_the_largest_share_may_be_lost_with_shards(tmp_path: Path) -> None:
    """29 of 100 is 0.29, though 0.29 · 100 is a little less than 29."""
    drawn_shards(tmp_path / "source", 100, 29)
    drawn_shards(tmp_path / "target", SAMPLES, IN_A_SHARD)
    write_pseudo_labels(tmp_path)
    (tmp_path / "source/shard-000001.tar").unlink()
    assert len(opened(tmp_path, 0.29).source) == 100
    with pytest.raises(UserError, match=r"29 of 100 samples are lost, more than loader\.skip_corrupt=0\.289 allows"):
        opened(tmp_path, 0.289)


def test_exactly_the_largest_share_of_an_epoch_may_be_corrupt(folder: Path) -> None:
    data = replace(opened(folder, 0), source=range(100))
    marks = torch.zeros(2, 100, dtype=torch.int64)
    marks[0, :29] = 1
    CorruptSamples(data, 100, 0.29, {}).add(0, marks)
    marks[0, 29] = 1
    with pytest.raises(UserError, match="epoch 0: 30 of 100 source samples are corrupt"):
        CorruptSamples(data, 100, 0.29, {}).add(0, marks)


RARE = RareClassSampling(np.array([1.0]), (np.array([7]),))


def test_where_rare_classes_are_drawn_a_corrupt_sample_counts_once_however_often_it_is_drawn(folder: Path) -> None:
    data = replace(opened(folder, 0), source=range(100), rare_classes=RARE)
    marks = torch.zeros(2, 10, dtype=torch.int64)
    marks[0], state = 7 + 1, dict[str, list[int]]()
    for step in range(5):
        counts = CorruptSamples(data, 10, 0.02, state)
        counts.add(step, marks)
        state = counts.state()
    assert state["drawn"] == [7]
    assert counts.totals() == {"source": 50}
    marks[0, :2] = torch.tensor([9, 10])
    with pytest.raises(UserError, match=r"^3 of 100 source samples are corrupt"):
        CorruptSamples(data, 10, 0.02, state).add(5, marks)


def test_a_source_of_a_single_class_is_refused(folder: Path) -> None:
    single = (SemanticClass("moon", (1, 2, 3), (0,)),)
    write_shards(folder / "source", drawn_samples(SAMPLES), IN_A_SHARD, class_sets={"village3": single})
    with pytest.raises(UserError, match="source: class set village3 has a single class, which leaves nothing to tell"):
        opened(folder, 0)


def test_a_source_without_a_labelled_pixel_is_refused(folder: Path) -> None:
    foreign = (SemanticClass("moon", (1, 2, 3), (1000,)), SemanticClass("sun", (1, 2, 4), (1001,)))
    write_shards(folder / "source", drawn_samples(SAMPLES), IN_A_SHARD, class_sets={"village3": foreign})
    with pytest.raises(UserError) as error:
        opened(folder, 0)
    assert str(error.value).startswith(
        f"{folder / 'source'}: no pixel of any label belongs to a class of 'village3'; choose another class_set"
    )


def test_a_source_all_of_whose_labels_are_damaged_is_told_to_be_that(folder: Path) -> None:
    for shard in (folder / "source").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(CorruptSampleError, match=r"shard-000000.tar, sample 'scene_000'.*pack it again"):
        opened(folder, 0)


def test_one_labelled_pixel_behind_unlabelled_and_corrupt_samples_is_enough(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlabelled = np.zeros((12, 16), np.uint8)
    labelled = unlabelled.copy()
    labelled[0, 0] = 7
    samples = [
        (f"scene_{number}", {"image.png": encoded(draw(number)[0]), "label.png": encoded(label)})
        for number, label in enumerate((unlabelled, unlabelled, labelled))
    ]
    write_shards(folder / "source", samples)
    corrupt(folder / "source", 1, "label.png")
    assert len(opened(folder, 0).source) == 3
    assert capsys.readouterr().err == ""


def test_a_gpu_fetches_a_batch_beside_its_work_and_uses_it_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU here, its streams are played."""
    told: list[str] = []

    class Present:
        def wait_stream(self, other: object) -> None:
            told.append(f"wait for {other}")

    @contextmanager
    def stream(own: object) -> Iterator[None]:
        told.append(f"fetch in {own}")
        yield
        told.append("go back")

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Present())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, used_in: told.append(f"keep {list(tensor.shape)}"))
    batch = HostBatch(
        pictures=torch.zeros(2, 4, 5, 3, dtype=torch.uint8),
        labels=torch.zeros(2, 4, 5, dtype=torch.uint8),
        valid_pixels=torch.ones(2),
        positions=torch.arange(2),
        own_sizes=torch.ones(2, 2),
        label_sizes=None,
        replaced=torch.zeros(2, dtype=torch.bool),
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2, dtype=torch.float64),
        mirrored=torch.zeros(2, dtype=torch.bool),
    )
    fetched = training_data._fetched(batch, torch.device("cpu"), cast(torch.cuda.Stream, "another"))
    assert told == ["fetch in another", "go back", "wait for another", "keep [2, 3, 4, 5]", "keep [2, 4, 5]"]
    assert torch.equal(fetched["images"], on_device(batch, torch.device("cpu"))["images"])
