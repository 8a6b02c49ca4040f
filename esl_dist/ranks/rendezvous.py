"""Where the ranks meet before all else: in a store at the address that the launcher's environment names.

torch.distributed waits there for all of them, too, but it cannot say who is absent; and where torchrun starts the ranks
again, it finds in the launcher's store what those of the earlier attempt left, and connects to the dead (issue 135712
of PyTorch). The launcher's count of restarts does not tell attempts apart: each node counts its own. So rank 0 gives
every attempt a name of its own in the store, and it holds when all have joined it.
"""

import json
import socket
import threading
import time
import uuid
from concurrent.futures import Future
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from esl_dist.environment import flag, launch
from esl_dist.errors import LostRankError, UserError
from esl_dist.machine import allow_open_files
from esl_dist.ranks.meeting_place import meeting_place
from esl_dist.ranks.network import is_this_machine, machine, machine_of_store

STORE_TIMEOUT = timedelta(seconds=30)
RETRY_SECONDS = 0.1
FILES, FILES_A_RANK = 20, 3
"""What is open at least where the store is kept: of the process's own, and for each rank."""

ANSWER_SECONDS = 10.0
"""After the timeout, until a store that does not answer is given up."""

LOOPBACK = "127.0.0.1"
REACH = (
    "; if rank 0 runs, MASTER_ADDR or MASTER_PORT is not that of its machine, or the network or a firewall between the "
    "two machines lets nothing through"
)
REACHED = (
    "; if it runs, its MASTER_ADDR or MASTER_PORT is not that of this machine, rank 0's, or the network or a firewall "
    "between the two machines lets nothing through"
)


def meet(timeout_minutes: float) -> tuple[Store, Store] | None:
    """Return when all ranks that the launcher started have come; None if this is the only one.

    Args:
        timeout_minutes: how long a rank waits for the others.

    Returns:
        two connections to the part of the store that is this attempt's alone: what waits for an answer on one does not
        hold up the other. Where rank 0 keeps the store, it goes with the first.

    Raises:
        UserError: the environment names no address, or it cannot be used; or too few open files are allowed.
        LostRankError: some ranks did not come; the message names them.
    """
    launched = launch()
    if launched.world_size == 1:
        return None
    # A store that may open too few files takes no connection, and says nothing.
    allow_open_files(FILES + FILES_A_RANK * launched.world_size, f"for {launched.world_size} ranks")
    host, port = meeting_place(launched.world_size)
    seconds = 60 * timeout_minutes
    joined: Future[tuple[Store, Store]] = Future()
    is_found = threading.Event()
    keeps_it = launched.rank == 0 and not flag("TORCHELASTIC_USE_AGENT_STORE")

    def join() -> None:
        try:
            deadline = time.monotonic() + seconds
            if not keeps_it:
                _wait_for_keeper(host, port, deadline)
            is_found.set()
            store = _open_store(host, port, launched.rank, keeps_it)
            own = PrefixStore(_join(store, launched.rank, launched.world_size, deadline), store)
            joined.set_result((own, own.clone()))
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            joined.set_exception(
                LostRankError(f"the store of the ranks was lost at the start, and rank 0 with it ({reason})")
            )
        except Exception as error:
            joined.set_exception(error)

    # In a thread of its own, for a store that does not answer holds up a call without end.
    threading.Thread(target=join, daemon=True).start()
    try:
        return joined.result(min(seconds + ANSWER_SECONDS, threading.TIMEOUT_MAX))
    except LostRankError as error:
        if keeps_it and not is_this_machine():
            raise LostRankError(f"{error}; MASTER_ADDR={host} is no address of this machine, rank 0's") from error
        if keeps_it and launched.local_world_size < launched.world_size:
            raise LostRankError(f"{error}{REACHED}") from error
        raise
    except TimeoutError as error:
        if not is_found.is_set():
            raise _nobody_at(host, port, "no answer where names are looked up", is_far=True) from error
        raise LostRankError(
            f"what listens at {host}:{port} does not answer: rank 0 or the launcher is stopped, or it is no store of "
            "theirs"
        ) from error


def _open_store(host: str, port: int, rank: int, keeps_it: bool) -> TCPStore:
    # Its own machine reaches it whatever becomes of the network, and of the addresses that go with an interface.
    place = LOOPBACK if keeps_it or is_this_machine() else host
    try:
        return TCPStore(place, port, None, keeps_it, STORE_TIMEOUT, wait_for_workers=False)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"rank {rank} cannot use a store at {host}:{port} ({reason}); choose another port") from error


def _wait_for_keeper(host: str, port: int, deadline: float) -> None:
    """Return when somebody listens there. The store would wait as well, with pages of warnings.

    A name that is not known yet is waited for, too: that of a container may come later than the container.
    """
    while True:
        try:
            socket.create_connection((host, port), 10 * RETRY_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                is_unknown = isinstance(error, socket.gaierror)
                reason = f"this machine does not know the name in MASTER_ADDR: {error}" if is_unknown else str(error)
                raise _nobody_at(host, port, reason, is_unknown or machine_of_store() != machine()) from error
            time.sleep(RETRY_SECONDS)


def _nobody_at(host: str, port: int, reason: str, is_far: bool) -> LostRankError:
    return LostRankError(
        "rank 0 did not come to the start within timeout_minutes: neither it nor a launcher keeps a store at "
        f"{host}:{port} ({reason}){REACH if is_far else ''}"
    )


def _join(store: Store, rank: int, world_size: int, deadline: float) -> str:
    """Return the name of the attempt that all ranks have joined.

    Every rank leaves a token there. The attempt is closed once, with the tokens that were seen: one that an earlier
    start left behind was closed without the token of this rank.
    """
    token = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", token)
    while True:
        is_late = time.monotonic() > deadline
        if store.check(["attempt"]):
            attempt = store.get("attempt").decode()
            store.set(f"{attempt}/{rank}", token)
            keys = [f"{attempt}/{number}" for number in range(world_size)]
            tokens = [store.get(key).decode() if store.check([key]) else "" for key in keys]
            if is_late or (rank == 0 and all(tokens)):
                store.compare_set(f"{attempt}/closed", "", json.dumps({"by": rank, "tokens": tokens}))
            closed = json.loads(store.get(f"{attempt}/closed")) if store.check([f"{attempt}/closed"]) else None
            if closed is not None and closed["tokens"][rank] == token:
                absent = [number for number, seen in enumerate(closed["tokens"]) if not seen]
                if not absent and closed["by"] == 0:
                    return attempt
                # Rank 0 may keep the store, and the others have to read this, too.
                time.sleep(10 * RETRY_SECONDS)
                # Rank 0 closes at once when all are there: where another did, the tokens are those of an earlier start.
                raise _absent(absent or [0])
        if is_late:
            raise _absent([0])
        time.sleep(RETRY_SECONDS)


def _absent(ranks: list[int]) -> LostRankError:
    names = ", ".join(f"rank {rank}" for rank in ranks)
    return LostRankError(f"{names} did not come to the start within timeout_minutes")
