"""A program that computes in float64: `in_float64.py PROGRAM words…`.

Sums that are added in another order, on other ranks or another processor, differ by rounding. In float32 that may turn
over a ReLU, and the gradients below it change by far more than rounding; in float64 this does not come about.
The launcher has to start all ranks: those that `esl_dist.ranks.launchers` starts know nothing of this file.
"""

import runpy
import sys

import torch
from torch import Tensor

from esl_dist.config import Domain
from esl_dist.models.segmentation import Logits, SegmentationNetwork

forward = SegmentationNetwork.forward


def forward_in_float64(network: SegmentationNetwork, images: Tensor, domain: Domain = "target") -> Logits:
    return forward(network, images.double(), domain)


SegmentationNetwork.forward = forward_in_float64
torch.set_default_dtype(torch.float64)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
