"""A network predicts as it was trained unless it is asked otherwise, and what differs is said."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from esl_dist.config import Evaluate, Network, PseudoLabel
from esl_dist.config_files import from_dictionary
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.inference.inputs import Inputs, asked_precision, differences, note_on_raw_ids, with_common_size
from esl_dist.prediction.predictor import Predictor, autocast, domain_of
from esl_dist.runs.checkpoints import build_network
from esl_dist.runs.trained import TrainedNetwork
from tests.builders import class_set, drawn_samples, drawn_shards, write_shards
from tests.inference.trained import trained_network
from tests.training.small_runs import tiny_network

CPU = torch.device("cpu")
SIZES: dict[str, list[int] | None] = {"source": None, "target": [40, 36]}


@pytest.fixture
def shards(tmp_path: Path) -> ShardReader:
    return drawn_shards(tmp_path / "shards", 1)


@pytest.fixture
def trained() -> TrainedNetwork:
    return trained_network(tiny_network(1), sizes=SIZES, precision="bf16")


def asked(**changes: Any) -> Evaluate:
    return from_dictionary(Evaluate, {"data": {"path": "x"}, **changes}, "tests")


def predictor_for(trained: TrainedNetwork, shards: ShardReader, size: list[int] | None, asked: Evaluate) -> Predictor:
    return Inputs({}, CPU, size, asked, shards).predictor(trained)


def told(trained: TrainedNetwork, shards: ShardReader, size: list[int] | None, **changes: Any) -> list[str]:
    return list(differences(predictor_for(trained, shards, size, asked(**changes)), shards))


def test_the_run_s_conditions_are_the_defaults_and_nothing_is_said(
    trained: TrainedNetwork, shards: ShardReader
) -> None:
    assert predictor_for(trained, shards, None, asked()) == Predictor(trained, "target", (40, 36), "bf16")
    of_source = replace(trained, shards={"source": shards.fingerprint(), "target": "other"})
    assert predictor_for(of_source, shards, None, asked()) == Predictor(of_source, "source", None, "bf16")
    assert told(trained, shards, None) == told(of_source, shards, None) == []


def test_what_is_asked_for_goes_first_and_what_differs_is_said(trained: TrainedNetwork, shards: ShardReader) -> None:
    for changes, size, expected in (
        ({"precision": "no"}, [64, 48], Predictor(trained, "target", (64, 48), "no")),
        ({"domain": "source", "precision": "no"}, [64, 48], Predictor(trained, "source", (64, 48), "no")),
        ({"as_packed": True}, None, Predictor(trained, "target", None, "bf16")),
        ({"domain": "source"}, None, Predictor(trained, "source", None, "bf16")),
    ):
        assert predictor_for(trained, shards, size, asked(**changes)) == expected
    assert told(trained, shards, [64, 48], precision="no") == [
        "r: size 64×48, trained at 40×36",
        "r: precision no, trained in bf16",
    ]
    assert told(trained, shards, None, as_packed=True) == ["r: size as packed, trained at 40×36"]


def test_pictures_that_are_packed_at_another_size_than_those_of_the_training_are_told_of(
    trained: TrainedNetwork, tmp_path: Path
) -> None:
    """Both are seen as packed, but not alike."""
    shards = write_shards(tmp_path / "packed", drawn_samples(1), image_size=(16, 12), label_size=(16, 12))
    older = replace(trained, sizes={"source": None, "target": None}, shards={"target": "2" * 64})
    alike, other = (replace(older, packed_sizes={"target": size}) for size in ((16, 12), (64, 48)))
    assert told(alike, shards, None) == told(alike, shards, [16, 12]) == told(other, shards, [64, 48]) == []
    assert told(alike, shards, [64, 48]) == ["r: size 64×48, trained at 16×12"]
    assert told(other, shards, None) == ["r: size as packed, 16×12, trained at 64×48"]
    assert told(older, shards, None) == [], "as checkpoints of older versions do not say"


def test_a_network_of_which_nothing_is_known_sees_pictures_as_packed_in_float32(
    trained: TrainedNetwork, shards: ShardReader
) -> None:
    foreign = replace(trained, sizes={}, precision=None)
    assert predictor_for(foreign, shards, None, asked()) == Predictor(foreign, "target", None, "no")
    assert told(foreign, shards, [64, 48], precision="bf16") == []


@pytest.fixture
def of_windows(monkeypatch: pytest.MonkeyPatch) -> TrainedNetwork:
    """Return a network that takes pictures of one size alone, of few blocks and channels."""
    smaller = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **smaller))
    options = {"architecture": "timm/swin_tiny_patch4_window7_224", "auxiliary_head": False}
    network = build_network(from_dictionary(Network, options, "tests"), class_set())
    return trained_network(network.eval(), sizes={"source": [224, 224], "target": [224, 224]})


TOO_SMALL = r"timm/swin_tiny_patch4_window7_224 does not take pictures of 16×12 \(.*\); give another "


@pytest.mark.parametrize(("program", "key"), [(Evaluate, "data.size"), (PseudoLabel, "target.size")])
def test_a_size_that_a_network_does_not_take_is_refused_by_the_setting(
    of_windows: TrainedNetwork, tmp_path: Path, program: type, key: str
) -> None:
    shards = write_shards(tmp_path / "packed", drawn_samples(1), image_size=(16, 12), label_size=(16, 12))
    values = {} if program is Evaluate else {"checkpoint": "c", "output": "o"}
    for size, more in (([16, 12], {}), (None, {"as_packed": True})):
        asked = from_dictionary(program, {key.split(".")[0]: {"path": "x"}, **values, **more}, "tests")
        with pytest.raises(UserError, match=f"^r: {TOO_SMALL}{key}$"):
            predictor_for(of_windows, shards, size, asked)
        assert predictor_for(of_windows, shards, None, replace(asked, as_packed=False)).size == (224, 224)


def test_a_size_that_is_seen_only_with_the_picture_is_refused_then_and_other_errors_stay_what_they_are(
    of_windows: TrainedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(of_windows)
    with pytest.raises(UserError, match=f"^r: {TOO_SMALL}size of pictures$"):
        predictor.logits(torch.zeros(1, 3, 12, 16))

    def broken(*_: Any) -> None:
        raise RuntimeError("of the device")

    for trained, side in ((of_windows, 224), (trained_network(tiny_network(1)), 12)):
        monkeypatch.setattr(trained.network, "forward", broken)
        with pytest.raises(RuntimeError, match=r"^of the device$"):
            Predictor(trained).logits(torch.zeros(1, 3, side, side))


def test_networks_of_one_program_may_compute_convolutions_each_in_its_own_numbers() -> None:
    with autocast("tf32", torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32
        with autocast("no", torch.device("cpu")):
            assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_that_the_device_does_not_have_is_replaced_with_a_line_and_refused_if_asked_for(
    trained: TrainedNetwork, shards: ShardReader, precision: str
) -> None:
    of_gpu = replace(trained, precision=precision)
    assert predictor_for(of_gpu, shards, None, asked()).precision == "no"
    assert told(of_gpu, shards, None) == [f"r: precision no, trained in {precision}"]
    with pytest.raises(UserError, match=f"precision={precision} needs a GPU; on CPU choose no or bf16"):
        predictor_for(trained, shards, None, asked(precision=precision))


@pytest.mark.parametrize(
    ("data_sets", "fingerprints", "domain"),
    [
        ({}, (), "target"),
        ({}, ("source",), "source"),
        ({}, ("target",), "target"),
        ({}, ("source", "target"), "target"),
        ({"source": "village", "target": "town"}, (), "source"),
        ({"source": "town", "target": "village"}, (), "target"),
        ({"source": "village", "target": "village"}, (), "target"),
        ({"source": "village"}, (), "target"),
        ({"source": "town", "target": "village"}, ("source",), "source"),
        ({"source": "village", "target": "town"}, ("target",), "target"),
    ],
)
def test_pictures_are_of_the_source_by_their_shards_or_by_the_name_of_their_data_set(
    trained: TrainedNetwork,
    shards: ShardReader,
    data_sets: dict[str, str],
    fingerprints: tuple[str, ...],
    domain: str,
) -> None:
    known = {name: shards.fingerprint() if name in fingerprints else f"other {name}" for name in SIZES}
    assert domain_of(known, data_sets, shards) == domain
    if not fingerprints:
        assert domain_of(trained.shards, data_sets, shards) == domain


def test_statistics_of_the_other_domain_are_said_and_refused_where_a_file_has_none_of_the_source(
    trained: TrainedNetwork, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "s", [("a", {"image.png": b"", "label.png": b""})], dataset="town")
    of_town = replace(trained, data_sets={"source": "town", "target": "village"}, keeps="per_domain")
    assert told(replace(of_town, shards={"source": shards.fingerprint()}), shards, None) == []
    (line,) = told(of_town, shards, [40, 36], domain="target")
    assert line == "r: batch-norm statistics of the target, though these pictures are of the source"
    exported = replace(of_town, keeps="target", sizes={})
    (line,) = told(exported, shards, None)
    assert "batch-norm statistics of the target, which are all that a file of weights holds" in line
    with pytest.raises(UserError, match=r"domain=source is impossible: a file of weights holds .* of the target alone"):
        predictor_for(exported, shards, None, asked(domain="source"))
    shared = replace(of_town, keeps="shared")
    assert told(shared, shards, [40, 36], domain="target") == []


def test_pictures_that_are_taken_for_the_source_s_by_a_name_are_said_to_be_where_it_makes_a_difference(
    trained: TrainedNetwork, shards: ShardReader
) -> None:
    by_name = replace(trained, data_sets={"source": "village", "target": "town"})
    (line,) = told(by_name, shards, None)
    assert line == (
        "r: these pictures are taken for the source's, by the name of their data set; domain=target would take the "
        "target's statistics and size, 40×36"
    )
    assert told(replace(by_name, shards={"source": shards.fingerprint()}), shards, None) == [], "they are the same"
    assert told(replace(by_name, sizes={"source": [40, 36], "target": [40, 36]}), shards, None) == []


def test_a_launcher_that_was_asked_for_nothing_leaves_the_precision_to_the_setting_or_the_training() -> None:
    assert asked_precision(None, "no") is None
    assert asked_precision(None, "bf16") == asked_precision("bf16", "no") == asked_precision("bf16", "bf16") == "bf16"
    assert asked_precision("no", "no") == "no"


def test_autocast_computes_in_the_precision() -> None:
    network, images = tiny_network(1), torch.ones(1, 3, 33, 33)
    with torch.inference_mode():
        plain = network(images)["main"]
        with autocast("no", CPU):
            assert torch.equal(network(images)["main"], plain)
        with autocast("bf16", CPU):
            assert network(images)["main"].dtype == torch.bfloat16


def test_a_network_of_which_nothing_is_known_sees_pictures_at_the_size_of_the_others(trained: TrainedNetwork) -> None:
    foreign = replace(trained, sizes={})
    known, unknown = Predictor(trained, "target", (40, 36), "no"), Predictor(foreign, "target", None, "bf16")
    assert with_common_size([unknown, known]) == [replace(unknown, size=(40, 36)), known]
    assert with_common_size([unknown, unknown]) == [unknown, unknown]
    other = replace(known, size=(8, 6))
    assert with_common_size([known, unknown, other]) == [known, unknown, other]


@pytest.mark.parametrize(
    ("data_sets", "is_told"),
    [
        ({"source": "game", "target": "city"}, True),
        ({"source": "city", "target": "city"}, False),
        ({"source": "game"}, False),
        ({}, False),
    ],
)
def test_raw_ids_of_another_data_set_than_the_targets_are_told(data_sets: dict[str, str], is_told: bool) -> None:
    trained = replace(trained_network(tiny_network(0)), data_sets=data_sets, name="r")
    told = (
        "note: r: raw ids are those of game, its source; for those of city, its target, give its description, or "
        "labelled shards of it, as classes_from=…"
    )
    assert note_on_raw_ids(trained) == (told if is_told else "")
