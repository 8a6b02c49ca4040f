"""Whatever a step, a pseudo-label or a score is computed from lies on the network's device: a GPU that is not there.

Fake tensors have shapes and a device and no values, so a tensor on the wrong device is refused as it would be on a GPU.
Torch's own backward passes cannot be faked: they want the GPU's context. Those written here are called by themselves.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from esl_dist import config as settings
from esl_dist.adaptation import augmentation, losses, passes, trust
from esl_dist.adaptation.entropy import empty_histograms
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import SEGMENTATION, MicroBatch, Normaliser, Precision, Step
from esl_dist.adaptation.pseudo_labels import TRUST, Threshold, keep_trusted, label_and_score
from esl_dist.data.loading import Batch, HostBatch, on_device
from esl_dist.data.workers import Workers
from esl_dist.inference.labelling import levels
from esl_dist.inference.labelling.pieces import LabelJob
from esl_dist.models import batch_norm, resizing
from esl_dist.models.deeplab import DeepLab
from esl_dist.prediction import predictions as predicting
from esl_dist.prediction.levels import counting
from esl_dist.prediction.predictor import Predictor
from esl_dist.training import validation
from tests.inference.trained import trained_network

CLASSES, IMAGES, HEIGHT, WIDTH = 3, 2, 32, 64
GPU = torch.device("cuda", 0)
HOST = torch.device("cpu")
aten = torch.ops.aten
ASKING = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)


class _Answers(TorchDispatchMode):
    """Answers what only values could: a single value is 1, so that what is asked to be finite is.

    And refuses what a GPU does and shapes do not tell: batch norm's backward pass without what a pass in training has
    saved ("save_mean should always be defined", Normalization.cu); it may be empty.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in ASKING:
            return True if args[0].dtype == torch.bool else 1
        if func is aten.native_batch_norm_backward.default:
            assert all(isinstance(one, Tensor) for one in args[5:7])
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def faked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The host's own numbers would have no values either, and a copy of what is not there has no bytes.
    monkeypatch.setattr(augmentation, "_draw", lambda _: ([0.0] * 7, [3, 0, 2, 1]))
    monkeypatch.setattr(trust, "build_teacher", lambda _: fake_network().requires_grad_(False))
    with FakeTensorMode(allow_non_fake_inputs=True), _Answers():
        yield


@contextlib.contextmanager
def in_bf16() -> Iterator[None]:
    """Do what torch.autocast does, which looks for a real GPU first."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


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
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * images, dtype=torch.float64),
        mirrored=torch.zeros(images, dtype=torch.bool),
    )
    return on_device(host, GPU)


def fake_network(per_picture: bool = False) -> DeepLab:
    with GPU:
        return DeepLab("tiny", CLASSES, True, True, per_picture)


def make_passes(method: str, pseudo_labels: bool = False, half: bool = False, per_picture: bool = False) -> list[str]:
    """Make a method's passes; returns the networks that its losses, which lie on the GPU, are for."""
    reached: list[str] = []

    def backward(loss: Tensor, network: str) -> None:
        assert loss.device == GPU
        assert loss.shape == ()
        reached.append(network)

    options = settings.Method(name=method, discriminator_channels=2)
    with GPU:
        networks = build_networks(METHODS[method], fake_network(per_picture), CLASSES, options).train()
    target = fake_batch(pseudo_labels) if METHODS[method].needs_target or pseudo_labels else None
    batch = MicroBatch(fake_batch(True), target, seed=0, step=0, places=range(IMAGES))
    normaliser = Normaliser(torch.ones(2, dtype=torch.int64), IMAGES)
    step = Step(networks, batch, normaliser, options, Precision(in_bf16 if half else contextlib.nullcontext, backward))
    METHODS[method].passes(step)
    assert {loss.device for loss in step.losses.values()} == {GPU}
    return reached


@pytest.mark.parametrize("pseudo_labels", [False, True], ids=["without", "with pseudo-labels"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_passes_of_a_step_compute_on_the_device_of_the_network(
    method: str, half: bool, pseudo_labels: bool
) -> None:
    reached = make_passes(method, pseudo_labels, half)
    on_target = METHODS[method].needs_target or pseudo_labels
    masked = method == "masked_consistency"
    assert reached.count(SEGMENTATION) == (2 if on_target else 1) + masked
    assert set(reached) >= set(METHODS[method].networks(fake_network(), CLASSES, settings.Method())) - {"teacher"}


@pytest.mark.parametrize("entropy_as", ["mask", "weight"])
@pytest.mark.parametrize("host", ["advent", "self_training"])
def test_entropies_are_judged_and_counted_on_the_device_of_the_network(host: str, entropy_as: str) -> None:
    method = METHODS["masked_consistency"]
    teacher = settings.Teacher(trust="entropy", entropy_as=entropy_as, margins=[0.03, 0.25, 0.03, 0.03])
    options = settings.Method(name="masked_consistency", host=host, discriminator_channels=2, teacher=teacher)
    with GPU:
        networks = build_networks(method, fake_network(), CLASSES, options).train()
    batch = MicroBatch(fake_batch(True), fake_batch(True), seed=0, step=0, places=range(IMAGES))
    normaliser = Normaliser(torch.ones(2, dtype=torch.int64), IMAGES)
    step = Step(networks, batch, normaliser, options, Precision(in_bf16, lambda loss, network: None))
    method.passes(step)
    assert step.counts[trust.ENTROPIES].device == GPU
    method.after_update(networks, 1, step.counts, options)
    assert networks[trust.ENTROPIES].histograms.device == GPU


def on_the_host(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that weighs pixels by a tensor which somebody forgot to send to the device."""

    def forgetful(scores: Tensor, *others: Any) -> Tensor:
        return loss(scores * torch.ones(scores.shape, device=HOST), *others)

    return forgetful


def test_a_tensor_on_the_wrong_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "cross_entropy", on_the_host(passes.cross_entropy))
    with pytest.raises(RuntimeError, match="device"):
        make_passes("source_only")


PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


@PRECISIONS
def test_the_backward_pass_of_resizing_computes_on_the_device_of_its_gradient(precision: torch.dtype) -> None:
    gradient = torch.empty(IMAGES, CLASSES, HEIGHT, WIDTH, dtype=precision, device=GPU)
    result, _ = resizing._Resize.backward(SimpleNamespace(size=(5, 9)), gradient)
    assert (result.device, result.dtype, result.shape) == (GPU, precision, (IMAGES, CLASSES, 5, 9))


def test_the_backward_pass_of_self_information_computes_on_the_device_of_its_gradient() -> None:
    gradient = torch.empty(IMAGES, CLASSES, HEIGHT, WIDTH, device=GPU)
    result = losses._SelfInformation.backward(SimpleNamespace(saved_tensors=(gradient,)), gradient)
    assert (result.device, result.dtype, result.shape) == (GPU, torch.float32, gradient.shape)


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """Be one of two ranks whose collectives move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("per_picture", [False, True], ids=["over ranks", "by picture"])
def test_the_passes_of_several_ranks_compute_on_the_device_of_the_network(per_picture: bool) -> None:
    assert SEGMENTATION in make_passes("advent", half=True, per_picture=per_picture)


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("per_picture", [False, True], ids=["over ranks", "by picture"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "channels last"])
@PRECISIONS
def test_batch_norm_over_ranks_stays_on_its_device_in_its_layout_and_precision(
    precision: torch.dtype, layout: torch.memory_format, per_picture: bool
) -> None:
    with GPU:
        norm = batch_norm.DomainBatchNorm2d(CLASSES, True, per_picture).train()
        input = torch.empty(IMAGES, CLASSES, HEIGHT, WIDTH, dtype=precision).contiguous(memory_format=layout)
    output = norm(input)
    assert (output.device, output.dtype, output.shape) == (GPU, precision, input.shape)
    assert output.is_contiguous(memory_format=layout)
    assert norm.seen is not None
    assert {(one.device, one.dtype, one.shape) for one in norm.seen} == {(GPU, torch.float32, (CLASSES,))}
    batch_norm.finish_pass(norm)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("of_gradient", LAYOUTS, ids=["of a plain gradient", "of one channels last"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "channels last"])
@PRECISIONS
def test_the_backward_pass_of_batch_norm_over_ranks_computes_on_the_device_of_its_gradient(
    precision: torch.dtype, layout: torch.memory_format, of_gradient: torch.memory_format
) -> None:
    with GPU:
        input, gradient = torch.empty(2, IMAGES, CLASSES, HEIGHT, WIDTH, dtype=precision).unbind()
        saved = (input.contiguous(memory_format=layout), *torch.empty(3, CLASSES).unbind())
    context = SimpleNamespace(saved_tensors=saved, eps=1e-5, needs_input_grad=(True, False, True, True, False))
    result, *others = batch_norm._NormaliseOverRanks.backward(context, gradient.contiguous(memory_format=of_gradient))
    assert result is not None
    assert (result.device, result.dtype, result.shape) == (GPU, precision, input.shape)
    of_running, *of_affine, of_epsilon = others
    assert of_running is of_epsilon is None
    assert {(one.device, one.dtype, one.shape) for one in of_affine if one is not None} == {
        (GPU, torch.float32, (CLASSES,))
    }
    context.needs_input_grad = (True, False, False, False, False)
    assert batch_norm._NormaliseOverRanks.backward(context, gradient)[1:] == (None,) * 4


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
    for module in (predicting, levels, validation):
        monkeypatch.setattr(module, "on_host", lambda compute, device: results.append((device, compute())))
    return results


@pytest.mark.parametrize("score", sorted(TRUST))
def test_predictions_for_pseudo_labels_are_counted_on_the_device_of_the_network(score: str, computed: Computed) -> None:
    samples: Any = _Pictures()
    job = LabelJob(predictor(), samples, (WIDTH, HEIGHT), {score: 0.5}, {}, Path("labels"), Workers(0, 1))
    levels._prediction(job, fake_batch(False, images=1), counting(empty_histograms(CLASSES, GPU)))
    ((device, (labels, own_levels, is_finite)),) = computed
    assert {device, labels.device, own_levels.device, is_finite.device} == {GPU}
    assert (labels.shape, own_levels.shape, is_finite.shape) == ((HEIGHT, WIDTH), (HEIGHT, WIDTH), ())


def test_a_score_is_computed_on_the_device_of_the_network(monkeypatch: pytest.MonkeyPatch, computed: Computed) -> None:
    monkeypatch.setattr(predicting, "read_batches", lambda *_: iter([fake_batch(True, images=1)]))
    list(predicting.predictions([predictor(), predictor()], _Pictures(), None))
    ((device, results),) = computed
    assert {device, *(one.device for one in results)} == {GPU}


@pytest.mark.parametrize("teacher", [False, True])
def test_a_validation_is_computed_on_the_device_of_the_network(computed: Computed, teacher: bool) -> None:
    samples: Any = _Pictures()
    validated = validation.Validation(samples, predictor(), predictor() if teacher else None, Workers(0, 1))
    validation._counts(validated, fake_batch(True, images=1), counting(empty_histograms(CLASSES, GPU)))
    (_, scored), (device, (same, are_finite)) = computed
    assert {device, same.device, are_finite.device, *(one.device for one in scored)} == {GPU}
    assert (same.shape, are_finite.shape) == ((), ())


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
