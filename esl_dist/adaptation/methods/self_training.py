"""Self-training: the network learns the labels of its own moving average, on mixed pictures (DACS, arXiv 2007.08702).

What its teacher says of the target, as far as it is trusted, is learned on pictures into which half of the classes of a
source picture are pasted with their true labels, after a strong change of colours and sharpness.

It differs from the published programs where theirs would show the number of processes: a picture's share of trusted
pixels and its classes to be pasted are its own (`adaptation.trust`, `adaptation.mixing`). With `trust: entropy` ESL's
rule decides instead, online. Where the target has offline pseudo-labels, they take the place of the teacher's.
"""

import torch
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.augmentation import augmented
from esl_dist.adaptation.methods.method import Method
from esl_dist.adaptation.mixing import class_mask
from esl_dist.adaptation.passes import Counts, Networks, Step, source_pass
from esl_dist.adaptation.teacher import TEACHER, follow
from esl_dist.adaptation.trust import (
    ENTROPIES,
    Entropies,
    Trusted,
    build_teaching,
    in_words,
    labels_at,
    learn_from,
    trusted_labels,
)
from esl_dist.models.segmentation import SegmentationNetwork


class SelfTraining(Method):
    """Cross-entropy on the source's labels, and weighed on mixed pictures with the teacher's."""

    needs_target = True

    def reads(self, options: settings.Method) -> frozenset[str]:
        """Return the weights of its losses, and what its teacher and its pictures are."""
        return frozenset({"method.cross_entropy", "method.teacher", "method.augmentation", "method.mix"})

    def needs_one_size(self, options: settings.Method) -> bool:
        """Say whether pictures are mixed."""
        return options.mix

    def networks(
        self, segmentation: SegmentationNetwork, classes: int, options: settings.Method
    ) -> dict[str, nn.Module]:
        """Return the teacher and what its trust is judged by."""
        return build_teaching(segmentation, classes, options.teacher)

    def account(self, options: settings.Method) -> dict[str, str]:
        """Tell of the teacher, and of what its labels are trusted by."""
        return {TEACHER: in_words(options.teacher)}

    def passes(self, step: Step) -> None:
        """Learn from the source's labels, then from the teacher's on mixed pictures."""
        source_pass(step)
        mixed_pass(step, trusted_labels(step))

    def taught(self, step: Step) -> Trusted:
        """Return the teacher's labels."""
        return trusted_labels(step)

    def after_update(self, networks: Networks, steps: int, counts: Counts, options: settings.Method) -> None:
        """Move the teacher, and what its trust is judged by."""
        teach_on(networks, steps, counts, options.teacher)


def mixed_pass(step: Step, trusted: Trusted) -> None:
    """Learn from the teacher's labels on target pictures, into which classes of the source are mixed if asked."""
    images = step.samples("target")["images"]
    if step.options.mix:
        images, trusted = mixed(step, trusted)
    images = augmented(images, step.batch.generators("augmentation of the mix"), step.options.augmentation)
    learn_from(step, "teacher_cross_entropy", images, trusted)


def mixed(step: Step, trusted: Trusted) -> tuple[Tensor, Trusted]:
    """Paste half of the classes of each source picture, with its labels and a weight of 1, into its target picture."""
    source, target = step.samples("source"), step.samples("target")["images"]
    assert source["labels"] is not None
    labels = labels_at(source["labels"], target.shape[2:])
    pasted = class_mask(labels, step.batch.generators("classes"))
    return torch.where(pasted[:, None], source["images"], target), Trusted(
        torch.where(pasted, labels.to(trusted.labels.dtype), trusted.labels),
        torch.where(pasted, 1.0, trusted.weights),
    )


def teach_on(networks: Networks, steps: int, counts: Counts, options: settings.Teacher) -> None:
    """After an update, move the teacher, and add the step's entropies to those that judge the next."""
    follow(networks, steps, options.momentum)
    if ENTROPIES in counts:
        entropies = networks[ENTROPIES]
        assert isinstance(entropies, Entropies)
        entropies.add(counts[ENTROPIES], options.entropy_memory)
