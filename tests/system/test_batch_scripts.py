"""What a batch script makes of each end of its program, with stand-ins for SLURM's programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import drawn_shards
from tests.far_servers import far_server
from tests.on_ranks import PROJECT

SCRIPTS = PROJECT / "launch/slurm"
STAND_INS = {
    "srun": 'echo "$@" >srun.words; [ -z "$SAYS" ] || echo "$SAYS" >"$ESL_DIST_STATE"; exit "$CODE"',
    "squeue": 'echo "$JOB_STATE"',
    "scontrol": 'echo "$@" >>scontrol.words',
}


def state(code: int | None, step: int | None = None) -> str:
    """Return the two lines of a state file that a batch script reads."""
    numbers = ("null" if number is None else number for number in (code, step))
    return ' "exit_code": {},\n "step": {},'.format(*numbers)


def run_script(
    folder: Path, code: int, says: str = "", job_state: str = "RUNNING", script: str = "train", **variables: str
) -> tuple[int, int, str]:
    """Run a batch script in `folder`; returns its exit code, how often it was put back to the queue, what it said."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CODE": str(code),
        "SAYS": says,
        "JOB_STATE": job_state,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": script,
        "SLURM_SUBMIT_DIR": str(PROJECT),
        "PYTHON": "python",
        **variables,
    }
    words = ["bash", str(SCRIPTS / f"{script}.sbatch"), "name=a b", "seed={seed}"]
    done = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True, timeout=60)
    requeues = folder / "scontrol.words"
    return done.returncode, len(requeues.read_text().splitlines()) if requeues.exists() else 0, done.stderr


@pytest.mark.parametrize(
    ("code", "says", "expected", "requeued"),
    [
        (0, state(0), 0, False),
        (75, state(75, 4), 75, True),
        (3, state(3), 3, True),
        (137, state(3, 4), 3, True),
        (137, state(None), 3, True),
        (138, "", 3, True),
        # A mistake of one rank, which the others lost.
        (3, state(2, 4), 2, False),
        (2, state(2), 2, False),
        (2, "", 2, False),
        (1, state(1), 1, False),
        (3, state(1), 1, False),
        (130, state(130, 4), 130, False),
        (130, "", 130, False),
        # A signal after all was done.
        (143, state(0, 4), 0, False),
    ],
)
@pytest.mark.parametrize("script", ["train", "pseudo_label", "evaluate"])
def test_a_job_ends_with_the_code_of_the_cause_and_is_put_back_only_where_that_helps(
    tmp_path: Path, script: str, code: int, says: str, expected: int, requeued: bool
) -> None:
    ended, times, _ = run_script(tmp_path, code, says, script=script)
    assert (ended, times) == (expected, requeued)
    assert f"{PROJECT}/launch/{script}.py name=a b seed=0" in (tmp_path / "srun.words").read_text()


@pytest.mark.parametrize("job_state", ["COMPLETING", "CANCELLED", "PENDING", "TIMEOUT", ""])
@pytest.mark.parametrize("code", [75, 3])
def test_a_job_that_slurm_is_ending_is_not_put_back(tmp_path: Path, job_state: str, code: int) -> None:
    assert run_script(tmp_path, code, state(code), job_state)[:2] == (code, 0)


def test_ranks_are_lost_only_so_often_while_the_training_does_not_get_on(tmp_path: Path) -> None:
    for step, requeues in ((4, 1), (4, 2), (9, 3), (None, 4), (4, 5)):
        assert run_script(tmp_path, 3, state(3, step))[:2] == (3, requeues)
    code, requeues, said = run_script(tmp_path, 3, state(3, 9))
    assert (code, requeues) == (3, 5)
    assert said == "train: lost ranks in 4 starts and did not get on: the job ends (code 3)\n"


def test_the_number_of_an_array_s_task_is_put_in_for_the_seed_and_requeued_alone(tmp_path: Path) -> None:
    run_script(tmp_path, 75, state(75), SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="12", SLURM_CPUS_PER_TASK="3")
    assert "seed=12" in (tmp_path / "srun.words").read_text()
    assert "--cpus-per-task=3 " in (tmp_path / "srun.words").read_text()
    assert "--ntasks-per-node" not in (tmp_path / "srun.words").read_text()
    assert (tmp_path / "scontrol.words").read_text() == "requeue 7_12\n"


def test_a_range_of_nodes_has_its_ranks_a_node_from_a_variable(tmp_path: Path) -> None:
    run_script(tmp_path, 0, RANKS_PER_NODE="8")
    assert "--ntasks-per-node=8 " in (tmp_path / "srun.words").read_text()


def test_a_job_submitted_elsewhere_says_what_to_set(tmp_path: Path) -> None:
    code, _, said = run_script(tmp_path, 0, SLURM_SUBMIT_DIR=str(tmp_path))
    assert code == 2
    assert "error: submit from the checkout's folder, or set PROJECT to it" in said


def test_the_words_of_an_earlier_start_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    assert run_script(tmp_path, 2, state(2))[0] == 2
    assert run_script(tmp_path, 137)[0] == 3


def test_shellcheck_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    scripts = [*SCRIPTS.glob("*.s*"), *(PROJECT / "docker").glob("*.sh"), *(PROJECT / "tests").glob("**/*.sh")]
    assert len(scripts) >= 5
    done = subprocess.run([str(program), "-x", *map(str, scripts)], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("program", "words", "key"),
    [("pseudo_label", ["checkpoint=c", "output=o"], "target.path"), ("evaluate", ["checkpoint=c"], "data.path")],
)
def test_the_loop_looks_at_shards_far_away_before_it_submits(
    tmp_path: Path, program: str, words: list[str], key: str
) -> None:
    check = [sys.executable, str(SCRIPTS / "check.py"), program, *words, "cache.folder=cache"]
    with far_server(Path(drawn_shards(tmp_path / "there", 2).folder)) as far:
        good, wrong = (
            subprocess.run([*check, f"{key}={url}"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
            for url in (far.url, f"{far.url}/nowhere")
        )
    assert (good.returncode, good.stderr) == (0, "")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(f"error: {far.url}/nowhere: no index.json there")
