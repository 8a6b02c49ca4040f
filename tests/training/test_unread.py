"""Settings without an effect are told when a training begins."""

import pytest

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.methods.method import Method
from esl_dist.config_files import load_config
from esl_dist.training.unread import unread_settings

DATA = ("source.path=s", "target.path=t")


def unread(*words: str) -> list[str]:
    return unread_settings(load_config(settings.Train, None, [*DATA, *words]))


@pytest.mark.parametrize(
    ("words", "of_no_effect"),
    [
        ([], []),
        (["method.name=self_training", "method.host=advent"], ["method.host"]),
        (["method.name=masked_consistency", "method.host=advent", "method.mix=false"], ["method.mix"]),
        (["method.name=masked_consistency", "method.mix=false"], []),
        (["method.teacher.trust=entropy", "method.masks.ratio=0.3"], ["method.teacher.trust", "method.masks.ratio"]),
        (["method.name=self_training", "method.teacher.entropy_as=weight"], ["method.teacher.entropy_as"]),
        (
            ["method.name=self_training", "method.teacher.trust=entropy", "method.teacher.confidence=0.5"],
            ["method.teacher.confidence"],
        ),
        (["method.name=self_training", "method.discriminator_channels=4"], ["method.discriminator_channels"]),
        (["method.name=minent", "optimizer.discriminator_learning_rate=1"], ["optimizer.discriminator_learning_rate"]),
        (["source.rare_classes.least_pixels=75"], ["source.rare_classes.least_pixels"]),
        (["source.rare_classes.least_pixels=75", "source.rare_classes.temperature=0.1"], []),
        (["optimizer.kind=adamw", "optimizer.momentum=0.5"], ["optimizer.momentum"]),
        (["optimizer.betas=[0.5,0.9]"], ["optimizer.betas"]),
        (["optimizer.multipliers.stem=2"], []),
        (["network.architecture=timm/x", "optimizer.multipliers.stem=2"], ["optimizer.multipliers.stem"]),
        (["validation.size=[8,8]"], ["validation.size"]),
        (["pictures_every=0", "pictures_of=5"], ["pictures_of"]),
        (["trackers=[]", "pictures_every=7", "pictures_of=5"], ["pictures_every", "pictures_of"]),
        (["network.auxiliary_head=false", "method.cross_entropy.auxiliary=1"], ["method.cross_entropy.auxiliary"]),
        (
            ["source.rare_classes.temperature=0.1", "source.rare_classes.least_in_crop=8"],
            ["source.rare_classes.least_in_crop"],
        ),
    ],
)
def test_what_nothing_reads_beside_the_other_settings_is_named(words: list[str], of_no_effect: list[str]) -> None:
    assert unread(*words) == of_no_effect


def test_a_method_that_does_not_say_what_it_reads_may_read_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "own", Method())
    words = ["method.name=own", "method.mix=false", "optimizer.discriminator_learning_rate=1", "optimizer.betas=[0,0]"]
    assert unread(*words) == []
