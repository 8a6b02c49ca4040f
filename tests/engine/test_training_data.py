"""Every folder that a training reads may lack shards up to the share that may be corrupt, and not beyond."""

from pathlib import Path
from typing import Any

import pytest

from esl_dist.adaptation.methods import METHODS
from esl_dist.data import loading
from esl_dist.engine.training_data import TrainingData, open_training_data
from esl_dist.errors import UserError
from tests.builders import class_set, draw, drawn_samples, drawn_shards, encoded, write_shards
from tests.engine.runs import configuration

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
    write_shards(folder / "pseudo_labels", labels, IN_A_SHARD, **changes)


def opened(folder: Path, skip_corrupt: float) -> TrainingData:
    size = [16, 12]
    config = configuration(
        source={"path": str(folder / "source"), "size": size},
        target={"path": str(folder / "target"), "size": size},
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
