"""Which precisions a device has, and how a GPU is told to compute convolutions."""

import pytest
import torch
from torch.backends import cudnn

from esl_dist.config import PRECISIONS
from esl_dist.ranks import precision
from esl_dist.ranks.precision import convolutions, missing

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def switches() -> tuple[bool, bool, bool, bool]:
    return cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("asked", PRECISIONS)
@pytest.mark.parametrize("fails", [False, True])
def test_convolutions_round_only_for_tf32_and_always_add_in_one_order(asked: str, fails: bool) -> None:
    before = switches()
    cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    changed = switches()
    try:
        with convolutions(asked):
            assert switches() == (asked == "tf32", True, False, False)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert switches() == changed, "they are as before"
    precision._set(*before)


def test_a_network_in_another_precision_does_not_change_that_of_the_session() -> None:
    with convolutions("tf32"):
        with convolutions("no"):
            assert not cudnn.allow_tf32
        assert cudnn.allow_tf32


@pytest.mark.parametrize(
    ("capability", "has_bf16", "lacks"),
    [((7, 5), False, {"tf32", "bf16"}), ((8, 0), True, set()), ((9, 0), True, set())],
)
def test_a_gpu_is_asked_for_no_precision_that_it_would_do_without_in_silence(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has_bf16: bool, lacks: set[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    assert {one for one in PRECISIONS if missing(one, GPU) is not None} == lacks


def test_a_processor_has_float32_and_bf16() -> None:
    assert {one for one in PRECISIONS if missing(one, CPU) is None} == {"no", "bf16"}
