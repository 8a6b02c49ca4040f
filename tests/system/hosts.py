"""Machines for tests: network namespaces whose cables end in one switch. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.on_ranks import Job, RankServer

ETC = Path("/etc/netns")
IPV4, IPV6 = "10.77.0.{}", "fd77::{}"


@dataclass(frozen=True)
class Network:
    """A switch and its machines, which have the namespaces `name`-0, `name`-1, … and these addresses."""

    name: str
    addresses: list[str]

    def host(self, number: int) -> str:
        return f"{self.name}-{number}"

    def processes(self, number: int) -> list[int]:
        return [int(one) for one in ip("netns", "pids", self.host(number)).split()]

    def plug(self, number: int, state: str) -> None:
        """Pull a machine's cable out of the switch (`down`), or plug it in (`up`)."""
        ip("-n", f"{self.name}-switch", "link", "set", "dev", f"port{number}", state)

    def remove(self, number: int) -> None:
        """Let a machine vanish: nobody hears a last word of its connections."""
        self.plug(number, "down")
        kill(self.processes(number))
        ip("-n", self.host(number), "link", "delete", "dev", "eth0")

    def start(
        self, server: RankServer, program: Sequence[str], master: str | None = None, ranks: int | None = None
    ) -> Job:
        """Start one rank a machine, without a launcher.

        Args:
            server: which starts them.
            program: its path and its words.
            master: MASTER_ADDR; by default the first machine's address.
            ranks: their number, by default that of the machines; those beyond never start.
        """
        words = [self.name, master or self.addresses[0], *program]
        return server.start("tests/system/on_host.py", words, ranks or len(self.addresses))


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def kill(processes: Sequence[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def network(hosts: int = 2, pattern: str = IPV4, own_name: str | None = None) -> Iterator[Network]:
    """Yield machines that know each other's names, and remove them, with all that runs there.

    Args:
        hosts: how many.
        pattern: of their addresses, in which {} stands for a number from 1.
        own_name: the address that each machine has for its own name alone; None: the one that it has for the others.
    """
    made = Network(f"esl{uuid.uuid4().hex[:8]}", [pattern.format(1 + number) for number in range(hosts)])
    try:
        switch = f"{made.name}-switch"
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "name", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "dev", "switch", "up")
        for number in range(hosts):
            _add_host(made, number, own_name)
        yield made
    finally:
        for space in (*map(made.host, range(hosts)), f"{made.name}-switch"):
            with suppress(subprocess.CalledProcessError):
                kill([int(one) for one in ip("netns", "pids", space).split()])
                ip("netns", "delete", space)
            shutil.rmtree(ETC / space, ignore_errors=True)
        with suppress(OSError):
            ETC.rmdir()


def _add_host(made: Network, number: int, own_name: str | None) -> None:
    host, switch, address = made.host(number), f"{made.name}-switch", made.addresses[number]
    ip("netns", "add", host)
    ip("-n", host, "link", "set", "dev", "lo", "up")
    ip(*f"-n {host} link add name eth0 type veth peer name port{number} netns {switch}".split())
    ip(*f"-n {switch} link set dev port{number} master switch".split())
    made.plug(number, "up")
    ip("-n", host, "link", "set", "dev", "eth0", "up")
    bits, now = ("64", ["nodad"]) if ":" in address else ("24", [])
    ip("-n", host, "address", "add", f"{address}/{bits}", "dev", "eth0", *now)
    names = [f"{other} {made.host(one)}" for one, other in enumerate(made.addresses) if one != number or not own_name]
    own = [f"{own_name} {host}"] if own_name else []
    (ETC / host).mkdir(parents=True)
    (ETC / host / "hosts").write_text("\n".join(["127.0.0.1 localhost", *own, *names, ""]))
