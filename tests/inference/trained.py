"""Networks as they are loaded, without a run or a file that they would come from."""

from typing import Any

from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.runs.trained import Provenance, TrainedNetwork
from tests.builders import class_set


def trained_network(network: SegmentationNetwork, **known: Any) -> TrainedNetwork:
    """Return a network of three classes of whose training nothing more is known than what is given."""
    nothing = Provenance("r", "village3", class_set(), "tiny", True, False, 1, None, {}, {}, {})
    return TrainedNetwork(**{**vars(nothing), **known}, network=network, name="r", step=3)
