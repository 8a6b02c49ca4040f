"""What a step computes is counted by the formulas of its products, and counting changes nothing."""

import pytest
import torch
from torch.nn import functional as F

from esl_dist.training.work import PEAKS, Work, peak_of


def computed(images: torch.Tensor, kernel: torch.Tensor, matrix: torch.Tensor) -> list[torch.Tensor]:
    """Compute a convolution and a product, forward and backward."""
    for one in (kernel, matrix):
        one.grad = None
    features = F.conv2d(images, kernel, padding=1).flatten(1)
    (features @ matrix).square().sum().backward()
    assert kernel.grad is not None
    assert matrix.grad is not None
    return [features.detach(), kernel.grad, matrix.grad]


def test_products_and_convolutions_count_two_operations_a_factor_forward_and_backward() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 7)
    kernel, matrix = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4 * 35, 6, requires_grad=True)
    work = Work()
    with work.counted(False):
        expected = computed(images, kernel, matrix)
    assert work.flops == 0
    with work.counted(True):
        found = computed(images, kernel, matrix)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    convolution, product = 2 * 2 * 4 * 35 * 3 * 9, 2 * 2 * 4 * 35 * 6
    # Of the pictures no gradient is asked for.
    assert work.flops == 2 * convolution + 3 * product


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA H100", "bf16", None),
        ("NVIDIA GeForce GTX 1080", "no", None),
    ],
)
def test_the_peak_is_that_of_the_device_and_precision_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda", 0), precision) == peak
    assert peak_of(torch.device("cpu"), precision) is None


def test_no_device_is_hidden_by_one_before_it() -> None:
    names = list(PEAKS)
    hidden = [one for place, one in enumerate(names) if any(one.startswith(before) for before in names[:place])]
    assert hidden == []
