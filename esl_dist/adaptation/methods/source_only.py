"""No adaptation: the labelled source alone, the baseline of every table."""

from esl_dist import config as settings
from esl_dist.adaptation.methods.method import Method


class SourceOnly(Method):
    """What every method adds to, and nothing else."""

    def reads(self, options: settings.Method) -> frozenset[str]:
        """Return the weights of the one loss."""
        return frozenset({"method.cross_entropy"})
