"""One step: the same gradients however the global batch is cut, whichever pixels are labelled where."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, Method
from esl_dist.data.loading import Batch
from esl_dist.engine import step as step_module
from esl_dist.engine.distributed import sum_gradients, sum_over_ranks
from esl_dist.engine.step import Networks, Pass, Precision, add_gradients, local_valid_pixels
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.discriminator import build_discriminator
from esl_dist.models.weights import initialise

CLASSES, IMAGES = 3, 4
PLAIN = Precision(contextlib.nullcontext, lambda loss, network: loss.backward())


def build() -> Networks:
    torch.manual_seed(0)
    network = DeepLab("tiny", CLASSES, True, True)
    initialise(network)
    discriminators = nn.ModuleDict({level: build_discriminator(CLASSES, 2) for level in network.levels})
    return Networks(network.double().train(), discriminators.double().train())


def domain_batch(seed: int, labels: bool) -> Batch:
    """Return four images whose labelled pixels differ much: all, one row, a corner, none."""
    random = torch.Generator().manual_seed(seed)
    images = 50 * torch.randn(IMAGES, 3, 32, 64, generator=random, dtype=torch.float64)
    train_ids = torch.randint(0, CLASSES, (IMAGES, 32, 64), generator=random).to(torch.uint8)
    train_ids[1, 1:] = 255
    train_ids[2, 3:, 5:] = 255
    train_ids[3] = 255
    return Batch(images=images, labels=train_ids if labels else None, positions=torch.arange(IMAGES))


def part(batch: Batch, start: int, count: int) -> Batch:
    labels = batch["labels"]
    chosen = slice(start, start + count)
    return Batch(
        images=batch["images"][chosen],
        labels=None if labels is None else labels[chosen],
        positions=batch["positions"][chosen],
    )


def step(
    networks: Networks, method: str, pseudo_labels: bool, rank: int, world_size: int, passes: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Run a step on this rank's part of the batch; returns global losses and gradients."""
    source, target = domain_batch(1, True), domain_batch(2, pseudo_labels)
    share = IMAGES // (world_size * passes)
    starts = [number * share * world_size + rank * share for number in range(passes)]
    own = [Pass(part(source, start, share), part(target, start, share)) for start in starts]
    valid_pixels = sum_over_ranks(local_valid_pixels(own))
    weights = settings.Method(name=method, target=settings.LevelWeights(main=1.0, auxiliary=0.5))
    losses = add_gradients(networks, METHODS[method], weights, own, valid_pixels, IMAGES, PLAIN)
    parameters = dict(networks.segmentation.named_parameters()) | dict(networks.discriminators.named_parameters())
    sum_gradients(parameters.values())
    gradients = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    return {name: sum_over_ranks(loss) for name, loss in losses.items()}, gradients


def assert_agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        scale = max(float(one[name].abs().max()), 1e-6)
        assert float((one[name] - other[name]).abs().max()) <= 1e-9 * scale, name


def rank_main(rank: int, world_size: int, folder: str, method: str, pseudo_labels: bool) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    networks = build()
    losses, gradients = step(networks, method, pseudo_labels, rank, world_size, 1)
    torch.save((losses, gradients, networks.segmentation.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.exact
@pytest.mark.parametrize(("method", "pseudo_labels"), [("advent", True), ("advent", False), ("minent", True)])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_compute_the_losses_gradients_and_statistics_of_a_single_process(
    tmp_path: Path, method: str, pseudo_labels: bool, world_size: int
) -> None:
    networks = build()
    losses, gradients = step(networks, method, pseudo_labels, 0, 1, 1)
    mp.spawn(rank_main, (world_size, str(tmp_path), method, pseudo_labels), world_size)
    for rank in range(world_size):
        rank_losses, rank_gradients, rank_state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_agree(losses, rank_losses)
        assert_agree(gradients, rank_gradients)
        running = {name: tensor for name, tensor in rank_state.items() if "mean" in name or "var" in name}
        assert_agree({name: networks.segmentation.state_dict()[name] for name in running}, running)


@pytest.mark.parametrize("passes", [2, 4])
def test_accumulated_passes_give_the_gradients_of_one(passes: int) -> None:
    whole, cut = build(), build()
    for networks in (whole, cut):
        # Passes have batch statistics of their own, so the cut shows only there; running ones leave it out.
        networks.segmentation.eval()
    losses, gradients = step(whole, "advent", True, 0, 1, 1)
    cut_losses, cut_gradients = step(cut, "advent", True, 0, 1, passes)
    assert_agree(losses, cut_losses)
    assert_agree(gradients, cut_gradients)


def test_the_segmentation_passes_leave_the_discriminators_without_gradient() -> None:
    networks = build()
    method = METHODS["advent"]
    for parameter in networks.discriminators.parameters():
        parameter.register_hook(lambda _: pytest.fail("a gradient reached a frozen discriminator"))
    batch = domain_batch(1, True)
    only_target = type(method)(target_loss=method.target_loss, discriminator_loss=method.discriminator_loss)
    one = Pass(batch, domain_batch(2, False))
    valid_pixels = local_valid_pixels([one])
    _, _ = step_module._source_pass(networks, settings.Method(), batch, valid_pixels[0], PLAIN)
    _, _ = step_module._target_pass(
        networks, only_target, settings.Method(), one.target, valid_pixels[1], IMAGES, PLAIN
    )
    assert all(parameter.grad is None for parameter in networks.discriminators.parameters())
    assert networks.segmentation.conv1.weight.grad is not None


def test_source_and_target_passes_feed_their_own_statistics() -> None:
    networks = build()
    before = {name: tensor.clone() for name, tensor in networks.segmentation.state_dict().items()}
    step(networks, "minent", False, 0, 1, 1)
    after = networks.segmentation.state_dict()
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert not torch.equal(before["bn1.source_mean"], after["bn1.source_mean"])
    assert not torch.equal(after["bn1.running_mean"], after["bn1.source_mean"])


@pytest.mark.parametrize("name", ["advent", "minent"])
def test_losses_are_computed_from_float32_outside_of_mixed_precision(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    computed: list[str] = []

    def watched(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watching(*arguments: object) -> Tensor:
            assert not torch.is_autocast_enabled("cpu")
            scores = [one for one in arguments if isinstance(one, Tensor) and one.is_floating_point()]
            result = loss(*arguments)
            assert [one.dtype for one in (*scores, result)] == [torch.float32] * (len(scores) + 1)
            assert len(scores) > 0
            computed.append(loss.__name__)
            return result

        return watching

    def backward(loss: Tensor, network: str) -> None:
        assert loss.dtype == torch.float32
        loss.backward()

    plain = METHODS[name]
    parts = {part: loss and watched(loss) for part, loss in vars(plain).items()}
    monkeypatch.setattr(step_module, "cross_entropy", watched(step_module.cross_entropy))
    networks = build()
    networks.segmentation.float()
    networks.discriminators.float()
    precisions: set[torch.dtype] = set()
    networks.segmentation.register_forward_hook(
        lambda module, inputs, logits: precisions.update(one.dtype for one in logits.values())
    )
    batches = domain_batch(1, True), domain_batch(2, True)
    for batch in batches:
        batch["images"] = batch["images"].float()
    own = [Pass(*batches)]
    precision = Precision(lambda: torch.autocast("cpu", torch.bfloat16), backward)
    weights = settings.Method(name=name)
    losses = add_gradients(networks, Method(**parts), weights, own, local_valid_pixels(own), IMAGES, precision)
    assert precisions == {torch.bfloat16}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    of_method = [loss.__name__ for loss in vars(plain).values() if loss is not None]
    # Each at two levels, the cross-entropy on both domains.
    assert sorted(computed) == sorted(2 * [*of_method, "cross_entropy", "cross_entropy"])
