"""Ranks on several machines: a network that is cut or misnamed is waited for, or named, and no process is left."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    everything_learned,
    newest_step,
    run_in,
    train,
    training_words,
)
from tests.on_ranks import PROJECT, Job, RankServer, shared_server
from tests.programs import environment
from tests.system.hosts import IPV4, IPV6, Network, ip, network

pytestmark = pytest.mark.cluster

TIMEOUT_SECONDS, MORE_SECONDS = 6, 30
SOON = f"timeout_minutes={TIMEOUT_SECONDS / 60:g}"
AT_ONCE = "timeout_minutes=0.05"
ENDLESS = ("steps=1000", "checkpoints.every=2", "loader.workers=1", SOON)
INTERFACES = "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs) to the one that reaches the other machines"
DEBIANS_OWN_NAME = "127.0.1.1"


@pytest.fixture(scope="module")
def server() -> RankServer:
    return shared_server()


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


def training(town: Path, run: Path, *words: str) -> list[str]:
    return [str(PROJECT / TRAIN), *training_words(town, run, *words)]


def wait_until(condition: Callable[[], object], seconds: float, words: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, words()
        time.sleep(0.1)


def wait_until_all_is_gone(hosts: Network, words: Callable[[], str]) -> None:
    """Return when no process of any machine is left: rank, reader or launcher."""
    numbers = range(len(hosts.addresses))
    wait_until(lambda: not any(hosts.processes(number) for number in numbers), TIMEOUT_SECONDS + MORE_SECONDS, words)


def error_in(output: str, rank: int) -> str:
    """Return the rank's message; there is one, of one line."""
    lines = [line for line in output.replace("\r", "\n").splitlines() if line.startswith(f"error (rank {rank}): ")]
    assert len(lines) == 1, output
    return lines[0]


def assert_network_is_thought_of(message: str, hosts: Network, rank: int) -> None:
    """Hold a message on a rank of another machine to both machines' names and the variables that may help."""
    own = re.escape(f"{hosts.host(rank)} ({hosts.addresses[rank]})")
    other = rf"({hosts.host(1 - rank)} \()?{re.escape(hosts.addresses[1 - rank])}\)?"
    assert re.search(f"; or the network between {own} and {other} is down", message), message
    assert INTERFACES in message


def assert_restart_is_equal(server: RankServer, town: Path, run: Path, steps: int) -> None:
    """Train a run to `steps`, and hold it to one that was never interrupted."""
    train(server, town, run, 2, f"steps={steps}")
    whole = run_in(run.parent.parent / "whole")
    train(server, town, whole, 2, f"steps={steps}")
    assert_same_bits(everything_learned(run), everything_learned(whole))


def started(hosts: Network, server: RankServer, town: Path, run: Path, *words: str) -> Job:
    """Return a training of one rank a machine that has come to its first checkpoint."""
    job = hosts.start(server, training(town, run, *words))
    job.wait_until(lambda: newest_step(run) > 0)
    return job


def test_a_cut_shorter_than_the_timeout_is_waited_for_and_does_not_show(
    hosts: Network, server: RankServer, town: Path, tmp_path: Path
) -> None:
    run, steps = run_in(tmp_path), 16
    job = started(hosts, server, town, run, f"steps={steps}")
    hosts.plug(1, "down")
    # So long is the cut; nothing is waited for.
    time.sleep(3)
    assert newest_step(run) < steps, "the cut came too late"
    hosts.plug(1, "up")
    assert job.exit_codes() == [0, 0], job.output()
    assert_restart_is_equal(server, town, run, steps)


@pytest.fixture
def torchruns(hosts: Network, tmp_path: Path) -> Iterator[Callable[..., list[subprocess.Popen[bytes]]]]:
    """Return a function that starts one torchrun a machine, which say all they say into `torchrun-0`, `torchrun-1`."""
    running: list[subprocess.Popen[bytes]] = []

    def start(meeting: list[str], program: list[str]) -> list[subprocess.Popen[bytes]]:
        for number in range(len(hosts.addresses)):
            own = {"number": number, "first": number == 0, "address": hosts.addresses[number]}
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
            launcher += [word.format_map(own) for word in meeting]
            with open(tmp_path / f"torchrun-{number}", "wb") as log:
                words = ["ip", "netns", "exec", hosts.host(number), *launcher, *program]
                running.append(subprocess.Popen(words, env=environment(), stdout=log, stderr=log))
        return running

    yield start
    for one in running:
        one.kill()
        one.wait()


MEETINGS = {
    "static": ["--node_rank", "{number}", "--master_addr", "10.77.0.1", "--master_port", "29500"],
    "c10d": [
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", "10.77.0.1:29500", "--local-addr", "{address}"),
        *("--rdzv-conf", "is_host={first}"),
    ],
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_longer_cut_leaves_no_process_and_the_restart_is_equal(
    hosts: Network, server: RankServer, torchruns: Callable, town: Path, tmp_path: Path, meeting: str
) -> None:
    run = run_in(tmp_path)

    def words() -> str:
        return "\n".join((tmp_path / f"torchrun-{number}").read_text() for number in (0, 1))

    running = torchruns(MEETINGS[meeting], training(town, run, *ENDLESS))
    wait_until(lambda: newest_step(run) > 0, 90, words)
    hosts.plug(1, "down")
    wait_until(lambda: all(one.poll() is not None for one in running), TIMEOUT_SECONDS + MORE_SECONDS, words)
    wait_until_all_is_gone(hosts, words)
    for rank in (0, 1):
        said = error_in(words(), rank)
        assert f"rank {1 - rank}" in said.partition(": ")[2]
        assert INTERFACES in said
    assert_restart_is_equal(server, town, run, newest_step(run) + 3)


@pytest.mark.parametrize(("lost", "with_address"), [(0, False), (1, True)])
def test_a_machine_that_vanishes_is_named_and_no_process_is_left(
    hosts: Network, server: RankServer, town: Path, tmp_path: Path, lost: int, with_address: bool
) -> None:
    """With a cable between two machines alone, the other one's interface and address go with it."""
    job = started(hosts, server, town, run_in(tmp_path), *ENDLESS)
    hosts.remove(lost)
    if with_address:
        ip("-n", hosts.host(1 - lost), "link", "delete", "dev", "eth0")
    wait_until_all_is_gone(hosts, job.output)
    assert job.exit_codes()[1 - lost] == EXIT_LOST_RANK, job.output()
    said = error_in(job.output(), 1 - lost)
    assert f"rank {lost}" in said.partition(": ")[2]
    assert_network_is_thought_of(said, hosts, 1 - lost)
    assert "Traceback" not in job.output()


def test_a_machine_whose_packets_are_lost_on_the_way_back_is_named(
    hosts: Network, server: RankServer, town: Path, tmp_path: Path
) -> None:
    job = started(hosts, server, town, run_in(tmp_path), *ENDLESS)
    ip("-n", hosts.host(1), "route", "add", "blackhole", f"{hosts.addresses[0]}/32")
    wait_until_all_is_gone(hosts, job.output)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_LOST_RANK], job.output()
    for rank in (0, 1):
        assert INTERFACES in error_in(job.output(), rank)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("pattern", [IPV4, IPV6])
def test_machines_whose_own_name_is_the_loopbacks_train(
    server: RankServer, town: Path, tmp_path: Path, pattern: str, by_name: bool
) -> None:
    with network(2, pattern, DEBIANS_OWN_NAME) as hosts:
        job = hosts.start(server, training(town, run_in(tmp_path), "steps=1"), hosts.host(0) if by_name else None)
        assert job.exit_codes() == [0, 0], job.output()


def test_an_interface_that_reaches_nobody_is_named(
    hosts: Network, server: RankServer, town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    job = hosts.start(server, training(town, run_in(tmp_path), AT_ONCE))
    wait_until_all_is_gone(hosts, job.output)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_LOST_RANK], job.output()
    for rank in (0, 1):
        assert INTERFACES in error_in(job.output(), rank)


@pytest.mark.parametrize(
    ("master", "told"),
    [
        ("10.77.0.9", ("MASTER_ADDR=10.77.0.9 is no address of this machine", "")),
        # Behind a firewall that drops all: the first machine is none.
        ("192.0.2.1", ("", "")),
        ("nowhere.invalid", ("", "this machine does not know the name in MASTER_ADDR")),
    ],
)
def test_a_first_machine_that_is_misnamed_is_told_after_the_timeout(
    hosts: Network, server: RankServer, town: Path, tmp_path: Path, master: str, told: tuple[str, str]
) -> None:
    ip("-n", hosts.host(1), "route", "add", "192.0.2.1/32", "via", hosts.addresses[0])
    job = hosts.start(server, training(town, run_in(tmp_path), AT_ONCE), master)
    wait_until_all_is_gone(hosts, job.output)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_LOST_RANK], job.output()
    said = [error_in(job.output(), rank) for rank in (0, 1)]
    assert "rank 1 did not come to the start within timeout_minutes" in said[0]
    assert f"neither it nor a launcher keeps a store at {master}:" in said[1]
    assert all(words in line for words, line in zip(told, said, strict=True))
    assert "MASTER_ADDR or MASTER_PORT is not that of its machine, or the network or a firewall" in said[1]


def test_an_address_with_a_port_is_a_mistake_at_once(
    hosts: Network, server: RankServer, town: Path, tmp_path: Path
) -> None:
    job = hosts.start(server, training(town, run_in(tmp_path)), "10.77.0.1:29500")
    assert job.exit_codes() == [EXIT_USER_ERROR, EXIT_USER_ERROR], job.output()
    assert "MASTER_ADDR=10.77.0.1:29500 is impossible" in error_in(job.output(), 1)


def test_a_machine_that_never_starts_is_named(hosts: Network, server: RankServer, town: Path, tmp_path: Path) -> None:
    job = hosts.start(server, training(town, run_in(tmp_path), AT_ONCE), ranks=3)
    wait_until_all_is_gone(hosts, job.output)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_LOST_RANK, 0], job.output()
    for rank in (0, 1):
        assert "rank 2 did not come to the start within timeout_minutes" in error_in(job.output(), rank)
