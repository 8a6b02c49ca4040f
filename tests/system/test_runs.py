"""What a training leaves besides checkpoints: a name and a seed if none was given, pictures, weights in two forms."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.adaptation.methods import METHODS
from esl_dist.training.data import open_training_data, run_name
from tests.builders import drawn_samples, write_shards
from tests.programs import TINY_TRAINING, run, succeed
from tests.training.small_runs import configuration

AUTOMATIC = "toytown_to_toytown_9_tiny_advent"


def words(town: Path, experiments: Path, *others: str) -> list[str]:
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    return [*TINY_TRAINING, *data, f"experiments={experiments}", *others]


def final_weights(experiments: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(experiments / f"snapshots/{name}/checkpoints/step-{step:08d}/segmentation.safetensors")


def settings_of(experiments: Path, name: str) -> dict:
    return yaml.safe_load((experiments / f"snapshots/{name}/config.yaml").read_text())


def image_of(content: bytes) -> bytes:
    """Return the pixels of a picture file."""
    with Image.open(BytesIO(content)) as image:
        return image.convert("RGB").tobytes()


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_a_run_without_name_and_seed_gets_both_and_goes_on_with_them(town: Path, tmp_path: Path) -> None:
    unnamed = words(town, tmp_path, "seed=null", "checkpoints.every=2")
    assert f"{AUTOMATIC}: advent on 6 source and 6 target" in succeed("launch/train.py", *unnamed, "steps=2")
    begun = settings_of(tmp_path, AUTOMATIC)
    assert begun["name"] == AUTOMATIC
    assert isinstance(begun["seed"], int)
    assert begun["seed"] > 0, "0 is the default, and drawn as rarely as any other of the 2**32"
    assert (tmp_path / "logs" / AUTOMATIC).is_dir()
    assert "from step 2 to 4" in succeed("launch/train.py", *unnamed, "steps=4")
    assert settings_of(tmp_path, AUTOMATIC) == {**begun, "steps": 4}
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [AUTOMATIC]

    succeed("launch/train.py", *words(town, tmp_path, "name=given", f"seed={begun['seed']}", "steps=4"))
    drawn, given = (final_weights(tmp_path, name, 4) for name in (AUTOMATIC, "given"))
    assert differing(drawn, given) == [], "the seed that is noted is the one that was used, in both parts"


def test_a_seed_that_is_drawn_is_the_same_on_all_processes(town: Path, tmp_path: Path) -> None:
    succeed("launch/train.py", *words(town, tmp_path, "seed=null", "name=drawn", "steps=2"), processes=2)
    seed = settings_of(tmp_path, "drawn")["seed"]
    succeed("launch/train.py", *words(town, tmp_path, f"seed={seed}", "name=given", "steps=2"), processes=2)
    drawn, given = (final_weights(tmp_path, name, 2) for name in ("drawn", "given"))
    assert differing(drawn, given) == [], "as many processes that were all given it come to the same bits"


def test_an_automatic_name_does_not_mix_runs_of_other_settings(town: Path, tmp_path: Path) -> None:
    succeed("launch/train.py", *words(town, tmp_path, "steps=1"))
    done = run("launch/train.py", *words(town, tmp_path, "steps=1", "batch_size=3"))
    assert done.returncode == 2
    assert f"{AUTOMATIC}_seed_0: this run was begun with other settings" in done.stderr


def test_runs_that_differ_in_their_seed_alone_have_folders_of_their_own(town: Path, tmp_path: Path) -> None:
    for seed in (0, 7):
        succeed("launch/train.py", *words(town, tmp_path, "steps=1", f"seed={seed}"))
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == [f"{AUTOMATIC}_seed_0", f"{AUTOMATIC}_seed_7"]
    assert settings_of(tmp_path, names[1])["seed"] == 7


def test_a_run_whose_automatic_name_lacks_the_seed_goes_on_under_it_with_that_seed_alone(
    town: Path, tmp_path: Path
) -> None:
    succeed("launch/train.py", *words(town, tmp_path, "steps=2", "seed=7", f"name={AUTOMATIC}"))
    assert f"{AUTOMATIC}: finished already" in succeed("launch/train.py", *words(town, tmp_path, "steps=2", "seed=7"))
    assert f"{AUTOMATIC}_seed_8: advent" in succeed("launch/train.py", *words(town, tmp_path, "steps=1", "seed=8"))


@pytest.mark.parametrize(
    ("method", "pseudo_labels", "expected"),
    [
        ("source_only", None, "game_3_resnet50_source_only"),
        ("source_only", "pseudo", "game_to_city_3_resnet50_source_only_esl"),
        ("minent", None, "game_to_city_3_resnet50_minent"),
        ("advent", "pseudo", "game_to_city_3_resnet50_advent_esl"),
    ],
)
def test_a_name_is_made_of_data_sets_classes_network_method_and_seed(
    tmp_path: Path, method: str, pseudo_labels: str | None, expected: str
) -> None:
    size = {"image_size": (16, 12), "label_size": (16, 12)}
    for folder, data_set in (("source", "game"), ("target", "city"), ("pseudo", "city")):
        write_shards(tmp_path / folder, drawn_samples(2), dataset=data_set, **size)
    config = configuration(
        name=None,
        source={"path": str(tmp_path / "source")},
        target={"path": str(tmp_path / "target")},
        network={"architecture": "resnet50"},
        method={"name": method},
        pseudo_labels=None if pseudo_labels is None else str(tmp_path / pseudo_labels),
    )
    data = open_training_data(config, METHODS[method])
    assert run_name(replace(config, seed=3), data) == f"{expected}_seed_3"
    assert run_name(replace(config, seed=None), data) == expected, "a seed that is drawn is none of the name"


def test_pictures_of_both_domains_are_shown_and_do_not_change_what_is_trained(town: Path, tmp_path: Path) -> None:
    basis = ("steps=5", "network.batch_norm=per_domain")
    succeed("launch/train.py", *words(town, tmp_path, *basis, "name=without", "pictures_every=0"))
    succeed("launch/train.py", *words(town, tmp_path, *basis, "name=with", "pictures_every=2"))
    assert differing(final_weights(tmp_path, "without", 5), final_weights(tmp_path, "with", 5)) == []
    shown = {}
    for name in ("without", "with"):
        events = EventAccumulator(str(tmp_path / "logs" / name))
        events.Reload()
        shown[name] = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert shown["without"] == {}
    samples = ("00000", "00002", "00004")
    assert set(shown["with"]) == {f"{domain}/{key}" for domain in ("source", "target") for key in samples}
    for pictures in shown["with"].values():
        assert [picture.step for picture in pictures] == [2, 4, 5], "the last step, too"
        before, *_, after = (image_of(picture.encoded_image_string) for picture in pictures)
        assert before != after, "the network has learned meanwhile"
        assert len(before) == len(after)


def test_weights_are_exported_in_two_forms_with_the_same_tensors(town: Path, tmp_path: Path) -> None:
    method = ("method.name=source_only", "name=r", "steps=2")
    succeed("launch/train.py", *words(town, tmp_path, *method, "pictures_every=1"))
    folder = tmp_path / "snapshots/r"
    plain = torch.load(folder / "weights.pth", weights_only=True)
    assert type(plain) is dict
    assert differing(plain, load_file(folder / "weights.safetensors")) == []
    assert differing(plain, final_weights(tmp_path, "r", 2)) == []
    events = EventAccumulator(str(tmp_path / "logs/r"))
    events.Reload()
    assert {tag.split("/")[0] for tag in events.Tags()["images"]} == {"source"}, "there is no target to show"
    for name in ("weights.pth", "weights.safetensors"):
        (folder / name).unlink()
    assert "finished already" in succeed("launch/train.py", *words(town, tmp_path, *method))
    assert differing(plain, torch.load(folder / "weights.pth", weights_only=True)) == []
    assert (folder / "weights.safetensors").is_file()
