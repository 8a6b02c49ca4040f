"""A process that reads answers, or its end is noticed at once with its cause; it needs few files and no /dev/shm."""

import errno
import faulthandler
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import psutil
import pytest
import torch
from torch import Tensor

from esl_dist.data import far_shards, workers
from esl_dist.data.cache import Cache
from esl_dist.data.images import decode_image
from esl_dist.data.sampling import Wanted, as_they_are
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import FILES_A_PROCESS, Workers, read_ahead
from esl_dist.errors import CorruptSampleError, UserError
from tests.builders import drawn_shards
from tests.far_servers import far_server
from tests.programs import PROJECT

PICTURE = (3, 64, 512)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return drawn_shards(tmp_path_factory.mktemp("shards"), 4)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    # One that was killed is a child until it is asked for.
    multiprocessing.active_children()
    assert set(psutil.Process().children()) == before


def sample(wanted: Wanted) -> dict[str, Tensor]:
    position = wanted.position
    return {
        "images": torch.full(PICTURE, float(position)),
        "positions": torch.tensor(position),
        "no": torch.tensor(False),
    }


def bad_at(position: int, act: Callable[[], object]) -> Callable[[Wanted], dict[str, Tensor]]:
    def read(wanted: Wanted) -> dict[str, Tensor]:
        if wanted.position == position:
            act()
        return sample(wanted)

    return read


def failing(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def read_all(
    read: Callable[[Wanted], dict[str, Tensor]], shards: ShardReader, workers: int = 2, minutes: float = 1
) -> list[list[int]]:
    wanted = as_they_are([[0, 1], [2], [3, 0]])
    read_batches = read_ahead(read, wanted, Workers(workers, minutes, "loader.workers"), shards)
    return [batch["positions"].tolist() for batch in read_batches]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_come_in_their_order_with_shapes_and_types(shards: ShardReader, workers: int) -> None:
    positions = [[number % 4, (number + 1) % 4, 3][: 1 + number % 3] for number in range(20)]
    found = list(read_ahead(sample, as_they_are(positions), Workers(workers, 1), shards))
    assert [batch["positions"].tolist() for batch in found] == positions
    for batch, wanted in zip(found, positions, strict=True):
        assert torch.equal(batch["images"], torch.stack([sample(Wanted(position))["images"] for position in wanted]))
        assert (batch["no"].dtype, batch["no"].shape) == (torch.bool, (len(wanted),))


def test_batches_of_other_sizes_follow_each_other(shards: ShardReader) -> None:
    def read(wanted: Wanted) -> dict[str, Tensor]:
        return {"images": torch.full((3, 1 + 7 * wanted.position, 5), wanted.position, dtype=torch.uint8)}

    positions = [[3], [0], [2, 2], [1], [3]] * 3
    for wanted, batch in zip(positions, read_ahead(read, as_they_are(positions), Workers(1, 1), shards), strict=True):
        assert torch.equal(batch["images"], torch.stack([read(Wanted(position))["images"] for position in wanted]))


def test_samples_that_do_not_fit_into_one_batch_are_refused(shards: ShardReader) -> None:
    def read(wanted: Wanted) -> dict[str, Tensor]:
        return {"images": torch.zeros(3, 1 + wanted.position, 5)}

    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        list(read_ahead(read, as_they_are([[0, 1]]), Workers(1, 1), shards))


def test_reading_takes_as_many_files_as_it_said_and_gives_them_back(shards: ShardReader) -> None:
    # What earlier tests have left open, and nobody holds any more, would be closed at any moment.
    gc.collect()
    before = psutil.Process().num_fds()
    with closing(read_ahead(sample, as_they_are([[0]] * 60), Workers(2, 1), shards)) as read:
        kept = [next(read) for _ in range(53)]
        assert psutil.Process().num_fds() == before + 2 * FILES_A_PROCESS
    assert psutil.Process().num_fds() == before
    assert len(kept) == 53


KILLED = "was killed, perhaps because memory ran out: use fewer than loader.workers={}, or a smaller batch"
CRASHED = "crashed ({}) at {}/shard-000000.tar, sample 'scene_002'; a damaged file may have crashed its decoder:"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, KILLED),
        (signal.SIGSEGV, CRASHED),
        (signal.SIGBUS, CRASHED),
        (signal.SIGABRT, CRASHED),
        (signal.SIGHUP, "was ended by a signal from outside (SIGHUP); start again"),
    ],
)
def test_the_end_of_a_process_is_told_with_its_cause(
    shards: ShardReader, workers: int, number: signal.Signals, message: str
) -> None:
    def end() -> None:
        # A crash that is wanted leaves neither a traceback nor a core.
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)

    with pytest.raises(UserError) as found:
        read_all(bad_at(2, end), shards, workers)
    arguments = (workers,) if message is KILLED else (number.name, shards.folder)
    assert str(found.value).startswith(f"a process that reads {shards.folder} {message.format(*arguments)}")


def test_a_library_that_ends_the_process_is_not_taken_for_a_want_of_memory(shards: ShardReader) -> None:
    with pytest.raises(UserError, match=r"ended \(exit code 7\) at .*, sample 'scene_002'; look for the cause above"):
        read_all(bad_at(2, lambda: os._exit(7)), shards)


def test_an_end_in_the_middle_of_a_long_answer_is_told_like_any_other(
    shards: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_half(pipe: Connection, _: object) -> None:
        os.write(pipe.fileno(), (1000).to_bytes(4, "big") + b"a beginning")
        os._exit(7)

    # It is called in the process that reads, and so patches that one alone.
    read = bad_at(2, lambda: monkeypatch.setattr(Connection, "_send_bytes", send_half))
    with pytest.raises(UserError, match=r"ended \(exit code 7\) at .*, sample 'scene_002'; look for the cause above"):
        read_all(read, shards)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_want_of_memory_is_told_as_one(shards: ShardReader, error: Exception) -> None:
    with pytest.raises(UserError, match=rf"reads {shards.folder} ran out of memory: use fewer than loader.workers=2"):
        read_all(bad_at(2, failing(error)), shards)


def test_a_picture_for_which_opencv_finds_no_memory_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    error = cv2.error("Insufficient memory")
    error.code = cv2.Error.StsNoMem
    monkeypatch.setattr(cv2, "imdecode", lambda *_: failing(error)())
    with pytest.raises(MemoryError):
        decode_image(b"\x89PNG picture")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_told_as_such(shards: ShardReader, number: int) -> None:
    with pytest.raises(UserError, match=rf"reads {shards.folder} cannot go on: too many"):
        read_all(bad_at(2, failing(OSError(number, os.strerror(number)))), shards)


def test_a_corrupt_sample_is_told_in_its_own_words(shards: ShardReader) -> None:
    with pytest.raises(UserError, match=r"^s.tar, sample 'a': damaged$"):
        read_all(bad_at(2, failing(CorruptSampleError("s.tar, sample 'a': damaged"))), shards)


def test_a_mistake_of_the_program_keeps_its_traceback(shards: ShardReader) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a process that reads:.*test_workers\.py.*KeyError: 'a mistake'"):
        read_all(bad_at(2, failing(KeyError("a mistake"))), shards)


def test_a_process_that_is_silent_for_too_long_ends_the_reading(shards: ShardReader) -> None:
    message = (
        r"has sent nothing for 0\.02 minutes, at \S*, sample 'scene_002': it is stopped, or the disk does not answer"
    )
    with pytest.raises(UserError, match=message):
        read_all(bad_at(2, lambda: os.kill(os.getpid(), signal.SIGSTOP)), shards, minutes=0.02)


def test_signals_to_stop_do_not_cost_the_program_its_samples(shards: ShardReader) -> None:
    def interrupt() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    assert read_all(bad_at(2, interrupt), shards) == [[0, 1], [2], [3, 0]]


def test_processes_cannot_be_started_for_want_of_processes(
    shards: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    monkeypatch.setattr(os, "fork", failing(error))
    with pytest.raises(UserError, match=rf"reads {shards.folder} cannot be started: .*\(ulimit -u\).*loader.workers=2"):
        read_all(sample, shards)


def ends(process: int) -> bool:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


KILLED_PROGRAM = """
import os, sys
from tests.data.test_workers import *
read = read_ahead(sample, as_they_are([[0]] * 100), Workers(3, 1), open_shards(sys.argv[1]))
next(read)
readers = [child.pid for child in psutil.Process().children()]
other = os.fork()
if other == 0:
    time.sleep(60)
    os._exit(0)
print(*readers, other, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_read_do_not_outlive_a_killed_program(shards: ShardReader) -> None:
    words = [sys.executable, "-c", KILLED_PROGRAM, str(shards.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as program:
        assert program.stdout is not None
        *readers, other = (int(word) for word in program.stdout.readline().split())
        try:
            assert program.wait(60) == -signal.SIGKILL
            assert len(readers) == 3
            assert all(ends(process) for process in readers)
        finally:
            # It held the other end of all that the killed program had open.
            os.kill(other, signal.SIGKILL)


HELD_STREAM = """
import os, sys, threading, time, fcntl, struct, termios, torch
from esl_dist.data.sampling import as_they_are
from esl_dist.data.shards import open_shards
from esl_dist.data.workers import Workers, read_ahead
from esl_dist.early import make_streams_robust

make_streams_robust()

def read(wanted):
    print("warning: one is corrupt", file=sys.stderr, flush=True)
    return {"positions": torch.tensor(wanted.position)}

def waiting():
    return struct.unpack("i", fcntl.ioctl(2, termios.FIONREAD, b"0000"))[0]

# The pipe takes no more, and the thread waits in the stream, whose lock it holds.
size = fcntl.fcntl(2, fcntl.F_GETPIPE_SZ)
threading.Thread(target=print, args=("x" * 2 * size,), kwargs={"file": sys.stderr, "flush": True}).start()
while waiting() < size:
    time.sleep(0.001)
batches = read_ahead(read, as_they_are([[0]]), Workers(1, 0.2), open_shards(sys.argv[1]))
os.register_at_fork(after_in_parent=lambda: print("forked", flush=True))
print(next(batches)["positions"].tolist(), flush=True)
"""


def test_a_process_warns_though_another_thread_was_writing_when_it_was_forked(shards: ShardReader) -> None:
    words = [sys.executable, "-c", HELD_STREAM, str(shards.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "forked\n"
        out, error = program.communicate(timeout=60)
    assert out == "[0]\n", error[-1000:]
    assert "warning: one is corrupt" in error


def test_a_process_does_not_collect_what_is_its_parent_s(shards: ShardReader, tmp_path: Path) -> None:
    class Owner:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            (tmp_path / f"collected_by_{os.getpid()}").touch()

    gc.disable()
    try:
        Owner()
        assert read_all(bad_at(2, gc.collect), shards) == [[0, 1], [2], [3, 0]]
    finally:
        gc.enable()
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [f"collected_by_{os.getpid()}"]


def read_with_few_files(folder: Path, spare: int) -> str:
    """Read, and keep what is read, where `spare` files more may be open than are; returns what came of it."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, lowest_free + spare))
    try:
        kept: list[object] = []
        for batch in read_ahead(sample, as_they_are([[0]] * 6), Workers(2, 1), open_shards(folder)):
            kept.append(batch)
            with suppress(OSError):
                # In the end not even one file is left.
                os.dup(0)
        return f"{len(kept)} batches"
    except UserError as error:
        return f"UserError: {error}"


FEW_FILES = """
import os, sys
from tests.data.test_workers import *
for spare in range(20):
    sys.stdout.flush()
    if os.fork() == 0:
        print(read_with_few_files(Path(sys.argv[1]), spare), flush=True)
        os._exit(0)
    os.wait()
"""


def test_whatever_the_limit_on_open_files_the_batches_come_or_the_limit_is_named(shards: ShardReader) -> None:
    words = [sys.executable, "-c", FEW_FILES, str(shards.folder)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PROJECT, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 20
    assert lines[-1] == "6 batches"
    refused = [line for line in lines if line != lines[-1]]
    assert any("allowed to read" in line for line in refused), refused
    for line in refused[1:]:
        assert line.startswith("UserError: "), line
        assert "(ulimit -n" in line
        assert "open files" in line


def test_a_process_that_fetches_slowly_is_waited_for_and_one_that_does_nothing_is_not(
    shards: ShardReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_shards, "PART_BYTES", 500)
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.1)
    heard = Counter[str]()
    timeout = Workers(1, 2 / 60, progress=lambda: heard.update(["got on"]))

    def slow(method: str, name: str) -> None:
        time.sleep(0.1 if name.endswith(".tar") else 0)

    with far_server(Path(shards.folder), fault=slow) as far:
        reader, began = open_shards(far.url, cache=Cache(tmp_path / "cache", 10**9, 1)), time.monotonic()

        def image(wanted: Wanted) -> dict[str, Tensor]:
            return {"bytes": torch.tensor(len(reader.read(wanted.position, "image")))}

        [batch] = read_ahead(image, as_they_are([[0, 3]]), timeout, reader)
    assert batch["bytes"].tolist() == [len(shards.read(position, "image")) for position in (0, 3)]
    assert time.monotonic() - began > 2, "longer than a process may be silent"
    assert heard["got on"] > 2, "other ranks know it"
    with pytest.raises(UserError, match=r"has sent nothing for 0\.0333333 minutes"):
        list(read_ahead(bad_at(0, lambda: time.sleep(60)), as_they_are([[0]]), timeout, shards))
