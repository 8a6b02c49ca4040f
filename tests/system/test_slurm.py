"""The batch scripts on a SLURM of two nodes: what is stopped, killed or lost comes to the bits of a quiet run."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.exact.trainings import assert_same_bits, everything_learned, newest_step
from tests.on_ranks import PROJECT
from tests.system.slurm.cluster import Cluster

pytestmark = pytest.mark.cluster

SCRIPTS = PROJECT / "launch/slurm"
STEPS = 20
ON_TWO_NODES = ("--nodes=2", "--cpus-per-task=1")
RECIPE = f"""
source: {{path: TOWN/source_train}}
target: {{path: TOWN/target_train}}
method: {{name: advent, discriminator_channels: 4}}
network: {{architecture: tiny, batch_norm: per_domain}}
optimizer: {{learning_rate: 0.01}}
batch_size: 4
steps: {STEPS}
log_every: 5
pictures_every: 0
loader: {{workers: 0, shuffle_window: 8}}
checkpoints: {{every: 2, keep_newest: 100}}
timeout_minutes: 1
"""


@pytest.fixture(scope="module")
def recipes(cluster: Cluster, town: Path) -> Path:
    folder = cluster.folder / "recipes"
    folder.mkdir()
    for name in ("advent", "advent_esl"):
        (folder / f"{name}.yaml").write_text(RECIPE.replace("TOWN", str(town)))
    return folder


Train = Callable[..., str]


@pytest.fixture
def train(cluster: Cluster, recipes: Path) -> Train:
    """Return what submits a training of seed 0; returns its job."""

    def submit(name: str, *options: str, words: tuple[str, ...] = ()) -> str:
        places = (f"experiments={cluster.folder}", f"name={name}", *words)
        job = (f"--job-name={name}", *(options or ON_TWO_NODES), str(SCRIPTS / "train.sbatch"))
        return cluster.submit(*job, "--config", str(recipes / "advent.yaml"), *places)

    return submit


def loop(cluster: Cluster, town: Path, *words: str, **settings: str) -> tuple[int, list[str], str]:
    """Call loop.sh; returns its exit code, the jobs it submitted, and what it said."""
    given = {
        "RECIPES": str(cluster.folder / "recipes"),
        "TARGET": f"{town}/target_train",
        "VALIDATION": f"{town}/target_val",
        "EXPERIMENTS": str(cluster.folder),
        "OPTIONS": " ".join(ON_TWO_NODES),
        "START": "advent",
    }
    done = cluster.call(str(SCRIPTS / "loop.sh"), *words, **{**given, **settings})
    return done.returncode, re.findall(r"^([0-9]+) ", done.stdout, re.MULTILINE), done.stdout + done.stderr


def run_of(cluster: Cluster, name: str) -> Path:
    return cluster.folder / "snapshots" / name


def starts(cluster: Cluster, name: str) -> list[dict]:
    return json.loads((run_of(cluster, name) / "run.json").read_text())["starts"]


def wait_for_step(cluster: Cluster, job: str, name: str, step: int = 2) -> None:
    cluster.wait_until(lambda: newest_step(run_of(cluster, name)) >= step, job)
    assert newest_step(run_of(cluster, name)) < STEPS


def assert_as_undisturbed(cluster: Cluster, name: str) -> None:
    reference = everything_learned(run_of(cluster, REFERENCE), STEPS)
    assert_same_bits(everything_learned(run_of(cluster, name)), reference)


REFERENCE = "loop_advent_seed_0"


@pytest.fixture(scope="module")
def loop_jobs(cluster: Cluster, recipes: Path, town: Path) -> list[str]:
    """Run the loop over two seeds; of seed 1, the first job is requeued in the middle."""
    code, jobs, said = loop(cluster, town, NAME="loop", SEEDS="0-1")
    assert code == 0, said
    assert len(jobs) == 4
    wait_for_step(cluster, f"{jobs[0]}_1", "loop_advent_seed_1")
    cluster.ask("scontrol", "requeue", f"{jobs[0]}_1")
    code, more, said = loop(cluster, town, NAME="loop", SEEDS="0-1")
    assert (code, more) == (2, [])
    assert re.search(r"^error: jobs of NAME=loop are in the queue: .*; nothing was submitted$", said, re.MULTILINE)
    for job in jobs:
        for seed in (0, 1):
            end = cluster.wait_for_end(f"{job}_{seed}")
            assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), cluster.log(f"{job}_{seed}")
    return jobs


def test_the_loop_trains_labels_trains_with_the_labels_and_scores_each_of_two_seeds(
    cluster: Cluster, loop_jobs: list[str]
) -> None:
    for seed in (0, 1):
        scores = json.loads((cluster.folder / f"scores/loop_advent_esl_seed_{seed}.json").read_text())
        assert 0 <= scores["miou"] <= 1
        assert starts(cluster, f"loop_advent_esl_seed_{seed}")[-1]["processes"] == 2
    assert [one["state"] for one in starts(cluster, "loop_advent_seed_0")] == ["finished"]
    assert [one["state"] for one in starts(cluster, "loop_advent_seed_1")] == ["stopped", "finished"]
    one, other = (everything_learned(run_of(cluster, f"loop_advent_seed_{seed}")) for seed in (0, 1))
    assert any((one[name] != other[name]).any() for name in one if name.startswith("/segmentation"))


def test_a_job_that_is_requeued_in_the_middle_saves_and_goes_on_to_the_same_bits(
    cluster: Cluster, loop_jobs: list[str], train: Train
) -> None:
    job = train("requeued")
    wait_for_step(cluster, job, "requeued")
    cluster.ask("scontrol", "requeue", job)
    end = cluster.wait_for_end(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1"), cluster.log(job)
    assert [one["state"] for one in starts(cluster, "requeued")] == ["stopped", "finished"]
    assert "back to the queue" not in cluster.log(job), "it was SLURM that put it back"
    assert_as_undisturbed(cluster, "requeued")


def test_ahead_of_its_time_limit_a_job_saves_and_goes_back_to_the_queue(
    cluster: Cluster, loop_jobs: list[str], train: Train
) -> None:
    # SLURM may send it up to a minute earlier: ranks that still import torch then would end without a step.
    job = train("limited", *ON_TWO_NODES, "--time=2", "--signal=USR1@30")
    wait_for_step(cluster, job, "limited")
    assert cluster.job(job)["Restarts"] == "0", "the machine is too slow for the signal to find them at work"
    # However fast the machine is, the signal finds them at work: SLURM wakes them with it.
    for number in (0, 1):
        cluster.rank(job, number).suspend()
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "1", job)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    end = cluster.wait_for_end(job)
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), cluster.log(job)
    assert re.search(r"^stopped .*: limited: saved at step [0-9]+; .*$", cluster.log(job), re.MULTILINE)
    assert re.search(r"^limited: stopped \(code 75\): back to the queue$", cluster.log(job), re.MULTILINE)
    assert_as_undisturbed(cluster, "limited")


def test_a_signal_for_the_whole_job_its_script_included_saves_and_puts_it_back(cluster: Cluster, train: Train) -> None:
    job = train("whole")
    wait_for_step(cluster, job, "whole")
    cluster.ask("scancel", "--signal=USR1", "--full", job)
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "1", job)
    cluster.ask("scancel", job)
    assert re.search(r"^whole: stopped \(code 75\): back to the queue$", cluster.log(job), re.MULTILINE)


def test_a_killed_rank_puts_its_job_back_to_the_queue_or_where_that_is_not_allowed_ends_it_with_3(
    cluster: Cluster, loop_jobs: list[str], train: Train
) -> None:
    job = train("killed", *ON_TWO_NODES, "--export=ALL,MOST_LOSSES=0")
    wait_for_step(cluster, job, "killed")
    cluster.rank(job, 1).kill()
    end = cluster.wait_for_end(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "3:0", "0"), cluster.log(job)
    assert re.search(r"^error \(rank 0\): rank 1 .*$", cluster.log(job), re.MULTILINE), cluster.log(job)

    step = newest_step(run_of(cluster, "killed"))
    job = train("killed")
    wait_for_step(cluster, job, "killed", step + 2)
    cluster.rank(job, 0).kill()
    end = cluster.wait_for_end(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1"), cluster.log(job)
    assert re.search(r"^killed: lost a rank \(code 3\): back to the queue$", cluster.log(job), re.MULTILINE)
    assert_as_undisturbed(cluster, "killed")


def test_a_node_that_crashes_costs_what_came_after_the_last_checkpoint(
    cluster: Cluster, loop_jobs: list[str], train: Train
) -> None:
    job = train("crashed")
    wait_for_step(cluster, job, "crashed")
    cluster.crash("n2")
    cluster.wait_until(lambda: not cluster.is_state(job, "RUNNING"), job)
    cluster.start_node("n2")
    end = cluster.wait_for_end(job)
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), cluster.log(job)
    assert int(end["Restarts"]) >= 1
    assert re.search(r"^error \(rank 0\): rank 1 ", cluster.log(job), re.MULTILINE), cluster.log(job)
    assert_as_undisturbed(cluster, "crashed")


def test_a_mistake_that_only_the_job_can_see_ends_it_with_2_and_those_behind_it(
    cluster: Cluster, recipes: Path, town: Path
) -> None:
    options = " ".join((*ON_TWO_NODES, "--export=PROJECT,PYTHON,STATES"))
    code, jobs, said = loop(cluster, town, "batch_size=3", NAME="odd", OPTIONS=options)
    assert code == 0, said
    ends = [cluster.wait_for_end(f"{job}_0") for job in jobs]
    assert [end["JobState"] for end in ends] == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert (ends[0]["ExitCode"], ends[0]["Restarts"]) == ("2:0", "0")
    assert json.loads((cluster.folder / f"slurm/odd_advent-{jobs[0]}_0.json").read_text())["exit_code"] == 2
    said = cluster.log(f"{jobs[0]}_0")
    assert re.search(r"^error.*: batch_size=3 cannot be shared by 2 processes", said, re.MULTILINE), said
    assert not run_of(cluster, "odd_advent_seed_0").exists()


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["stepz=3"], {}, "unknown setting 'stepz'"),
        (["steps=0"], {}, "steps=0"),
        ([], {"RECIPES": "nowhere"}, "nowhere/advent.yaml"),
        ([], {"TARGET": "nowhere"}, "nowhere: no such folder of shards"),
        ([], {"VALIDATION": "nowhere"}, "nowhere: no such folder of shards"),
        ([], {"NAME": "a/b"}, "'a/b_advent_seed_0' is impossible"),
        ([], {"SEEDS": "one"}, "Invalid job array specification"),
        ([], {"START": "end"}, "START=end is impossible"),
        ([], {"OPTIONS": "--nodes=7"}, "Requested node configuration is not available"),
        ([], {"PYTHON": "/nowhere/python"}, "/nowhere/python: no such program"),
    ],
)
def test_what_can_be_known_before_is_refused_before_anything_is_submitted(
    cluster: Cluster, recipes: Path, town: Path, words: list[str], settings: dict[str, str], message: str
) -> None:
    before = cluster.ask("squeue", "--noheader")
    code, jobs, said = loop(cluster, town, *words, **{"NAME": "refused", **settings})
    assert (code, jobs) == (2, []), said
    assert message in said
    assert said.splitlines()[-1].startswith("error: ")
    assert said.endswith("nothing was submitted\n")
    assert cluster.ask("squeue", "--noheader") == before


def test_scancel_saves_and_is_for_good(cluster: Cluster, loop_jobs: list[str], train: Train) -> None:
    job = train("cancelled")
    wait_for_step(cluster, job, "cancelled")
    cluster.ask("scancel", job)
    cluster.wait_until(lambda: cluster.is_state(job, "CANCELLED") and not cluster.processes(job), job)
    log = cluster.log(job)
    saved = re.search(r"^stopped .*: cancelled: saved at step ([0-9]+); ", log, re.MULTILINE)
    assert saved, log
    assert int(saved[1]) == newest_step(run_of(cluster, "cancelled"))
    assert log.index("CANCELLED AT") < saved.start(), "what SLURM and we say stands in the order of time"
    assert cluster.job(job)["Restarts"] == "0"
    assert cluster.ask("squeue", "--noheader", "--me") == ""


def test_a_run_goes_on_with_fewer_nodes(cluster: Cluster, loop_jobs: list[str], train: Train) -> None:
    job = train("shrunk", "--nodes=1-2", "--cpus-per-task=1", "--export=ALL,RANKS_PER_NODE=1")
    wait_for_step(cluster, job, "shrunk")
    cluster.ask("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    try:
        cluster.ask("scontrol", "requeue", job)
        end = cluster.wait_for_end(job)
    finally:
        cluster.ask("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), cluster.log(job)
    assert [(one["processes"], one["state"]) for one in starts(cluster, "shrunk")] == [(2, "stopped"), (1, "finished")]
    assert newest_step(run_of(cluster, "shrunk")) == STEPS


def test_two_steps_of_a_job_each_smaller_than_it_train_side_by_side(
    cluster: Cluster, loop_jobs: list[str], recipes: Path
) -> None:
    script = cluster.folder / "steps.sbatch"
    step = f"srun --nodes=2 --ntasks=2 --exact $PYTHON {PROJECT}/launch/train.py --config {recipes}/advent.yaml"
    lines = [f"{step} experiments={cluster.folder} name=step_{number} & first=$!" for number in (1, 2)]
    script.write_text("#!/bin/bash\nexport OMP_NUM_THREADS=1\n" + "\n".join(lines) + "\nwait $first; wait\n")
    job = cluster.submit("--nodes=2", "--ntasks-per-node=2", "--output=steps-%j.log", str(script))
    assert cluster.wait_for_end(job)["ExitCode"] == "0:0", cluster.log(job)
    for name in ("step_1", "step_2"):
        assert [one["processes"] for one in starts(cluster, name)] == [2]
        assert_as_undisturbed(cluster, name)


def test_srun_itself_ends_with_the_documented_codes(cluster: Cluster, loop_jobs: list[str], recipes: Path) -> None:
    words = ["srun", *ON_TWO_NODES, "--ntasks=2", "--job-name=direct", cluster.variables["PYTHON"]]
    words += [f"{PROJECT}/launch/train.py", "--config", f"{recipes}/advent.yaml", f"experiments={cluster.folder}"]
    assert cluster.call(*words, "name=direct", "steps=0").returncode == 2
    for number, code in ((signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        before = newest_step(run_of(cluster, "direct"))
        with cluster.start(*words, "name=direct") as process:
            wait_for_step(cluster, "", "direct", before + 2)
            job = cluster.ask("squeue", "--noheader", "--name=direct", "--format=%i").strip()
            cluster.ask("scancel", f"--signal={number.name.removeprefix('SIG')}", job)
            assert process.wait(60) == code
    assert cluster.call(*words, "name=direct").returncode == 0
    assert_as_undisturbed(cluster, "direct")
