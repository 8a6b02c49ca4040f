"""A training with batch norm in evaluation mode: `freeze_statistics.py PROGRAM words…`.

Only so a step does not depend on the passes into which its batch is cut.
"""

import runpy
import sys

from torch import nn

from esl_dist.models.batch_norm import DomainBatchNorm2d


def stay_in_evaluation(norm: DomainBatchNorm2d, mode: bool = True) -> nn.Module:
    return nn.Module.train(norm, False)


DomainBatchNorm2d.train = stay_in_evaluation
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
