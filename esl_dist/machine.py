"""What of the machine a job may use: memory, processors and open files, within the limits of SLURM, Docker, Kubernetes.

And what to do about an error that says that there is too little of them.
"""

import errno
import math
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

from esl_dist.errors import UserError

OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")

MEMORY = {
    True: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    False: ("memory.max", "memory.current", ""),
}
"""Of version 1 of control groups, or of 2: the files of limit and use, and what stands before names in memory.stat."""


def free_memory() -> float:
    """Return how many bytes this process can still take."""
    return min(psutil.virtual_memory().available, left_by_limits())


def usable_processors() -> int:
    """Return how many processors this process may use, at least 1: those of its affinity and its control groups."""
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), processors_by_limits())))


def processors_by_limits() -> float:
    """Return the processors that this process's control groups leave it; 0.5: half a one; infinity: without limit."""

    def quota(group: Path, is_version_1: bool) -> float:
        if is_version_1:
            most, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        else:
            most, period = (group / "cpu.max").read_text().split()
        return math.inf if most in ("-1", "max") else int(most) / int(period)

    return _smallest(quota, "cpu")


def left_by_limits() -> float:
    """Return the bytes that this process's control groups leave it; infinity: without limit.

    Pages of files count as free, for they are dropped when memory is short.
    """

    def left(group: Path, is_version_1: bool) -> float:
        limit, used, prefix = MEMORY[is_version_1]
        most = float((group / limit).read_text().replace("max", "inf"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        pages = int(counts[f"{prefix}active_file"]) + int(counts[f"{prefix}inactive_file"])
        return most - int((group / used).read_text()) + pages

    return _smallest(left, "memory")


def _smallest(of: Callable[[Path, bool], float], controller: str) -> float:
    """Return the smallest value of the groups that may limit what `controller` counts, and of all groups above them.

    Args:
        of: a group's folder, and whether it is of version 1 → its value.
    """
    own_groups = OWN_GROUPS.read_text() if OWN_GROUPS.exists() else ""
    smallest = math.inf
    for _, controllers, group in (line.split(":", 2) for line in own_groups.splitlines()):
        if controllers == "" or controller in controllers.split(","):
            mount = GROUPS / controller if controllers else GROUPS
            for one in (PurePosixPath(group), *PurePosixPath(group).parents):
                # The root has no limit, and from within a container the groups above it are not to be seen.
                with suppress(OSError, KeyError, ValueError):
                    smallest = min(smallest, of(mount / one.relative_to("/"), bool(controllers)))
    return smallest


def allow_open_files(further: int, purpose: str) -> None:
    """Let this process, and those it starts, open as many files as it may allow itself.

    The soft limit is for programs that use select(2), which cannot watch files of high numbers; nothing here does.

    Args:
        further: how many more than now will certainly be open.
        purpose: what for; it follows "too few open files are allowed".

    Raises:
        UserError: it may not open so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    needed = psutil.Process().num_fds() + further
    if soft != resource.RLIM_INFINITY and needed > soft:
        raise UserError(
            f"too few open files are allowed {purpose}: {soft}, and {needed} are needed; raise the limit (ulimit -n)"
        )


def shortage(error: BaseException) -> str | None:
    """Say what there is too little of, and what to do, where an error tells of open files or threads.

    Returns:
        None for any other error.
    """
    number = error.errno if isinstance(error, OSError) else None
    text = str(error).lower()
    if number == errno.ENFILE:
        return "too many files are open on this machine; close programs, or have fs.file-max raised"
    # torch's errors have no number.
    if number in (errno.EMFILE, errno.ETOOMANYREFS) or "too many open files" in text:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        at_most = "" if hard == resource.RLIM_INFINITY else f", at most {hard}"
        return f"too many open files: a process may open {soft} here; raise the limit (ulimit -n{at_most})"
    if "can't start new thread" in text:
        most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        now = "" if most == resource.RLIM_INFINITY else f", now {most}"
        return (
            "no further thread can be started; start fewer processes, or raise the limit on processes and threads "
            f"(ulimit -u{now}; in a container --pids-limit)"
        )
    return None
