"""Pseudo-labels are made as the network was trained, from runs and files, and each class is accounted for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.config import PseudoLabel
from esl_dist.config_files import from_dictionary
from esl_dist.data.images import encode_png
from esl_dist.data.labels import class_names
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import published_state
from esl_dist.programs import pseudo_label
from tests.builders import class_set, draw, drawn_shards, write_description, write_shards
from tests.training.small_runs import configuration, save_run, save_state, tiny_network

Label = Callable[..., ShardReader]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "experiments/snapshots/r"


@pytest.fixture
def target(tmp_path: Path) -> ShardReader:
    pictures = [(f"scene_{seed}", {"image.png": encode_png(draw(seed, 64, 48)[0])}) for seed in range(2)]
    return write_shards(tmp_path / "target", pictures, class_sets={}, image_size=(64, 48))


@pytest.fixture
def label(target: ShardReader, tmp_path: Path) -> Label:
    """Return a function that labels the unlabelled target in this process and opens what it wrote."""

    def labelled(checkpoint: Path, **changes: Any) -> ShardReader:
        given = {"target": {"path": str(target.folder)}, "output": str(tmp_path / "labels"), "workers": 0}
        config = from_dictionary(PseudoLabel, {**given, "checkpoint": str(checkpoint), **changes}, "tests")
        # As in a program of its own: Accelerate keeps the precision of the first one.
        AcceleratorState._reset_state(reset_partial_state=True)
        pseudo_label.main(config)
        return open_shards(config.output)

    return labelled


def test_the_target_is_seen_at_the_size_of_the_training_unless_another_is_given(
    run: Path, target: ShardReader, label: Label, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(run, 3, configuration(target={"path": "t", "size": [40, 36]}))
    index = label(run).index
    assert (index.label_size, index.made_with["size"]) == ((40, 36), [40, 36])
    assert "note: " not in capsys.readouterr().out
    assert label(run, output=f"{tmp_path}/packed", as_packed=True).index.label_size == (64, 48)
    assert "note: r: size as packed, 64×48, trained at 40×36\n" in capsys.readouterr().out
    given = {"path": str(target.folder), "size": [32, 24]}
    assert label(run, output=f"{tmp_path}/given", target=given).index.label_size == (32, 24)
    assert "note: r: size 32×24, trained at 40×36\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_run_s_file_of_weights_labels_pictures_without_labels_as_the_run_does(
    run: Path, label: Label, tmp_path: Path, name: str
) -> None:
    state = save_run(run, 3)
    write_weights(run / name, state)
    of_run, of_file = label(run), label(run / name, output=str(tmp_path / "of_file"))
    assert of_file.index.class_sets == of_run.index.class_sets
    assert [of_file.read(one, "label") for one in range(2)] == [of_run.read(one, "label") for one in range(2)]


@pytest.mark.parametrize("place", ["description", "shards"])
def test_a_foreign_file_takes_its_classes_from_the_place_that_is_named(
    label: Label, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "published.pth"
    write_weights(path, published_state(tiny_network(1)))
    with pytest.raises(
        UserError, match=r"published\.pth: a network of 3 classes does not say which, nor do the shards"
    ):
        label(path)
    labelled = drawn_shards(tmp_path / "labelled", 1)
    named = write_description(tmp_path / "village") if place == "description" else labelled.folder
    index = label(path, classes_from=str(named)).index
    assert class_names(index.class_sets["village3"]) == class_names(class_set())
    assert "taken for those of village3" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"class_set=other fits none of the class sets there are: village3 \(3\)"):
        label(path, classes_from=str(named), class_set="other")


def test_the_precision_and_the_statistics_are_those_of_the_training_and_the_pictures(
    run: Path, target: ShardReader, label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(network={"architecture": "tiny", "batch_norm": "per_domain"})
    state = tiny_network(2, per_domain=True).state_dict()
    for name, tensor in state.items():
        if name.endswith("source_var"):
            tensor.mul_(9)
    monkeypatch.setattr("tests.training.small_runs.FINGERPRINTS", {"source": target.fingerprint(), "target": "b" * 64})
    monkeypatch.setattr("tests.training.small_runs.MORE_OF_TRAINING", {"precision": "bf16"})
    save_state(run, 3, state, config, class_set())
    made: dict[str, list[bytes]] = {}
    for name, changes in {
        "default": {},
        "source in bf16": {"domain": "source", "precision": "bf16"},
        "source in float32": {"precision": "no"},
        "target in bf16": {"domain": "target"},
    }.items():
        labels = label(run, output=f"{tmp_path}/{name}", entropy_floor=0.5, **changes)
        made[name] = [labels.read(position, "label") for position in range(len(labels))]
    assert made.pop("default") == made["source in bf16"]
    assert len({tuple(labels) for labels in made.values()}) == 3, "these make a difference"


def test_each_class_has_a_line_and_classes_never_predicted_a_warning(
    run: Path, label: Label, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = tiny_network(1).state_dict()
    state["layer6.conv2d_list.0.bias"][1] -= 1000
    save_state(run, 3, state, configuration(), class_set())
    label(run)
    printed = capsys.readouterr()
    summary = read_json(tmp_path / "labels/summary.json")["classes"]
    for name, row in summary.items():
        (line,) = [line for line in printed.out.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[1] == str(row["pixels_predicted"])
        assert line.split()[3] == str(row["pixels_kept"])
    assert summary["house"]["pixels_predicted"] == 0
    assert "warning: never predicted, so without a pseudo-label: house\n" in printed.err
    assert f"pseudo_labels={tmp_path}/labels" in printed.out, "the next command"


@pytest.mark.parametrize("output", ["", ".", "below/it", "../target", "../link"])
def test_pseudo_labels_are_not_written_into_the_target_s_shards(
    run: Path, target: ShardReader, label: Label, output: str
) -> None:
    save_run(run, 3)
    (target.folder.parent / "link").symlink_to(target.folder)
    before = sorted(target.folder.rglob("*"))
    with pytest.raises(UserError, match=r"^output=.* (is|lies in) target\.path=.*target, which is read"):
        label(run, output=f"{target.folder}/{output}")
    assert sorted(target.folder.rglob("*")) == before


def test_pseudo_labels_beside_the_target_are_written(run: Path, target: ShardReader, label: Label) -> None:
    save_run(run, 3)
    assert len(label(run, output=f"{target.folder}_labels")) == len(target)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (".", r"holds target\.path="),
        ("experiments/snapshots/r/checkpoints/labels", "lies in checkpoint="),
        ("experiments/snapshots/r", "is checkpoint="),
        ("experiments", "exists and holds other files"),
    ],
)
def test_pseudo_labels_are_not_written_among_other_files(
    run: Path, tmp_path: Path, label: Label, output: str, told: str
) -> None:
    save_run(run, 3)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"^output=.*{told}"):
        label(run, output=str(tmp_path / output))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_names_other_classes_than_the_run_s_is_refused(run: Path, tmp_path: Path, label: Label) -> None:
    road, house, sky = class_set()
    save_run(run, 3)
    other = write_shards(tmp_path / "other", [("a", {"label.png": b"x"})], class_sets={"village3": (house, road, sky)})
    with pytest.raises(UserError, match=r"^classes_from=.*: has no class set 'village3' of the network's classes road"):
        label(run, classes_from=str(other.folder))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda summary: summary["classes"]["road"].update(threshold=None),
            r"classes\.road\.threshold: expected a num",
        ),
        (lambda summary: summary["classes"].clear(), "classes: expected at least one class"),
        (
            lambda summary: summary["classes"].pop("sky"),
            "classes: expected the classes road, house, sky, in this order",
        ),
        (lambda summary: summary.update(score="junk"), "score: expected one of entropy, confidence"),
    ],
)
def test_a_summary_that_cannot_be_a_finished_job_s_is_refused(
    run: Path, label: Label, tmp_path: Path, change: Callable[[Any], object], told: str
) -> None:
    save_run(run, 3)
    label(run)
    summary = read_json(tmp_path / "labels/summary.json")
    change(summary)
    write_json(tmp_path / "labels/summary.json", summary)
    with pytest.raises(UserError, match=rf"summary\.json: {told}.*label again"):
        label(run)


def test_labels_of_shared_statistics_are_the_same_whosever_pictures_they_are_of(
    run: Path, target: ShardReader, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.small_runs.FINGERPRINTS", {"source": target.fingerprint(), "target": "b" * 64})
    save_run(run, 3)
    assert label(run).index.made_with["domain"] == "target"
    label(run, domain="target")


def made_by_an_older_version(folder: Path) -> None:
    index = read_json(folder / INDEX_NAME)
    for key in ("domain", "precision", "device"):
        del index["made_with"][key]
    write_json(folder / INDEX_NAME, index, indent=None)


def test_shards_that_are_no_pseudo_labels_are_not_taken_for_older_ones(
    run: Path, label: Label, tmp_path: Path, town: Path
) -> None:
    save_run(run, 3)
    shutil.copytree(town / "target_val", tmp_path / "labels")
    with pytest.raises(UserError, match="labels: holds shards that are no pseudo-labels; choose another output or del"):
        label(run)


def test_pseudo_labels_of_an_older_version_are_those_of_the_target_in_float32(
    run: Path, label: Label, tmp_path: Path
) -> None:
    save_run(run, 3, configuration(target={"path": "t", "size": [40, 36]}))
    label(run)
    made_by_an_older_version(tmp_path / "labels")
    label(run)
    with pytest.raises(UserError, match=r'made with another precision: "no" → "bf16"; choose another output'):
        label(run, precision="bf16")
    with pytest.raises(UserError, match=r"made with another size: \[40, 36\] → null; choose another output"):
        label(run, as_packed=True)


def test_pseudo_labels_that_were_made_on_another_kind_of_device_are_refused(
    run: Path, label: Label, tmp_path: Path
) -> None:
    save_run(run, 3)
    label(run)
    index = read_json(tmp_path / "labels" / INDEX_NAME)
    assert index["made_with"]["device"] == "cpu"
    index["made_with"]["device"] = "cuda"
    write_json(tmp_path / "labels" / INDEX_NAME, index, indent=None)
    with pytest.raises(UserError, match=r'made with another device: "cuda" → "cpu"; choose another output'):
        label(run)


def test_labels_of_numbers_that_are_not_finite_are_not_written(run: Path, label: Label, tmp_path: Path) -> None:
    state = tiny_network(1).state_dict()
    for name in ("conv1.weight", "layer1.0.conv1.weight"):
        state[name] *= 1e30
    save_state(run, 3, state, configuration(), class_set())
    with pytest.raises(UserError, match="sample 'scene_0': the network's scores are not finite in precision no"):
        label(run)
    assert not (tmp_path / "labels" / INDEX_NAME).exists()


def shown(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """Return what TensorBoard shows of a round: scalars and histograms."""
    events = EventAccumulator(str(folder / "pseudo_labels/labels"))
    events.Reload()
    scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    histograms = {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}
    return scalars, histograms


def test_a_round_shows_thresholds_kept_shares_and_entropies_of_the_network_that_labelled(
    run: Path, label: Label, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(run, 3)
    summary = read_json(label(run).folder / "summary.json")
    logs = tmp_path / "experiments/logs/r"
    assert f"tensorboard --logdir {logs}\n" in capsys.readouterr().out
    scalars, histograms = shown(logs)
    assert scalars["pseudo_labels/kept"] == [(3, pytest.approx(summary["kept"]))]
    assert "pseudo_labels/accuracy" not in scalars
    for name, row in summary["classes"].items():
        assert scalars[f"pseudo_label_threshold/{name}"] == [(3, pytest.approx(row["threshold"]))]
        if not row["pixels_predicted"]:
            assert f"entropy/{name}" not in histograms
            continue
        kept = row["pixels_kept"] / row["pixels_predicted"]
        assert scalars[f"pseudo_label_kept/{name}"] == [(3, pytest.approx(kept))]
        [event] = histograms[f"entropy/{name}"]
        values = event.histogram_value
        assert (event.step, values.num) == (3, row["pixels_predicted"])
        assert 0 <= values.min < values.max <= 1
        bins = zip(values.bucket_limit, values.bucket, strict=True)
        up_to = sum(count for edge, count in bins if edge <= row["threshold"] + 1e-4)
        assert up_to == pytest.approx(row["pixels_kept"], abs=1), "what lies below the threshold is kept"


def test_curves_that_cannot_be_written_cost_a_warning_and_the_labels_stay(
    run: Path, label: Label, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(run, 3)
    (tmp_path / "experiments/logs").write_text("a file where the curves' folder would be")
    assert len(label(run)) == 2
    printed = capsys.readouterr()
    assert "curves cannot be written" in printed.err
    assert "tensorboard" not in printed.out


def test_a_network_of_no_run_leaves_no_curves(run: Path, label: Label, tmp_path: Path) -> None:
    write_weights(tmp_path / "weights.pth", save_run(run, 3))
    label(tmp_path / "weights.pth", classes_from=str(write_description(tmp_path / "described")))
    assert not (tmp_path / "experiments/logs").exists()
