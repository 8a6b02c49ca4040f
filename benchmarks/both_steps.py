"""The project's step and the published one beside each other, with the same weights and pictures."""

from dataclasses import dataclass

from torch import Tensor

from benchmarks.own_step import OwnStep, tensors_of, weights_of
from benchmarks.plain_step import PlainStep


@dataclass(frozen=True)
class BothSteps:
    """Both sides with the same weights and pictures."""

    own: OwnStep
    plain_step: PlainStep

    def ours(self) -> None:
        """Take a step of the project's."""
        self.own()

    def plain(self) -> None:
        """Take a step as published."""
        self.plain_step(*tensors_of(self.own.batch))

    def changes(self, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Take steps on each side; returns what they add to weights and statistics, ours first."""
        before = weights_of(self.plain_step.networks)
        for _ in range(steps):
            self.ours()
            self.plain()
        after = weights_of(self.own.networks), weights_of(self.plain_step.networks)
        ours, plain = ({name: one[name] - before[name] for name in before} for one in after)
        return ours, plain
