"""What the manifest of a checkpoint says, checked once: before it is written, and where it is read."""

from dataclasses import dataclass

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.checked import Content
from esl_dist.config_files import from_dictionary
from esl_dist.data.labels import ClassSet, class_set_from

READ_SHARDS = ("source", "target", "pseudo_labels")
LAST_STEP = 10**12
"""Far beyond any training; TensorBoard, say, does not count endlessly."""


@dataclass(frozen=True)
class Manifest:
    """What a manifest says; see `checkpoints.Checkpoint`. `files` are the SHA-256 of the other files by name."""

    step: int
    config: settings.Train
    class_set: str
    classes: ClassSet
    shards: dict[str, str]
    data_sets: dict[str, str]
    files: dict[str, str]


def manifest_from(content: Content) -> Manifest:
    """Return what a manifest says of a checkpoint; keys that are not known are passed over.

    Raises:
        UserError: a key is missing, or says what cannot be; the message names it.
    """
    config, classes = content.at("config"), content.at("classes")
    data_sets = content.get("data_sets")
    # Of the configuration's values, those that paths and networks are made of are told by their own key.
    config.at("name").name()
    method = config.at("method").at("name")
    if method.text() not in METHODS:
        method.refuse(f"one of {', '.join(METHODS)}")
    return Manifest(
        step=content.at("step").whole_number(1, LAST_STEP),
        class_set=content.at("class_set").label(),
        shards=_fingerprints_from(content.at("shards")),
        data_sets={} if data_sets is None else {key: data_set.name() for key, data_set in data_sets.items()},
        classes=class_set_from(classes.value, classes.place()),
        files={name: file.at("sha256").sha256() for name, file in content.at("files").items()},
        config=from_dictionary(settings.Train, config.value, config.place()),
    )


def _fingerprints_from(shards: Content) -> dict[str, str]:
    if not shards.mapping().keys() <= set(READ_SHARDS):
        shards.refuse(f"fingerprints of {', '.join(READ_SHARDS)}")
    return {key: fingerprint.sha256() for key, fingerprint in shards.items()}
