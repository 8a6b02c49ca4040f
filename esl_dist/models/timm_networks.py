"""Backbones of timm under DeepLab's classifier, or under a light decoder where they are plain vision transformers.

Nothing else of the project imports timm, which takes seconds. A backbone keeps timm's names, so that its files fit.
What differs from timm's own:

- *Input.* Pictures come as blue, green, red in grey levels, less the published mean, and are converted inside to what
  the backbone was trained on.
- *Batch norm* becomes the project's, which is exact over ranks and knows domains. Its scale and shift are trained,
  unlike DeepLab's: trainings published with other backbones train them, and a block whose last scale begins at 0, as in
  timm's residual networks, would stay shut for ever.
- *Chance.* Dropout and stochastic depth are off: they draw from torch's generator, in which the number of ranks shows.
- *Sizes.* A plain vision transformer sees a picture resized to whole patches by VFM-UDA's rule: ⌊1.1 · side / patch⌋
  patches a side, at least one, so that 1024 pixels are 80 patches of 14.
"""

import difflib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.layers.evo_norm import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from esl_dist import config as settings
from esl_dist.errors import UserError
from esl_dist.models.batch_norm import DomainBatchNorm2d, batch_norms
from esl_dist.models.decoders import TransposedDecoder
from esl_dist.models.deeplab import Classifier
from esl_dist.models.segmentation import Logits, SegmentationNetwork

PREFIX = "timm/"
OUTPUT_STRIDE = 16
"""At which a pyramid computes where none is asked for, as far as it can be dilated."""
NO_COLOR = (0.0, 0.0, 0.0)
EMBEDDINGS = ("pos_embed", "cls_token", "reg_token", "mask_token", "dist_token")
"""Parameters of more than one dimension that are no weights; timm's lists lack some."""
PLACES_MOVED = "aug_active"
"""Of timm's rotary embeddings: whether their places are moved and stretched by chance in training."""
SHARES_DROPPED = ("p", "drop_prob", "prob")
"""What timm and torch call the share that is dropped."""
USES_BATCH = (EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2)
"""Norms beside batch norm that take statistics of the batch."""


class NormAndActivation(DomainBatchNorm2d):
    """Batch norm and what timm puts behind it in one module."""

    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, then activate."""
        output: Tensor = self.act(super().forward(input))
        return output


class PlacesOnDevice(nn.Module):
    """DINOv3's sines and cosines of places, computed where the network is.

    timm begins with a grid on the host, which would wait at every pass for a GPU to take it.
    """

    def __init__(self, rope: nn.Module) -> None:
        """Compute what `rope` computes."""
        super().__init__()
        self.rope: Any = rope

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return float (height · width, 2 · channels) for a shape of (height, width)."""
        # Torch's compiler knows no such context.
        here = nullcontext() if torch.compiler.is_compiling() else self.rope.periods.device
        with here:
            places: Tensor = self.rope.get_embed(shape=shape)
        return places


class TimmNetwork(SegmentationNetwork):
    """A backbone of timm with one head, and a second on the stage before if it is a pyramid.

    Args:
        options: the network's settings; `start` and `pretrained` are not looked at.
        classes: number of classes.
        mean_color: blue, green and red in grey levels that are taken from pictures before they come.

    Raises:
        UserError: timm has no such backbone, or it cannot be what the settings say.
    """

    heads = ("head.", "auxiliary_head.")
    backbone: Any
    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, options: settings.Network, classes: int, mean_color: Sequence[float]) -> None:
        """Build it with timm's random weights, from torch's generator."""
        super().__init__(classes)
        self.options, self.architecture = options, options.architecture
        name = known_name(options.architecture)
        self.patch, created = _ways_to_create(name, options.output_stride)
        self.backbone = timm.create_model(name, num_classes=0, **created)
        self.stages = _stages(self.backbone)
        if options.auxiliary_head and self.is_plain:
            raise UserError(
                f"network.auxiliary_head=true (the default): {self.architecture} is a plain vision transformer, with "
                "no stage before its last; give network.auxiliary_head=false"
            )
        wanted = [-2, -1] if options.auxiliary_head else [-1]
        self.indices = self.backbone.prune_intermediate_layers(wanted, prune_norm=not self.is_plain)
        _switch_off_chance(self.backbone, self.architecture)
        if isinstance(getattr(self.backbone, "rope", None), RotaryEmbeddingDinoV3):
            self.backbone.rope = PlacesOnDevice(self.backbone.rope)
        _put_own_batch_norm(self.backbone, options)
        is_deeplab = options.head == "deeplab" or (options.head is None and not self.is_plain)
        build = Classifier if is_deeplab else TransposedDecoder
        self.head = build(self.stages[-1][0], classes)
        self.auxiliary_head = Classifier(self.stages[-2][0], classes) if options.auxiliary_head else None
        self._convert_from(mean_color)
        if not list(batch_norms(self)):
            _refuse_without_batch_norm(options)

    def _convert_from(self, mean_color: Sequence[float]) -> None:
        """Turn (blue, green, red) − mean, in grey levels, to (red, green, blue) as the backbone was trained on."""
        known = self.backbone.pretrained_cfg
        mean, deviation = (255 * torch.tensor(known[key])[:, None, None] for key in ("mean", "std"))
        removed = torch.tensor(mean_color).flip(0)[:, None, None]
        self.register_buffer("input_scale", 1 / deviation, persistent=False)
        self.register_buffer("input_shift", (removed - mean) / deviation, persistent=False)
        self.masked_color = (mean - removed).flatten().flip(0)

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain vision transformer: patches from the first block to the last."""
        return self.patch is not None

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels."""
        return ("main",) if self.auxiliary_head is None else ("main", "auxiliary")

    def score(self, images: Tensor) -> Logits:
        """Return logits at the stride of the last stages; of the light decoder, at a quarter of it."""
        pixels = images.flip(1) * self.input_scale + self.input_shift
        if self.patch is not None:
            size = [self.patch * patches(side, self.patch) for side in images.shape[2:]]
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        features = self.backbone.forward_intermediates(
            pixels, indices=self.indices, norm=self.is_plain, output_fmt="NCHW", intermediates_only=True
        )
        logits: Logits = {"main": self.head(features[-1])}
        if self.auxiliary_head is not None:
            logits["auxiliary"] = self.auxiliary_head(features[0])
        return logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the backbone's parameters as `blocks`, the others as `heads`."""
        groups: dict[str, list[nn.Parameter]] = {"blocks": [], "heads": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["heads" if name.startswith(self.heads) else "blocks"].append(parameter)
        return groups

    def no_decay(self, name: str) -> bool:
        """Return whether weight decay is kept from a parameter: by timm, or as a position embedding or token."""
        of_timm = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else ()
        # timm names parameters, or parts of their names.
        return any(f".{one}." in f".{name}." for one in (*EMBEDDINGS, *of_timm))

    @torch.no_grad()
    def refuse_size(self, size: tuple[int, int], pictures: int, name: str, setting: str) -> None:
        """Make a pass without numbers: some take windows of one size, have no padding, or normalise pooled maps."""
        width, height = size
        with torch.device("meta"):
            twin = TimmNetwork(self.options, self.classes, NO_COLOR).train(self.training)
            images = torch.empty(pictures, 3, height, width)
        for norm in batch_norms(twin):
            norm.synchronised = False  # the pictures of all ranks are here
        try:
            twin(images)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            other = ", or another network.architecture" if self.training else ""
            raise UserError(
                f"{name}: {self.architecture} does not take pictures of {width}×{height} ({reason}); give another "
                f"{setting}{other}"
            ) from error

    def least_bytes_a_pixel(self) -> tuple[int, int]:
        """Return bytes of a picture's pixel and of a label's.

        Of the picture: what comes out of each stage, or block, in half precision.
        """
        values = sum(channels / reduction**2 for channels, reduction in self.stages)
        return int(2 * values), 2 * 4 * self.classes * len(self.levels)

    def checkpoint_blocks(self) -> None:
        """Have timm compute its blocks again in the backward pass, where none of them has batch norm.

        Raises:
            UserError: one has, or timm cannot.
        """
        if list(batch_norms(self)):
            raise UserError(
                f"checkpoint_activations=true: {self.architecture} has batch norm, which the repetition of a pass in "
                "timm's blocks would feed twice; give false, or a network without batch norm"
            )
        try:
            self.backbone.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(
                f"checkpoint_activations=true: timm cannot compute the blocks of {self.architecture} again ({error}); "
                "give false"
            ) from error


def patches(side: int, patch: int) -> int:
    """Return the patches of `patch` pixels that `side` pixels are resized to: ⌊1.1 · side / patch⌋, at least one."""
    return max(1, 11 * side // (10 * patch))


def known_name(architecture: str) -> str:
    """Return timm's name in `timm/<name>`.

    Raises:
        UserError: timm has no such model; the message has close matches.
    """
    name = architecture.removeprefix(PREFIX)
    tagged = "." in name
    if timm.is_model(name) and (not tagged or name in timm.list_models(pretrained=True)):
        return name
    close = difflib.get_close_matches(name, timm.list_models(pretrained=tagged), cutoff=0.5)
    like = f"; close to it: {', '.join(close)}" if close else ""
    raise UserError(
        f"network.architecture={architecture}: timm {timm.__version__} has no model of this name{like}; "
        "`python -c 'import timm; print(timm.list_models())'` lists all"
    )


def pretrained_weights(network: TimmNetwork) -> dict[str, Tensor]:
    """Fetch timm's weights for a network's backbone, or take them from the cache of its hub.

    Raises:
        UserError: there are none, or they cannot be fetched.
    """
    name = known_name(network.architecture)
    try:
        _, created = _ways_to_create(name, None)
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True, num_classes=0, **created).state_dict()
    except Exception as error:  # of the hub's client, of its transport, or of timm, which has no weights
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"network.pretrained=true: no weights of {network.architecture} from timm's hub ({reason}); where there is "
            "no network, give a file of them as network.start=…"
        ) from error
    return state


def _stages(backbone: Any) -> list[tuple[int, int]]:
    """Return channels and stride of every stage."""
    info = backbone.feature_info
    return [(one["num_chs"], one["reduction"]) for one in (info if isinstance(info, list) else info.info)]


def _ways_to_create(name: str, output_stride: int | None) -> tuple[int | None, dict[str, Any]]:
    """Return a plain vision transformer's patch, None for a pyramid, and what timm is told to create it.

    Raises:
        UserError: it takes pictures of one size only, or has not the stride that is asked for.
    """
    strides = [stride for _, stride in _tried(name)]
    asked = f"network.architecture={PREFIX}{name}"
    if len(set(strides)) == 1:
        if output_stride not in (None, strides[0]):
            raise UserError(f"{asked}: its stride is its patch of {strides[0]}; leave out network.output_stride")
        options = {"dynamic_img_size": True}
        if not _tried(name, **options):
            raise UserError(f"{asked}: takes pictures of one size only; choose a backbone that takes any")
        return strides[0], options
    wanted = OUTPUT_STRIDE if output_stride is None else output_stride
    if strides[-1] == wanted:
        return None, {}
    dilated = _tried(name, output_stride=wanted)
    if dilated and dilated[-1][1] == wanted:
        return None, {"output_stride": wanted}
    if output_stride is not None:
        raise UserError(f"{asked}: cannot compute at network.output_stride={output_stride}; its own is {strides[-1]}")
    return None, {}


def _tried(name: str, **options: Any) -> list[tuple[int, int]]:
    """Return the stages that a backbone has with these options, created without memory; none: it does not take them."""
    try:
        with torch.device("meta"):
            return _stages(timm.create_model(name, num_classes=0, **options))
    except (TypeError, AssertionError, NotImplementedError) as error:
        if not options:
            raise UserError(f"network.architecture={PREFIX}{name}: timm cannot create it: {error}") from error
        return []


def _switch_off_chance(backbone: nn.Module, architecture: str) -> None:
    for module in backbone.modules():
        if hasattr(module, PLACES_MOVED):
            setattr(module, PLACES_MOVED, False)
        if "drop" in type(module).__name__.lower() and not isinstance(module, nn.Identity):
            found = [share for share in SHARES_DROPPED if hasattr(module, share)]
            if not found:
                raise UserError(
                    f"network.architecture={architecture}: its {type(module).__name__} draws from torch's generator, "
                    "in which the number of ranks would show; choose another backbone"
                )
            setattr(module, found[0], 0.0)


def _put_own_batch_norm(backbone: nn.Module, options: settings.Network) -> None:
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and type(child) in (nn.BatchNorm2d, BatchNormAct2d):
                setattr(parent, name, _own_batch_norm(child, options))
            elif isinstance(child, (_NormBase, *USES_BATCH)):
                raise UserError(
                    f"network.architecture={options.architecture}: its {type(child).__name__} is not exact over ranks; "
                    "choose a backbone with nn.BatchNorm2d, or without batch norm"
                )


def _own_batch_norm(norm: nn.BatchNorm2d, options: settings.Network) -> DomainBatchNorm2d:
    kind = NormAndActivation if isinstance(norm, BatchNormAct2d) else DomainBatchNorm2d
    own = kind(norm.num_features, options.batch_norm == "per_domain", options.normalise_over == "picture")
    own.eps, own.momentum = norm.eps, norm.momentum
    own.load_state_dict(norm.state_dict(), strict=False)
    own.requires_grad_()
    if isinstance(norm, BatchNormAct2d):
        own.act = nn.Sequential(norm.drop, norm.act) if not isinstance(norm.drop, nn.Identity) else norm.act
    return own


def _refuse_without_batch_norm(options: settings.Network) -> None:
    for key, value, default in (
        ("batch_norm", options.batch_norm, "shared"),
        ("normalise_over", options.normalise_over, "batch"),
    ):
        if value != default:
            raise UserError(
                f"network.{key}={value} is impossible: {options.architecture} has no batch norm; leave it out"
            )
