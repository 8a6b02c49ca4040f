"""Whatever a step, a pseudo-label or a score is computed from lies on the network's device: a GPU that is not there.

Fake tensors have shapes and a device and no values, so a tensor on the wrong device is refused as it would be on a GPU.
Backward passes cannot be faked: they want the GPU's context.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from esl_dist import config as settings
from esl_dist.adaptation import passes
from esl_dist.adaptation.entropy import empty_histograms
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import SEGMENTATION, MicroBatch, Normaliser, Precision, Step
from esl_dist.adaptation.pseudo_labels import TRUST, Threshold, keep_trusted, label_and_score
from esl_dist.data.loading import Batch, HostBatch, on_device
from esl_dist.data.workers import Workers
from esl_dist.inference import predictions as predicting
from esl_dist.inference.labelling import levels
from esl_dist.inference.labelling.pieces import LabelJob
from esl_dist.inference.predictor import Predictor
from esl_dist.models.deeplab import DeepLab
from tests.inference.trained import trained_network

CLASSES, IMAGES, HEIGHT, WIDTH = 3, 2, 32, 64
GPU = torch.device("cuda", 0)
HOST = torch.device("cpu")
aten = torch.ops.aten
ASKING = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)


class _Answers(TorchDispatchMode):
    """Answers what only values could: a single value is 1, so that what is asked to be finite is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in ASKING:
            return True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def faked() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), _Answers():
        yield


def fake_batch(labels: bool, images: int = IMAGES) -> Batch:
    """Return a batch that was read on the host and sent to the GPU."""
    sizes = torch.tensor([[WIDTH, HEIGHT]] * images)
    host = HostBatch(
        pictures=torch.empty(images, HEIGHT, WIDTH, 3, dtype=torch.uint8),
        labels=torch.empty(images, HEIGHT, WIDTH, dtype=torch.uint8) if labels else None,
        valid_pixels=torch.ones(images, dtype=torch.int64),
        positions=torch.zeros(images, dtype=torch.int64),
        own_sizes=sizes,
        label_sizes=sizes if labels else None,
        replaced=torch.zeros(images, dtype=torch.bool),
    )
    return on_device(host, GPU)


def fake_network(per_domain: bool = True) -> DeepLab:
    with GPU:
        return DeepLab("tiny", CLASSES, True, per_domain)


def make_passes(method: str, pseudo_labels: bool = False) -> list[str]:
    """Make a method's passes; returns the networks that its losses, which lie on the GPU, are for."""
    reached: list[str] = []

    def backward(loss: Tensor, network: str) -> None:
        assert loss.device == GPU
        assert loss.shape == ()
        reached.append(network)

    options = settings.Method(name=method, discriminator_channels=2)
    with GPU:
        networks = build_networks(METHODS[method], fake_network(), CLASSES, options).train()
    target = fake_batch(pseudo_labels) if METHODS[method].needs_target or pseudo_labels else None
    batch = MicroBatch(fake_batch(True), target, seed=0, step=0, places=range(IMAGES))
    normaliser = Normaliser(torch.ones(2, dtype=torch.int64), IMAGES)
    step = Step(networks, batch, normaliser, options, Precision(contextlib.nullcontext, backward))
    METHODS[method].passes(step)
    assert {loss.device for loss in step.losses.values()} == {GPU}
    return reached


@pytest.mark.parametrize("pseudo_labels", [False, True], ids=["without", "with pseudo-labels"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_passes_of_a_step_compute_on_the_device_of_the_network(method: str, pseudo_labels: bool) -> None:
    reached = make_passes(method, pseudo_labels)
    on_target = METHODS[method].needs_target or pseudo_labels
    assert reached.count(SEGMENTATION) == (2 if on_target else 1)
    assert set(reached) >= set(METHODS[method].networks(fake_network(), CLASSES, settings.Method())) - {"teacher"}


def on_the_host(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that weighs pixels by a tensor which somebody forgot to send to the device."""

    def forgetful(scores: Tensor, *others: Any) -> Tensor:
        return loss(scores * torch.ones(scores.shape, device=HOST), *others)

    return forgetful


def test_a_tensor_on_the_wrong_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "cross_entropy", on_the_host(passes.cross_entropy))
    with pytest.raises(RuntimeError, match="device"):
        make_passes("source_only")


def predictor() -> Predictor:
    return Predictor(trained_network(fake_network().eval()), size=(WIDTH, HEIGHT))


@pytest.mark.parametrize("score", sorted(TRUST))
def test_a_pseudo_label_is_computed_on_the_device_of_the_network(score: str) -> None:
    limits = [Threshold(0.5, 32768)] * CLASSES
    logits = predictor().logits(fake_batch(False, images=1)["images"])
    labels, levels = label_and_score(logits, (HEIGHT, WIDTH), TRUST[score])
    kept = keep_trusted(labels, levels, limits, TRUST[score])
    assert {one.device for one in (logits, labels, levels, kept)} == {GPU}
    assert kept.shape == (1, HEIGHT, WIDTH)


Computed = list[tuple[torch.device, tuple[Tensor, ...]]]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    """Return what is computed for the host, and where; what is copied from there has to be on a real device."""
    results: Computed = []
    for module in (predicting, levels):
        monkeypatch.setattr(module, "on_host", lambda compute, device: results.append((device, compute())))
    return results


@pytest.mark.parametrize("score", sorted(TRUST))
def test_predictions_for_pseudo_labels_are_counted_on_the_device_of_the_network(score: str, computed: Computed) -> None:
    samples: Any = _Pictures()
    job = LabelJob(predictor(), samples, (WIDTH, HEIGHT), TRUST[score], {}, Path("labels"), Workers(0, 1))
    levels._prediction(job, fake_batch(False, images=1), levels._counting(empty_histograms(CLASSES, GPU)))
    ((device, (labels, own_levels, is_finite)),) = computed
    assert {device, labels.device, own_levels.device, is_finite.device} == {GPU}
    assert (labels.shape, own_levels.shape, is_finite.shape) == ((HEIGHT, WIDTH), (HEIGHT, WIDTH), ())


def test_a_score_is_computed_on_the_device_of_the_network(monkeypatch: pytest.MonkeyPatch, computed: Computed) -> None:
    monkeypatch.setattr(predicting, "read_batches", lambda *_: iter([fake_batch(True, images=1)]))
    list(predicting.predictions([predictor(), predictor()], _Pictures(), None))
    ((device, results),) = computed
    assert {device, *(one.device for one in results)} == {GPU}


class _Pictures:
    """Stands for samples of one picture."""

    size, labels, images = (WIDTH, HEIGHT), True, None

    def __init__(self) -> None:
        self.images = self
        self.index = self
        self.keep_aspect_ratio = False

    def __len__(self) -> int:
        return 1

    def where(self, position: int) -> str:
        return "a picture"
