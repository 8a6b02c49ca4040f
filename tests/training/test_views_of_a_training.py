"""What a training sees of its pictures, and which come: the same for any ranks, passes, workers and restarts."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_files import from_dictionary
from esl_dist.data.cache import Cache
from esl_dist.data.class_counts import FILE_NAME, count_ids
from esl_dist.data.loading import batches
from esl_dist.data.sampling import as_they_are, endless_order, rank_batches
from esl_dist.data.shard_index import IdPixels
from esl_dist.data.shards import open_shards
from esl_dist.data.views import AS_IT_IS
from esl_dist.data.workers import Workers
from esl_dist.environment import Launch
from esl_dist.errors import UserError
from esl_dist.ranks import collectives
from esl_dist.training import counting, data
from esl_dist.training.account import beginning
from esl_dist.training.contradictions import check_training
from esl_dist.training.counting import label_pixels
from esl_dist.training.data import SOURCE_ORDER, TARGET_ORDER, Order, TrainingData, open_training_data
from esl_dist.training.sizes import refuse_impossible_sizes
from tests.builders import draw, drawn_samples, drawn_shards, write_shards
from tests.exact.shards import corrupt
from tests.on_ranks import run_on_ranks
from tests.training.small_runs import configuration

BATCH, STEPS = 12, 3
SOURCE = {
    "size": [32, 24],
    "scale": [0.5, 1.5],
    "crop": [16, 12],
    "mirror": True,
    "largest_class_share": 0.4,
    "rare_classes": {"temperature": 0.5, "least_pixels": 40, "least_in_crop": 45},
}
TARGET = {"scale": [0.9, 1.1], "crop": [14, 10], "mirror": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn_shards(tmp_path_factory.mktemp("seen"), 7)
    return tmp_path_factory.getbasetemp() / "seen0"


def options(
    folder: Path, source: dict[str, Any] = SOURCE, target: dict[str, Any] = TARGET, **more: Any
) -> settings.Train:
    places = {"source": {"path": str(folder), **source}, "target": {"path": str(folder), **target}}
    return configuration(**places, method={"name": "minent"}, **more)


def opened(config: settings.Train) -> TrainingData:
    return open_training_data(config, METHODS["minent"])


def read_steps(found: TrainingData, domain: int, steps: range, cut: tuple[int, int], workers: int) -> list[list[Any]]:
    """Return all tensors of the samples of some steps, in the order of the global batches, cut into (ranks, passes)."""
    ranks, passes = cut
    samples = found.source if domain == SOURCE_ORDER else found.target
    assert samples is not None
    order, first = Order(3, 8, BATCH, passes), steps.start * BATCH
    of_ranks = []
    for rank in range(ranks):
        rare = found.rare_classes if domain == SOURCE_ORDER else None
        wanted = rank_batches(data._endless(samples, rare, order, domain, first), BATCH, passes, rank, ranks)
        read = batches(samples, wanted, Workers(workers, 1), pin_memory=False)
        of_ranks.append(list(islice(read, len(steps) * passes)))
        read.close()
    found_samples = []
    for one_pass in zip(*of_ranks, strict=True):
        for batch in one_pass:
            names = sorted(name for name, tensor in batch.items() if tensor is not None)
            for place in range(len(batch["positions"])):
                found_samples.append([batch[name][place].tolist() for name in names])  # type: ignore[literal-required]
    return found_samples


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[int, list[list[Any]]]:
    found = opened(options(folder))
    return {domain: read_steps(found, domain, range(STEPS), (1, 1), 0) for domain in (SOURCE_ORDER, TARGET_ORDER)}


@limits(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (4, 1)]),
    st.sampled_from([0, 1, 4]),
    st.integers(0, STEPS - 1),
    st.sampled_from([SOURCE_ORDER, TARGET_ORDER]),
)
def test_the_same_number_gives_the_same_bytes(
    folder: Path, whole: dict[int, list[list[Any]]], cut: tuple[int, int], workers: int, first: int, domain: int
) -> None:
    found = read_steps(opened(options(folder)), domain, range(first, STEPS), cut, workers)
    assert found == whole[domain][first * BATCH :]


def test_a_published_recipe_reads_the_same_samples_in_the_same_order_as_they_are(folder: Path) -> None:
    found = opened(options(folder, {"size": [16, 12]}, {"size": [16, 12]}))
    samples = found.source
    assert samples.views == AS_IT_IS, "nothing is drawn"
    plain = rank_batches(endless_order(len(samples), 8, 3, SOURCE_ORDER, 0), BATCH, 1, 0, 1)
    keyed = rank_batches(data._endless(samples, None, Order(3, 8, BATCH, 1), SOURCE_ORDER, 0), BATCH, 1, 0, 1)
    ways = [batches(samples, wanted, Workers(0, 1), pin_memory=False) for wanted in (as_they_are(plain), keyed)]
    for one, other in islice(zip(*ways, strict=True), STEPS):
        for name, tensor in one.items():
            assert isinstance(tensor, torch.Tensor)
            assert torch.equal(tensor, other[name]), name  # type: ignore[literal-required]


def test_the_opening_note_says_what_is_seen_and_names_classes_without_a_picture(folder: Path, tmp_path: Path) -> None:
    rare = {"temperature": 0.5, "least_pixels": 60}
    config = options(folder, {**SOURCE, "rare_classes": rare}, steps=1)
    found = opened(config)
    assert found.rare_classes is not None
    ranks: Any = type("R", (), {"device": torch.device("cpu"), "precision": "no", "zero_stage": None})
    told = beginning(config, found, ranks, tmp_path, 0)
    left_out = [("road", "house", "sky")[one] for one in found.rare_classes.left_out()]
    assert left_out, "or this tests nothing"
    assert "at 32×24 × 0.5 to 1.5, parts of 16×12, mirrored at random" in told
    assert f"least_pixels=60 pixels of {', '.join(left_out)}: never drawn for themselves" in told


def test_when_no_class_has_a_picture_the_most_that_one_has_are_told(folder: Path) -> None:
    rare = {"size": [16, 12], "rare_classes": {"temperature": 0.01}}
    with pytest.raises(
        UserError, match=r"no picture has more than source\.rare_classes\.least_pixels=3000 .* lower it"
    ):
        opened(options(folder, rare))


def counted(folder: str, cache: str) -> list[IdPixels]:
    """Return the counts of a folder's labels, which the next start does not count again."""
    place = Cache(Path(cache), 10**9, 1)
    found = list(label_pixels(open_shards(folder), place, False))

    def fail(*_: object) -> None:
        raise AssertionError("counted twice")

    counting._counted, kept = fail, counting._counted  # type: ignore[assignment]
    try:
        assert list(label_pixels(open_shards(folder), place, False)) == found
    finally:
        counting._counted = kept
    return found


@pytest.mark.parametrize("ranks", [1, 3])
def test_older_shards_are_counted_once_by_all_ranks_together(tmp_path: Path, ranks: int) -> None:
    drawn_shards(tmp_path / "shards", 7)
    expected = [count_ids(draw(seed)[1]) for seed in range(7)]
    for found in run_on_ranks(counted, str(tmp_path / "shards"), str(tmp_path / "cache"), ranks=ranks):
        assert found == expected
    assert (tmp_path / "shards" / FILE_NAME).exists()
    assert not (tmp_path / "cache").exists()


def counted_on_machines_of_their_own(folders: list[str], caches: list[str]) -> list[IdPixels]:
    # The first process of a machine keeps what is counted.
    os.environ["LOCAL_RANK"] = "0"
    return counted(folders[collectives.rank()], caches[collectives.rank()])


def test_machines_whose_shards_were_packed_by_different_versions_agree(tmp_path: Path) -> None:
    samples = drawn_samples(3)
    pixels = {key: count_ids(draw(seed)[1]) for seed, (key, _) in enumerate(samples)}
    write_shards(tmp_path / "new", samples, label_pixels=pixels)
    write_shards(tmp_path / "old", samples)
    folders, caches = [str(tmp_path / "new"), str(tmp_path / "old")], [str(tmp_path / "one"), str(tmp_path / "other")]
    for found in run_on_ranks(counted_on_machines_of_their_own, folders, caches, ranks=2):
        assert found == list(pixels.values())


def test_counts_are_kept_on_each_machine_that_has_shards_of_its_own(tmp_path: Path) -> None:
    folders, caches = ([str(tmp_path / f"{name} {of}") for of in "ab"] for name in ("shards", "cache"))
    for folder in folders:
        drawn_shards(Path(folder), 3)
    expected = [count_ids(draw(seed)[1]) for seed in range(3)]
    for found in run_on_ranks(counted_on_machines_of_their_own, folders, caches, ranks=2):
        assert found == expected
    # Where the main process cannot write beside another machine's shards.
    assert (Path(folders[0]) / FILE_NAME).exists()
    assert len(list(Path(caches[1]).iterdir())) == 1


def test_counts_that_cannot_lie_beside_the_shards_are_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = drawn_shards(tmp_path / "shards", 3)
    (tmp_path / "shards" / f"{FILE_NAME}.partial").mkdir()
    found = counted(str(shards.folder), str(tmp_path / "cache"))
    assert len(found) == 3
    assert not (tmp_path / "shards" / FILE_NAME).exists()
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [f"{shards.fingerprint()}.{FILE_NAME}"]


def test_a_corrupt_label_is_refused_or_counts_as_empty_and_is_counted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, cache = drawn_shards(tmp_path / "shards", 3), Cache(tmp_path / "cache", 10**9, 1)
    corrupt(tmp_path / "shards", 1, "label.png")
    with pytest.raises(UserError, match="scene_001"):
        label_pixels(shards, cache, False)
    assert label_pixels(shards, cache, True)[1] == {}
    assert "scene_001" in capsys.readouterr().err
    assert not (tmp_path / "shards" / FILE_NAME).exists()


def test_counts_are_no_part_of_what_runs_know_shards_by(tmp_path: Path) -> None:
    samples = drawn_samples(2)
    pixels = {key: count_ids(draw(seed)[1]) for seed, (key, _) in enumerate(samples)}
    without, with_counts = (
        write_shards(tmp_path / "a", samples),
        write_shards(tmp_path / "b", samples, label_pixels=pixels),
    )
    assert open_shards(tmp_path / "b").index.label_pixels == pixels
    assert with_counts.fingerprint() == without.fingerprint()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"scale": [0.5, 2.0]},
            r"source\.scale=\[0\.5,2\] gives pictures of different sizes.*source\.crop=\[width,height\]",
        ),
        (
            {"largest_class_share": 0.75},
            r"source\.largest_class_share=0\.75 is of parts.*source\.crop=\[width,height\]",
        ),
    ],
)
def test_settings_that_need_a_part_are_refused_without_one(folder: Path, source: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_training(options(folder, source, {}))
    check_training(options(folder, {**source, "crop": [4, 4]}, {}))


def test_one_factor_for_all_and_pixels_that_no_part_has_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^source\.scale=\[0\.5,0\.5\] is one factor for all; .* source\.size="):
        check_training(options(folder, {"scale": [0.5, 0.5]}, {}))
    rare = {"crop": [4, 4], "rare_classes": {"temperature": 0.1, "least_in_crop": 16}}
    with pytest.raises(UserError, match=r"^source\.rare_classes\.least_in_crop=16 are as many pixels as source\.crop="):
        check_training(options(folder, rare, {}))
    rare["rare_classes"] = {"temperature": 0.1, "least_in_crop": 15}
    check_training(options(folder, rare, {}))


@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_part_whose_sides_are_exchanged_is_refused(folder: Path, domain: str) -> None:
    def check(**options_of_it: Any) -> None:
        of: dict[str, Any] = {"source": {}, "target": {}} | {domain: options_of_it}
        check_training(options(folder, of["source"], of["target"]))

    message = rf"^{domain}\.crop=\[8,16\] does not fit into .* {domain}\.size=\[16,8\], and \[16,8\] does;"
    with pytest.raises(UserError, match=message):
        check(size=[16, 8], crop=[8, 16])
    with pytest.raises(UserError, match=rf"{domain}\.crop=\[8,13\] does not fit"):
        check(size=[16, 8], crop=[8, 13], scale=[0.5, 1.5])
    check(size=[16, 8], crop=[24, 12], scale=[0.5, 1.5])
    # Wider than some pictures on purpose, or of pictures of several sizes.
    check(size=[16, 8], crop=[16, 12])
    check(crop=[8, 16])


@pytest.mark.parametrize("scale", [[2.0, 1.0], [0.0, 1.0], [1.0, 11.0], [1.0]])
def test_an_impossible_scale_is_refused(folder: Path, scale: list[float]) -> None:
    with pytest.raises(UserError, match=r"source\.scale"):
        from_dictionary(settings.Train, {"source": {"path": str(folder), "scale": scale}}, "tests")


def test_parts_of_one_size_are_cut_of_pictures_of_any_and_have_to_be_large_enough(tmp_path: Path) -> None:
    samples = [(f"{width}", drawn_samples(1, width, 12)[0][1]) for width in (40, 50)]
    write_shards(tmp_path, samples)
    crop = {"crop": [36, 40]}
    config = configuration(source={"path": str(tmp_path), **crop}, target={"path": str(tmp_path), **crop})
    method = METHODS["advent"]
    refuse_impossible_sizes(config, method, open_training_data(config, method), torch.device("cpu"), Launch(0, 1, 1))
    small = configuration(source={"path": str(tmp_path), "crop": [8, 8]}, target={"path": str(tmp_path), **crop})
    with pytest.raises(UserError, match=r"source\.crop=\[8, 8\]: .* needs pictures .* such a source\.crop="):
        refuse_impossible_sizes(small, method, open_training_data(small, method), torch.device("cpu"), Launch(0, 1, 1))
