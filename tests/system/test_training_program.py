"""launch/train.py as a whole: methods, processes, restarts, mistakes."""

import json
import re
from csv import DictReader
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.exact.trainings import IN_FLOAT64, TRAIN, assert_equal_to_rounding
from tests.programs import PROJECT, TINY_TRAINING, run, succeed


def data_words(town: Path) -> list[str]:
    return [f"source.path={town}/source_train", f"target.path={town}/target_train"]


def train(town: Path, experiments: Path, name: str, *words: str, processes: int = 1) -> dict[str, torch.Tensor]:
    all_words = [*TINY_TRAINING, *data_words(town), f"experiments={experiments}", f"name={name}", *words]
    succeed("launch/train.py", *all_words, processes=processes)
    return final_weights(experiments, name)


def final_weights(experiments: Path, name: str) -> dict[str, torch.Tensor]:
    newest = sorted((experiments / "snapshots" / name / "checkpoints").iterdir())[-1]
    return load_file(newest / "segmentation.safetensors")


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def scalars(experiments: Path, name: str) -> dict[str, list[int]]:
    events = EventAccumulator(str(experiments / "logs" / name))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("source_only", {"loss/source_cross_entropy/main", "loss/source_cross_entropy/auxiliary"}),
        ("minent", {"loss/target_minent/main", "loss/target_minent/auxiliary"}),
        ("advent", {"loss/target_advent/main", "loss/discriminator/main", "loss/discriminator/auxiliary"}),
    ],
)
def test_every_method_trains_and_reports_its_losses_rates_and_speed(
    town: Path, tmp_path: Path, method: str, expected: set[str]
) -> None:
    train(town, tmp_path, method, f"method.name={method}", "steps=5")
    curves = scalars(tmp_path, method)
    assert expected <= curves.keys()
    assert {"learning_rate/stem", "learning_rate/heads", "speed/samples_per_second"} <= curves.keys()
    assert curves["loss/source_cross_entropy/main"] == [2, 4, 5], "every second step, and the last"


def test_each_step_learns_at_the_rate_that_the_schedule_has_for_it(town: Path, tmp_path: Path) -> None:
    words = ["optimizer.schedule_steps=10", "optimizer.warm_up_steps=3", "steps=3", "log_every=1", "trackers=[]"]
    train(town, tmp_path, "one", *words)
    train(town, tmp_path, "one", *words, "steps=6")
    with open(tmp_path / "logs/one/scalars.csv", newline="") as file:
        rates = {
            int(row["step"]): float(row["value"]) for row in DictReader(file) if row["tag"] == "learning_rate/heads"
        }
    # The k-th step has k - 1 before it: (1 - (k - 1) / 10) ** 0.9, and k thirds of it while it warms up.
    expected = {k: 10 * 0.01 * (1 - (k - 1) / 10) ** 0.9 * min(1, k / 3) for k in range(1, 7)}
    assert rates == pytest.approx(expected, rel=1e-9)


def test_a_training_tells_what_it_does_and_made_and_its_losses_line_by_line(town: Path, tmp_path: Path) -> None:
    words = [*TINY_TRAINING, *data_words(town), f"experiments={tmp_path}", "name=r", "steps=5", "log_every=2"]
    done = run("launch/train.py", *words)
    assert done.returncode == 0, done.stderr
    entries = [line for line in done.stderr.splitlines() if line.startswith("r: ")]
    assert [re.match(r"r: (\d)/5 steps", line).group(1) for line in entries] == ["2", "4", "5"]  # type: ignore[union-attr]
    expected = r"source_cross_entropy/main [\d.]+, .*, learning rate 0\.01, [\d.]+ samples/s, \d+ s left$"
    assert all(re.search(expected, line) for line in entries), entries
    assert "\r" not in done.stderr
    beginning, _, end = done.stdout.partition("r: finished at step 5\n")
    assert "random weights (no network.start)" in beginning
    assert "the learning rate falls by 0 % only, for optimizer.schedule_steps=250000" in beginning
    assert f"esl-dist evaluate checkpoint={tmp_path}/snapshots/r data.path=… output={tmp_path}/snapshots/r/" in end
    assert entries[-1].split(", learning rate")[0].split("%), ")[1] in end, "the last losses"


def test_two_processes_compute_what_one_does(town: Path, tmp_path: Path) -> None:
    words = [*TINY_TRAINING, *data_words(town), f"experiments={tmp_path}", "steps=3", "network.batch_norm=per_domain"]
    for processes in (1, 2):
        program = [IN_FLOAT64, str(PROJECT / TRAIN), *words, f"name={processes}"]
        expected = f"{processes} process{'es' if processes > 1 else ''} on cpu"
        assert expected in succeed(*program, processes=processes)
    assert_equal_to_rounding(final_weights(tmp_path, "2"), final_weights(tmp_path, "1"))


def test_loader_workers_are_not_visible_in_the_weights(town: Path, tmp_path: Path) -> None:
    assert_same_bits(
        train(town, tmp_path, "none", "steps=4"), train(town, tmp_path, "three", "steps=4", "loader.workers=3")
    )


def test_a_finished_training_says_so_and_leaves_its_weights(town: Path, tmp_path: Path) -> None:
    train(town, tmp_path, "r", "steps=2")
    words = [*TINY_TRAINING, *data_words(town), f"experiments={tmp_path}", "name=r", "steps=2"]
    (tmp_path / "snapshots/r/weights.safetensors").unlink()
    assert "finished already, at step 2" in succeed("launch/train.py", *words)
    assert (tmp_path / "snapshots/r/weights.safetensors").exists(), "what a kill may have left out is made up for"


def test_the_resolved_configuration_lies_with_the_run(town: Path, tmp_path: Path) -> None:
    train(town, tmp_path, "r", "steps=2")
    stored = (tmp_path / "snapshots/r/config.yaml").read_text()
    assert "architecture: tiny" in stored
    assert "momentum: 0.9" in stored, "defaults are stored too"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bach_size=4"], "'bach_size'; the nearest known one is 'batch_size'"),
        (["batch_size=three"], "batch_size"),
        (["steps=0"], "steps=0 is impossible: expected at least 1"),
        (["source.path=/nowhere"], "/nowhere: no such folder of shards"),
        (["method.name=magic"], "expected one of source_only, minent, advent"),
        (["network.start=/nowhere.pth"], "/nowhere.pth: no such file of weights"),
        (["accumulate=2", "batch_size=3"], "expected a multiple of 2"),
        (["class_set=cityscapes19"], "no class set 'cityscapes19'; it has toytown9"),
        (["method.name=source_only", "network.batch_norm=per_domain"], "choose network.batch_norm=shared"),
        (["steps=11", "optimizer.schedule_steps=10"], "steps=11 goes beyond optimizer.schedule_steps=10"),
        (["target.path=''"], "no value for target.path"),
        (["seed=4294967296"], "seed=4294967296 is impossible: expected at least 0, at most 4_294_967_295"),
        (["name=../r"], "name '../r' is impossible: expected a name without '/'"),
        (["name=a/b"], "name 'a/b' is impossible: expected a name without '/'"),
        (["experiments=/proc/x"], "/proc/x: No such file or directory"),
        (["--wrong"], "unrecognized arguments: --wrong"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: no such configuration file"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    town: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    basis = [*TINY_TRAINING, *data_words(town), f"experiments={tmp_path}", "name=r"]
    done = run("launch/train.py", *basis, *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_source_only_training_needs_no_target(town: Path, tmp_path: Path) -> None:
    words = [*TINY_TRAINING, f"source.path={town}/source_train", f"experiments={tmp_path}", "name=r", "steps=1"]
    succeed("launch/train.py", *words, "method.name=source_only")


def test_a_run_goes_on_where_its_shards_lie_now_and_without_the_weights_it_started_from(
    town: Path, tmp_path: Path
) -> None:
    train(town, tmp_path, "teacher", "steps=1")
    start = f"network.start={tmp_path}/snapshots/teacher"
    train(town, tmp_path, "r", start, "steps=1")
    (tmp_path / "snapshots/teacher").rename(tmp_path / "elsewhere")
    (tmp_path / "moved").symlink_to(town)
    train(tmp_path / "moved", tmp_path, "r", start, "steps=2")


def test_a_loss_that_is_no_number_ends_the_training_before_it_is_saved(town: Path, tmp_path: Path) -> None:
    words = [*TINY_TRAINING, *data_words(town), f"experiments={tmp_path}", "name=r", "steps=8", "log_every=100"]
    done = run("launch/train.py", *words, "optimizer.learning_rate=1e30", "checkpoints.every=4")
    assert done.returncode == 2
    assert (
        "is no finite number any more; start a run of another name with a lower optimizer.learning_rate" in done.stderr
    )
    assert not (tmp_path / "snapshots/r/checkpoints").exists()


def test_the_exported_weights_are_those_of_the_target_under_the_published_names(town: Path, tmp_path: Path) -> None:
    trained = train(town, tmp_path, "r", "steps=2", "network.batch_norm=per_domain")
    exported = load_file(tmp_path / "snapshots/r/weights.safetensors")
    assert sorted(trained.keys() - exported.keys()) == sorted(name for name in trained if "source_" in name)
    assert all(torch.equal(trained[name], tensor) for name, tensor in exported.items())


def test_a_run_of_the_same_name_with_other_settings_is_refused(town: Path, tmp_path: Path) -> None:
    train(town, tmp_path, "r", "steps=2")
    basis = [*TINY_TRAINING, *data_words(town), f"experiments={tmp_path}", "name=r", "steps=4"]
    done = run("launch/train.py", *basis, "optimizer.momentum=0.5")
    assert done.returncode == 2
    assert "(begun with → given now): optimizer.momentum: 0.9 → 0.5; give those that it was begun with" in done.stderr
    assert "finished already" not in succeed("launch/train.py", *basis), "a longer run of the same settings goes on"


def test_a_checkpoint_names_its_files_with_checksums(town: Path, tmp_path: Path) -> None:
    train(town, tmp_path, "r", "steps=2")
    manifest = json.loads((tmp_path / "snapshots/r/checkpoints/step-00000002/manifest.json").read_text())
    assert manifest["step"] == 2
    assert set(manifest["files"]) == {"segmentation.safetensors", "discriminators.safetensors", "training.pt"}
