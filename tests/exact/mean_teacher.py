"""A method for the tests: the student follows, on changed target pictures, a teacher that saw them as they are.

The teacher is a moving average of the student (Tarvainen and Valpola, arXiv 1703.01780).
"""

import copy

import torch
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.methods import Method
from esl_dist.adaptation.passes import SEGMENTATION, Counts, Networks, Step, WeightedLosses, at_level, source_pass
from esl_dist.models.deeplab import DeepLab

TEACHER, MOMENTUM = "teacher", 0.9


def changed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return a picture in another light, with noise."""
    light = 0.5 + torch.rand((), generator=generator).to(image)
    noise = torch.randn(image.shape, generator=generator).to(image)
    return image * light + 5 * noise


class MeanTeacher(Method):
    """Consistency between teacher and student at each level, and the source's labels."""

    needs_target = True

    def networks(self, segmentation: DeepLab, classes: int, options: settings.Method) -> dict[str, nn.Module]:
        """Return the teacher, which begins as the student."""
        return {TEACHER: copy.deepcopy(segmentation).requires_grad_(False)}

    def passes(self, step: Step) -> None:
        """Learn from the source's labels, then from the teacher."""
        source_pass(step)
        images, generators = step.samples("target")["images"], step.batch.generators("changes")
        seen = torch.stack([changed(*pair) for pair in zip(images, generators, strict=True)])
        with torch.no_grad():
            expected = step.predict("target", TEACHER)
        losses: WeightedLosses = {}
        for level, log_probabilities in step.predict("target", images=seen).items():
            distance = -(expected[level].exp() * log_probabilities).sum(1).mean((1, 2)).sum()
            weight = at_level(step.options.target, level)
            losses[f"target_teacher/{level}"] = distance / step.normaliser.images, weight
            losses |= step.cross_entropy("target", level, log_probabilities)
        step.minimise(SEGMENTATION, losses)

    def after_update(self, networks: Networks, steps: int, counts: Counts, options: settings.Method) -> None:
        """Move the teacher towards the student: the mean of all students at first."""
        share = 1 - min(1 - 1 / (steps + 1), MOMENTUM)
        for own, student in zip(networks[TEACHER].parameters(), networks[SEGMENTATION].parameters(), strict=True):
            own.data.lerp_(student.detach(), share)
