"""The order of a network's numbers in memory does not show in what is computed, saved or compared."""

from pathlib import Path

import pytest
import torch

from esl_dist.models.deeplab import DeepLab
from esl_dist.models.memory_format import memory_format, on_device
from esl_dist.models.weight_files import digest_of_weights, read_weights, write_weights
from esl_dist.models.weights import initialise

CPU = torch.device("cpu")


def network() -> DeepLab:
    torch.manual_seed(0)
    built = DeepLab("tiny", 4, True, per_domain=True)
    initialise(built)
    return built


def channels_last() -> DeepLab:
    return network().to(memory_format=torch.channels_last)


def test_tensor_cores_get_channels_last_and_processors_plain_tensors() -> None:
    assert memory_format(torch.device("cuda", 1)) == torch.channels_last
    assert all(one.is_contiguous() for one in on_device(network(), CPU).parameters())


def test_digests_do_not_depend_on_the_order_in_memory() -> None:
    assert not channels_last().conv1.weight.is_contiguous()
    assert digest_of_weights(channels_last().state_dict()) == digest_of_weights(network().state_dict())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_files_of_weights_hold_the_same_bytes_in_either_order(tmp_path: Path, name: str) -> None:
    for folder, one in (("plain", network()), ("last", channels_last())):
        (tmp_path / folder).mkdir()
        write_weights(tmp_path / folder / name, one.state_dict())
    read = [read_weights(tmp_path / folder / name).tensors for folder in ("plain", "last")]
    assert all(torch.equal(read[0][key], read[1][key]) and read[1][key].is_contiguous() for key in read[0])
    if name.endswith(".safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "last" / name).read_bytes()


def test_a_network_keeps_its_order_when_it_is_filled_from_the_other() -> None:
    filled = channels_last()
    filled.load_state_dict({name: torch.zeros_like(one) for name, one in network().state_dict().items()})
    filled.load_state_dict(network().state_dict())
    assert filled.layer3[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert digest_of_weights(filled.state_dict()) == digest_of_weights(network().state_dict())


@pytest.mark.parametrize("per_picture", [False, True])
def test_logits_and_gradients_are_the_same_in_either_order(per_picture: bool) -> None:
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        one = DeepLab("tiny", 4, True, False, per_picture)
        initialise(one)
        one.double().train().to(memory_format=order)
        logits = one(images.contiguous(memory_format=order))["main"]
        logits.pow(3).sum().backward()
        found.append([logits, *(parameter.grad for parameter in one.parameters() if parameter.grad is not None)])
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-9, atol=1e-9 * float(plain.detach().abs().max()))
