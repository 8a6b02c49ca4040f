"""An evaluation takes over what its run says, checks first what it may write, and writes before it tells."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from esl_dist.config import Evaluate
from esl_dist.config_files import from_dictionary, save_config
from esl_dist.data.images import encode_png
from esl_dist.data.labels import SemanticClass, class_names
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json
from esl_dist.inference import evaluation
from esl_dist.inference.contradictions import check_evaluation
from esl_dist.inference.evaluation import evaluate
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.resizing import upsample
from esl_dist.models.weight_files import write_weights
from esl_dist.runs.checkpoints import RUN_CONFIG, checkpoint_folder, load_checkpoint, save_checkpoint
from esl_dist.runs.trained import load_trained
from tests.builders import class_set, draw, drawn_shards, input_of, write_shards
from tests.training.small_runs import KEEP_ALL, configuration, reseal, save_run, save_state, tiny_network

CPU = torch.device("cpu")
TINY = {"architecture": "tiny"}
SIZE = (64, 48)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "experiments/snapshots/r"


@pytest.fixture
def data(tmp_path: Path) -> ShardReader:
    return drawn_shards(tmp_path / "data", 2, width=SIZE[0], height=SIZE[1])


def unlabelled(folder: Path, sizes: list[tuple[int, int]], **changes: Any) -> ShardReader:
    pictures = [(f"a/{seed}", {"image.png": encode_png(draw(seed, *size)[0])}) for seed, size in enumerate(sizes)]
    return write_shards(folder, pictures, class_sets={}, **changes)


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that evaluates in this process and returns the scores that it wrote."""
    monkeypatch.chdir(tmp_path)

    def evaluated(checkpoint: Path, shards: ShardReader, **changes: Any) -> dict[str, Any]:
        given = {"output": str(tmp_path / "scores.json"), "data": {"path": str(shards.folder)}, "workers": 0}
        config = from_dictionary(Evaluate, {**given, "checkpoint": str(checkpoint), **changes}, "tests")
        # As the program does.
        check_evaluation(config)
        evaluate(config, CPU)
        content: dict[str, Any] = read_json(Path(config.output)) if config.output else {}
        return content

    return evaluated


def at(shards: ShardReader, size: tuple[int, int] | None) -> dict[str, Any]:
    return {"data": {"path": str(shards.folder), "size": None if size is None else list(size)}}


Score = Callable[..., dict[str, Any]]


def test_pictures_are_seen_at_the_size_of_the_training_unless_another_is_given(
    run: Path, data: ShardReader, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(run, 3, configuration(target={"path": "t", "size": [40, 36]}))
    default = score(run, data)
    assert "size 64×48" not in capsys.readouterr().out
    assert default == score(run, data, **at(data, (40, 36)))
    capsys.readouterr()
    packed = score(run, data, as_packed=True)
    assert "note: r: size as packed, trained at 40×36\n" in capsys.readouterr().out
    assert packed == score(run, data, **at(data, SIZE))
    assert "note: r: size 64×48, trained at 40×36\n" in capsys.readouterr().out
    assert packed != default, "these sizes make a difference"


def per_domain_run(run: Path, shards: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run whose network predicts otherwise with the source's statistics than with the target's."""
    config = configuration(network={**TINY, "batch_norm": "per_domain"})
    state = tiny_network(2, per_domain=True).state_dict()
    torch.manual_seed(5)
    for name, tensor in state.items():
        if name.endswith("source_mean"):
            tensor.add_(3 * torch.randn(tensor.shape))
    monkeypatch.setattr("tests.training.small_runs.FINGERPRINTS", shards)
    save_config(config, run / RUN_CONFIG)
    save_state(run, 3, state, config, class_set())


def test_pictures_of_the_source_are_scored_with_its_statistics(
    run: Path, data: ShardReader, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_domain_run(run, {"source": data.fingerprint(), "target": "b" * 64}, monkeypatch)
    source, target = score(run, data, domain="source"), score(run, data, domain="target")
    assert source != target, "these statistics make a difference"
    assert score(run, data) == source
    other = drawn_shards(data.folder.parent / "other", 2, in_a_shard=1, width=SIZE[0], height=SIZE[1])
    assert score(run, other) == target | {"data_fingerprint": other.fingerprint()}


def test_statistics_estimated_anew_are_of_no_domain_in_the_scores_of_a_run(
    run: Path, data: ShardReader, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_domain_run(run, {"source": data.fingerprint(), "target": "b" * 64}, monkeypatch)
    own = score(run, data, mode="best", output="own.json")["made_with"]
    anew = score(run, data, mode="best", statistics_from=str(data.folder), **at(data, SIZE))["made_with"]
    assert (own["domain"], own["statistics_from"], own["device"]) == ("source", None, "cpu")
    assert (anew["domain"], anew["statistics_from"]) == ("target", data.fingerprint())


def test_both_kinds_of_scores_name_their_pictures(run: Path, data: ShardReader, score: Score) -> None:
    save_run(run, 3)
    one, best = score(run, data), score(run, data, mode="best", output="best.json")["made_with"]
    name = f"{data.index.dataset} {data.index.split}"
    assert (one["data"], one["data_fingerprint"]) == (best["data_name"], best["data"]) == (name, data.fingerprint())


def test_scores_of_snapshots_that_do_not_name_their_pictures_are_gone_on_with(
    run: Path, data: ShardReader, score: Score
) -> None:
    save_run(run, 3)
    best = score(run, data, mode="best", output="best.json")
    del best["made_with"]["data_name"]
    write_json(Path("best.json"), best)
    assert score(run, data, mode="best", output="best.json")["snapshots"] == best["snapshots"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_of_the_training_is_that_of_the_forward_passes(
    run: Path, data: ShardReader, score: Score, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.small_runs.MORE_OF_TRAINING", {"precision": precision})
    save_run(run, 3)
    types: list[torch.dtype] = []
    plain = DeepLab.forward

    def noted(network: DeepLab, *words: Any) -> Any:
        logits = plain(network, *words)
        types.append(logits["main"].dtype)
        return logits

    monkeypatch.setattr(DeepLab, "forward", noted)
    score(run, data)
    assert set(types) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    types.clear()
    score(run, data, precision="no")
    assert set(types) == {torch.float32}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_exported_weights_are_refused_for_other_classes_as_their_run_is(
    run: Path, tmp_path: Path, score: Score, name: str
) -> None:
    road, house, sky = class_set()
    write_weights(run / name, save_run(run, 3))
    for classes in (
        (sky, house, road),
        tuple(SemanticClass(f"my {one.name}", one.color, one.ids) for one in (road, house, sky)),
    ):
        shards = drawn_shards(tmp_path / "drawn", 1)
        samples = [("a", {kind: shards.read(0, kind.split(".")[0]) for kind in ("image.png", "label.png")})]
        other = write_shards(tmp_path / class_names(classes)[0], samples, class_sets={"village3": classes})
        for checkpoint in (run, run / name):
            with pytest.raises(
                UserError, match=r"the classes of 'village3' are .*, the network's \['road', 'house', 'sky'\]"
            ):
                score(checkpoint, other)


@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("size", [None, (40, 36)])
def test_pictures_without_labels_are_predicted_at_their_own_sizes(
    run: Path,
    tmp_path: Path,
    score: Score,
    keep_aspect_ratio: bool,
    size: tuple[int, int] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = [(80, 30), (24, 60), SIZE]
    shards = unlabelled(tmp_path / "unlabelled", sizes, keep_aspect_ratio=keep_aspect_ratio)
    save_run(run, 3)
    words: dict[str, Any] = {"output": None, "predictions": str(tmp_path / "p"), "prediction_format": "train_ids"}
    assert score(run, shards, **words, **at(shards, size)) == {}
    assert "none: the pictures have no labels" in capsys.readouterr().out
    files = sorted((tmp_path / "p").rglob("*.png"))
    assert [file.relative_to(tmp_path / "p").as_posix() for file in files] == [f"a/{seed}.png" for seed in range(3)]
    for file, own in zip(files, sizes, strict=True):
        with Image.open(file) as image:
            assert image.size == own
            assert set(np.unique(np.array(image))) <= {0, 1, 2}
    if size is None:
        network = load_trained(run, {}, None, CPU).network
        for seed, (file, own) in enumerate(zip(files, sizes, strict=True)):
            with torch.inference_mode():
                logits = upsample(network(input_of(draw(seed, *own)[0]))["main"], own[::-1])
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.array(image), logits[0].argmax(0).numpy())


def test_raw_ids_are_those_of_the_shards_or_of_the_place_that_is_named(
    run: Path, tmp_path: Path, data: ShardReader, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    road, house, sky = class_set()
    config = configuration()
    own = tuple(SemanticClass(one.name, one.color, (100 + number,)) for number, one in enumerate(class_set()))
    save_run(run, 3, config, own)
    known = replace(load_checkpoint(checkpoint_folder(run, 3)), step=4, data_sets={"source": "a", "target": "b"})
    save_checkpoint(run, known, KEEP_ALL)
    named = write_shards(
        tmp_path / "named",
        [("a", {"image.png": b"x", "label.png": b"x"})],
        class_sets={"village3": tuple(SemanticClass(one.name, one.color, (1000 + i,)) for i, one in enumerate(own))},
    )
    pictures = unlabelled(tmp_path / "unlabelled", [SIZE])

    def written(shards: ShardReader, kind: str, **changes: Any) -> np.ndarray:
        words = {"predictions": str(tmp_path / kind), "prediction_format": kind}
        score(run, shards, **words, **changes)
        with Image.open(next((tmp_path / kind).rglob("*.png"))) as image:
            array = np.array(image)
        for file in (tmp_path / kind).rglob("*.png"):
            file.unlink()
        return array

    train_ids = written(data, "train_ids")
    assert len(np.unique(train_ids)) > 1
    np.testing.assert_array_equal(written(data, "raw_ids"), np.array([7, 11, 23])[train_ids])
    train_ids = written(pictures, "train_ids", output=None)
    assert "raw ids" not in capsys.readouterr().out
    np.testing.assert_array_equal(written(pictures, "raw_ids", output=None), 100 + train_ids)
    assert "note: r: raw ids are those of a, its source; for those of b, its target, give" in capsys.readouterr().out
    from_named = {"output": None, "classes_from": str(named.folder)}
    np.testing.assert_array_equal(written(pictures, "raw_ids", **from_named), 1000 + train_ids.astype(int))
    assert "raw ids" not in capsys.readouterr().out
    other = write_shards(tmp_path / "other", [("a", {"label.png": b"x"})], class_sets={"village3": (house, road, sky)})
    with pytest.raises(UserError, match=r"classes_from=.*: has no class set 'village3' of the network's classes road,"):
        written(pictures, "raw_ids", output=None, classes_from=str(other.folder))


@pytest.mark.parametrize("words", [{"output": None}, {"predictions": "p"}, {"mode": "best", "predictions": "p"}])
def test_scores_of_pictures_without_labels_are_refused(
    run: Path, tmp_path: Path, score: Score, words: dict[str, Any]
) -> None:
    save_run(run, 3)
    shards = unlabelled(tmp_path / "unlabelled", [SIZE])
    with pytest.raises(
        UserError, match="unlabelled: its pictures have no labels, so nothing can be scored; for predic"
    ):
        score(run, shards, **words)


@pytest.mark.parametrize("place", [{"output": "file/scores.json"}, {"predictions": "file"}])
@pytest.mark.parametrize("mode", ["single", "best"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_scored(
    run: Path, data: ShardReader, score: Score, monkeypatch: pytest.MonkeyPatch, place: dict[str, str], mode: str
) -> None:
    save_run(run, 3)
    Path("file").touch()
    monkeypatch.setattr(evaluation, "score_networks", lambda *words: pytest.fail("it began to score"))
    [setting] = place
    with pytest.raises(UserError, match=rf"cannot write into .*file.*; choose another place as {setting}=…"):
        score(run, data, mode=mode, **place)


def test_a_snapshot_s_own_folder_of_predictions_is_checked_before_it_is_scored(
    run: Path, data: ShardReader, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(run, 3)
    Path("p").mkdir()
    Path("p/step-00000003").touch()
    monkeypatch.setattr(evaluation, "score_networks", lambda *words: pytest.fail("it began to score"))
    with pytest.raises(UserError, match=r"cannot write into .*p/step-00000003; choose another place as predictions=…$"):
        score(run, data, mode="best", predictions="p")


def test_scores_are_not_written_among_the_shards(run: Path, data: ShardReader, score: Score) -> None:
    save_run(run, 3)
    with pytest.raises(UserError, match=r"output=.*index\.json lies in data\.path="):
        score(run, data, output=str(data.folder / "index.json"))


@pytest.mark.parametrize("mode", ["single", "best"])
@pytest.mark.parametrize("place", ["config.yaml", "weights.safetensors", "checkpoints/scores.json", "../other/notes"])
def test_scores_replace_nothing_but_scores(
    run: Path, data: ShardReader, score: Score, mode: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(run / "weights.safetensors", save_run(run, 3))
    (run.parent / "other").mkdir()
    (run.parent / "other/notes").write_text('{"mine": 1}')
    before = {file: file.read_bytes() for file in run.parent.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"^output=.*(lies in checkpoint=.*, which is read|holds no scores); choose|,"):
        score(run, data, mode=mode, output=str(run / place))
    with pytest.raises(UserError, match=r"^output=.* is checkpoint=.*, which is read; choose another place"):
        score(run / "weights.safetensors", data, output=str(run / "weights.safetensors"))
    assert {file: file.read_bytes() for file in run.parent.rglob("*") if file.is_file()} == before


def test_scores_in_the_run_s_folder_of_scores_are_written_and_written_again(
    run: Path, data: ShardReader, score: Score
) -> None:
    save_run(run, 3)
    assert score(run, data, output=str(run / "scores/mine.json")) == score(
        run, data, output=str(run / "scores/mine.json")
    )


@pytest.mark.parametrize("place", ["data/p", "experiments/snapshots/r", "experiments/snapshots/r/checkpoints/p"])
def test_predictions_are_not_written_among_what_is_read(
    run: Path, tmp_path: Path, data: ShardReader, score: Score, place: str
) -> None:
    save_run(run, 3)
    with pytest.raises(UserError, match=r"^predictions=.* (lies in|is) (data\.path|checkpoint)=.*, which is read"):
        score(run, data, predictions=str(tmp_path / place))


@pytest.mark.parametrize(("output", "predictions"), [("p/a.json", "p"), ("p", "p"), ("p", "p/q")])
def test_scores_and_predictions_do_not_lie_in_each_other(
    run: Path, data: ShardReader, score: Score, output: str, predictions: str
) -> None:
    save_run(run, 3)
    with pytest.raises(UserError, match=r"^output=.* and predictions=.* cannot lie inside each other"):
        score(run, data, output=output, predictions=predictions)


def test_a_run_whose_first_checkpoint_is_broken_inside_is_scored_without_it(
    run: Path, data: ShardReader, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(run, 3)
    state = save_run(run, 2)
    state["conv1.weight"] *= float("nan")
    folder = checkpoint_folder(run, 2)
    save_file(state, folder / "segmentation.safetensors")
    reseal(folder)
    assert list(score(run, data, mode="best")["snapshots"]) == ["3"]
    assert capsys.readouterr().err.count("passing over a broken checkpoint") == 1


@pytest.mark.parametrize("mode", ["single", "best"])
def test_curves_that_cannot_be_written_cost_one_warning(
    run: Path, data: ShardReader, score: Score, mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for step in (2, 3):
        save_run(run, step)
    (tmp_path / "experiments/logs").write_text("a file where the curves' folder would be")
    assert "miou" in {**score(run, data, mode=mode), **score(run, data, mode=mode, output="again.json").get("best", {})}
    printed = capsys.readouterr()
    assert [line.partition(": ")[0] for line in printed.err.splitlines() if "curves cannot" in line] == ["warning"] * 2
    assert "tensorboard" not in printed.out


def test_results_are_written_before_they_are_told(
    run: Path, data: ShardReader, score: Score, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_run(run, 3)
    there: list[list[bool]] = []
    files = [tmp_path / "scores.json", tmp_path / "experiments/logs/r/scores"]

    def print_on_main(text: str) -> None:
        if "mIoU" in text:
            there.append([file.exists() for file in files])

    monkeypatch.setattr(evaluation, "print_on_main", print_on_main)
    score(run, data)
    assert there == [[True, True]]


def test_scores_that_are_no_finite_numbers_are_refused_with_the_sample(
    run: Path, data: ShardReader, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite weights may still overflow, in half precision sooner."""
    state = tiny_network(1).state_dict()
    state["conv1.weight"] *= 1e30
    state["layer1.0.conv1.weight"] *= 1e30
    save_state(run, 3, state, configuration(), class_set())
    with pytest.raises(UserError, match=r"sample 'scene_000': the network's scores are not finite"):
        score(run, data)
