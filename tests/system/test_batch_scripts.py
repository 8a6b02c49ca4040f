"""What a batch script makes of each end of its program, with stand-ins for SLURM's programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import drawn_shards
from tests.far_servers import far_server
from tests.on_ranks import PROJECT

SCRIPTS = PROJECT / "launch/slurm"
STAND_INS = {
    "srun": """echo "$@" >srun.words
        [ -z "$SIGNAL" ] || kill "-$SIGNAL" $PPID
        [ -z "$SAYS" ] || echo "$SAYS" >"$ESL_DIST_STATE"
        exit "$CODE" """,
    "squeue": """echo >>squeue.calls
        if [ "$(wc -l <squeue.calls)" -gt "$SILENT" ]; then echo "$JOB_STATE"; else echo "$INSTEAD"; fi""",
    "scontrol": 'echo "$@" >>scontrol.words',
    "sleep": "",
}


def state(code: int | None, step: int | None = None) -> str:
    """Return the two lines of a state file that a batch script reads."""
    numbers = ("null" if number is None else number for number in (code, step))
    return ' "exit_code": {},\n "step": {},'.format(*numbers)


def stand_in(folder: Path, programs: dict[str, str]) -> str:
    """Write programs in bash into `folder`; returns a PATH on which they come first."""
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run_script(
    folder: Path, code: int, says: str = "", job_state: str = "RUNNING", script: str = "train", **variables: str
) -> tuple[int, int, str]:
    """Run a batch script in `folder`; returns its exit code, how often it was put back to the queue, what it said."""
    variables = {
        "PATH": stand_in(folder / "programs", STAND_INS),
        "CODE": str(code),
        "SAYS": says,
        "JOB_STATE": job_state,
        "SILENT": "0",
        "INSTEAD": "",
        "WORDS": "seed=0",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": script,
        "SLURM_SUBMIT_DIR": str(PROJECT),
        "PYTHON": "python",
        **variables,
    }
    words = ["bash", str(SCRIPTS / f"{script}.sbatch"), "name=a b", variables["WORDS"]]
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
@pytest.mark.parametrize("script", ["train", "pseudo_label", "evaluate", "predict"])
def test_a_job_ends_with_the_code_of_the_cause_and_is_put_back_only_where_that_helps(
    tmp_path: Path, script: str, code: int, says: str, expected: int, requeued: bool
) -> None:
    ended, times, _ = run_script(tmp_path, code, says, script=script)
    assert (ended, times) == (expected, requeued)
    assert f"{PROJECT}/launch/{script}.py name=a b seed=0" in (tmp_path / "srun.words").read_text()


@pytest.mark.parametrize("job_state", ["COMPLETING", "CANCELLED", "PENDING", "TIMEOUT"])
@pytest.mark.parametrize("code", [75, 3])
def test_a_job_that_slurm_is_ending_is_not_put_back_and_does_not_count(
    tmp_path: Path, job_state: str, code: int
) -> None:
    for _ in range(5):
        assert run_script(tmp_path, code, state(code), job_state) == (code, 0, "")
    assert run_script(tmp_path, code, state(code))[:2] == (code, 1)


@pytest.mark.parametrize(("code", "why"), [(75, "stopped"), (3, "lost a rank")])
@pytest.mark.parametrize("instead", ["", "SIGNALING"])
def test_slurm_is_asked_again_and_where_it_never_answers_that_is_said(
    tmp_path: Path, code: int, why: str, instead: str
) -> None:
    said = run_script(tmp_path, code, state(code, 4), SILENT="3", INSTEAD=instead)
    assert said == (code, 1, f"train: {why} (code {code}): back to the queue\n")
    said = run_script(tmp_path, code, state(code, 5), SILENT="99", INSTEAD=instead)
    assert said == (
        code,
        1,
        f"train: {why} (code {code}), and not put back to the queue: squeue does not tell its state\n",
    )


def test_ranks_are_lost_only_so_often_while_the_training_does_not_get_on(tmp_path: Path) -> None:
    for step, requeues in ((4, 1), (4, 2), (9, 3), (None, 4), (4, 5)):
        assert run_script(tmp_path, 3, state(3, step))[:2] == (3, requeues)
    code, requeues, said = run_script(tmp_path, 3, state(3, 9))
    assert (code, requeues) == (3, 5)
    assert said == "train: 4 starts ended early with no step more than before: the job ends (code 3)\n"


def test_a_training_that_is_killed_as_a_whole_gets_on_where_it_begins_later_than_before(tmp_path: Path) -> None:
    for requeues, began in enumerate((0, 4, 8, 12, 16, 20), start=1):
        assert run_script(tmp_path, 137, state(None, began))[:2] == (3, requeues)
    ends = [run_script(tmp_path, 137, state(None, 20))[:2] for _ in range(3)]
    assert ends == [(3, 7), (3, 8), (3, 8)]


def test_a_training_that_saves_new_steps_before_each_stop_goes_on_for_ever(tmp_path: Path) -> None:
    for start in range(1, 7):
        assert run_script(tmp_path, 75, state(75, start), MOST_LOSSES="0")[:2] == (75, start)
    assert run_script(tmp_path, 75, state(75, 6), MOST_LOSSES="0")[:2] == (75, 6)


@pytest.mark.parametrize("script", ["train", "pseudo_label", "evaluate"])
def test_what_keeps_nothing_within_its_time_limit_is_not_started_for_ever(tmp_path: Path, script: str) -> None:
    for requeues in (1, 2, 3):
        ended = run_script(tmp_path, 75, state(75), script=script)
        assert ended == (75, requeues, f"{script}: stopped (code 75): back to the queue\n")
    code, requeues, said = run_script(tmp_path, 75, state(75), script=script)
    assert (code, requeues) == (75, 3)
    assert said == f"{script}: 4 starts ended early with no step more than before: the job ends (code 75)\n"


@pytest.mark.parametrize("code", [75, 3])
def test_a_job_whose_starts_cannot_be_counted_is_not_put_back(tmp_path: Path, code: int) -> None:
    (tmp_path / "train-7.losses").symlink_to("/dev/full")
    ended, requeues, said = run_script(tmp_path, code, state(code, 4))
    assert (ended, requeues) == (code, 0)
    assert said.endswith(f"\ntrain: starts cannot be counted: the job ends (code {code})\n")
    assert "No space left on device" in said


def test_the_ranks_have_all_that_the_script_sets_whatever_sbatch_exports(tmp_path: Path) -> None:
    run_script(tmp_path, 0, SLURM_EXPORT_ENV="PROJECT,PYTHON")
    assert "--export=ALL " in (tmp_path / "srun.words").read_text()


@pytest.mark.parametrize("name", ["TERM", "USR1", "HUP"])
def test_a_signal_for_the_whole_job_leaves_the_script_to_wait_for_its_ranks(tmp_path: Path, name: str) -> None:
    assert run_script(tmp_path, 75, state(75, 4), SIGNAL=name)[:2] == (75, 1)


def test_a_slash_in_a_job_s_name_makes_no_folder(tmp_path: Path) -> None:
    run_script(tmp_path, 3, state(3), SLURM_JOB_NAME="a/b/c")
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a_b_c-7.json", "a_b_c-7.losses"]


def test_a_seed_of_an_array_outside_of_one_is_refused(tmp_path: Path) -> None:
    code, requeues, said = run_script(tmp_path, 0, WORDS="seed={seed}")
    assert (code, requeues) == (2, 0)
    assert said == (
        "train: error: {seed} is the number of a job array's task, and this job has none; add --array=0-4, or write "
        "the seed\n"
    )
    assert not (tmp_path / "srun.words").exists()


def test_the_number_of_an_array_s_task_is_put_in_for_the_seed_and_requeued_alone(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "12", "SLURM_CPUS_PER_TASK": "3"}
    run_script(tmp_path, 75, state(75), WORDS="seed={seed}", **array)
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


def submit_loop(folder: Path, submitted: int, cluster: str = "", scancel: str = "") -> tuple[int, str, str]:
    """Call loop.sh where so many jobs can be submitted; returns its exit code, scancel's words, its last line."""
    programs = {
        "squeue": "",
        "sbatch": f"""case "$*" in *--test-only*) exit 0 ;; esac
            echo "$@" >>sbatch.words; count=$(wc -l <sbatch.words)
            [ $count -le {submitted} ] && echo "$((34 + count)){cluster}" """,
        "scancel": f'echo "$@" >>scancel.words; {scancel}',
        "python": "",
    }
    variables = {"PATH": stand_in(folder / "programs", programs), "PYTHON": str(folder / "programs/python")}
    words = ["bash", str(SCRIPTS / "loop.sh")]
    done = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True, timeout=60)
    cancelled = folder / "scancel.words"
    said = (done.stdout + done.stderr).splitlines()[-1]
    return done.returncode, cancelled.read_text() if cancelled.exists() else "", said


def test_each_job_of_the_loop_waits_for_the_one_before(tmp_path: Path) -> None:
    code, cancelled, _ = submit_loop(tmp_path, 4, ";clus")
    assert (code, cancelled) == (0, "")
    jobs = (tmp_path / "sbatch.words").read_text()
    assert re.findall(r"--dependency=(\S+)", jobs) == ["aftercorr:35", "aftercorr:36", "aftercorr:37"]


@pytest.mark.parametrize(
    ("submitted", "cluster", "scancel", "cancelled", "message"),
    [
        (0, "", "", "", "error: no job could be submitted"),
        (1, "", "", "35\n", "error: not all jobs could be submitted; those that were are cancelled"),
        (3, "", "", "35 36 37\n", "error: not all jobs could be submitted; those that were are cancelled"),
        (
            2,
            ";clus",
            "",
            "--clusters=clus 35 36\n",
            "error: not all jobs could be submitted; those that were are cancelled",
        ),
        (2, "", "exit 1", "35 36\n", "error: not all jobs could be submitted; cancel those that were: scancel 35 36"),
    ],
)
def test_where_a_job_of_the_loop_cannot_be_submitted_those_before_it_are_cancelled(
    tmp_path: Path, submitted: int, cluster: str, scancel: str, cancelled: str, message: str
) -> None:
    code, words, said = submit_loop(tmp_path, submitted, cluster, scancel)
    assert code != 0
    assert (words, said) == (cancelled, message)


def test_shellcheck_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    folders = [*SCRIPTS.glob("*.s*"), *(PROJECT / "docker").glob("*.sh"), *(PROJECT / "tests").glob("**/*.sh")]
    scripts = [*folders, PROJECT / ".ci/run"]
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
    assert wrong.stderr.splitlines()[-1].startswith(f"error: {far.url}/nowhere: no index.json there")
