"""What NCCL is told, and what is told of its errors; with GPUs that a machine without any can only pretend to have."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from esl_dist.endings import EXIT_DEFECT, EXIT_USER_ERROR, ending
from esl_dist.environment import Launch
from esl_dist.errors import UserError
from esl_dist.ranks import gpus, nccl, session
from esl_dist.ranks.launchers import DEVICE
from esl_dist.ranks.session import joined_ranks

TEXT = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.27.3
{}
Last error:
{}
"""
REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
INVALID = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
ASSERT = "Cuda failure 710 'device-side assert triggered'"
BUSY = "Cuda failure 46 'CUDA-capable device(s) is/are busy or unavailable'"
UNHANDLED = "ncclUnhandledCudaError: Call to CUDA function failed."


@pytest.mark.parametrize(
    ("error", "is_broken", "reason"),
    [
        (
            dist.DistBackendError(TEXT.format("a", REMOTE, "recv: peer closed")),
            True,
            "ncclRemoteError: recv: peer closed",
        ),
        (dist.DistBackendError(TEXT.format("a", REMOTE, "")), True, REMOTE),
        (dist.DistBackendError(f"NCCL error in: x\n{REMOTE}"), True, REMOTE),
        (
            dist.DistBackendError("NCCL communicator was aborted on rank 0."),
            True,
            "NCCL communicator was aborted on rank 0.",
        ),
        (dist.DistNetworkError("connection reset\nframe #0"), True, "connection reset"),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed\nmore"), True, ""),
        (dist.DistBackendError(TEXT.format("a", UNHANDLED, "Cuda failure 2 'out of memory'")), False, ""),
        (dist.DistBackendError(TEXT.format("a", UNHANDLED, ASSERT)), False, ""),
        (dist.DistBackendError(TEXT.format("a", UNHANDLED, BUSY)), False, ""),
        (dist.DistStoreError(""), True, "DistStoreError"),
        (RuntimeError("shapes differ"), False, "shapes differ"),
    ],
)
def test_an_error_is_told_by_the_line_that_says_why(error: BaseException, is_broken: bool, reason: str) -> None:
    assert nccl.is_broken_connection(error) == is_broken
    assert nccl.reason(error).startswith(reason)


def test_two_ranks_on_one_gpu_are_a_mistake_in_the_call_and_other_errors_stay_what_they_are() -> None:
    shared = dist.DistBackendError(
        TEXT.format("a", INVALID, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4f000")
    )
    explained = nccl.explained(shared)
    assert isinstance(explained, UserError)
    assert "(Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4f000); start at most" in str(explained)
    for other in (UserError("Duplicate GPU detected"), dist.DistBackendError("lost")):
        assert nccl.explained(other) is other


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (ASSERT, EXIT_DEFECT, "a kernel that began before this line found an index or a value out of range"),
        (BUSY, EXIT_USER_ERROR, "the GPU lets no further process in (exclusive mode), or is out of order"),
    ],
)
def test_an_error_of_cuda_that_nccl_hands_on_is_told_as_cudas(said: str, code: int, words: str) -> None:
    end = ending(dist.DistBackendError(TEXT.format("unhandled cuda error", UNHANDLED, said)))
    assert end.code == code
    assert end.words.startswith(f"{said}: {words}")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Return what torch is asked for where NCCL would begin."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: asked.update(rest, backend=backend))
    monkeypatch.setattr(nccl, "_is_begun", False)
    for name in (*nccl.VARIABLES, *nccl.OLDER_NAMES.values(), "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    yield asked
    for name in nccl.VARIABLES:
        os.environ.pop(name, None)


def test_torch_leaves_the_end_of_a_process_to_the_program(begun: dict[str, Any]) -> None:
    assert not nccl.is_begun()
    nccl.begin(dist.HashStore(), Launch(1, 2, 2), torch.device("cuda", 1))
    assert nccl.is_begun()
    assert {name: os.environ[name] for name in nccl.VARIABLES} == nccl.VARIABLES
    assert (begun["backend"], begun["rank"], begun["world_size"]) == ("nccl", 1, 2)
    assert begun["device_id"] == torch.device("cuda", 1), "so that a barrier knows its device"


@pytest.mark.parametrize("name", ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"])
def test_what_the_user_tells_nccl_stays(begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    nccl.begin(dist.HashStore(), Launch(0, 1, 1), torch.device("cuda", 0))
    assert os.environ[name] == "1"
    set_ones = {one for one in os.environ if one.endswith("NCCL_ASYNC_ERROR_HANDLING")}
    assert set_ones == {name}


@pytest.mark.parametrize(("said", "used"), [("1", "0"), ("2", "2"), ("3", "3")])
def test_what_torchrun_says_by_itself_is_not_taken_for_the_users_word(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch, said: str, used: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", said)
    nccl.begin(dist.HashStore(), Launch(0, 1, 1), torch.device("cuda", 0))
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == used


def test_a_backend_that_cannot_be_asked_gives_no_alarm() -> None:
    assert nccl.failure() is None


@pytest.mark.parametrize(
    ("own", "other", "named", "message"),
    [
        (True, "True", "", None),
        (False, "False", "", None),
        (True, "True", "cpu", None),
        (True, "False", "", r"ranks \[1\] have no GPU, or were told to use none, and the others have one"),
        (False, "True", "", r"ranks \[0\] have no GPU"),
        (True, "True", "cuda:0", "ACCELERATE_TORCH_DEVICE=cuda:0 would put all ranks on one GPU; unset it"),
    ],
)
def test_either_all_ranks_are_on_gpus_of_their_own_or_none_is(
    monkeypatch: pytest.MonkeyPatch, own: bool, other: str, named: str, message: str | None
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: own)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", named)
    store = dist.HashStore()
    store.set("kind/1", "False" if named == "cpu" else other)
    if message is None:
        assert gpus.are_used(store, Launch(0, 2, 2)) == (own and named != "cpu")
    else:
        with pytest.raises(UserError, match=message):
            gpus.are_used(store, Launch(0, 2, 2))


@pytest.mark.parametrize("error", [NotImplementedError("Using RTX 4000 series …"), ValueError("bf16 …")])
def test_what_accelerate_does_not_do_is_a_message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuses(**_: object) -> None:
        raise error

    monkeypatch.setattr(session, "Accelerator", refuses)
    with pytest.raises(UserError, match=f"cannot start: {error}"), joined_ranks(1):
        pass


@pytest.fixture
def asked_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what Accelerate is asked for, which then takes the processor."""
    asked: dict[str, Any] = {}

    def accelerator(**given: Any) -> Any:
        asked.update(given, device=os.environ.get(DEVICE))
        return SimpleNamespace(device=torch.device("cpu"), autocast=None, scaler=None)

    monkeypatch.setattr(session, "Accelerator", accelerator)
    # As it is without the name, so that it goes again.
    monkeypatch.setenv(DEVICE, "cpu")
    monkeypatch.delenv(DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return asked


def test_devices_that_nobody_tried_are_not_taken_by_themselves(asked_of_accelerate: dict[str, Any]) -> None:
    with joined_ranks(1, "no") as ranks:
        assert ranks.precision == "no"
    assert asked_of_accelerate == {"cpu": False, "mixed_precision": "no", "device": "cpu"}


@pytest.mark.parametrize(("precision", "known"), [("tf32", "no"), ("fp16", "fp16")])
def test_a_precision_of_gpus_is_refused_on_cpu(asked_of_accelerate: dict[str, Any], precision: str, known: str) -> None:
    message = f"precision {precision} needs a GPU; on CPU choose no or bf16, as precision=…"
    with pytest.raises(UserError, match=message), joined_ranks(1, precision):
        pass
    assert asked_of_accelerate["mixed_precision"] == known
