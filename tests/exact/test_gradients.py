"""Processes × images: the same losses and weights after several steps, and every gradient sent once."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from esl_dist.config import Network
from esl_dist.data.shards import open_shards
from esl_dist.models.batch_norm import batch_norms
from esl_dist.models.discriminator import build_discriminator
from esl_dist.runs.checkpoints import build_network
from tests.exact.trainings import (
    IN_FLOAT64,
    LAST_PLACE,
    TRAIN,
    assert_equal_to_rounding,
    losses,
    run_in,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import PROJECT, RankServer

pytestmark = pytest.mark.exact

BYTES = 4
"""Of a float32."""


def steps_taken(
    server: RankServer, file: Path, task: tuple[str, bool], ranks: int, passes: int = 1, mode: str = "training"
) -> list[dict[str, Any]]:
    """Return what every rank noted: global losses a step, weights and optimisers' states after the last.

    The task is a method, and whether there are pseudo-labels.
    """
    method, pseudo_labels = task
    words = [method, str(pseudo_labels), str(passes), mode, str(file)]
    codes = server.run("tests/exact/take_steps.py", words, ranks)
    assert codes == [0] * ranks, server.log.read_text()
    return [torch.load(f"{file}.{rank}", weights_only=True) for rank in range(ranks)]


def assert_agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["losses"]) == len(expected["losses"]) > 3
    for step, (one, other) in enumerate(zip(found["losses"], expected["losses"], strict=True)):
        assert_equal_to_rounding(one, other, where=f"step {step}, ")
    assert_equal_to_rounding(found["state"], expected["state"])


@pytest.mark.parametrize(
    ("method", "pseudo_labels"),
    grid([("advent", False), ("advent", True), ("minent", True)], stay=[("advent", True)]),
)
def test_one_two_and_four_processes_come_to_the_same_losses_and_weights(
    server: RankServer, tmp_path: Path, method: str, pseudo_labels: bool
) -> None:
    task = method, pseudo_labels
    [expected] = steps_taken(server, tmp_path / "1", task, 1)
    losses = expected["losses"]
    assert all(float(losses[0][name]) != float(losses[-1][name]) for name in losses[0]), "the steps change something"
    for ranks in (2, 4):
        for found in steps_taken(server, tmp_path / str(ranks), task, ranks):
            assert_agree(found, expected)


@pytest.mark.parametrize(
    ("pseudo_labels", "ranks", "passes"),
    grid([(labels, *cut) for labels in (False, True) for cut in ((1, 2), (1, 4), (2, 2))], stay=[(True, 2, 2)]),
)
def test_accumulated_passes_come_to_the_losses_and_weights_of_one(
    server: RankServer, tmp_path: Path, pseudo_labels: bool, ranks: int, passes: int
) -> None:
    """With batch norm in evaluation mode: in training, every pass has statistics of its own."""
    [expected] = steps_taken(server, tmp_path / "whole", ("advent", pseudo_labels), 1, 1, "evaluation")
    for found in steps_taken(server, tmp_path / "cut", ("advent", pseudo_labels), ranks, passes, "evaluation"):
        assert_agree(found, expected)


def losses_reported(
    server: RankServer, town: Path, run: Path, ranks: int, accumulate: int, *words: str
) -> dict[str, list[float]]:
    """Train in float64 with batch norm in evaluation mode, and with losses on the target that matter."""
    words = (f"accumulate={accumulate}", "batch_size=8", "log_every=1", *words)
    words = ("method.target.main=1", "method.target.auxiliary=0.5", *words)
    program = [str(PROJECT / IN_FLOAT64), str(PROJECT / TRAIN), *training_words(town, run, *words)]
    job = server.start("tests/exact/freeze_statistics.py", program, ranks)
    assert job.exit_codes() == [0] * ranks, job.output()
    return losses(run)


@pytest.mark.grid
@pytest.mark.parametrize("cuts", [[(2, 2)], [(2, 1), (4, 1), (1, 2), (4, 2)]], ids=["one", "others"])
def test_trainings_on_all_numbers_of_ranks_and_passes_report_the_same_losses_at_every_step(
    server: RankServer, town: Path, tmp_path: Path, teacher: Path, pseudo_labels: Path, cuts: list[tuple[int, int]]
) -> None:
    words = (f"network.start={teacher}", f"pseudo_labels={pseudo_labels}", "steps=4", "checkpoints.every=4")
    expected = losses_reported(server, town, run_in(tmp_path, "whole"), 1, 1, *words)
    kinds = ("source_cross_entropy", "target_advent", "target_cross_entropy", "discriminator")
    assert expected.keys() == {f"loss/{kind}/{level}" for kind in kinds for level in ("main", "auxiliary")}
    assert all(len(set(curve)) == 4 for curve in expected.values()), "the steps change something"
    for ranks, accumulate in cuts:
        found = losses_reported(server, town, run_in(tmp_path, f"{ranks}x{accumulate}"), ranks, accumulate, *words)
        assert found.keys() == expected.keys()
        for name, curve in expected.items():
            assert found[name] == pytest.approx(curve, rel=LAST_PLACE, abs=0), (
                f"{name}, {ranks} ranks, accumulate={accumulate}"
            )


@pytest.mark.parametrize(
    ("method", "accumulate"),
    grid(
        [("advent", 1), ("advent", 2), ("minent", 1), ("self_training", 1), ("self_training", 2)],
        stay=[("self_training", 2)],
    ),
)
def test_a_step_sends_every_gradient_once_during_its_passes_and_waits_for_the_ranks_word_on_the_next_only_once(
    server: RankServer, town: Path, tmp_path: Path, method: str, accumulate: int
) -> None:
    words = [f"method.name={method}", f"accumulate={accumulate}", "steps=5", "log_every=100", "checkpoints.every=100"]
    words += ["method.teacher.trust=entropy"]
    program = [str(tmp_path / "sent"), str(PROJECT / TRAIN), *training_words(town, run_in(tmp_path), *words)]
    job = server.start("tests/exact/note_collectives.py", program, 2)
    assert job.exit_codes() == [0, 0], job.output()

    reader = open_shards(town / "source_train")
    classes = next(iter(reader.index.class_sets.values()))
    network = build_network(Network(architecture="tiny", batch_norm="per_domain"), classes)
    learned = sum(one.numel() for one in network.parameters() if one.requires_grad)
    if method == "advent":
        learned += len(network.levels) * sum(one.numel() for one in build_discriminator(len(classes), 4).parameters())
    norms = list(batch_norms(network))
    networks = 2 if method == "advent" else 1
    counts = [8 * len(classes) * 1024] if method == "self_training" else []
    # Forwards and backwards in the two domains' passes, and in a teacher's forwards alone.
    exchanges = accumulate * (2 * 2 + len(counts))
    for rank in range(2):
        notes = [json.loads(line) for line in Path(f"{tmp_path}/sent.{rank}").read_text().splitlines()]
        prepared = [number for number, (_, caller, _) in enumerate(notes) if caller.endswith("agreement.prepare")]
        assert len(prepared) == 5, "nothing is told of a step beyond the last"
        # The first step sends its gradients at its end, when the second is prepared; from then on a step's are sent
        # between the preparations of itself and of the next one: during its passes.
        for one, next_one in pairwise(prepared[2:]):
            step = notes[one:next_one]
            # Labelled pixels of two domains, two wishes, a failure, each rank's steps, a mark a sample of both domains.
            assert step[0][2] == 8 * (2 + 2 + 1 + 2 + 2 * 4)
            gradients = [note for note in step if note[1].endswith("StepGradients._begin_sum")]
            # Those of a network of this size are small enough to be sent at once.
            assert len(gradients) == networks
            assert sum(sent for _, _, sent in gradients) == BYTES * learned
            # Mean and variance together, of every layer.
            statistics = [note for note in step if "batch_norm" in note[1]]
            assert len(statistics) == exchanges * len(norms)
            assert sum(sent for _, _, sent in statistics) == 2 * exchanges * BYTES * sum(
                norm.num_features for norm in norms
            )
            assert [sent for name, caller, sent in step if name == "all_reduce" and "training.loop" in caller] == counts
            waits = [caller.partition(".<locals>")[0].rsplit(".", 1)[1] for name, caller, _ in step if name == "wait"]
            assert waits == ["finish_sums"] * networks + ["_update"] * len(counts) + ["agreement"]
            assert len(step) == 1 + len(gradients) + len(statistics) + len(counts) + len(waits)
