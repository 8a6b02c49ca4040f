"""One step: which networks its passes reach, with which statistics, in which precision."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, Method
from esl_dist.data.loading import Batch
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.discriminator import build_discriminator
from esl_dist.models.weights import initialise
from esl_dist.training import step as step_module
from esl_dist.training.step import MicroBatch, Networks, Precision, add_gradients, local_valid_pixels

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


def test_the_segmentation_passes_leave_the_discriminators_without_gradient() -> None:
    networks = build()
    method = METHODS["advent"]
    for parameter in networks.discriminators.parameters():
        parameter.register_hook(lambda _: pytest.fail("a gradient reached a frozen discriminator"))
    batch = domain_batch(1, True)
    one = MicroBatch(batch, domain_batch(2, False))
    valid_pixels = local_valid_pixels([one])
    _, _ = step_module._source_pass(networks, settings.Method(), batch, valid_pixels[0], PLAIN)
    _, _ = step_module._target_pass(networks, method, settings.Method(), one.target, valid_pixels[1], IMAGES, PLAIN)
    assert all(parameter.grad is None for parameter in networks.discriminators.parameters())
    assert networks.segmentation.conv1.weight.grad is not None


def test_source_and_target_passes_feed_their_own_statistics() -> None:
    networks = build()
    before = {name: tensor.clone() for name, tensor in networks.segmentation.state_dict().items()}
    one = MicroBatch(domain_batch(1, True), domain_batch(2, False))
    add_gradients(networks, METHODS["minent"], settings.Method(), [one], local_valid_pixels([one]), IMAGES, PLAIN)
    after = networks.segmentation.state_dict()
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert not torch.equal(before["bn1.source_mean"], after["bn1.source_mean"])
    assert not torch.equal(after["bn1.running_mean"], after["bn1.source_mean"])


WEIGHTS = settings.Method(
    name="advent",
    cross_entropy=settings.LevelWeights(main=2.0, auxiliary=3.0),
    target=settings.LevelWeights(main=5.0, auxiliary=7.0),
)


def test_a_pass_is_learned_from_by_the_sum_of_its_losses_each_with_the_weight_of_its_level() -> None:
    learned: list[tuple[str, float]] = []

    def backward(loss: Tensor, network: str) -> None:
        learned.append((network, float(loss.detach())))
        loss.backward()

    one = MicroBatch(domain_batch(1, True), domain_batch(2, True))
    precision = Precision(contextlib.nullcontext, backward)
    losses = add_gradients(build(), METHODS["advent"], WEIGHTS, [one], local_valid_pixels([one]), IMAGES, precision)
    assert not any(loss.requires_grad for loss in losses.values()), "they would keep every pass until they are logged"
    value = {name: float(loss) for name, loss in losses.items()}
    source = 2 * value["source_cross_entropy/main"] + 3 * value["source_cross_entropy/auxiliary"]
    target = 5 * value["target_advent/main"] + 7 * value["target_advent/auxiliary"]
    target += 2 * value["target_cross_entropy/main"] + 3 * value["target_cross_entropy/auxiliary"]
    discriminators = value["discriminator/main"] + value["discriminator/auxiliary"]
    expected = [("segmentation", source), ("segmentation", target), ("discriminators", discriminators)]
    assert learned == [(network, pytest.approx(loss, rel=1e-12)) for network, loss in expected]


def test_each_domain_is_normalised_by_its_own_labelled_pixels_of_the_global_batch() -> None:
    one = MicroBatch(domain_batch(1, True), domain_batch(2, True))
    found = [
        add_gradients(build(), METHODS["advent"], WEIGHTS, [one], torch.tensor(pixels), IMAGES, PLAIN)
        for pixels in ((100, 100), (100, 200), (200, 100))
    ]
    for domain, factors in (("source", (1, 1, 0.5)), ("target", (1, 0.5, 1))):
        values = [float(losses[f"{domain}_cross_entropy/main"]) for losses in found]
        assert values == pytest.approx([values[0] * factor for factor in factors], rel=1e-12)


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
    own = [MicroBatch(*batches)]
    precision = Precision(lambda: torch.autocast("cpu", torch.bfloat16), backward)
    weights = settings.Method(name=name)
    losses = add_gradients(networks, Method(**parts), weights, own, local_valid_pixels(own), IMAGES, precision)
    assert precisions == {torch.bfloat16}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    of_method = [loss.__name__ for loss in vars(plain).values() if loss is not None]
    # Each at two levels, the cross-entropy on both domains.
    assert sorted(computed) == sorted(2 * [*of_method, "cross_entropy", "cross_entropy"])
