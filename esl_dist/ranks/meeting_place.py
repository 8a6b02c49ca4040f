"""Where the ranks are to meet, as the launcher's environment names it: read, and refused, before torch is imported."""

import ipaddress
import os
import re
from contextlib import suppress

from esl_dist.environment import RANK, whole_number
from esl_dist.errors import UserError
from esl_dist.files import as_given


def meeting_place(world_size: int) -> tuple[str, int]:
    """Return the host and the port of the store in which so many ranks meet.

    Raises:
        UserError: the environment names none, or none that can be; or it does not say which rank this one is.
    """
    port = whole_number("MASTER_PORT", 1, 2**16 - 1)
    if port is None or "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"{world_size} ranks were started without MASTER_ADDR and MASTER_PORT, where they would meet; set them on "
            "every rank to the address of rank 0's machine and a free port there, or start them with torchrun, srun or "
            "accelerate launch"
        )
    if not any(variable in os.environ for variable in RANK):
        raise UserError(
            f"WORLD_SIZE={world_size} without RANK: which of the processes this one is cannot be known; start them "
            "with torchrun or accelerate launch"
        )
    return _host(os.environ["MASTER_ADDR"]), port


def _host(given: str) -> str:
    host = host_of(given)
    with suppress(ValueError):
        # "a..b" is no name, and "a:29500" no address of IPv6.
        if re.fullmatch(r"[\w.-]+", host) and host.encode("idna"):
            return host
        ipaddress.IPv6Address(host)
        return host
    raise UserError(
        f"MASTER_ADDR={as_given(given)} is impossible: expected the name or the address of rank 0's machine, without a "
        "port, which goes into MASTER_PORT; correct it in the environment"
    )


def host_of(address: str) -> str:
    """Return a host as MASTER_ADDR names it, an IPv6 address without the brackets that it has before a port."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address
