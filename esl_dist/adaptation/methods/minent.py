"""MinEnt: make the network sure of the target by minimising its entropy (AdvEnt, arXiv 1811.12833, section 3.1)."""

from esl_dist import config as settings
from esl_dist.adaptation.losses import entropy_loss
from esl_dist.adaptation.methods.method import Method
from esl_dist.adaptation.passes import Step, source_pass, target_pass


class MinEnt(Method):
    """The mean normalised entropy of the target's predictions (equation 4) as a loss at each level."""

    needs_target = True

    def reads(self, options: settings.Method) -> frozenset[str]:
        """Return the weights of its losses."""
        return frozenset({"method.cross_entropy", "method.target"})

    def passes(self, step: Step) -> None:
        """Learn from the source's labels, then from the target's entropy."""
        source_pass(step)
        target_pass(
            step, "minent", lambda level, log_probabilities: entropy_loss(log_probabilities, step.normaliser.images)
        )
