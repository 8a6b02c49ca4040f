"""Figures of validations against plain computations, and networks that are as before."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.adaptation.teacher import TEACHER
from esl_dist.data.loading import Samples, network_input
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.models.deeplab import DeepLab
from esl_dist.runs.validations import Figures
from esl_dist.training.data import open_training_data
from esl_dist.training.stop_request import StopRequest
from esl_dist.training.validation import open_validation, unsupervised_figures, validate, validation_of
from tests.builders import drawn_samples, drawn_shards, write_shards
from tests.training.small_runs import KNOWN, configuration, tiny_network

CLASSES, HIGHEST = 3, 65535


def networks(**more: DeepLab) -> nn.ModuleDict:
    return nn.ModuleDict({SEGMENTATION: tiny_network(1), **more}).train()


def figures_of(samples: Samples, built: nn.ModuleDict) -> Figures:
    validation = validation_of(samples, built, replace(KNOWN, precision="no"), Workers(0, 1))
    found = validate(validation, "here", StopRequest()).figures
    assert found is not None
    return found


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """Return unlabelled pictures, seen larger than packed."""
    return Samples(drawn_shards(tmp_path / "shards", 3), (40, 36))


def probabilities(network: DeepLab, samples: Samples) -> Tensor:
    """Return those of all pixels, float64 (pixels, classes), as pseudo-labels take them: resized after the softmax."""
    found = []
    for position in range(len(samples)):
        with torch.no_grad():
            own = F.softmax(network(network_input(samples[position]["pictures"][None]))["main"], 1)
        size = (36, 40)
        found.append(
            F.interpolate(own, size, mode="bilinear", align_corners=True).double().movedim(1, -1).flatten(0, 2)
        )
    return torch.cat(found)


def test_entropy_and_what_esl_keeps_are_those_of_the_sorted_levels() -> None:
    random = np.random.default_rng(3)
    # Of classes of an even, an odd and no number of pixels; the second lies below the floor of 0.1.
    by_class = [random.integers(0, HIGHEST + 1, 400), random.integers(0, 3000, 61), np.array([], int)]
    kept = 0
    for levels in by_class[:2]:
        threshold = max(np.sort(levels)[round(len(levels) / 2)], 0.1 * HIGHEST)
        kept += int((levels <= threshold).sum())
    histograms = torch.from_numpy(np.stack([np.bincount(levels, minlength=HIGHEST + 1) for levels in by_class]))
    expected = np.concatenate(by_class).mean() / HIGHEST
    assert 200 < kept - 61 < 210
    assert unsupervised_figures(histograms, 100) == Figures(pytest.approx(expected, rel=1e-12), kept / 461, 100 / 461)
    assert unsupervised_figures(histograms, None).agreement is None


def test_figures_without_labels_are_those_of_the_plain_computation(samples: Samples) -> None:
    student, teacher = tiny_network(1), tiny_network(2)
    of_student, of_teacher = probabilities(student, samples), probabilities(teacher, samples)
    entropy = -(of_student * of_student.log()).sum(1) / np.log(CLASSES)
    agreement = (of_student.argmax(1) == of_teacher.argmax(1)).double().mean()
    assert 0.01 < agreement < 0.99
    figures = figures_of(samples, networks(**{TEACHER: teacher}))
    assert figures.entropy == pytest.approx(float(entropy.mean()), abs=1e-5)
    assert figures.agreement == pytest.approx(float(agreement), abs=1e-3)
    assert figures.scores is None
    assert figures_of(samples, networks()).agreement is None


def test_networks_threads_and_random_numbers_are_as_before(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    built = networks(**{TEACHER: tiny_network(2)})
    built[TEACHER].get_submodule("layer1").eval()
    modes = [module.training for module in built.modules()]
    assert True in modes
    assert False in modes
    state, numbers = {name: value.clone() for name, value in built.state_dict().items()}, torch.get_rng_state()
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    figures_of(samples, built)
    assert threads == [1, 7]
    assert [module.training for module in built.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in built.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)


def test_networks_are_in_training_again_after_an_error(samples: Samples) -> None:
    built = networks()
    with torch.no_grad():
        built[SEGMENTATION].get_parameter("layer6.conv2d_list.0.bias").fill_(float("nan"))
    with pytest.raises(UserError, match="scores are not finite"):
        figures_of(samples, built)
    assert all(module.training for module in built.modules())


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_validation_of_a_rank_that_was_asked_to_stop_has_no_figures(samples: Samples, interrupted: bool) -> None:
    request = StopRequest()
    request.asked, request.interrupted = True, interrupted
    finding = validate(validation_of(samples, networks(), KNOWN, Workers(0, 1)), "here", request)
    assert finding.figures is None
    assert finding.interrupted == interrupted


def opened(tmp_path: Path, **changes: Any) -> Samples | None:
    for name in ("source", "target", "val"):
        if not (tmp_path / name).exists():
            drawn_shards(tmp_path / name, {"source": 2, "target": 3, "val": 4}[name])
    places = {
        "source": {"path": str(tmp_path / "source"), "size": [24, 20]},
        "target": {"path": str(tmp_path / "target"), "size": [40, 36]},
    }
    config = configuration(**{**places, **changes})
    return open_validation(config, open_training_data(config, METHODS["advent"]))


def test_of_pictures_without_labels_it_is_said_what_they_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "bare", drawn_samples(1), class_sets={})
    for folder, labelled in (("source", True), ("bare", False)):
        samples = opened(tmp_path, validate_every=2, validation={"path": str(tmp_path / folder)})
        assert samples is not None
        assert (samples.labels is not None) == labelled
        told = f"validation.path={tmp_path}/{folder}: without labels, so validations give mean entropy, "
        assert capsys.readouterr().out.startswith(told) != labelled


def test_pictures_are_seen_as_training_and_evaluation_see_them_unless_a_size_is_given(tmp_path: Path) -> None:
    assert opened(tmp_path) is None
    shards = {name: {"path": str(tmp_path / name)} for name in ("source", "val")}
    sizes = []
    for validation in (shards["val"], {**shards["val"], "size": [16, 12]}, shards["source"]):
        samples = opened(tmp_path, validate_every=2, validation=validation)
        assert samples is not None
        assert samples.labels is not None
        sizes.append(samples.size)
    assert sizes == [(40, 36), (16, 12), (24, 20)]


def test_where_pictures_are_packed_at_another_size_than_the_trainings_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, width, height in (("source", 16, 12), ("target", 16, 12), ("val", 32, 24)):
        sizes = {"image_size": (width, height), "label_size": (width, height)}
        write_shards(tmp_path / name, drawn_samples(2, width, height), **sizes)
    for size, told in ((None, True), ([40, 36], False)):
        target = {"path": str(tmp_path / "target"), "size": size}
        opened(tmp_path, target=target, validate_every=2, validation={"path": str(tmp_path / "val")})
        note = "pictures are seen as packed, at 32×24, those of the training at 16×12; validation.size=[16,12] shows"
        assert (note in capsys.readouterr().out) == told


def test_a_teacher_is_asked_with_the_statistics_that_it_has() -> None:
    built = networks(**{TEACHER: tiny_network(2)})
    source = SimpleNamespace(index=SimpleNamespace(dataset="s"), fingerprint=lambda: "1")
    known = replace(KNOWN, precision="no", per_domain=True, shards={"source": "1", "target": "2"})
    validation = validation_of(SimpleNamespace(images=source, size=None), built, known, Workers(0, 1))
    assert validation.teacher is not None
    assert (validation.student.statistics, validation.teacher.statistics) == ("source", "target")


def test_without_shards_of_its_own_a_validation_takes_the_target_without_its_labels(tmp_path: Path) -> None:
    samples = opened(tmp_path, validate_every=2)
    assert samples is not None
    assert (len(samples), samples.size, samples.labels) == (3, (40, 36), None)


def test_shards_of_other_classes_are_refused_before_training_begins(tmp_path: Path) -> None:
    opened(tmp_path)
    index = tmp_path / "val/index.json"
    content = json.loads(index.read_text())
    content["class_sets"] = {"other": content["class_sets"]["village3"]}
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"val: .*village3"):
        opened(tmp_path, validate_every=2, validation={"path": str(tmp_path / "val")})
