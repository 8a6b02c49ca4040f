"""Self-training and masked consistency, pass by pass, against the formulas written out in NumPy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.augmentation import augmented
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.passes import Normaliser, Step
from esl_dist.adaptation.trust import trusted_labels
from esl_dist.data.loading import Batch
from tests.adaptation import formulas
from tests.adaptation.steps import CLASSES, IMAGES, SIZE, domain_batch, make_step, micro_batch

WEIGHTS = {"main": 2.0, "auxiliary": 3.0}
SHARE = 0.5
"""Of the global batch's images, on this rank."""
MARGINS = [0.1, 0.2, 0.05, 0.3]


class Seen(NamedTuple):
    """A pass through a network: what it saw, as which domain, and its logits by level at the size of the pictures."""

    images: np.ndarray
    domain: str
    logits: dict[str, np.ndarray]


def noted(step: Step, method: str) -> dict[str, list[Seen]]:
    """Make a method's passes; returns those through student and teacher, in their order."""
    seen: dict[str, list[Seen]] = {"segmentation": [], "teacher": []}
    for name, passes in seen.items():

        def note(_: Any, inputs: Any, output: Mapping[str, Tensor], passes: list[Seen] = passes) -> None:
            logits = {level: formulas.bilinear(one.detach().numpy(), *SIZE) for level, one in output.items()}
            passes.append(Seen(inputs[0].numpy().copy(), inputs[1], logits))

        step.networks[name].register_forward_hook(note)
    METHODS[method].passes(step)
    return seen


def options(name: str, **teacher: Any) -> settings.Method:
    return settings.Method(
        name,
        cross_entropy=settings.LevelWeights(**WEIGHTS),
        teacher=settings.Teacher(confidence=0.5, margins=MARGINS, **teacher),
        masks=settings.Masks(ratio=0.6, block=16, weight=0.25),
    )


def step_of(method: settings.Method, pseudo_labels: bool = False) -> Step:
    """Return a step whose teacher is not its student, and which has seen entropies before if it judges by them."""
    step = make_step(method.name, domain_batch(2, pseudo_labels), method)
    with torch.no_grad():
        for parameter in step.networks["teacher"].parameters():
            parameter.mul_(1.5)
    if "entropies" in step.networks:
        random = np.random.RandomState(0)
        before = random.randint(0, 9, (CLASSES, 1024)) * (np.arange(1024) > [[300], [600], [900]])
        step.networks["entropies"].add(torch.from_numpy(before), memory=0.0)
    return replace(step, normaliser=Normaliser(step.normaliser.valid_pixels, round(IMAGES / SHARE)))


def within_margins() -> np.ndarray:
    height, width = SIZE
    inside = np.zeros(SIZE, bool)
    top, bottom, left, right = MARGINS
    for y, x in np.ndindex(SIZE):
        row, column = (y + 0.5) / height, (x + 0.5) / width
        inside[y, x] = top <= row < 1 - bottom and left <= column < 1 - right
    return inside


def trusted(step: Step, teacher: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and weights of the target's pixels."""
    rule, probabilities = step.options.teacher, formulas.softmax(teacher.logits["main"])
    labels, inside = probabilities.argmax(1), within_margins()
    if rule.trust == "share":
        trusts = probabilities.max(1) >= rule.confidence
    else:
        levels = np.round(1023 * formulas.entropy(probabilities))
        limit = []
        for counts in step.networks["entropies"].histograms.numpy():
            values = np.repeat(np.arange(1024), counts.astype(int))
            limit.append(max(values[len(values) // 2], int(1023 * rule.entropy_floor)))
        trusts = levels <= np.array(limit)[labels]
    # Margins count in a share, and weigh nothing.
    weights = trusts * inside.astype(float)
    if rule.trust == "share" or rule.entropy_as == "weight":
        weights = trusts.mean((1, 2), keepdims=True) * inside
    assert 0.02 < (trusts & inside).mean() < trusts.mean() < 0.6
    return labels, weights


def offline(step: Step, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own = step.samples("target")["labels"]
    given = np.zeros(labels.shape, bool) if own is None else (own.numpy() != 255) & within_margins()
    return np.where(given, 0 if own is None else own.numpy(), labels), np.where(given, 1.0, weights)


def pasted(step: Step) -> np.ndarray:
    labels = step.samples("source")["labels"].numpy()
    chosen = []
    for label, generator in zip(labels, step.batch.generators("classes"), strict=True):
        present = np.unique(label)
        draws = torch.rand(256, generator=generator, dtype=torch.float64).numpy()[present]
        chosen.append(np.isin(label, present[np.argsort(draws)[: -(-len(present) // 2)]]))
    return np.stack(chosen)


def loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Return Σ w·−ln p[label] / (pixels of the global batch)."""
    probabilities, total = formulas.softmax(logits), 0.0
    for b, y, x in np.ndindex(labels.shape):
        if labels[b, y, x] != 255:
            total -= weights[b, y, x] * np.log(probabilities[b, labels[b, y, x], y, x])
    return float(total / (labels.size / SHARE))


def changed(step: Step, images: np.ndarray, purpose: str) -> np.ndarray:
    return augmented(torch.from_numpy(images), step.batch.generators(purpose), step.options.augmentation).numpy()


RULES: dict[str, dict[str, Any]] = {
    "share": {},
    "entropy mask": {"trust": "entropy", "entropy_floor": 0.5},
    "entropy weight": {"trust": "entropy", "entropy_as": "weight", "entropy_floor": 0.5},
}


@pytest.mark.parametrize("pseudo_labels", [False, True], ids=["without", "with pseudo-labels"])
@pytest.mark.parametrize("rule", RULES)
def test_the_mix_is_learned_with_the_teachers_labels_by_their_trust_and_the_sources_by_one(
    rule: str, pseudo_labels: bool
) -> None:
    step = step_of(options("self_training", **RULES[rule]), pseudo_labels)
    seen = noted(step, "self_training")
    [teacher], [source, mix] = seen["teacher"], seen["segmentation"]
    assert [one.domain for one in (teacher, source, mix)] == ["target", "source", "target"]
    np.testing.assert_array_equal(teacher.images, step.samples("target")["images"])

    labels, weights = offline(step, *trusted(step, teacher))
    mask, truth = pasted(step), step.samples("source")["labels"].numpy()
    images = np.where(mask[:, None], source.images, teacher.images)
    np.testing.assert_array_equal(mix.images, changed(step, images, "augmentation of the mix"))
    labels, weights = np.where(mask, truth, labels), np.where(mask, 1.0, weights)
    expected = {f"teacher_cross_entropy/{level}": loss(mix.logits[level], labels, weights) for level in WEIGHTS}
    found = {name: float(value) for name, value in step.losses.items() if name.startswith("teacher")}
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(step.losses) == 4


@pytest.mark.parametrize("host", ["self_training", "advent", "minent"])
def test_what_is_masked_is_learned_with_the_labels_of_the_teacher_that_sees_it(host: str) -> None:
    step = step_of(replace(options("masked_consistency"), host=host))
    seen = noted(step, "masked_consistency")
    [teacher], masked = seen["teacher"], seen["segmentation"][-1]
    labels, weights = trusted(step, teacher)
    expected_images = changed(step, teacher.images, "augmentation of the masked")
    for number, generator in enumerate(step.batch.generators("masks")):
        draws = torch.rand(1, 2, 4, generator=generator, dtype=torch.float64)[0].numpy()
        hidden = np.kron(draws <= 0.6, np.ones((16, 16), bool))
        expected_images[number][:, hidden] = 0.0
    np.testing.assert_array_equal(masked.images, expected_images)
    assert 0.4 < (masked.images == 0).mean() < 0.8
    expected = {f"masked_cross_entropy/{level}": loss(masked.logits[level], labels, weights) for level in WEIGHTS}
    found = {name: float(value) for name, value in step.losses.items() if name.startswith("masked")}
    assert found == pytest.approx(expected, rel=1e-9)
    of_host = {"self_training": "teacher_cross_entropy", "advent": "target_advent", "minent": "target_minent"}[host]
    assert f"{of_host}/main" in step.losses
    assert ("discriminator/main" in step.losses) == (host == "advent")


def test_what_is_masked_feeds_no_running_statistics() -> None:
    found = []
    for name in ("self_training", "masked_consistency"):
        step = step_of(options(name))
        METHODS[name].passes(step)
        found.append(dict(step.networks["segmentation"].named_buffers()))
    of_host, with_masks = found
    assert of_host.keys() == with_masks.keys()
    assert [name for name in of_host if not torch.equal(of_host[name], with_masks[name])] == []


def test_a_masked_loss_has_its_weight_beside_that_of_its_level() -> None:
    learned: list[float] = []
    step = step_of(options("masked_consistency"))

    def backward(total: Tensor, network: str) -> None:
        learned.append(float(total.detach()))

    METHODS["masked_consistency"].passes(replace(step, precision=replace(step.precision, backward=backward)))
    value = {name: float(one) for name, one in step.losses.items()}
    for total, name, factor in zip(
        learned, ("source_cross_entropy", "teacher_cross_entropy", "masked_cross_entropy"), (1, 1, 0.25), strict=True
    ):
        expected = factor * sum(WEIGHTS[level] * value[f"{name}/{level}"] for level in WEIGHTS)
        assert total == pytest.approx(expected, rel=1e-12), name


def test_the_teacher_gets_no_gradient_and_counts_what_it_predicts_within_the_margins() -> None:
    step = step_of(options("self_training", trust="entropy", entropy_floor=0.5))
    seen = noted(step, "self_training")
    assert all(parameter.grad is None for parameter in step.networks["teacher"].parameters())
    assert step.networks["segmentation"].conv1.weight.grad is not None
    probabilities = formulas.softmax(seen["teacher"][0].logits["main"])
    expected = np.zeros((CLASSES, 1024), int)
    levels, labels = np.round(1023 * formulas.entropy(probabilities)).astype(int), probabilities.argmax(1)
    inside = within_margins()
    for b, y, x in np.ndindex(labels.shape):
        if inside[y, x]:
            expected[labels[b, y, x], levels[b, y, x]] += 1
    np.testing.assert_array_equal(step.counts["entropies"], expected)


@pytest.mark.parametrize(
    "trust", [{"trust": "share"}, {"trust": "entropy", "entropy_as": "weight"}], ids=["share", "entropy"]
)
def test_what_of_a_part_lies_beyond_its_picture_counts_in_no_share(trust: dict[str, Any]) -> None:
    method = options("self_training", entropy_floor=1.0, **trust)
    # All that lies in the picture, margins too, is trusted: the left half of the part.
    method.teacher.confidence = 0.0
    target = domain_batch(2, False)
    target["windows"] = torch.tensor([[0.0, 0.0, 2.0, 1.0]] * IMAGES, dtype=torch.float64)
    found = trusted_labels(make_step("self_training", target, method)).weights.numpy()
    assert set(np.unique(found[..., SIZE[1] // 2 :])) == {0.0}
    assert set(np.unique(found)) == {0.0, 0.5}


def test_counts_of_a_step_judge_the_next_one() -> None:
    method = options("self_training", trust="entropy", entropy_memory=0.5)
    step = step_of(method)
    before = step.networks["entropies"].histograms.clone()
    METHODS["self_training"].passes(step)
    assert torch.equal(step.networks["entropies"].histograms, before)
    METHODS["self_training"].after_update(step.networks, 3, step.counts, method)
    assert torch.equal(step.networks["entropies"].histograms, 0.5 * before + step.counts["entropies"])


def test_without_the_mix_the_target_alone_is_learned() -> None:
    step = step_of(replace(options("self_training"), mix=False))
    seen = noted(step, "self_training")
    images = step.samples("target")["images"].numpy()
    np.testing.assert_array_equal(seen["segmentation"][1].images, changed(step, images, "augmentation of the mix"))


def test_every_draw_depends_on_the_place_of_its_picture_in_the_global_batch_alone() -> None:
    whole = step_of(options("masked_consistency"))
    images = [one.images for one in noted(whole, "masked_consistency")["segmentation"][1:]]
    part = step_of(options("masked_consistency"))
    halves = [_half(part.samples("source")), _half(part.samples("target"))]
    part = replace(part, batch=replace(micro_batch(*halves), places=range(2, 4)))
    for found, expected in zip(noted(part, "masked_consistency")["segmentation"][1:], images, strict=True):
        np.testing.assert_array_equal(found.images, expected[2:])


def _half(batch: Batch) -> Batch:
    labels = batch["labels"]
    seen = {name: batch[name][2:] for name in ("images", "windows", "mirrored")}
    return Batch(**{**batch, **seen, "labels": None if labels is None else labels[2:]})


def test_labels_of_another_size_than_the_pictures_are_mixed_at_the_size_of_the_pictures() -> None:
    step, larger = step_of(options("self_training"), True), step_of(options("self_training"), True)
    for domain in ("source", "target"):
        labels = larger.samples(domain)["labels"]
        larger.samples(domain)["labels"] = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for one in (step, larger):
        METHODS["self_training"].passes(one)
    assert float(larger.losses["teacher_cross_entropy/main"]) == float(step.losses["teacher_cross_entropy/main"])
