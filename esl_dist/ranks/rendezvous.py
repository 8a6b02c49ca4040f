"""Where the ranks meet before all else: in a store at the address that the launcher's environment names.

torch.distributed waits there for all of them, too, but it cannot say who is absent; and where torchrun starts the ranks
again, it finds in the launcher's store what those of the earlier attempt left, and connects to the dead (issue 135712
of PyTorch). The launcher's count of restarts does not tell attempts apart: each node counts its own. So rank 0 opens a
room of its own in the store for every attempt, and it is taken when all have entered it.
"""

import json
import os
import socket
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from esl_dist.environment import RANK, flag, launch, whole_number
from esl_dist.errors import LostRankError, UserError
from esl_dist.machine import allow_open_files

STORE_TIMEOUT = timedelta(seconds=30)
RETRY_SECONDS = 0.1
FILES, FILES_A_RANK = 20, 3
"""What is open at least where the store is kept: of the process's own, and for each rank."""

ANSWER_SECONDS = 10.0
"""After the timeout, until a store that does not answer is given up."""


@dataclass(frozen=True)
class Rendezvous:
    """The ranks of one attempt, and the part of the store that is theirs alone."""

    rank: int
    world_size: int
    room: str
    keeper: TCPStore
    """Of rank 0 it may be the store itself: it lives as long as this object."""

    def connect(self, purpose: str) -> Store:
        """Return a connection of its own to the room's part for one purpose."""
        try:
            client = TCPStore(self.keeper.host, self.keeper.port, is_master=False, timeout=STORE_TIMEOUT)
        except dist.DistError as error:
            raise _store_lost(error) from error
        return PrefixStore(f"{self.room}/{purpose}", client)


def meet(timeout_minutes: float) -> Rendezvous | None:
    """Return when all ranks that the launcher started have come; None if this is the only one.

    Args:
        timeout_minutes: how long a rank waits for the others.

    Raises:
        UserError: the environment names no address, or it cannot be used; or too few open files are allowed.
        LostRankError: some ranks did not come; the message names them.
    """
    launched = launch()
    if launched.world_size == 1:
        return None
    allow_files_of_store(launched.world_size)
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(
            f"{launched.world_size} ranks were started without MASTER_ADDR and MASTER_PORT, where they would meet; "
            "start them with torchrun or accelerate launch"
        )
    host, port = _address()
    if not any(variable in os.environ for variable in RANK):
        raise UserError(
            f"WORLD_SIZE={launched.world_size} without RANK: which of the processes this one is cannot be known; start "
            "them with torchrun or accelerate launch"
        )
    seconds = 60 * timeout_minutes
    come: Future[Rendezvous] = Future()
    threading.Thread(target=_come, args=(come, launched.rank, launched.world_size, seconds), daemon=True).start()
    try:
        return come.result(min(seconds + ANSWER_SECONDS, threading.TIMEOUT_MAX))
    except TimeoutError as error:
        raise LostRankError(
            f"what listens at {host}:{port} does not answer: rank 0 or the launcher is stopped, or it is no store of "
            "theirs"
        ) from error


def allow_files_of_store(ranks: int) -> None:
    """Make sure that a store for so many ranks can be kept. It may be the launcher's, whose limit is that of the ranks.

    Raises:
        UserError: too few open files are allowed: the store would take no connection, and say nothing.
    """
    allow_open_files(FILES + FILES_A_RANK * ranks, f"for {ranks} ranks")


def _come(come: "Future[Rendezvous]", rank: int, world_size: int, seconds: float) -> None:
    """Meet the others. In a thread of its own, for a store that does not answer holds up a call without end."""
    try:
        deadline = time.monotonic() + seconds
        store = _open_store(rank, deadline)
        come.set_result(Rendezvous(rank, world_size, _enter(store, rank, world_size, deadline), store))
    except dist.DistError as error:
        come.set_exception(_store_lost(error))
    except Exception as error:
        come.set_exception(error)


def _store_lost(error: dist.DistError) -> LostRankError:
    reason = str(error).splitlines()[0]
    return LostRankError(f"the store of the ranks was lost at the start, and rank 0 with it ({reason})")


def _address() -> tuple[str, int]:
    port = whole_number("MASTER_PORT", 1, 2**16 - 1)
    assert port is not None
    return os.environ["MASTER_ADDR"], port


def _open_store(rank: int, deadline: float) -> TCPStore:
    host, port = _address()
    keeps_it = rank == 0 and not flag("TORCHELASTIC_USE_AGENT_STORE")
    if not keeps_it:
        _wait_for_keeper(host, port, deadline)
    try:
        return TCPStore(host, port, None, keeps_it, STORE_TIMEOUT, wait_for_workers=False)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"rank {rank} cannot use a store at {host}:{port} ({reason}); choose another port") from error


def _wait_for_keeper(host: str, port: int, deadline: float) -> None:
    """Return when somebody listens there. The store would wait as well, with pages of warnings."""
    while True:
        try:
            socket.create_connection((host, port), 10 * RETRY_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LostRankError(
                    "rank 0 did not come to the start within timeout_minutes: neither it nor a launcher keeps a store "
                    f"at {host}:{port} ({error})"
                ) from error
            time.sleep(RETRY_SECONDS)


def _enter(store: Store, rank: int, world_size: int, deadline: float) -> str:
    """Return the room in which all ranks of this attempt are.

    Every rank leaves a card there. The room is closed once, with the cards that were seen: one that an earlier attempt
    left behind was closed without the card of this rank.
    """
    card = uuid.uuid4().hex
    if rank == 0:
        store.set("room", f"room-{card}")
    while True:
        is_late = time.monotonic() > deadline
        if store.check(["room"]):
            room = store.get("room").decode()
            store.set(f"{room}/{rank}", card)
            keys = [f"{room}/{number}" for number in range(world_size)]
            cards = [store.get(key).decode() if store.check([key]) else None for key in keys]
            absent = [number for number, seen in enumerate(cards) if seen is None]
            if rank != 0 and not absent:
                # The cards may be those of an earlier attempt; rank 0 closes a room as soon as it is full.
                absent = [0]
            if is_late or (rank == 0 and not absent):
                store.compare_set(f"{room}/closed", "", json.dumps({"cards": cards, "absent": absent}))
            closed = json.loads(store.get(f"{room}/closed")) if store.check([f"{room}/closed"]) else None
            if closed is not None and closed["cards"][rank] == card:
                if not closed["absent"]:
                    return room
                # Rank 0 may keep the store, and the others have to read this, too.
                time.sleep(10 * RETRY_SECONDS)
                raise _absent(closed["absent"])
        if is_late:
            raise _absent([0])
        time.sleep(RETRY_SECONDS)


def _absent(ranks: list[int]) -> LostRankError:
    names = ", ".join(f"rank {rank}" for rank in ranks)
    return LostRankError(f"{names} did not come to the start within timeout_minutes")
