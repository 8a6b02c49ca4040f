"""The rows of the table: which training is scored, from which network it starts, on which labels.

Two stages of equal length. The first starts from ImageNet's weights: source only, MinEnt, AdvEnt. The second starts
from the last step of a first one, with the schedule from its beginning: what an ingredient adds is what its row has
over the row of the same start that was trained as long without it. So ESL and self-training count against "AdvEnt,
trained as long", and, since batch-norm statistics alone close much of a gap, against source only with the target's.

Nothing here was chosen by the reported seeds: rates and strengths are the published ones for pictures of this size or
were tried on seed 7 (docs/accuracy.md says which).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

EVERY = ("optimizer.learning_rate=0.01",)
"""Settings of every training. The published rate, 0.00025, is for one picture a step and 250,000 steps."""

SOURCE_ONLY = ("method.name=source_only",)
TWO_DOMAINS = ("network.batch_norm=per_domain",)
MINENT = ("method.name=minent", *TWO_DOMAINS)
ADVENT = ("method.name=advent", "method.discriminator_channels=16", *TWO_DOMAINS)
SELF_TRAINING = ("method.name=self_training", *TWO_DOMAINS)
BY_SHARE = ("method.teacher.trust=share",)
BY_ENTROPY = ("method.teacher.trust=entropy", "method.teacher.entropy_as=weight")
MASKS = ("method.name=masked_consistency", "method.masks.block=16", *TWO_DOMAINS)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: of the row.
        words: settings of its training beside those that all have.
        start: the row from whose network it starts; None: from ImageNet's weights.
        labels: the score by which that network's offline pseudo-labels are chosen (`entropy`: ESL; `confidence`: the
            softmax rule it is compared with), which it is trained on; None: on none.
        scored: the row whose training is scored; None: its own.
        target_statistics: whether the target's batch-norm statistics are estimated anew before scoring.
        rare_classes: whether source pictures with rare classes are drawn more often.
    """

    title: str
    words: tuple[str, ...] = ()
    start: str | None = None
    labels: str | None = None
    scored: str | None = None
    target_statistics: bool = False
    rare_classes: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "source_only": Method("source only", SOURCE_ONLY),
        "source_only_target_statistics": Method(
            "source only, target statistics", scored="source_only", target_statistics=True
        ),
        "source_only_long_target_statistics": Method(
            "source only, trained as long, target statistics",
            SOURCE_ONLY,
            start="source_only",
            target_statistics=True,
        ),
        "minent": Method("MinEnt", MINENT),
        "advent": Method("AdvEnt", ADVENT),
        "advent_long": Method("AdvEnt, trained as long", ADVENT, start="advent"),
        "advent_esl": Method("AdvEnt + ESL", ADVENT, start="advent", labels="entropy"),
        "advent_softmax": Method("AdvEnt + ESL's softmax rule", ADVENT, start="advent", labels="confidence"),
        "self_training_share": Method(
            "self-training, share of confident pixels", (*SELF_TRAINING, *BY_SHARE), start="advent"
        ),
        "self_training_entropy": Method(
            "self-training, ESL's entropy rule", (*SELF_TRAINING, *BY_ENTROPY), start="advent"
        ),
        "masked_consistency": Method("+ masks", (*MASKS, *BY_SHARE), start="advent"),
        "masked_consistency_rare_classes": Method(
            "+ masks + rare classes", (*MASKS, *BY_SHARE), start="advent", rare_classes=True
        ),
    }
)
"""By the name of runs and results; what a row starts from or scores stands above it."""
