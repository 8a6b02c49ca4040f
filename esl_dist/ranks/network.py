"""The network between machines: from which address this one reaches the others, and what to say when it is down.

Without GLOO_SOCKET_IFNAME, gloo takes the address of the machine's own name, and the loopback where that has none
(`ProcessGroupGloo.createDefaultDevice` of PyTorch). Debian gives the own name 127.0.1.1, and no other machine comes
there. So a rank whose gloo would take the loopback, though there are ranks on other machines, takes the interface
through which it reaches them.
"""

import functools
import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import suppress

import psutil
from torch._C._distributed_c10d import Store

from esl_dist.ranks.meeting_place import host_of

INTERFACE = "GLOO_SOCKET_IFNAME"
ANY_PORT = 9
"""Of datagrams that are never sent: to connect their socket says which way they would go."""


@functools.cache
def way_to(host: str) -> tuple[str, str] | None:
    """Return this machine's address on the way to another one, and the other's; None where there is no way."""
    with suppress(OSError, UnicodeError):
        for family, _, _, _, place in socket.getaddrinfo(host, ANY_PORT, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as datagrams:
                datagrams.connect(place)
                return datagrams.getsockname()[0], datagrams.getpeername()[0]
    return None


def is_loopback(address: str) -> bool:
    """Return whether an address is only this machine's own; that of a way that does not exist ("") is, too."""
    return not address or ipaddress.ip_address(_without_scope(address)).is_loopback


def machine() -> str:
    """Name this machine by its name and its address on the way to MASTER_ADDR: what two machines do not share."""
    way = _way_to_master()
    return socket.gethostname() + (f" ({way[0]})" if way else "")


def machine_of_store() -> str:
    """Name the machine that MASTER_ADDR names: as `machine` where it is this one, or where there is no way to tell."""
    return machine() if _way_to_master() is None or is_this_machine() else os.environ["MASTER_ADDR"]


def is_this_machine() -> bool:
    """Return whether MASTER_ADDR is known to name this machine."""
    way = _way_to_master()
    return way is not None and (way[0] == way[1] or is_loopback(way[1]))


def _way_to_master() -> tuple[str, str] | None:
    return way_to(host_of(os.environ["MASTER_ADDR"])) if "MASTER_ADDR" in os.environ else None


def choose_interface(store: Store, rank: int, world_size: int) -> None:
    """Set GLOO_SOCKET_IFNAME where gloo would take the loopback and there are ranks on other machines.

    Args:
        store: in which all ranks have met; each leaves its address there.
        rank: this rank.
        world_size: number of ranks.
    """
    way = _way_to_master()
    own = way[0] if way else ""
    store.set(f"address/{rank}", own)
    if INTERFACE in os.environ or not is_loopback(_address_of_own_name()):
        return
    addresses = [address.decode() for address in store.multi_get([f"address/{one}" for one in range(world_size)])]
    elsewhere = [address for address in addresses if address != own]
    # On the machine that MASTER_ADDR names, that name may be the loopback's, too.
    if is_loopback(own):
        ways = (way_to(address) for address in elsewhere if not is_loopback(address))
        own = next((way[0] for way in ways if way), "")
    if elsewhere and (interface := _interface_of(own)) is not None:
        os.environ[INTERFACE] = interface


def _address_of_own_name() -> str:
    """Return the address that gloo takes by itself: the first of the own name's that is this machine's, or ""."""
    with suppress(OSError, UnicodeError):
        for family, kind, _, _, place in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind) as listener:
                listener.bind(place)
                return str(place[0])
    return ""


def _interface_of(address: str) -> str | None:
    """Return the name of the interface that has an address, and no loopback's."""
    if is_loopback(address):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(_without_scope(one.address) == _without_scope(address) for one in addresses):
            return name
    return None


def _without_scope(address: str) -> str:
    return address.partition("%")[0]


def network_advice(own: str, others: Iterable[str]) -> str:
    """Return what a message adds where ranks on other machines than `own` are lost; nothing where they are on it."""
    if not (elsewhere := sorted({other for other in others if other != own})):
        return ""
    return (
        f"; or the network between {own} and {', '.join(elsewhere)} is down, or the ranks use a wrong interface: set "
        f"{INTERFACE} (NCCL_SOCKET_IFNAME on GPUs) to the one that reaches the other machines"
    )
