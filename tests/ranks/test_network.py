"""The way to other machines, and the interface that ranks take where gloo would take the loopback."""

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
from torch._C._distributed_c10d import Store, TCPStore

from esl_dist.ranks import network
from esl_dist.ranks.meeting_place import host_of
from esl_dist.ranks.network import choose_interface, is_loopback, machine, machine_of_store, network_advice

OWN, OTHER = "192.0.2.1", "192.0.2.2"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What is set in a test is taken back with the whole environment.
    monkeypatch.setattr(os, "environ", {"MASTER_ADDR": OTHER})
    remembering = network.way_to
    remembering.cache_clear()
    yield
    remembering.cache_clear()


@pytest.fixture
def store() -> Store:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def be_at(monkeypatch: pytest.MonkeyPatch, ways: dict[str, str], own_name: str) -> None:
    """Let this machine have the interface eth1 with the address OWN; `ways` says from where it reaches a host."""
    monkeypatch.setattr(network, "way_to", lambda host: (ways[host], host) if host in ways else None)
    monkeypatch.setattr(network, "_address_of_own_name", lambda: own_name)
    interfaces = {"lo": "127.0.0.1", "eth0": "198.51.100.1", "eth1": OWN}
    found = {name: [SimpleNamespace(address=address)] for name, address in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


def choose(store: Store, other: str) -> str | None:
    """Return what rank 0 of two chooses where rank 1 has the address `other`."""
    store.set("address/1", other)
    choose_interface(store, 0, 2)
    return os.environ.get("GLOO_SOCKET_IFNAME")


@pytest.mark.parametrize("own_name", ["127.0.1.1", "::1", ""])
def test_the_interface_that_reaches_the_master_stands_for_the_loopback(
    monkeypatch: pytest.MonkeyPatch, store: Store, own_name: str
) -> None:
    be_at(monkeypatch, {OTHER: OWN}, own_name)
    assert choose(store, OTHER) == "eth1"


def test_a_master_that_is_the_loopback_takes_the_way_to_another_rank(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    os.environ["MASTER_ADDR"] = "debian"
    be_at(monkeypatch, {"debian": "127.0.0.1", OTHER: OWN}, "127.0.1.1")
    assert choose(store, OTHER) == "eth1"


def test_a_rank_whose_master_is_at_its_own_loopback_does_not_mislead_the_others(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    be_at(monkeypatch, {OTHER: OWN}, "127.0.1.1")
    assert choose(store, "127.0.0.1") == "eth1"


@pytest.mark.parametrize("address", ["127.0.0.1", OWN])
def test_ranks_of_one_machine_stay_on_the_loopback(monkeypatch: pytest.MonkeyPatch, store: Store, address: str) -> None:
    be_at(monkeypatch, {OTHER: address}, "127.0.1.1")
    assert choose(store, address) is None


def test_what_is_set_and_what_gloo_finds_by_itself_stay(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    be_at(monkeypatch, {OTHER: OWN}, "198.51.100.1")
    assert choose(store, OTHER) is None
    be_at(monkeypatch, {OTHER: OWN}, "127.0.1.1")
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    assert choose(store, OTHER) == "eth0"


def test_machines_without_a_way_to_each_other_are_left_to_gloo(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    be_at(monkeypatch, {}, "127.0.1.1")
    assert choose(store, OTHER) is None


def test_the_own_machine_is_told_from_that_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    be_at(monkeypatch, {OTHER: OWN, OWN: OWN}, OWN)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    assert (machine(), machine_of_store()) == (f"here ({OWN})", OTHER)
    os.environ["MASTER_ADDR"] = OWN
    assert machine_of_store() == machine()
    del os.environ["MASTER_ADDR"]
    assert machine_of_store() == machine() == "here"


def test_a_real_way_to_this_machine_begins_at_its_loopback() -> None:
    assert network.way_to("localhost") in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")]
    assert network.way_to("nowhere.invalid") is None
    assert network.way_to("a..b") is None


def test_the_network_is_thought_of_only_between_machines() -> None:
    assert network_advice("a (1)", ["a (1)", "a (1)"]) == ""
    said = network_advice("a (1)", ["c (3)", "a (1)", "b (2)", "b (2)"])
    assert said.startswith("; or the network between a (1) and b (2), c (3) is down")
    assert "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs)" in said


@pytest.mark.parametrize(
    ("address", "expected"),
    [("", True), ("127.0.1.1", True), ("::1", True), ("fe80::1%eth0", False), ("10.0.0.1", False)],
)
def test_addresses_of_the_loopback_are_known(address: str, expected: bool) -> None:
    assert is_loopback(address) == expected


def test_an_address_of_ipv6_may_have_brackets() -> None:
    assert [host_of(one) for one in ("[fd77::1]", "fd77::1", "host")] == ["fd77::1", "fd77::1", "host"]
