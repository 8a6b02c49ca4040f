"""What of the machine a job may use: memory, processors and open files, within the limits of SLURM, Docker, Kubernetes.

And what to do about an error that says that there is too little of them.
"""

import errno
import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

from esl_dist.errors import UserError

OWN_GROUPS = Path("/proc/self/cgroup")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
VERSION_2 = ("memory.max", "memory.current", "")
"""A control group's files of its limit and its use, and what stands before the names in its memory.stat."""
FILE_PAGES = ("active_file", "inactive_file")


def free_memory() -> float:
    """Return how many bytes this process can still take."""
    own_groups = OWN_GROUPS.read_text() if OWN_GROUPS.exists() else ""
    return min(psutil.virtual_memory().available, left_by_limits(own_groups, Path("/sys/fs/cgroup")))


def usable_processors() -> int:
    """Return how many processors this process may use, at least 1: those of its affinity and its control groups."""
    own_groups = OWN_GROUPS.read_text() if OWN_GROUPS.exists() else ""
    share = processors_by_limits(own_groups, Path("/sys/fs/cgroup"))
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), share)))


def processors_by_limits(own_groups: str, root: Path) -> float:
    """Return the processors that are left by the limits of a process's control groups and of all groups above them.

    Args:
        own_groups: what /proc/self/cgroup says, of version 1, 2 or both.
        root: where the groups are mounted.

    Returns:
        infinity where there is no limit; a limit of half a processor gives 0.5.
    """
    return min(
        (_processor_quota(group, is_version_1) for group, is_version_1 in _groups(own_groups, root, "cpu")),
        default=math.inf,
    )


def _processor_quota(group: Path, is_version_1: bool) -> float:
    try:
        if is_version_1:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            return int(quota) / int(period) if int(quota) > 0 else math.inf
        quota, period = (group / "cpu.max").read_text().split()
        return float(quota.replace("max", "inf")) / int(period)
    except (OSError, ValueError):
        # As with memory: the root has no limit, and not all groups are to be seen.
        return math.inf


def left_by_limits(own_groups: str, root: Path) -> float:
    """Return the bytes that are left by the limits of a process's control groups and of all groups above them.

    Args:
        own_groups: what /proc/self/cgroup says, of version 1, 2 or both.
        root: where the groups are mounted.

    Returns:
        infinity where there is no limit.
    """
    return min(
        (
            _left_by_limit(group, *(VERSION_1 if is_version_1 else VERSION_2))
            for group, is_version_1 in _groups(own_groups, root, "memory")
        ),
        default=math.inf,
    )


def _groups(own_groups: str, root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the groups that may limit what `controller` counts, and whether they are of version 1."""
    for line in own_groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = root / controller if controllers else root
            for one in (PurePosixPath(group), *PurePosixPath(group).parents):
                yield mount / one.relative_to("/"), bool(controllers)


def _left_by_limit(group: Path, limit: str, used: str, prefix: str) -> float:
    """Return what a group's limit leaves; pages of files count as free, for they are dropped when memory is short."""
    try:
        most = float((group / limit).read_text().replace("max", "inf"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - int((group / used).read_text()) + sum(int(counts[prefix + name]) for name in FILE_PAGES)
    except (OSError, KeyError, ValueError):
        # The root has no limit, and from within a container the groups above it are not to be seen.
        return math.inf


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
