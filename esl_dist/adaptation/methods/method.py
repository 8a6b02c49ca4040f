"""What a method is: all that it adds to training on labels, in one file."""

from torch import nn
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import segmentation_optimizer
from esl_dist.adaptation.passes import SEGMENTATION, Counts, Networks, Step, source_pass, target_pass
from esl_dist.adaptation.trust import Trusted, labels_at
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.models.segmentation import SegmentationNetwork


class Method:
    """Training on the source's labels and, where there are some, on the target's pseudo-labels.

    A method overrides what it does otherwise. It keeps no state but in its networks, which checkpoints save and
    restarts fill; it knows no ranks and no files. Whatever it draws at random comes from `MicroBatch.generators`, and
    each of its losses is this rank's share of the global batch's (`adaptation.losses`). Then ranks, restarts and kills
    do not show in what it learns.

    Attributes:
        needs_target: whether it looks at target pictures without labels.
    """

    needs_target: bool = False

    def least_side(self, options: settings.Method) -> int:
        """Return how many pixels a side of its pictures needs at least."""
        return 1

    def needs_one_size(self, options: settings.Method) -> bool:
        """Say whether pictures of the two domains have to have the same size."""
        return False

    def reads(self, options: settings.Method) -> frozenset[str] | None:
        """Return the keys of the settings, or groups of them, that it alone reads; None: it does not say.

        They begin with `method.` or `optimizer.discriminator_`.
        """
        return None

    def networks(
        self, segmentation: SegmentationNetwork, classes: int, options: settings.Method
    ) -> dict[str, nn.Module]:
        """Return the networks beside the segmentation network, by name.

        Args:
            segmentation: with the weights that training begins from.
            classes: their number.
            options: the method's settings.
        """
        return {}

    def account(self, options: settings.Method) -> dict[str, str]:
        """Return what is told of it when a training begins, by name, beside its own name."""
        return {}

    def optimizers(self, networks: Networks, options: settings.Optimizer) -> dict[str, Optimizer]:
        """Return an optimiser for each network that is trained, by the network's name.

        A group of parameters has a `name` for the log, and a `rate_factor` that multiplies the scheduled rate.
        """
        segmentation = networks[SEGMENTATION]
        assert isinstance(segmentation, SegmentationNetwork)
        return {SEGMENTATION: segmentation_optimizer(segmentation, options)}

    def passes(self, step: Step) -> None:
        """Make the passes of a step over one micro-batch; each ends in `step.minimise`.

        Every rank makes the same passes, with losses of the same names, in every step: batch norm and the log sum over
        the ranks. A loss that has nothing to learn from is 0.
        """
        source_pass(step)
        if step.batch.target is not None:
            target_pass(step)

    def taught(self, step: Step) -> Trusted | None:
        """Return what the network is to learn of the target's pictures, to be shown; None: no labels.

        The networks are in evaluation mode, on one rank alone.
        """
        labels = step.samples("target")["labels"]
        if labels is None:
            return None
        labels = labels_at(labels, step.samples("target")["images"].shape[2:])
        return Trusted(labels, (labels != IGNORE_INDEX).float())

    def after_update(self, networks: Networks, steps: int, counts: Counts, options: settings.Method) -> None:
        """Change networks that no optimiser trains, after an update.

        A step that half precision skips is followed by none; what it counted is dropped.

        Args:
            networks: all of them.
            steps: done, this one included.
            counts: what the passes of the step have counted (`Step.count`), summed over ranks, on the device.
            options: the method's settings.
        """


def build_networks(
    method: Method, segmentation: SegmentationNetwork, classes: int, options: settings.Method
) -> nn.ModuleDict:
    """Return all networks of a run by name, the segmentation network first."""
    return nn.ModuleDict({SEGMENTATION: segmentation, **method.networks(segmentation, classes, options)})
