"""A SLURM of two nodes on this machine, for tests that need root: on ports of its own, ended whatever happens."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.on_ranks import PROJECT

SCRIPT = Path(__file__).with_name("cluster.sh")
FREEZER = Path("/sys/fs/cgroup/freezer")
PORTS = 3


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        folder: of its configuration, its daemons' files, and what jobs write.
        variables: of the environment, for its clients.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def call(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a client in the cluster's folder."""
        environment = {**self.variables, **variables}
        return subprocess.run(words, capture_output=True, text=True, cwd=self.folder, env=environment, timeout=120)

    def ask(self, *words: str, **variables: str) -> str:
        """Run a client that must succeed; returns what it prints."""
        done = self.call(*words, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a client; what it says is not kept."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(words, cwd=self.folder, env=self.variables, stdin=quiet, stdout=quiet, stderr=quiet)

    def submit(self, *words: str) -> str:
        """Submit a batch script; returns its job's number."""
        return self.ask("sbatch", "--parsable", *words).strip()

    def job(self, job: str) -> dict[str, str]:
        """Return what SLURM says of a job."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", words))

    def is_state(self, job: str, *states: str) -> bool:
        return self.job(job)["JobState"] in states

    def log(self, job: str) -> str:
        """Return what the job's log has so far."""
        return "".join(path.read_text() for path in self.folder.glob(f"**/*-{job}.log"))

    def wait_until(self, condition: Callable[[], bool], job: str = "", seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.call('squeue').stdout}\n{self.log(job) if job else ''}"
            time.sleep(0.02)

    def wait_for_end(self, job: str, seconds: float = 240) -> dict[str, str]:
        """Wait until a job has left the cluster for good; returns what SLURM says of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.is_state(job, *over), job, seconds)
        return self.job(job)

    def processes(self, job: str = "", node: str = "") -> list[psutil.Process]:
        """Return the processes that the cluster started for a job, on a node."""
        wanted = {"SLURM_CONF": self.variables["SLURM_CONF"], "SLURM_JOB_ID": job, "SLURMD_NODENAME": node}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if all(environment.get(name) == value for name, value in wanted.items() if value):
                    found.append(process)
        return found

    def rank(self, job: str, number: int) -> psutil.Process:
        """Return the process of one rank of a training."""
        of_job = [one for one in self.processes(self.job(job)["JobId"]) if "launch/train.py" in " ".join(one.cmdline())]
        (found,) = [one for one in of_job if one.environ().get("SLURM_PROCID") == str(number) and one.name() != "srun"]
        return found

    def crash(self, node: str) -> None:
        """Kill all that runs on a node, in one go."""
        tasks = self.processes(node=node)
        keepers = {one.parent() for one in tasks}
        daemon = psutil.Process(int((self.folder / f"slurmd.{node}.pid").read_text()))
        for process in (daemon, *(one for one in keepers if one and one.name() == "slurmstepd"), *tasks):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def start_node(self, node: str) -> None:
        self.ask("bash", str(SCRIPT), "node", node)


def missing() -> str | None:
    """Say what of the machine a cluster lacks; None: nothing."""
    if os.geteuid() != 0:
        return "not root"
    programs = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    return f"no {', '.join(programs)}; apt-get install slurm-wlm munge" if programs else None


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster; end it, and all that it started, at the end of the block."""
    variables = {
        **os.environ,
        "SLURM_TEST_DIR": str(folder),
        "SLURM_TEST_PORT": str(_free_ports(PORTS)),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PROCTRACK": "cgroup" if os.access(FREEZER, os.W_OK) else "linuxproc",
        "PROJECT": str(PROJECT),
        "PYTHON": sys.executable,
    }
    cluster = Cluster(folder, variables)
    # For a test process that is killed.
    watch = subprocess.Popen(["bash", str(SCRIPT), "watch", str(os.getpid())], env=variables, start_new_session=True)
    try:
        cluster.ask("bash", str(SCRIPT), "start")
        yield cluster
    finally:
        cluster.call("bash", str(SCRIPT), "stop")
        for process in cluster.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        watch.wait()


def _free_ports(count: int) -> int:
    """Return the first of so many ports in a row that nobody listens on, below those that Linux gives away itself."""
    for first in range(20000 + os.getpid() % 4000 * count, 32000, count):
        if all(_is_free(first + offset) for offset in range(count)):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
