"""How much memory is free: on the machine, and within a limit as SLURM, Docker and Kubernetes set one."""

import math
from pathlib import Path, PurePosixPath

import psutil

OWN_GROUPS = Path("/proc/self/cgroup")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
VERSION_2 = ("memory.max", "memory.current", "")
"""A control group's files of its limit and its use, and what stands before the names in its memory.stat."""
FILE_PAGES = ("active_file", "inactive_file")


def free_memory() -> float:
    """Return how many bytes this process can still take."""
    own_groups = OWN_GROUPS.read_text() if OWN_GROUPS.exists() else ""
    return min(psutil.virtual_memory().available, left_by_limits(own_groups, Path("/sys/fs/cgroup")))


def left_by_limits(own_groups: str, root: Path) -> float:
    """Return the bytes that are left by the limits of a process's control groups and of all groups above them.

    Args:
        own_groups: what /proc/self/cgroup says, of version 1, 2 or both.
        root: where the groups are mounted.

    Returns:
        infinity where there is no limit.
    """
    left = math.inf
    for line in own_groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            mount, names = (root / "memory", VERSION_1) if controllers else (root, VERSION_2)
            for one in (PurePosixPath(group), *PurePosixPath(group).parents):
                left = min(left, _left_by_limit(mount / one.relative_to("/"), *names))
    return left


def _left_by_limit(group: Path, limit: str, used: str, prefix: str) -> float:
    """Return what a group's limit leaves; pages of files count as free, for they are dropped when memory is short."""
    try:
        most = float((group / limit).read_text().replace("max", "inf"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - int((group / used).read_text()) + sum(int(counts[prefix + name]) for name in FILE_PAGES)
    except (OSError, KeyError, ValueError):
        # The root has no limit, and from within a container the groups above it are not to be seen.
        return math.inf
