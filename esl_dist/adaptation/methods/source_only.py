"""No adaptation: the labelled source alone, the baseline of every table."""

from esl_dist.adaptation.methods.method import Method


class SourceOnly(Method):
    """What every method adds to, and nothing else."""
