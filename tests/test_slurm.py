"""A task of srun knows its rank, its machine's ranks and where all meet, by SLURM's own variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist import environment
from esl_dist.environment import Launch, launch
from esl_dist.errors import UserError
from esl_dist.slurm import PORTS, adopt_step, first_node, port_of

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
}
OWN = (*environment.RANK, *environment.WORLD_SIZE, *environment.LOCAL_RANK, *environment.LOCAL_WORLD_SIZE)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is set in a test is taken back with the whole environment.
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in set(os.environ) - set(clean) | (set(OWN) & set(os.environ)):
        del os.environ[name]


def adopted(**variables: str) -> dict[str, str]:
    """Return what a task with these variables has set."""
    os.environ.update(variables)
    before = dict(os.environ)
    adopt_step()
    return {name: text for name, text in os.environ.items() if before.get(name) != text}


def test_a_task_of_a_step_is_a_rank() -> None:
    assert adopted(**STEP) == {
        "RANK": "1",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port_of(7, 1)),
    }
    assert launch() == Launch(1, 3, 2)


@pytest.mark.parametrize("missing", [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "3"}])
def test_a_batch_script_and_a_step_of_one_task_are_no_ranks(missing: dict[str, str]) -> None:
    assert adopted(SLURM_NTASKS="3", SLURM_JOB_ID="7", **missing) == {}


def test_what_is_given_stays() -> None:
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}
    assert adopted(**STEP, **given) == {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    "inside",
    [
        {"RANK": "0", "WORLD_SIZE": "8"},
        {"RANK": "0", "WORLD_SIZE": "3"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"},
    ],
)
def test_a_launcher_inside_of_a_step_numbers_its_own_processes(inside: dict[str, str]) -> None:
    assert adopted(**STEP, **inside) == {}


def test_ranks_that_pmi_numbers_like_slurm_are_completed() -> None:
    new = adopted(**STEP, PMI_RANK="1", PMI_SIZE="3")
    assert (new["LOCAL_RANK"], new["MASTER_ADDR"]) == ("1", "localhost")


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [("2(x3),1", "2", "2"), ("2(x3),1", "3", "1"), ("4", "0", "4"), ("1(x9999999)", "0", "1")],
)
def test_the_tasks_of_a_node_are_counted(tasks: str, node: str, expected: str) -> None:
    assert adopted(**{**STEP, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})["LOCAL_WORLD_SIZE"] == expected


@pytest.mark.parametrize(("tasks", "node"), [("2", "1"), ("", "0"), ("two", "0")])
def test_a_count_that_is_not_said_is_not_made_up(tasks: str, node: str) -> None:
    assert "LOCAL_WORLD_SIZE" not in adopted(**{**STEP, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[9,03-05]", "gpu9"),
        ("a,b[1-2]", "a"),
        ("rack[2-3]n[07-08]", "rack2n07"),
        ("n[1-2].site", "n1.site"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_two_steps_of_a_job_and_the_next_jobs_meet_at_ports_of_their_own() -> None:
    ports = {port_of(job, step) for job in range(1000, 1100) for step in range(20)}
    assert len(ports) == 2000
    assert all(port in PORTS for port in (*ports, port_of(2**40, 2**40)))


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"])
def test_a_variable_that_is_no_number_is_refused_by_name(variable: str) -> None:
    with pytest.raises(UserError, match=f"{variable}=x is impossible"):
        adopted(**{**STEP, variable: "x"})


def scontrol(folder: Path, script: str) -> None:
    """Put a scontrol of this script first on the path."""
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def test_a_node_that_no_name_server_knows_is_asked_of_slurm(tmp_path: Path) -> None:
    scontrol(tmp_path, 'echo "NodeName=$3 Arch=x NodeAddr=10.1.2.3 NodeHostName=h Port=1"')
    assert adopted(**{**STEP, "SLURM_STEP_NODELIST": "no-such-node.invalid"})["MASTER_ADDR"] == "10.1.2.3"


def test_where_nobody_knows_a_node_the_variable_to_set_is_named(tmp_path: Path) -> None:
    scontrol(tmp_path, "exit 1")
    with pytest.raises(UserError, match=r"first node, no-such-node\.invalid, .*; set MASTER_ADDR"):
        adopted(**{**STEP, "SLURM_STEP_NODELIST": "no-such-node.invalid"})


def test_a_program_is_told_before_it_reads_its_settings() -> None:
    words = [sys.executable, "launch/train.py", "timeout_minutes=soon"]
    variables = {**os.environ, **STEP}
    done = subprocess.run(
        words, cwd=Path(__file__).parents[1], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error (rank 1): ")
