"""AdvEnt: make the target's entropy look like the source's to a discriminator (arXiv 1811.12833, section 3.2)."""

from torch import Tensor, nn
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.losses import SOURCE, TARGET, domain_loss, self_information, without_gradient
from esl_dist.adaptation.methods.method import Method
from esl_dist.adaptation.optimisers import Adam
from esl_dist.adaptation.passes import Networks, Step, source_pass, target_pass
from esl_dist.models.discriminator import LEAST_SIDE, build_discriminator
from esl_dist.models.segmentation import SegmentationNetwork

DISCRIMINATORS = "discriminators"


def fool_discriminator(target: Tensor, discriminator: nn.Module, images: int) -> Tensor:
    """Hold the discriminator's word on the target's self-information against *source* (equation 7)."""
    return domain_loss(without_gradient(discriminator, target), SOURCE, images)


def tell_domains_apart(source: Tensor, target: Tensor, discriminator: nn.Module, images: int) -> Tensor:
    """Hold its word on each domain's self-information against that domain, each for a half (equation 6)."""
    on_source = domain_loss(discriminator(source), SOURCE, images)
    on_target = domain_loss(discriminator(target), TARGET, images)
    return on_source / 2 + on_target / 2


class AdvEnt(Method):
    """A discriminator for each level, trained by Adam; the published algorithm, pass by pass."""

    needs_target = True

    def reads(self, options: settings.Method) -> frozenset[str]:
        """Return the weights of its losses, and what its discriminators are."""
        of_discriminators = {f"optimizer.discriminator_{name}" for name in ("learning_rate", "betas")}
        return frozenset({"method.cross_entropy", "method.target", "method.discriminator_channels"} | of_discriminators)

    def least_side(self, options: settings.Method) -> int:
        """Return what a discriminator needs."""
        return LEAST_SIDE

    def networks(
        self, segmentation: SegmentationNetwork, classes: int, options: settings.Method
    ) -> dict[str, nn.Module]:
        """Return the discriminators, by level."""
        channels = options.discriminator_channels
        by_level = {level: build_discriminator(classes, channels) for level in segmentation.levels}
        return {DISCRIMINATORS: nn.ModuleDict(by_level)}

    def optimizers(self, networks: Networks, options: settings.Optimizer) -> dict[str, Optimizer]:
        """Return the segmentation network's optimiser and one Adam for all discriminators."""
        parameters = list(networks[DISCRIMINATORS].parameters())
        group = {"params": parameters, "rate_factor": 1.0, "name": DISCRIMINATORS}
        beta1, beta2 = options.discriminator_betas
        adam = Adam([group], lr=options.discriminator_learning_rate, betas=(beta1, beta2))
        return {**super().optimizers(networks, options), DISCRIMINATORS: adam}

    def passes(self, step: Step) -> None:
        """Learn from the source's labels; fool the discriminators on the target; teach them on both, detached."""
        discriminators, images = step.networks[DISCRIMINATORS], step.normaliser.images
        assert isinstance(discriminators, nn.ModuleDict)
        source = {level: self_information(one) for level, one in source_pass(step).items()}
        target: dict[str, Tensor] = {}

        def fool(level: str, log_probabilities: Tensor) -> Tensor:
            information = self_information(log_probabilities)
            target[level] = information.detach()
            with step.precision.autocast():
                return fool_discriminator(information, discriminators[level], images)

        target_pass(step, "advent", fool)
        with step.precision.autocast():
            losses = {
                f"discriminator/{level}": (tell_domains_apart(source[level], target[level], one, images), 1.0)
                for level, one in discriminators.items()
            }
        step.minimise(DISCRIMINATORS, losses)
