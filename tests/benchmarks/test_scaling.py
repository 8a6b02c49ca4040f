"""The tables of docs/scaling.md at tiny sizes; what is derived for large networks is what a small one sends."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import scaling
from benchmarks.cost_model import Gpu
from benchmarks.programs import output_of_first_rank
from benchmarks.step_counts import PASSES, _Kept, count_step, sent_in_step
from benchmarks.timed_step import networks_of_demo, step_of, timed
from tests.on_ranks import PROJECT, shared_server
from tests.programs import small_town

SMALL = scaling.DEMO


def tables(text: str) -> list[list[str]]:
    """Return the rows of each table, without its head."""
    found = [block.splitlines()[2:] for block in re.split(r"\n\n", text.strip()) if block.startswith("| ")]
    assert found, text
    return found


@pytest.mark.grid
def test_what_is_derived_from_the_shapes_is_what_a_training_on_two_ranks_sends(tmp_path: Path) -> None:
    town = small_town(tmp_path)
    notes = []
    for steps in (2, 3):
        words = ["--config", str(PROJECT / "configs/demo/advent.yaml"), f"name={steps}", f"experiments={tmp_path}"]
        words += [f"source.path={town}/source_train", f"target.path={town}/target_train", f"steps={steps}"]
        note = tmp_path / f"sent_{steps}"
        program = [str(note), str(PROJECT / "launch/train.py"), *words, "log_every=100", "pictures_every=0"]
        job = shared_server().start("tests/exact/note_collectives.py", program, 2)
        assert job.exit_codes() == [0, 0], job.output()
        notes.append(Path(f"{note}.0").read_text())
    assert scaling.sent_beyond(*notes) == scaling.by_caller(sent_in_step(SMALL.networks(), 2, 4))


def test_a_second_picture_doubles_the_arithmetic_and_ranks_add_operations_but_none() -> None:
    one, two, over_ranks = (count_step(SMALL, *given) for given in ((1,), (2,), (1, 2)))
    for part in PASSES:
        flops = [sum(operation.flops for operation in counts.operations[part]) for counts in (one, two, over_ranks)]
        assert flops == [flops[0], 2 * flops[0], flops[0]]
        assert (flops[0] > 0) == (part != "update")
    assert len(two.all_operations()) == len(one.all_operations()) < len(over_ranks.all_operations())


def test_half_precision_keeps_less_and_computes_the_same() -> None:
    # Of small pictures, the weights that were cast are more than what is kept of the pictures.
    workload = replace(SMALL, source=(512, 256), target=(512, 256))
    half, full = (count_step(workload, 1, half=half) for half in (True, False))
    assert sum(half.kept.values()) < sum(full.kept.values())
    assert sum(one.flops for one in half.all_operations()) == sum(one.flops for one in full.all_operations())
    assert any(one.half for one in half.all_operations())
    assert not any(one.half for one in full.all_operations())


def test_of_what_waits_for_the_backward_pass_weights_are_not_counted_and_nothing_twice() -> None:
    kept = _Kept()
    waits = torch.empty(10)
    for one in (waits, waits[:5], nn.Parameter(torch.empty(100))):
        kept.note(one)
    assert kept.total() == 10 * waits.element_size()
    assert kept.total() == 0, "another pass begins"


def test_the_tables_of_predictions_are_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "GPUS", (1, 64))
    monkeypatch.setattr(scaling, "PICTURES", (1,))
    works = {(1, gpus): scaling.count_work(SMALL, 1, gpus) for gpus in (1, 64)}
    scaling.print_counts(SMALL)
    scaling.print_sent(SMALL, scaling.by_caller(works[1, 64].sent))
    scaling.print_predictions(works, Gpu())
    scaling.print_answers(works, Gpu())
    scaling.print_sensitivity(works)
    counts, sent, infiniband, ethernet, answers, sensitivity = tables(capsys.readouterr().out)
    assert [len(rows) for rows in (counts, sent)] == [len(PASSES) + 2 * 2, 2 + 1]
    assert len(answers) == len(scaling.ANSWERS)
    assert len(sensitivity) == 10 + 3
    for rows in (infiniband, ethernet):
        alone, together = (float(row.rsplit("|", 2)[1].strip(" %")) for row in rows)
        assert 0 < together < alone == 100


def test_the_page_has_the_tables_of_the_program() -> None:
    """What is counted and predicted does not depend on the machine: what the page says of it is what is printed."""
    page = (PROJECT / "docs/scaling.md").read_text(encoding="utf-8")
    sent = sent_in_step(scaling.Workload().networks(), 8, 8)
    for number, size in scaling.by_caller(sent).values():
        assert f"| {number}: {size:,} B |" in page


def test_the_step_of_one_of_two_ranks_is_timed_though_the_other_is_not_there() -> None:
    program = str(PROJECT / "benchmarks/timed_step.py")
    least, median = json.loads(output_of_first_rank([program, "1", "1", "64", "32", "2"], 1))["step"]
    assert 0 < least <= median


def test_a_rank_times_its_step_and_steps_change_the_weights() -> None:
    networks = networks_of_demo()
    before = [parameter.detach().clone() for parameter in networks.parameters() if parameter.requires_grad]
    least, *_ = sorted(timed(step_of(networks, 1, SMALL.source, 0), 2))
    assert least > 0
    after = [parameter for parameter in networks.parameters() if parameter.requires_grad]
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
