"""One's own pictures get the predictions that the same pictures get in shards, at their own size."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from esl_dist.config import Predict
from esl_dist.config_files import from_dictionary
from esl_dist.data.images import Size
from esl_dist.data.loading import Samples
from esl_dist.data.own_pictures import find_pictures
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.inference import predicting
from esl_dist.inference.contradictions import check_predicting
from esl_dist.inference.inputs import open_conditions
from esl_dist.inference.predicting import PredictionJob, missing_files, open_pictures, write_predictions
from esl_dist.inference.prediction_files import encoder_of
from esl_dist.inference.prediction_records import made_with, open_output
from esl_dist.models.deeplab import DeepLab
from esl_dist.prediction.predictions import predictions
from esl_dist.prediction.predictor import Predictor
from esl_dist.prediction.windows import Sight
from tests.builders import class_set, draw, encoded, input_of, write_shards
from tests.data.films import write_film
from tests.inference.trained import trained_network
from tests.training.small_runs import tiny_network

SIZES = [(48, 40), (33, 57), (64, 20)]
NO_WORKERS = Workers(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures of mixed sizes."""
    made = tmp_path_factory.mktemp("pictures")
    for seed, size in enumerate(SIZES):
        (made / f"{seed}.png").write_bytes(encoded(draw(seed, *size)[0][:, :, ::-1]))
    return made


@pytest.fixture(scope="module")
def network() -> DeepLab:
    """Return a network that predicts every class."""
    drawn = tiny_network(0)
    with torch.no_grad():
        means = drawn(input_of(draw(0, *SIZES[0])[0]))["main"].mean((0, 2, 3))
        next(drawn.layer6.conv2d_list.children()).bias.sub_(means)
    return drawn


def job_of(folder: Path, network: DeepLab, output: Path, kinds: list[str], **changes: Any) -> PredictionJob:
    encode = {kind: encoder_of(kind, class_set()) for kind in kinds}
    pictures, predictor = find_pictures(str(folder), 10**6), Predictor(trained_network(network))
    return replace(PredictionJob(pictures, predictor, Sight(), False, encode, output), **changes)


def written(job: PredictionJob) -> None:
    write_predictions(job, missing_files(job), NO_WORKERS)


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("size", [None, (40, 32)])
def test_they_are_those_of_the_same_pictures_in_shards(
    folder: Path, network: DeepLab, tmp_path: Path, size: Size | None, keeps: bool
) -> None:
    samples = [(file.stem, {"image.png": file.read_bytes()}) for file in sorted(folder.iterdir())]
    shards = write_shards(tmp_path / "shards", samples, class_sets={}, keep_aspect_ratio=keeps)
    predictor = Predictor(trained_network(network), size=size)
    written(job_of(folder, network, tmp_path, ["train_ids"], predictor=predictor, keep_aspect_ratio=keeps))
    for predict, own in zip(predictions([predictor], Samples(shards, size), NO_WORKERS), SIZES, strict=True):
        predicted = predict()
        found = read(tmp_path / f"train_ids/{predicted.position}.png")
        assert found.shape == own[::-1]
        np.testing.assert_array_equal(found, predicted.labels.numpy())
        assert len(np.unique(found)) > 1


def test_entropy_and_confidence_are_those_of_resized_probabilities(
    folder: Path, network: DeepLab, tmp_path: Path
) -> None:
    written(job_of(folder, network, tmp_path, ["entropy", "confidence"]))
    for seed, (width, height) in enumerate(SIZES):
        with torch.no_grad():
            shares = network(input_of(draw(seed, width, height)[0]))["main"].double().softmax(1)
        shares = torch.nn.functional.interpolate(shares, (height, width), mode="bilinear", align_corners=True)[0]
        entropy = -(shares * shares.log()).sum(0) / math.log(3)
        for kind, scores in (("entropy", entropy), ("confidence", shares.amax(0))):
            found = read(tmp_path / f"{kind}/{seed}.png").astype(float)
            assert np.abs(found - 255 * scores.numpy()).max() <= 0.5 + 1e-3
            assert found.std() > 1


def test_overlays_show_the_picture_itself_at_whatever_size_it_is_seen(
    folder: Path, network: DeepLab, tmp_path: Path
) -> None:
    predictor = Predictor(trained_network(network), size=(24, 24))
    written(job_of(folder, network, tmp_path, ["colors", "overlay"], predictor=predictor))
    for seed, size in enumerate(SIZES):
        picture = draw(seed, *size)[0][:, :, ::-1].astype(int)
        np.testing.assert_array_equal(
            read(tmp_path / f"overlay/{seed}.png"), (picture + read(tmp_path / f"colors/{seed}.png")) // 2
        )


def test_windows_and_mirror_images_change_what_is_seen(folder: Path, network: DeepLab, tmp_path: Path) -> None:
    sights = {"plain": Sight(), "mirror": Sight(mirror=True), "window": Sight((24, 16), 0.25)}
    for name, sight in sights.items():
        written(job_of(folder, network, tmp_path / name, ["entropy"], sight=sight))
    found = {name: read(tmp_path / name / "entropy/0.png") for name in sights}
    assert len({one.tobytes() for one in found.values()}) == len(sights)
    assert {one.shape for one in found.values()} == {SIZES[0][::-1]}


def test_only_what_is_missing_is_made_and_a_half_file_is_missing(
    folder: Path, network: DeepLab, tmp_path: Path
) -> None:
    job = job_of(folder, network, tmp_path, ["train_ids", "overlay"])
    written(replace(job, encode={"train_ids": job.encode["train_ids"]}))
    (tmp_path / "train_ids/1.png").rename(tmp_path / "train_ids/1.png.partial")
    before = {file: file.stat().st_ino for file in tmp_path.glob("train_ids/*.png")}
    assert missing_files(job) == {0: ["overlay"], 1: ["train_ids", "overlay"], 2: ["overlay"]}
    written(job)
    assert missing_files(job) == {}
    assert {file: file.stat().st_ino for file in before} == before


def test_scores_that_are_no_numbers_are_told_with_their_picture(folder: Path, tmp_path: Path) -> None:
    broken = tiny_network(1)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"/0\.png: the network's scores are not finite"):
        written(job_of(folder, broken, tmp_path, ["train_ids"]))
    assert not list(tmp_path.glob("train_ids/*"))


def test_a_size_that_a_network_does_not_take_is_told_with_the_picture(
    folder: Path, network: DeepLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("r: does not take pictures of 48×40; give another size of pictures")

    monkeypatch.setattr(Predictor, "logits", refuse)
    told = rf"^{folder}/0\.png: r: does not take .*; give another size of pictures, by size=\[width,height\]$"
    with pytest.raises(UserError, match=told):
        written(job_of(folder, network, tmp_path, ["train_ids"]))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (24, 20)),
        ({"domain": "source"}, (32, 24)),
        ({"size": [40, 32]}, (40, 32)),
        ({"as_packed": True}, None),
    ],
)
def test_pictures_are_seen_at_the_size_at_which_those_of_the_training_were_packed(
    network: DeepLab, changes: dict[str, Any], size: Size | None
) -> None:
    trained = replace(
        trained_network(network),
        sizes={"source": None, "target": None},
        shards={"source": "1" * 64, "target": "2" * 64},
        packed_sizes={"source": (32, 24), "target": (24, 20)},
    )
    assert open_conditions(asked(**changes), torch.device("cpu")).predictor(trained).size == size
    resized = replace(trained, sizes={"source": [64, 48], "target": [48, 40]})
    assert open_conditions(asked(), torch.device("cpu")).predictor(resized).size == (48, 40)
    without_target = replace(trained, shards={"source": "1" * 64}, packed_sizes={"source": (32, 24)})
    assert open_conditions(asked(), torch.device("cpu")).predictor(without_target).size == (32, 24)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"size": [40, 32]}, ((40, 32), "size")),
        ({"size": [40, 32], "window": [24, 64]}, ((24, 32), "window")),
        ({"window": [24, 64]}, None),
        ({}, None),
    ],
)
def test_a_size_that_all_pictures_are_seen_at_is_tried_before_any_is(
    network: DeepLab, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], seen: tuple[Size, str] | None
) -> None:
    tried = []
    monkeypatch.setattr(DeepLab, "refuse_size", lambda _, size, number, name, key: tried.append((size, key)))
    assert open_conditions(asked(**changes), torch.device("cpu")).predictor(trained_network(network)).domain == "target"
    assert tried == ([] if seen is None else [seen])


def asked(**changes: Any) -> Predict:
    return from_dictionary(Predict, {"checkpoint": "r", "pictures": "p", "output": "o", **changes}, "tests")


def test_a_folder_of_predictions_says_what_they_were_made_with(network: DeepLab, tmp_path: Path) -> None:
    predictor = Predictor(trained_network(network), size=(40, 32))
    open_output(tmp_path, made_with(asked(), predictor, class_set()), ["train_ids"])
    open_output(tmp_path, made_with(asked(overlap=0.5), predictor, class_set()), ["overlay", "train_ids"])
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["kinds"] == ["train_ids", "overlay"]
    made = content["made_with"]
    assert (made["run"], made["step"], made["size"], made["window"]) == ("r", 3, [40, 32], None)
    assert made["classes"][1] == {"name": "house", "color": [70, 70, 70], "ids": [11, 12]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mirror": True}, "mirror: false → true"),
        ({"window": [8, 8]}, r"window: null → \[8, 8\], overlap: null → 0\.25"),
        ({"keep_aspect_ratio": True}, "keep_aspect_ratio: false → true"),
        ({"pictures": "q"}, 'pictures: ".*/p" → ".*/q"'),
    ],
)
def test_predictions_made_otherwise_are_refused_with_what_differs(
    network: DeepLab, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    predictor = Predictor(trained_network(network))
    open_output(tmp_path, made_with(asked(), predictor, class_set()), ["train_ids"])
    before = (tmp_path / "predictions.json").read_bytes()
    with pytest.raises(UserError, match=rf"holds predictions made with another {told}; choose another output"):
        open_output(tmp_path, made_with(asked(**changes), predictor, class_set()), ["overlay"])
    assert (tmp_path / "predictions.json").read_bytes() == before


def test_another_network_or_size_is_another_prediction(network: DeepLab, tmp_path: Path) -> None:
    predictor = Predictor(trained_network(network))
    open_output(tmp_path, made_with(asked(), predictor, class_set()), ["train_ids"])
    others = {
        "weights": replace(predictor, trained=trained_network(tiny_network(1))),
        "size": replace(predictor, size=(8, 8)),
        "precision": replace(predictor, precision="bf16"),
    }
    for what, other in others.items():
        with pytest.raises(UserError, match=f"made with another {what}"):
            open_output(tmp_path, made_with(asked(), other, class_set()), ["train_ids"])


def test_counting_and_passing_over_frames_of_a_video_are_signs_of_getting_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = list[int]()
    monkeypatch.setattr(predicting, "note_progress", lambda: noted.append(1))
    video = open_pictures(str(write_film(tmp_path / "film.avi", 6)), 1)
    assert len(noted) == 6
    video.pixels(4)
    assert len(noted) == 6 + 4


def test_the_frames_of_a_video_that_ends_too_early_are_predicted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_film(tmp_path / "film.avi", 6)
    assert len(open_pictures(str(film), 1).names) == 6
    assert "warning" not in capsys.readouterr().err
    film.write_bytes(film.read_bytes()[: 2 * film.stat().st_size // 3])
    found = len(open_pictures(str(film), 1).names)
    assert 0 < found < 6
    assert f"film.avi: says that it has 6 frames; {found} can be decoded, and are" in capsys.readouterr().err


def test_what_is_passed_over_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.csv", "c.json"):
        (tmp_path / name).write_bytes((folder / "0.png").read_bytes())
    assert open_pictures(str(tmp_path), 1).names == ["a"]
    assert capsys.readouterr().out == f"{tmp_path}: passed over, as no pictures or hidden: 2 (b.csv, c.json)\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 0.5}, r"overlap=0\.5 is for window=\[width,height\]"),
        ({"as_packed": True, "size": [64, 32]}, r"as_packed=true contradicts size=\[64, 32\]; leave out one"),
        ({"as_packed": True, "keep_aspect_ratio": True}, "as_packed=true .* keep_aspect_ratio=true has no part in it"),
        ({"output": "{here}/p/out"}, "output=.*/p/out lies in pictures=.*/p, which is read"),
        ({"pictures": "{here}/o/overlay"}, "output=.*/o holds pictures=.*/o/overlay; choose a folder of its own"),
        ({"pictures": "{here}/o/*.png"}, r"output=.*/o holds pictures=.*/o/\*\.png; choose a folder of its own"),
        ({"pictures": "{here}/**/*.png"}, "output=.*/o lies in pictures=.*, which is read"),
        ({"output": "{here}/other"}, r"output=.*/other: exists and holds other files \('notes\.txt'\)"),
        ({"pictures": "{here}/gone"}, "pictures=.*/gone: there is none"),
        ({"checkpoint": "{here}/gone"}, "gone: no checkpoint"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for name in ("p/a.png", "r", "other/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    settings = {"checkpoint": "{here}/r", "pictures": "{here}/p", "output": "{here}/o", **changes}
    given = {key: value.format(here=tmp_path) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(UserError, match=message):
        check_predicting(asked(**given))
    check_predicting(asked(**{key: f"{tmp_path}/{name}" for key, name in zip(given, "rpo", strict=False)}))
