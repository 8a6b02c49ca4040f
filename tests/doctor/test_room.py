"""The bytes that doctor says a training has are those that it has, and so is the number of its checkpoints."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.doctor.room import bytes_below, bytes_in, most_checkpoints, state_bytes
from esl_dist.runs.checkpoints import MANIFEST, save_checkpoint
from tests.builders import class_set
from tests.training.small_runs import KEEP_ALL, after_a_step, configuration

SMALL_FILES = 64 * 1024
"""More than the descriptions in a checkpoint's files take."""


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_bytes_of_a_checkpoint_are_those_on_the_disk(method: str, kind: str, tmp_path: Path) -> None:
    config = configuration(
        method={"name": method, "discriminator_channels": 4},
        optimizer={"kind": kind},
        network={"architecture": "tiny"},
    )
    saved = after_a_step(config, class_set())
    folder = save_checkpoint(tmp_path, saved, KEEP_ALL)
    state = state_bytes(config, class_set())
    assert state.networks == bytes_in(saved.networks)
    assert state.segmentation == bytes_in(saved.segmentation)
    assert state.optimizers == bytes_in(saved.training["optimizers"])
    on_disk = bytes_below(folder) - (folder / MANIFEST).stat().st_size
    assert 0 <= on_disk - state.checkpoint < SMALL_FILES


def on_the_disk_at_the_most(steps: int, options: settings.Checkpoints) -> int:
    """Write checkpoints one by one, each before older ones go, as a run does; returns how many lay there."""
    there: list[int] = []
    most = 0
    for step in range(1, steps + 1):
        if step % options.every == 0 or step == steps:
            there.append(step)
            most = max(most, len(there))
            newest = there[-options.keep_newest :]
            there = [one for one in there if one in newest or (options.keep_every and one % options.keep_every == 0)]
    return most


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.integers(0, 20))
def test_checkpoints_are_counted_as_a_run_keeps_them(steps: int, every: int, newest: int, keep_every: int) -> None:
    options = settings.Checkpoints(every=every, keep_newest=newest, keep_every=keep_every)
    assert most_checkpoints(steps, options, keeps_best=False) == on_the_disk_at_the_most(steps, options)
    assert most_checkpoints(steps, options, keeps_best=True) == on_the_disk_at_the_most(steps, options) + 1
