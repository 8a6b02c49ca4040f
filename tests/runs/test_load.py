"""Trained networks come from a run, a checkpoint or a file of weights, each with the classes that it knows."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esl_dist.adaptation.methods import METHODS
from esl_dist.data.labels import ClassSet
from esl_dist.errors import UserError
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import published_state
from esl_dist.runs import checkpoints
from esl_dist.runs.checkpoints import TRAINING
from esl_dist.runs.trained import Provenance, TrainedNetwork, description_of, load_trained
from esl_dist.training.setup import build_state
from tests.builders import CLASS_ENTRIES, as_classes, class_set
from tests.training.small_runs import KNOWN, configuration, save_run, save_state, tiny_network

CPU = torch.device("cpu")
OTHERS = as_classes([{**entry, "name": f"my {entry['name']}"} for entry in CLASS_ENTRIES])
CLASS_SETS: dict[str, ClassSet] = {"two": class_set()[:2], "village3": class_set(), "others3": OTHERS}
FILES = ["weights.pth", "weights.safetensors"]


def load(
    path: Path | str, class_sets: dict[str, ClassSet] = CLASS_SETS, class_set: str | None = None
) -> TrainedNetwork:
    return load_trained(path, class_sets, class_set, CPU)


def logits(network: DeepLab) -> torch.Tensor:
    images = torch.linspace(-100, 100, 3 * 24 * 32).reshape(1, 3, 24, 32)
    with torch.no_grad():
        return network(images)["main"]


def same_state(network: DeepLab, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "experiments/snapshots/r"


@pytest.mark.parametrize("batch_norm", ["shared", "per_domain"])
def test_a_run_gives_its_newest_network_ready_to_predict(run: Path, tmp_path: Path, batch_norm: str) -> None:
    network = {"architecture": "tiny", "batch_norm": batch_norm, "auxiliary_head": False}
    save_run(run, 9, configuration(network=network))
    state = save_run(run, 10, configuration(network=network))
    trained = load(run)
    assert same_state(trained.network, state)
    assert not any(module.training for module in trained.network.modules())
    assert (trained.name, trained.step, trained.batch_size) == ("r", 10, 3)
    assert (trained.class_set, trained.classes) == ("village3", class_set())
    assert trained.logs == tmp_path / "experiments/logs/r"


def test_statistics_of_a_network_that_saw_each_picture_alone_are_estimated_from_single_pictures(tmp_path: Path) -> None:
    network = {"architecture": "tiny", "auxiliary_head": False, "normalise_over": "picture"}
    save_run(tmp_path / "run", 1, configuration(batch_size=3, network=network))
    assert load(tmp_path / "run").batch_size == 1


def test_a_checkpoint_folder_gives_that_checkpoint_and_the_place_of_its_run_s_curves(run: Path, tmp_path: Path) -> None:
    state = save_run(run, 9)
    save_run(run, 10)
    trained = load(run / "checkpoints/step-00000009")
    assert same_state(trained.network, state)
    assert trained.step == 9
    assert trained.logs == tmp_path / "experiments/logs/r"


def test_a_damaged_newest_checkpoint_of_a_run_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = save_run(run, 9)
    save_run(run, 10)
    (run / "checkpoints/step-00000010/training.pt").unlink()
    trained = load(run)
    assert trained.step == 9
    assert same_state(trained.network, state)
    assert "step-00000010" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"step-00000010/training\.pt: missing or not the bytes that were saved"):
        load(run / "checkpoints/step-00000010")


def test_a_checkpoint_keeps_its_own_classes_and_refuses_another_class_set(run: Path) -> None:
    save_run(run, 9)
    assert load(run, {}, None).classes == class_set()
    assert load(run, CLASS_SETS, "village3").class_set == "village3"
    with pytest.raises(UserError, match="step-00000009: was trained on the class set 'village3', not on 'others3'"):
        load(run, CLASS_SETS, "others3")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("per_domain", [False, True])
@pytest.mark.parametrize("auxiliary_head", [False, True])
def test_a_file_of_weights_predicts_as_the_network_it_is_of(
    tmp_path: Path, name: str, per_domain: bool, auxiliary_head: bool
) -> None:
    network = tiny_network(1, auxiliary_head=auxiliary_head, per_domain=per_domain)
    for number, statistic in enumerate(network.buffers()):
        if statistic.is_floating_point():
            statistic.add_(0.01 * (number % 5))
    write_weights(tmp_path / name, published_state(network))
    trained = load(tmp_path / name)
    assert torch.equal(logits(trained.network), logits(network))
    assert trained.network.levels == network.levels
    assert not any(module.training for module in trained.network.modules())
    assert (trained.name, trained.step, trained.batch_size, trained.logs) == ("weights", None, 1, None)


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_first_class_set_of_as_many_classes_or_the_one_that_is_asked_for(
    tmp_path: Path, name: str
) -> None:
    write_weights(tmp_path / name, tiny_network(1).state_dict())
    assert (load(tmp_path / name).class_set, load(tmp_path / name).classes) == ("village3", class_set())
    trained = load(tmp_path / name, class_set="others3")
    assert (trained.class_set, trained.classes) == ("others3", OTHERS)
    write_weights(tmp_path / name, tiny_network(1, classes=2).state_dict())
    assert load(tmp_path / name).class_set == "two"


def test_a_file_whose_classes_are_not_those_of_the_shards_names_both(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    known = (
        r"fits none of the class sets there are: two \(2\), village3 \(3\), others3 \(3\); name them with classes_from"
    )
    write_weights(path, tiny_network(1, classes=4).state_dict())
    with pytest.raises(UserError, match=rf"weights\.pth: a network of 4 classes {known}"):
        load(path)
    write_weights(path, tiny_network(1).state_dict())
    for asked in ("two", "cityscapes19"):
        with pytest.raises(UserError, match=rf"weights\.pth: a network of 3 classes and class_set={asked} {known}"):
            load(path, class_set=asked)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_something_else_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = tiny_network(1).state_dict()
    write_weights(path, {key: one for key, one in whole.items() if not key.startswith("layer6")})
    with pytest.raises(UserError, match=rf"{name}: no trained segmentation network, for it has no classifier layer6"):
        load(path)
    write_weights(path, {key: one for key, one in whole.items() if key != "layer3.0.bn1.running_mean"})
    with pytest.raises(UserError, match=rf"{name}: its tensors are those of none of the networks"):
        load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=rf"{name}: "):
        load(path)


@pytest.mark.parametrize("make", [False, True], ids=["absent", "empty folder"])
def test_a_path_where_nothing_is_says_what_was_expected(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "there").mkdir()
    with pytest.raises(
        UserError,
        match=r"there: no checkpoint; expected a run folder with checkpoints/, one checkpoint's folder, or a file of",
    ):
        load(tmp_path / "there")


def test_a_file_of_weights_without_class_sets_says_where_they_may_come_from(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights.pth", tiny_network(1).state_dict())
    with pytest.raises(
        UserError, match=r"network of 3 classes does not say which, nor do the shards; name them with cl"
    ):
        load(tmp_path / "weights.pth", {})


def test_a_foreign_file_says_in_one_line_what_is_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(tmp_path / "weights.pth", tiny_network(1, auxiliary_head=False).state_dict())
    load(tmp_path / "weights.pth")
    (line,) = capsys.readouterr().out.splitlines()
    assert "says nothing of its training; by its tensors it is a tiny of 3 classes, taken for those of village3" in line


def described(per_domain: bool = False, classes: ClassSet | None = None) -> Provenance:
    classes = OTHERS if classes is None else classes
    return replace(KNOWN, run="elsewhere", class_set="mine", classes=classes, per_domain=per_domain, batch_size=5)


@pytest.mark.parametrize("per_domain", [False, True])
def test_a_file_that_describes_itself_knows_all_of_its_training(
    tmp_path: Path, per_domain: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, known = tmp_path / "moved.safetensors", described(per_domain)
    write_weights(path, tiny_network(1).state_dict(), description_of(known))
    trained = load(path, {})
    assert (trained.name, trained.class_set, trained.classes) == ("elsewhere_moved", "mine", OTHERS)
    assert (trained.batch_size, trained.precision, trained.architecture) == (5, "bf16", "tiny")
    assert (trained.sizes, trained.data_sets, trained.shards) == (known.sizes, known.data_sets, known.shards)
    assert trained.keeps == ("target" if per_domain else "shared")
    assert capsys.readouterr().out == "", "nothing is assumed"
    with pytest.raises(UserError, match=r"was trained on the class set 'mine', not on 'village3'"):
        load(path, CLASS_SETS, "village3")


def test_a_description_of_another_network_than_the_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_weights(path, tiny_network(1, classes=2).state_dict(), description_of(described()))
    with pytest.raises(UserError, match="description is of a tiny of 3 classes, its tensors are those of a tiny of 2"):
        load(path)


@pytest.mark.parametrize("beside", ["description", "checkpoint", "damaged description"])
def test_a_run_s_pth_file_has_the_classes_of_the_run_that_it_lies_in(
    run: Path, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = save_run(run, 3, classes=OTHERS)
    write_weights(run / "weights.pth", state)
    if beside != "checkpoint":
        write_weights(run / "weights.safetensors", state, description_of(described()))
    if beside == "description":
        shutil.rmtree(run / "checkpoints")
    if beside == "damaged description":
        (run / "weights.safetensors").write_bytes(b"")
    trained = load(run / "weights.pth", {})
    assert (trained.name, trained.step, trained.logs) == ("r_weights", None, None)
    assert (trained.classes, trained.batch_size) == (OTHERS, 5 if beside == "description" else 3)
    assert capsys.readouterr().out == ""


def test_other_weights_in_a_run_s_folder_are_not_taken_for_the_run_s(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(run / "weights.safetensors", save_run(run, 3, classes=OTHERS), description_of(described()))
    write_weights(run / "weights.pth", tiny_network(1).state_dict())
    assert load(run / "weights.pth").classes == class_set()
    assert "says nothing of its training" in capsys.readouterr().out


def test_a_whole_file_beside_broken_checkpoints_is_used(run: Path) -> None:
    write_weights(run / "weights.pth", save_run(run, 3))
    (run / "checkpoints/step-00000003/training.pt").unlink()
    assert load(run / "weights.pth").class_set == "village3"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_whose_weights_are_no_finite_numbers_is_refused(run: Path, value: float) -> None:
    config = configuration()
    state = tiny_network(1).state_dict()
    state["layer6.conv2d_list.0.bias"][1] = value
    save_state(run, 3, state, config, class_set())
    with pytest.raises(UserError, match=r"layer6\.conv2d_list\.0\.bias"):
        load(run)
    with pytest.raises(UserError, match=r"layer6\.conv2d_list\.0\.bias"):
        start_from(run)


def test_a_checkpoint_that_was_copied_elsewhere_has_no_place_for_curves(run: Path, tmp_path: Path) -> None:
    save_run(run, 3)
    copied = tmp_path / "copied"
    shutil.copytree(run / "checkpoints/step-00000003", copied)
    assert load(copied).logs is None
    shutil.copytree(run, tmp_path / "runs/r")
    assert load(tmp_path / "runs/r").logs is None


def test_a_run_that_is_named_from_inside_its_folder_has_its_place_for_curves(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(run, 3)
    monkeypatch.chdir(run)
    assert load(".").logs == tmp_path / "experiments/logs/r"


def start_from(path: Path) -> None:
    config = configuration(seed=0, network={"architecture": "tiny", "start": str(path)})
    build_state(config, METHODS["source_only"], class_set(), CPU, with_start=True)


@pytest.mark.parametrize("read", [load, start_from])
@pytest.mark.parametrize("place", ["", "checkpoints/step-00000003"])
def test_the_files_of_a_checkpoint_are_hashed_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], place: str
) -> None:
    """That of a real network has about a gigabyte."""
    save_run(run, 3)
    hashed: list[Path] = []
    plain = checkpoints.sha256_of_file
    monkeypatch.setattr(checkpoints, "sha256_of_file", lambda path: (hashed.append(path), plain(path))[1])
    read(run / place)
    folder = run / "checkpoints/step-00000003"
    assert sorted(hashed) == sorted(
        folder / name for name in ("segmentation.safetensors", "discriminators.safetensors", TRAINING)
    )
