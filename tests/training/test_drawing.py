"""The pictures of a training: always of the same samples, as evaluation would see them, without a trace."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.adaptation.teacher import TEACHER
from esl_dist.data.sampling import evenly
from esl_dist.errors import UserError
from esl_dist.ranks.session import Ranks
from esl_dist.reporting.pictures import LINE, MARGIN, PANEL_WIDTH, Picture
from esl_dist.training.drawing import Drawing
from esl_dist.training.setup import Training, set_up
from tests.training.small_runs import configuration

WIDTH, HEIGHT = 64, 32
SHOWN_HEIGHT = PANEL_WIDTH * HEIGHT // WIDTH


def training_of(town: Path, experiments: Path, **changes: Any) -> Training:
    places = {name: {"path": f"{town}/{name}_train"} for name in ("source", "target")}
    values = {**places, "experiments": str(experiments), "steps": 4, "pictures_of": 2, **changes}
    return set_up(configuration(**values), Ranks(torch.device("cpu"), "no", contextlib.nullcontext, None, None))


def drawn(training: Training) -> dict[str, dict[str, Picture]]:
    return dict(Drawing(training).rows())


def panels(shown: Picture) -> list[Picture]:
    """Return the pictures of a row, without titles and legend, at their own size where they were enlarged."""
    number = (shown.shape[1] + MARGIN) // (PANEL_WIDTH + MARGIN)
    rows = np.arange(HEIGHT) * SHOWN_HEIGHT // HEIGHT + 3
    columns = np.arange(WIDTH) * PANEL_WIDTH // WIDTH + 3
    return [shown[LINE:][rows][:, place * (PANEL_WIDTH + MARGIN) + columns] for place in range(number)]


@given(samples=st.integers(1, 300), shown=st.integers(1, 64))
@settings(deadline=None)
def test_what_is_shown_lies_evenly_over_the_shards(samples: int, shown: int) -> None:
    found = evenly(samples, shown)
    assert len(found) == min(samples, shown)
    assert found == sorted(set(found))
    part = samples / len(found)
    assert all(number * part - 1 < place < (number + 1) * part for number, place in enumerate(found))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("advent", {}),
        ("self_training", {"teacher": {"trust": "entropy"}}),
        ("self_training", {}),
        ("masked_consistency", {"masks": {"block": 8}}),
    ],
    ids=["advent", "entropy", "share", "masked"],
)
def test_a_row_shows_what_is_known_of_a_sample_and_leaves_no_trace(
    town: Path, tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    training = training_of(town, tmp_path, method={"name": method, "discriminator_channels": 4, **more})
    networks, teaches = training.state.networks, method != "advent"
    modes = [module.training for module in networks.modules()]
    state, numbers = {name: one.clone() for name, one in networks.state_dict().items()}, torch.get_rng_state()
    rows = drawn(training)
    assert [module.training for module in networks.modules()] == modes
    assert all(torch.equal(one, state[name]) for name, one in networks.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert {group: len(shown) for group, shown in rows.items()} == {"source": 2, "target": 2}
    for domain, samples in (("source", training.data.source), ("target", training.data.target)):
        assert samples is not None
        for position in evenly(len(samples), 2):
            found = panels(rows[domain][samples.images.key(position)])
            assert len(found) == (4 if domain == "source" or teaches else 3)
            np.testing.assert_array_equal(found[0], samples[position]["pictures"].numpy()[:, :, ::-1])
            if domain == "source":
                palette = np.zeros((256, 3), np.uint8)
                palette[: len(training.data.classes)] = [item.color for item in training.data.classes]
                np.testing.assert_array_equal(found[1], palette[samples[position]["labels"].numpy()])


def test_a_target_shows_the_labels_that_its_teacher_is_trusted_with(town: Path, tmp_path: Path) -> None:
    training = training_of(town, tmp_path, method={"name": "self_training", "teacher": {"trust": "entropy"}})
    black = [(panels(row)[3] == 0).all(2).mean() for row in drawn(training)["target"].values()]
    # Of classes that were not counted yet the floor decides; with entropies of 0 everything is below it.
    with torch.no_grad():
        for parameter in training.state.networks[TEACHER].parameters():
            parameter.mul_(50)
    trusted = [(panels(row)[3] == 0).all(2).mean() for row in drawn(training)["target"].values()]
    assert all(one > other for one, other in zip(black, trusted, strict=True))


def test_offline_pseudo_labels_and_a_labelled_validation_are_shown(town: Path, tmp_path: Path) -> None:
    training = training_of(
        town,
        tmp_path,
        pseudo_labels=f"{town}/target_train",
        method={"name": "minent"},
        validate_every=2,
        validation={"path": f"{town}/target_val"},
    )
    rows = drawn(training)
    assert {group: len(shown) for group, shown in rows.items()} == {"source": 2, "target": 2, "validation": 2}
    samples = training.data.target
    assert samples is not None
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(training.data.classes)] = [item.color for item in training.data.classes]
    for position in evenly(len(samples), 2):
        label = samples[position]["labels"].numpy()
        np.testing.assert_array_equal(panels(rows["target"][samples.images.key(position)])[3], palette[label])
    assert {len(panels(row)) for row in rows["validation"].values()} == {4}


def test_a_validation_on_the_target_itself_shows_no_label(town: Path, tmp_path: Path) -> None:
    assert drawn(training_of(town, tmp_path, validate_every=2)).keys() == {"source", "target"}


def test_a_sample_that_cannot_be_read_is_left_out_with_one_warning(
    town: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = training_of(town, tmp_path)
    first, second = evenly(len(training.data.source), 2)
    read = training.data.source.images.read
    damaged = lambda position, kind: b"no picture" if position == first else read(position, kind)  # noqa: E731
    training.data.source.images.read = damaged  # type: ignore[method-assign]
    drawing = Drawing(training)
    for _ in range(2):
        rows = dict(drawing.rows())
        assert list(rows["source"]) == [training.data.source.images.key(second)]
    [warning] = capsys.readouterr().err.splitlines()
    assert "it is not shown" in warning


class _FullMemoryError(RuntimeError):
    """As torch says it of a GPU."""

    def __str__(self) -> str:
        return "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("where", "error"),
    [("refuse_size", UserError("its memory is full of windows")), ("score", _FullMemoryError())],
)
def test_whole_pictures_that_are_too_much_for_the_network_are_not_shown_and_end_no_training(
    town: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    training = training_of(town, tmp_path)
    monkeypatch.setattr(training.state.networks["segmentation"], where, refuse)
    drawing = Drawing(training)
    assert dict(drawing.rows()) == {"source": {}, "target": {}}
    assert dict(drawing.rows()) == {"source": {}, "target": {}}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4, "one for each"
    assert all("memory is full" in one and "not shown" in one for one in warnings)
