"""One step: which networks its passes reach, with which statistics, in which precision."""

import contextlib
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation import passes
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.passes import MicroBatch, Normaliser, Precision
from esl_dist.training.step import add_gradients
from tests.adaptation.steps import IMAGES, PLAIN, build, domain_batch, make_step, micro_batch, normaliser


def test_the_segmentation_passes_leave_the_discriminators_without_gradient() -> None:
    reached: list[Tensor] = []

    def backward(loss: Tensor, network: str) -> None:
        loss.backward()
        assert (len(reached) > 0) == (network == "discriminators")

    step = make_step("advent", domain_batch(2, False), precision=Precision(contextlib.nullcontext, backward))
    for parameter in step.networks["discriminators"].parameters():
        parameter.register_hook(reached.append)
    METHODS["advent"].passes(step)
    assert step.networks["segmentation"].conv1.weight.grad is not None
    assert all(parameter.grad is not None for parameter in step.networks["discriminators"].parameters())


def test_source_and_target_passes_feed_their_own_statistics() -> None:
    networks = build()
    before = {name: tensor.clone() for name, tensor in networks["segmentation"].state_dict().items()}
    one = micro_batch(domain_batch(1, True), domain_batch(2, False))
    add_gradients(networks, METHODS["minent"], settings.Method(), [one], normaliser(one), PLAIN)
    after = networks["segmentation"].state_dict()
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

    one = micro_batch(domain_batch(1, True), domain_batch(2, True))
    precision = Precision(contextlib.nullcontext, backward)
    losses = add_gradients(build(), METHODS["advent"], WEIGHTS, [one], normaliser(one), precision).losses
    assert not any(loss.requires_grad for loss in losses.values()), "they would keep every pass until they are logged"
    value = {name: float(loss) for name, loss in losses.items()}
    source = 2 * value["source_cross_entropy/main"] + 3 * value["source_cross_entropy/auxiliary"]
    target = 5 * value["target_advent/main"] + 7 * value["target_advent/auxiliary"]
    target += 2 * value["target_cross_entropy/main"] + 3 * value["target_cross_entropy/auxiliary"]
    discriminators = value["discriminator/main"] + value["discriminator/auxiliary"]
    expected = [("segmentation", source), ("segmentation", target), ("discriminators", discriminators)]
    assert learned == [(network, pytest.approx(loss, rel=1e-12)) for network, loss in expected]


def test_each_domain_is_normalised_by_its_own_labelled_pixels_of_the_global_batch() -> None:
    one = micro_batch(domain_batch(1, True), domain_batch(2, True))
    found = [
        add_gradients(
            build(), METHODS["advent"], WEIGHTS, [one], Normaliser(torch.tensor(pixels), IMAGES), PLAIN
        ).losses
        for pixels in ((100, 100), (100, 200), (200, 100))
    ]
    for domain, factors in (("source", (1, 1, 0.5)), ("target", (1, 0.5, 1))):
        values = [float(losses[f"{domain}_cross_entropy/main"]) for losses in found]
        assert values == pytest.approx([values[0] * factor for factor in factors], rel=1e-12)


def test_what_the_passes_over_micro_batches_count_adds_up() -> None:
    options = settings.Method("self_training", teacher=settings.Teacher(trust="entropy"))

    def counts(*own: MicroBatch) -> Tensor:
        networks = build("self_training", options)
        # Else a pass would change what the next one predicts.
        networks.eval()
        found = add_gradients(networks, METHODS["self_training"], options, own, normaliser(*own), PLAIN)
        return found.counts["entropies"]

    one, other = (micro_batch(domain_batch(seed, True), domain_batch(seed + 1, False)) for seed in (1, 3))
    assert int(counts(one).sum()) == one.target["images"][:, 0].numel()
    assert torch.equal(counts(one, other), counts(one) + counts(other))
    assert not torch.equal(counts(one), counts(other))


LOSSES = {
    "minent": ("cross_entropy", "entropy_loss"),
    "advent": ("cross_entropy", "fool_discriminator", "tell_domains_apart"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_from_float32_in_mixed_precision_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    computed: list[str] = []

    def watched(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watching(*arguments: object) -> Tensor:
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

    for loss in LOSSES[name]:
        module = passes if loss == "cross_entropy" else sys.modules[type(METHODS[name]).__module__]
        monkeypatch.setattr(module, loss, watched(getattr(module, loss)))
    networks = build(name).float()
    precisions: set[torch.dtype] = set()
    networks["segmentation"].register_forward_hook(
        lambda module, inputs, logits: precisions.update(one.dtype for one in logits.values())
    )
    batches = domain_batch(1, True), domain_batch(2, True)
    for batch in batches:
        batch["images"] = batch["images"].float()
    own = micro_batch(*batches)
    precision = Precision(lambda: torch.autocast("cpu", torch.bfloat16), backward)
    weights = settings.Method(name=name)
    losses = add_gradients(networks, METHODS[name], weights, [own], normaliser(own), precision).losses
    assert precisions == {torch.bfloat16}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    # Each at two levels, the cross-entropy on both domains.
    assert sorted(computed) == sorted(2 * [*LOSSES[name], "cross_entropy"])


def test_what_a_method_draws_depends_on_seed_step_place_and_purpose_alone() -> None:
    def drawn(seed: int, step: int, places: range, purpose: str = "flip") -> list[float]:
        own = MicroBatch(domain_batch(1, True), None, seed, step, places)
        return [float(torch.rand((), generator=generator)) for generator in own.generators(purpose)]

    whole = drawn(1, 2, range(4))
    assert [*drawn(1, 2, range(2)), *drawn(1, 2, range(2, 4))] == whole
    others = [whole, drawn(2, 2, range(4)), drawn(1, 3, range(4)), drawn(1, 2, range(4), "jitter")]
    assert len({value for values in others for value in values}) == 16
