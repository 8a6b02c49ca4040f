"""What a training shows in TensorBoard of the steps between two entries."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.engine import journal
from esl_dist.engine.journal import Journal


def test_an_entry_shows_the_mean_losses_the_speed_and_the_skipped_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    written = Journal(tmp_path, 4, images_a_step=6)
    for losses, updated, seconds in (([1.0, 3.0], False, 4.0), ([8.0], True, 2.0)):
        for loss in losses:
            written.add({"source": torch.tensor(loss)}, updated)
        now[0] += seconds
        written.write(written.mean_losses(), {"stem": 0.25}, {"target": 1}, 6 if len(losses) == 2 else 7)
    written.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "loss/source": [(6, 2.0), (7, 8.0)],
        "learning_rate/stem": [(6, 0.25), (7, 0.25)],
        "speed/samples_per_second": [(6, 3.0), (7, 3.0)],
        "corrupt_samples/target": [(6, 1.0), (7, 1.0)],
        "precision/skipped_steps": [(6, 2.0), (7, 0.0)],
    }
