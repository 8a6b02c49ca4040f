"""What this machine has: packages, GPUs, processors, memory, places for files, and who started this process.

Each function judges plain numbers, so that what it says of a machine can be seen on any other.
"""

import os
import platform
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import psutil
from packaging.requirements import Requirement

from esl_dist.config import PRECISIONS
from esl_dist.doctor.findings import Finding, looked_at
from esl_dist.environment import launch, started_by_torchrun
from esl_dist.files import as_given, why_not_writable
from esl_dist.machine import free_memory, usable_processors

PROJECT = "esl-dist"
FOR_DEVELOPERS = ("bench", "docs", "test")
"""Extras that no program needs."""
ALWAYS_NAMED = ("torch", "torchvision", "accelerate", "numpy")

NCCL_SHARED = 2**30
"""Bytes of /dev/shm that are enough for NCCL between the GPUs of one machine, as the container's page has it."""
FEW_FILES = 256
LONGEST_SOCKET = 107
"""Bytes of a named socket's path (unix(7))."""
OWN_NAMES = len("/pymp-xxxxxxxx/listener-xxxxxxxx")
"""What Python's multiprocessing, for one, puts behind the temporary folder."""
LITTLE_ROOM = 10**9

DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")


VersionOf = Callable[[str], str | None]
"""A package's name → its version; None: it is not there."""


class Gpu(NamedTuple):
    """A GPU that torch sees.

    Attributes:
        name: the maker's.
        memory: bytes.
        free: bytes of it.
        capability: compute capability, `9.0`.
        precisions: those of forward passes that it has.
    """

    name: str
    memory: int
    free: int
    capability: str
    precisions: tuple[str, ...]


class Place(NamedTuple):
    """A folder for files, which need not be there yet.

    Attributes:
        path: as it is given.
        free: bytes on its disk; None: not known, as of some file systems far away.
        why_not: why nothing can be written there; None: something can.
    """

    path: str
    free: int | None
    why_not: str | None


def place_at(path: str) -> Place:
    """Look at a folder."""
    there = next(one for one in (Path(path).absolute(), *Path(path).absolute().parents) if one.exists())
    disk = shutil.disk_usage(there)
    return Place(path, disk.free if disk.total else None, why_not_writable(Path(path)))


def gigabytes(count: float) -> str:
    """Write bytes as people say them."""
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 10**6 else f"{count / 1e3:.0f} kB"


def findings_of_machine(experiments: str) -> list[Finding]:
    """Return what this machine has.

    Args:
        experiments: folder of runs.
    """
    seen, memory = gpus(), psutil.virtual_memory()
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        Finding("ok", "python", f"{platform.python_version()}, {platform.platform()}"),
        *packages(requires_of_project(), installed_version),
        *judged_gpus(seen, any(Path("/dev").glob("nvidia[0-9]*")), driver_of(DRIVER)),
        *judged_backends(_backends(), len(seen)),
        processors(usable_processors(), os.cpu_count() or 1),
        Finding("ok", "memory", f"{gigabytes(free_memory())} free for this job, {gigabytes(memory.total)} in all"),
        shared_memory(None if shared is None else shared.total, len(seen)),
        open_files(*limits),
        looked_at("TMPDIR", _temporary_folder),
        place("experiments", place_at(experiments)),
        looked_at("launcher", launcher),
    ]


def _temporary_folder() -> Finding:
    try:
        return temporary_folder(os.environ.get("TMPDIR"), place_at(tempfile.gettempdir()))
    except FileNotFoundError as error:
        return Finding("problem", "TMPDIR", f"{error.strerror}; make room, or set TMPDIR to a folder that is there")


def requires_of_project() -> list[Requirement]:
    """Return what the installed project needs, extras included; a checkout that is not installed says nothing."""
    try:
        return [Requirement(text) for text in requires(PROJECT) or []]
    except PackageNotFoundError:
        return []


def installed_version(package: str) -> str | None:
    """Return a package's version; None: it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def packages(needed: Iterable[Requirement], version_of: VersionOf) -> list[Finding]:
    """Return whether what is needed is there, and which extras are not.

    Args:
        needed: with the extra of each as its marker.
        version_of: a package's name → its version, or None.
    """
    by_extra: dict[str, list[Requirement]] = {}
    for one in needed:
        found = re.search(r"extra == ['\"]([^'\"]+)['\"]", str(one.marker or ""))
        extra = "" if found is None else found[1]
        # Some are for another Python or system alone.
        if one.name != PROJECT and (one.marker is None or one.marker.evaluate({"extra": extra})):
            by_extra.setdefault(extra, []).append(one)
    findings = [
        Finding("problem", one.name, f"{_lack(one, version_of)}; pip install '{one.name}{one.specifier}'")
        for one in by_extra.pop("", [])
        if _lack(one, version_of)
    ]
    named = [f"{name} {version_of(name)}" for name in (PROJECT, *ALWAYS_NAMED) if version_of(name) is not None]
    if version_of(PROJECT) is None:
        findings.append(Finding("note", PROJECT, "not installed, so versions of packages are not compared"))
    findings.insert(0, Finding("ok", "packages", ", ".join(named)))
    for extra, ones in sorted(by_extra.items()):
        if extra not in FOR_DEVELOPERS:
            findings.append(_extra(extra, ones, version_of))
    return findings


def _extra(extra: str, needed: list[Requirement], version_of: VersionOf) -> Finding:
    lacking = list(filter(None, (_lack(one, version_of) for one in needed)))
    if lacking:
        install = f"if you need it: pip install '{PROJECT}[{extra}]'"
        return Finding("note", f"[{extra}]", f"{', '.join(lacking)}; {install}")
    return Finding("ok", f"[{extra}]", ", ".join(f"{one.name} {version_of(one.name)}" for one in needed))


def _lack(one: Requirement, version_of: VersionOf) -> str:
    found = version_of(one.name)
    if found is None:
        return f"{one.name} is not installed"
    is_enough = one.specifier.contains(found, prereleases=True)
    return "" if is_enough else f"{one.name} {found} is installed, {one.specifier} needed"


def gpus() -> list[Gpu]:
    """Return the GPUs that torch sees."""
    import torch

    from esl_dist.ranks.precision import missing

    if not torch.cuda.is_available():
        return []
    found = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        free, memory = torch.cuda.mem_get_info(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        precisions = tuple(one for one in PRECISIONS if missing(one, device) is None)
        found.append(Gpu(torch.cuda.get_device_name(device), memory, free, capability, precisions))
    return found


def _backends() -> dict[str, str | None]:
    from esl_dist.ranks.backends import backends

    return backends()


def driver_of(file: Path) -> str:
    """Return the version of NVIDIA's driver as the kernel tells it; empty where it tells none."""
    try:
        found = re.search(r"(?:Kernel Module|NVRM version:).*?\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text())
    except OSError:
        return ""
    return "" if found is None else found[1]


def judged_gpus(seen: list[Gpu], is_device_there: bool, driver: str) -> Iterator[Finding]:
    """Yield a line a GPU.

    Args:
        seen: those that torch sees.
        is_device_there: whether the system has a device of NVIDIA's.
        driver: its version; empty: not known.
    """
    said = f", driver {driver}" if driver else ""
    for number, one in enumerate(seen):
        words = f"{one.name}, {gigabytes(one.free)} of {gigabytes(one.memory)} free, compute capability"
        words += f" {one.capability}{said}; precision {', '.join(one.precisions)}"
        is_in_use = one.free < one.memory / 2
        remedy = "; another program uses it: end it, or choose others with CUDA_VISIBLE_DEVICES" if is_in_use else ""
        yield Finding("note" if is_in_use else "ok", f"GPU {number}", words + remedy)
    if not seen and is_device_there:
        yield Finding(
            "note",
            "GPU",
            f"there is one that torch does not see{said}: install a build of torch for CUDA that the driver is new "
            "enough for, and look whether CUDA_VISIBLE_DEVICES hides it",
        )
    elif not seen:
        yield Finding("note", "GPU", "none: programs compute on the processor; precision no, bf16")


def judged_backends(found: Mapping[str, str | None], gpus: int) -> Iterator[Finding]:
    """Yield what ranks can exchange tensors with, where so many GPUs are."""
    has = [f"{name} {version}".rstrip() for name, version in found.items() if version is not None]
    lacking = [name for name, version in found.items() if version is None and (name != "NCCL" or gpus > 1)]
    if lacking:
        remedy = "several processes cannot meet; install a build of torch that has it"
        yield Finding("note", "backends", f"torch has no {' and no '.join(lacking)}: {remedy}")
    if has:
        yield Finding("ok", "backends", ", ".join(has))


def processors(usable: int, there: int) -> Finding:
    """Return how many processors the job may use."""
    limited = f" of {there}: the job's affinity or its control group allows no more" if usable < there else ""
    return Finding("ok", "processors", f"{usable}{limited}")


def shared_memory(size: int | None, gpus: int) -> Finding:
    """Judge /dev/shm: the processes that read use none of it, and NCCL may, between the GPUs of one machine.

    Args:
        size: in bytes; None: there is none.
        gpus: of this machine.
    """
    said = "there is none" if size is None else gigabytes(size)
    if gpus > 1 and (size or 0) < NCCL_SHARED:
        remedy = "give the container --shm-size 1g"
        return Finding("note", "/dev/shm", f"{said}; NCCL may want more between GPUs of one machine: {remedy}")
    return Finding("ok", "/dev/shm", f"{said}; the processes that read samples use none of it")


def open_files(soft: int, hard: int) -> Finding:
    """Judge the limit of open files, which programs raise to the hard one themselves; -1: none."""
    if hard == resource.RLIM_INFINITY:
        return Finding("ok", "open files", "without limit")
    words = f"{hard} a process" + (f" ({soft} until a program asks for more)" if soft != hard else "")
    if hard < FEW_FILES:
        return Finding("note", "open files", f"{words}; several ranks or readers may need more: raise ulimit -n")
    return Finding("ok", "open files", words)


def temporary_folder(asked: str | None, used: Place) -> Finding:
    """Judge the folder of temporary files.

    Args:
        asked: TMPDIR; None: not set.
        used: where Python puts them.
    """
    finding = place("TMPDIR", used)
    if finding.level == "problem":
        return finding
    if asked is not None and os.path.abspath(asked) != os.path.abspath(used.path):
        words = f"{as_given(asked)} cannot be used, {used.path} is; make it, or set TMPDIR to a folder that is there"
        return Finding("note", "TMPDIR", words)
    length = len(os.fsencode(used.path))
    if length + OWN_NAMES > LONGEST_SOCKET:
        words = (
            f"its path has {length} bytes: nothing here puts named sockets there, whose paths end at {LONGEST_SOCKET}, "
            f"but other libraries may; set TMPDIR to a folder of at most {LONGEST_SOCKET - OWN_NAMES} bytes if one does"
        )
        return Finding("note", "TMPDIR", words)
    return finding


def place(setting: str, one: Place) -> Finding:
    """Judge a folder for files."""
    if one.why_not is not None:
        return Finding("problem", setting, f"{one.path}: cannot be written: {one.why_not}; choose another {setting}")
    if one.free is None:
        return Finding("note", setting, f"{one.path}: its file system does not say how much is free")
    little = one.free < LITTLE_ROOM
    remedy = "; make room, or choose another place" if little else ""
    return Finding("note" if little else "ok", setting, f"{one.path}: {gigabytes(one.free)} free{remedy}")


def launcher() -> str:
    """Say what started this process, by the variables that launchers set.

    Raises:
        UserError: they say what cannot be.
    """
    launched = launch()
    of = f"rank {launched.rank} of {launched.world_size}, {launched.local_world_size} on this machine"
    names = {
        "torchrun": started_by_torchrun(),
        "accelerate launch": any(name.startswith("ACCELERATE_") for name in os.environ),
        f"SLURM job {os.environ.get('SLURM_JOB_ID', '')}": "SLURM_JOB_ID" in os.environ,
    }
    by = " in ".join(name for name, is_there in names.items() if is_there)
    if not by:
        return of if launched.world_size > 1 else "none: one process"
    return f"{by}: {of}"
