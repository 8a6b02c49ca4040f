"""Masked image consistency on top of another method, its host (MIC, arXiv 2212.01322).

The network is to label what it does not see as its teacher does, who sees all of the picture: it has to learn what
surrounds a thing. The host is self-training, whose teacher and labels are shared, or AdvEnt or MinEnt, for which there
is a teacher of its own.
"""

from torch import nn
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.augmentation import augmented
from esl_dist.adaptation.masks import masked
from esl_dist.adaptation.methods.advent import DISCRIMINATORS, AdvEnt
from esl_dist.adaptation.methods.method import Method
from esl_dist.adaptation.methods.minent import MinEnt
from esl_dist.adaptation.methods.self_training import mixed_pass, teach_on
from esl_dist.adaptation.passes import SEGMENTATION, Counts, Networks, Step, source_pass
from esl_dist.adaptation.teacher import TEACHER
from esl_dist.adaptation.trust import Trusted, build_teaching, in_words, learn_from, trusted_labels
from esl_dist.models.batch_norm import unfed
from esl_dist.models.segmentation import SegmentationNetwork

HOSTS: dict[str, Method] = {"advent": AdvEnt(), "minent": MinEnt()}
"""Those whose passes know no teacher."""


class MaskedConsistency(Method):
    """The host's losses, and the weighed cross-entropy of masked target pictures with the teacher's labels."""

    needs_target = True

    def reads(self, options: settings.Method) -> frozenset[str]:
        """Return what the host reads, and what the teacher and the masks are."""
        hosted = HOSTS[options.host].reads(options) if options.host in HOSTS else {"method.mix"}
        own = {f"method.{name}" for name in ("cross_entropy", "host", "teacher", "augmentation", "masks")}
        return frozenset(own.union(hosted or ()))

    def least_side(self, options: settings.Method) -> int:
        """Return what the host needs."""
        return HOSTS[options.host].least_side(options) if options.host in HOSTS else super().least_side(options)

    def needs_one_size(self, options: settings.Method) -> bool:
        """Say whether the host mixes pictures."""
        return options.host not in HOSTS and options.mix

    def networks(
        self, segmentation: SegmentationNetwork, classes: int, options: settings.Method
    ) -> dict[str, nn.Module]:
        """Return the host's networks, and a teacher."""
        hosted = HOSTS[options.host].networks(segmentation, classes, options) if options.host in HOSTS else {}
        return hosted | build_teaching(segmentation, classes, options.teacher)

    def account(self, options: settings.Method) -> dict[str, str]:
        """Tell of the host, and of the teacher and what its labels are trusted by."""
        return {"host": options.host, TEACHER: in_words(options.teacher)}

    def optimizers(self, networks: Networks, options: settings.Optimizer) -> dict[str, Optimizer]:
        """Return the host's: of all hosts AdvEnt alone has more to train than the segmentation network."""
        # An optimiser's settings do not name the host; its networks tell.
        is_on_advent = DISCRIMINATORS in networks
        return HOSTS["advent"].optimizers(networks, options) if is_on_advent else super().optimizers(networks, options)

    def passes(self, step: Step) -> None:
        """Make the host's passes, then that over masked pictures."""
        trusted = trusted_labels(step)
        if step.options.host in HOSTS:
            HOSTS[step.options.host].passes(step)
        else:
            source_pass(step)
            mixed_pass(step, trusted)
        masked_pass(step, trusted)

    def taught(self, step: Step) -> Trusted:
        """Return the teacher's labels."""
        return trusted_labels(step)

    def after_update(self, networks: Networks, steps: int, counts: Counts, options: settings.Method) -> None:
        """Move the teacher, and what its trust is judged by."""
        teach_on(networks, steps, counts, options.teacher)


def masked_pass(step: Step, trusted: Trusted) -> None:
    """Learn from the teacher's labels on target pictures of which blocks are hidden (equation 4).

    Unlike in the published program, they feed no running statistics of batch norm: predictions see whole pictures. What
    is learned is the same.
    """
    network = step.network(SEGMENTATION)
    assert isinstance(network, SegmentationNetwork)
    images = step.samples("target")["images"]
    images = augmented(images, step.batch.generators("augmentation of the masked"), step.options.augmentation)
    images = masked(images, network.masked_color, step.batch.generators("masks"), step.options.masks)
    with unfed(network):
        learn_from(step, "masked_cross_entropy", images, trusted, step.options.masks.weight)
