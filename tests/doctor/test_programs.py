"""Whether a program can run: everything that stands in its way is told, each by itself, and nothing is left behind."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esl_dist.adaptation.methods import METHODS
from esl_dist.config import Evaluate, PseudoLabel, Train
from esl_dist.config_files import from_dictionary
from esl_dist.data.labels import ClassSet
from esl_dist.doctor import plan
from esl_dist.doctor.findings import Finding, problems_of
from esl_dist.doctor.inputs import Program, check_program
from esl_dist.doctor.plan import plan_of, processes_found
from esl_dist.doctor.report import findings_of_program
from esl_dist.doctor.room import StateBytes
from esl_dist.doctor.this_machine import Place
from esl_dist.doctor.trained import enough_room
from esl_dist.doctor.training import enough_files, enough_gpu_memory, enough_memory, enough_processors
from esl_dist.errors import UserError
from esl_dist.inference.labelling.pieces import room_of_pieces
from esl_dist.runs.checkpoints import save_checkpoint
from esl_dist.training.data import open_training_data
from tests.builders import as_classes, class_set, drawn_samples, write_shards
from tests.training.small_runs import KEEP_ALL, checkpoint, configuration, save_run, tiny_network

SIZE = {"image_size": (16, 12), "label_size": (16, 12)}
OTHER_CLASSES = as_classes(
    [{"name": name, "color": [value, value, value], "ids": [value]} for name, value in (("road", 7), ("sea", 23))]
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder of a source and a target, and of nothing else."""
    for seed, domain in enumerate(("source", "target")):
        write_shards(tmp_path / domain, drawn_samples(3 + seed), split=domain, **SIZE)
    return tmp_path


def training(folder: Path, **changes: Any) -> Train:
    values = {
        "source": {"path": str(folder / "source")},
        "target": {"path": str(folder / "target")},
        "method": {"name": "minent"},
        "experiments": str(folder / "experiments"),
        "batch_size": 2,
        "loader": {"workers": 1},
    }
    return configuration(**values | changes)


def by_subject(found: Iterable[Finding]) -> dict[str, Finding]:
    return {one.subject: one for one in found}


def problems(config: Program, processes: int | None = None) -> dict[str, str]:
    return {one.subject: one.words for one in problems_of(findings_of_program(config, processes))}


def test_of_a_sound_training_every_part_is_told_and_nothing_is_written(shards: Path) -> None:
    before = sorted(shards.rglob("*"))
    found = by_subject(findings_of_program(training(shards), None))
    assert problems_of(found.values()) == []
    told = ("settings", "processes", "precision", "batch", "source.path", "target.path", "open files", "pictures")
    assert found.keys() >= {*told, "read ahead", "memory", "weights", "run", "checkpoints"}
    assert "village3, 3 of them" in found["pictures"].words
    assert "random ones" in found["weights"].words
    assert found["run"].words == f"{shards}/experiments/snapshots/r: a new one"
    assert sorted(shards.rglob("*")) == before


def test_every_problem_is_told_not_only_the_first(shards: Path) -> None:
    config = training(
        shards,
        steps=2,
        optimizer={"schedule_steps": 1},
        network={"architecture": "tiny", "batch_norm": "per_domain", "start": str(shards / "start.pth")},
        method={"name": "source_only"},
        source={"path": str(shards / "nowhere"), "scale": [0.5, 1.0]},
        pseudo_labels=None,
        precision="fp16",
    )
    told = [(one.subject, one.words) for one in problems_of(findings_of_program(config, 3))]
    assert [subject for subject, _ in told] == [*3 * ["settings"], "precision", "batch", "source.path", "weights"]
    for (_, words), part in zip(
        told,
        (
            "steps=2 goes beyond optimizer.schedule_steps=1",
            "source.scale=[0.5,1] gives pictures of different sizes",
            "network.batch_norm=per_domain needs passes over the target",
            "precision=fp16 needs a GPU; on CPU choose no or bf16",
            "batch_size=2 cannot be shared by 3 processes in 1 passes; expected a multiple of 3",
            f"{shards}/nowhere: no such folder of shards; make it with esl-dist pack",
            f"{shards}/start.pth: no such file of weights",
        ),
        strict=True,
    ):
        assert part in words


def test_a_contradiction_of_settings_hides_nothing_else(shards: Path) -> None:
    config = training(
        shards,
        name="..",
        validate_every=1,
        optimizer={"schedule_steps": 1},
        target={"path": ""},
        method={"name": "source_only"},
        network={"architecture": "tiny", "start": "nowhere.pth"},
    )
    told = [one.subject for one in problems_of(findings_of_program(config, None))]
    assert told == ["settings", "settings", "settings", "weights", "run"]
    without_target = replace(config, name="r", method=replace(config.method, name="minent"))
    assert "target.path" in next(iter(problems(without_target).values()))


def test_an_unknown_method_is_told_alone(shards: Path) -> None:
    assert list(problems(training(shards, method={"name": "magic"}))) == ["settings"]


def test_shards_that_do_not_fit_each_other_and_the_rest_are_told(shards: Path) -> None:
    write_shards(shards / "labels", drawn_samples(4), class_sets={"other2": OTHER_CLASSES}, split="target", **SIZE)
    assert "other2" in problems(training(shards, pseudo_labels=str(shards / "labels")))["shards"]
    assert "no model of this name" in problems(training(shards, network={"architecture": "timm/nonsense"}))["network"]
    (shards / "target" / "shard-000000.tar").unlink()
    config = training(shards, network={"architecture": "tiny", "start": "nowhere.pth"})
    found = by_subject(findings_of_program(config, None))
    assert "shard-000000.tar: is missing" in found["target.path"].words
    assert found["weights"].level == "problem"
    assert found["the rest"].level == "note"
    assert not found.keys() & {"pictures", "memory", "checkpoints"}


def test_validation_shards_and_sizes_are_held_to_the_training(shards: Path) -> None:
    write_shards(shards / "val", drawn_samples(2), class_sets={"other2": OTHER_CLASSES}, split="val", **SIZE)
    config = training(shards, validation={"path": str(shards / "val")}, validate_every=1, method={"name": "advent"})
    found = problems(config)
    assert found.keys() == {"validation", "pictures"}
    assert "needs pictures of at least 32×32 pixels" in found["pictures"]


def test_validation_pictures_of_a_size_that_the_network_does_not_take_are_told(shards: Path) -> None:
    network = {"architecture": "timm/swin_tiny_patch4_window7_224", "auxiliary_head": False}
    size = {"size": [224, 224]}
    config = training(
        shards,
        network=network,
        validation={"path": str(shards / "target"), "size": [64, 48]},
        validate_every=1,
        source={"path": str(shards / "source"), **size},
        target={"path": str(shards / "target"), **size},
    )
    told = problems(config)
    assert told.keys() == {"validation"}
    assert "does not take pictures of 64×48" in told["validation"]


@pytest.mark.parametrize(("classes", "fits"), [(class_set(), True), (OTHER_CLASSES, False)])
def test_weights_to_start_from_are_read_and_held_to_the_classes(shards: Path, classes: ClassSet, fits: bool) -> None:
    save_run(shards / "begun", 1, classes=classes)
    config = training(shards, network={"architecture": "tiny", "start": str(shards / "begun")})
    found = by_subject(findings_of_program(config, None))["weights"]
    assert (found.level, "fits" in found.words) == ("ok" if fits else "problem", fits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, None), ({"batch_size": 4}, "batch_size: 2 → 4"), ({"steps": 9}, None), ({"seed": 3}, "seed: 0 → 3")],
)
def test_a_name_taken_by_a_run_of_other_settings_is_told(
    shards: Path, changes: dict[str, Any], words: str | None
) -> None:
    config = training(shards)
    fingerprints = open_training_data(config, METHODS["minent"]).fingerprints
    begun = replace(checkpoint(2, tiny_network(1).state_dict(), config, class_set()), shards=fingerprints)
    run = shards / "experiments/snapshots/r"
    save_checkpoint(run, begun, KEEP_ALL)
    found = by_subject(findings_of_program(training(shards, **changes), None))
    assert found["weights"].words == "those of the run, which goes on"
    if words is None:
        assert found["run"].words.startswith(f"{run}: goes on from step 2 of")
    else:
        assert found["run"].level == "problem"
        assert words in found["run"].words


def test_an_extra_that_is_not_there_is_told(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda module: None if module in ("timm", "s3fs") else module)
    config = training(shards, network={"architecture": "timm/resnet18"}, source={"path": "s3://bucket/shards"})
    config = replace(config, target=replace(config.target, path=str(shards / "target")))
    told = [one.words for one in plan.extras_found(config) if one.level == "problem"]
    assert told == [
        "network.architecture=timm/resnet18 needs timm: pip install 'esl-dist[timm]'",
        "source.path=s3://bucket/shards needs s3fs: pip install 'esl-dist[remote]'",
    ]


def test_what_a_process_needs_is_held_to_what_there_is() -> None:
    assert "9 files" in enough_files(5, 4, 9)
    assert "any number" in enough_files(5, 4, -1)
    with pytest.raises(UserError, match=r"some 9 files, and may open 8: raise the limit"):
        enough_files(5, 4, 8)
    assert isinstance(enough_memory(100, 2, 50, 250.0), str)
    copied = enough_memory(100, 2, 51, 250.0)
    assert isinstance(copied, Finding)
    assert copied.level == "note"
    with pytest.raises(UserError, match="at least 200"):
        enough_memory(100 * 10**6, 2, 0, 199e6)
    state = StateBytes(1, 10, 20, 40)
    assert "not estimated" in enough_gpu_memory(state, 70)
    with pytest.raises(UserError, match="GPU with more memory"):
        enough_gpu_memory(state, 69)
    assert [enough_processors(2, 2, usable).level for usable in (6, 5)] == ["ok", "note"]


def test_pseudo_labels_are_held_to_the_room_that_the_job_will_ask_for() -> None:
    needed = room_of_pieces((40, 36), 5)
    assert needed == 40 * 36 * 5 * 3
    assert isinstance(enough_room((40, 36), 5, 0, Place("o", needed, None)), str)
    assert isinstance(enough_room((40, 36), 5, needed, Place("o", 0, None)), str)
    with pytest.raises(UserError, match=r"^o: .* 5 pictures .* make room, or choose an output"):
        enough_room((40, 36), 5, 0, Place("o", needed - 1, None))
    for unknown in (enough_room(None, 5, 0, Place("o", 0, None)), enough_room((4, 4), 5, 0, Place("o", None, None))):
        assert isinstance(unknown, Finding)
        assert unknown.level == "note"


@pytest.mark.parametrize(
    ("batch", "asked", "gpus", "planned", "level"),
    [
        (1, None, 0, (1, 1), "ok"),
        (8, None, 0, (1, 1), "ok"),
        (8, 2, 0, (2, 2), "ok"),
        (8, None, 4, (4, 4), "ok"),
        (1, None, 4, (1, 1), "note"),
        (6, None, 4, (3, 3), "note"),
        (8, 8, 4, (8, 4), "note"),
    ],
)
def test_as_many_processes_are_planned_as_gpus_share_a_batch(
    batch: int, asked: int | None, gpus: int, planned: tuple[int, int], level: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        patch.setattr(torch.cuda, "device_count", lambda: gpus)
        found = plan_of(configuration(batch_size=batch), asked)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        on_processors = plan_of(configuration(batch_size=batch), asked)
    assert (found.launched.world_size, found.launched.local_world_size) == planned
    assert (found.device.type, on_processors.device.type) == ("cuda" if gpus else "cpu", "cpu")
    assert processes_found(found).level == level


def test_what_a_launcher_says_that_cannot_be_is_told(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert "WORLD_SIZE=many is impossible" in problems(training(shards))["processes"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without MASTER_ADDR" in problems(training(shards))["precision"]


def labelling(folder: Path, **changes: Any) -> PseudoLabel:
    values = {"checkpoint": str(folder / "run"), "target": {"path": str(folder / "target")}}
    return from_dictionary(PseudoLabel, values | {"output": str(folder / "output")} | changes, "tests")


def test_a_pseudo_label_job_is_held_to_its_network_its_shards_and_its_output(shards: Path) -> None:
    save_run(shards / "run", 1)
    found = by_subject(findings_of_program(labelling(shards), None))
    assert problems_of(found.values()) == []
    assert found["network"].words == f"{shards}/run: tiny, village3"
    assert "predictions of 4 pictures" in found["output"].words
    assert not (shards / "output").exists()
    told = problems(labelling(shards, checkpoint="nowhere", target={"path": str(shards / "none")}, precision="fp16"))
    assert told.keys() == {"precision", "target.path", "inputs"}
    assert "no checkpoint" in told["inputs"]
    inside = problems(labelling(shards, output=str(shards / "target" / "labels")))
    assert inside.keys() == {"settings"}


def test_an_evaluation_is_held_to_its_networks_and_labels(shards: Path) -> None:
    save_run(shards / "run", 1)

    def evaluation(**changes: Any) -> Evaluate:
        values = {"checkpoint": str(shards / "run"), "data": {"path": str(shards / "target")}}
        return from_dictionary(Evaluate, values | changes, "tests")

    assert problems(evaluation()) == {}
    ensemble = evaluation(checkpoint=None, mode="ensemble", checkpoints=[str(shards / "run"), "gone", "lost"])
    words = [one.words for one in problems_of(findings_of_program(ensemble, None))]
    assert [text.split(":")[0] for text in words] == ["gone", "lost"]
    write_shards(shards / "plain", drawn_samples(2), class_sets={})
    write_shards(shards / "other", drawn_samples(2), class_sets={"other": class_set()}, **SIZE)
    assert "no class set 'village3'" in problems(evaluation(data={"path": str(shards / "other")}))["fit"]
    save_run(shards / "seas", 1, configuration(), OTHER_CLASSES)
    pair = [str(shards / "run"), str(shards / "seas")]
    unlike = evaluation(checkpoint=None, mode="ensemble", checkpoints=pair)
    assert "different classes; an ensemble needs the same" in problems(unlike)["fit"]
    mixed = write_shards(shards / "mixed", [*drawn_samples(1), *drawn_samples(2, 30, 20)[1:]], class_sets={})
    assert "its pictures have different sizes" in problems(evaluation(statistics_from=str(mixed.folder)))["fit"]
    assert "have no labels" in problems(evaluation(data={"path": str(shards / "plain")}))["data"]
    (shards / "file").touch()
    told = problems(evaluation(predictions=str(shards / "file" / "p"), mode="ensemble"))
    assert told.keys() == {"settings", "predictions"}


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 2, "optimizer": {"schedule_steps": 1}},
        {"source": {"path": "nowhere"}},
        {"class_set": "other"},
        {"batch_size": 3, "accumulate": 2},
        {"validation": {"path": "somewhere"}},
        {"validation": {"path": "nowhere"}, "validate_every": 1},
        {"trackers": ["tensorboard", "comet_ml"]},
    ],
)
def test_before_jobs_are_submitted_the_same_is_refused_in_the_same_words(shards: Path, changes: dict[str, Any]) -> None:
    config = training(shards, **changes)
    with pytest.raises(UserError) as refusal:
        check_program(config)
    assert str(refusal.value) in problems(config).values()
