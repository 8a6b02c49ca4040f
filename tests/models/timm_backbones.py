"""Networks on small backbones of timm, and pictures for them."""

from typing import Any

import torch

from esl_dist import config as settings
from esl_dist.config_files import from_dictionary
from esl_dist.data.loading import MEAN_COLOR
from esl_dist.models.timm_networks import TimmNetwork
from esl_dist.models.weights import initialise

CLASSES = 3
PYRAMIDS = ("test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet")
PLAIN = ("test_vit", "test_vit3")
FOUNDATION = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3")


def network_of(name: str, seed: int = 0, classes: int = CLASSES, **options: Any) -> TimmNetwork:
    torch.manual_seed(seed)
    # A pass without a second level where there can be none.
    values = {"architecture": f"timm/{name}", "auxiliary_head": name in PYRAMIDS, **options}
    network = TimmNetwork(from_dictionary(settings.Network, values, "tests"), classes, MEAN_COLOR)
    initialise(network)
    return network


def pictures(height: int = 32, width: int = 48, count: int = 2) -> torch.Tensor:
    return 60 * torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))
