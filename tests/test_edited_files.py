"""Whatever is changed in a file that the programs read, it still works or is refused in one message with its name."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.amp.grad_scaler import GradScaler

from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.checked import read_content
from esl_dist.data.loading import LabelSource, Samples
from esl_dist.data.shard_index import shard_from
from esl_dist.data.shards import choose_classes, open_shards
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.inference.labelling.job import SUMMARY
from esl_dist.inference.labelling.labels import read_summary
from esl_dist.inference.labelling.pieces import JOB, UNFINISHED, open_unfinished
from esl_dist.reporting.curves import Curves
from esl_dist.runs.checkpoints import (
    MANIFEST,
    TRAINING,
    load_checkpoint,
    save_checkpoint,
)
from esl_dist.runs.fitting import BrokenCheckpointError
from esl_dist.runs.snapshots import best_step, read_scores
from esl_dist.runs.validations import read_validations
from esl_dist.training.log import TrainingLog
from esl_dist.training.optimisation import Updating
from esl_dist.training.setup import build_state
from tests.builders import class_set, drawn_shards
from tests.edits import VALUES, as_json, edited, with_edited_bytes
from tests.training.small_runs import KEEP_ALL, after_a_step, configuration, reseal

EDITS = {"derandomize": True, "deadline": None, "database": None}
MADE_WITH = {"run": "r", "step": 4, "size": [8, 6], "bound": 0.5}
ONE_SCORE = {"miou": 0.5, "miou_over": {}, "iou": {"road": 0.5, "sky": None}, "accuracy": 0.7, "weights": "a" * 64}
SCORES = {"made_with": {"data": "b" * 64}, "best": {"step": 4, **ONE_SCORE}, "snapshots": {"4": ONE_SCORE}}
A_CLASS = {"threshold": 0.25, "pixels_predicted": 10, "pixels_kept": 5}
SUMMARY_OF_A_JOB = {"score": "entropy", "kept": 0.5, "accuracy": None, "classes": {"road": A_CLASS}}


def refusal_of(use: Callable[[], object]) -> UserError | None:
    try:
        use()
    except UserError as refusal:
        return refusal
    return None


def works_or_is_refused(use: Callable[[], object], file: str) -> UserError | None:
    """Use what was edited; returns the refusal, if any: it is on one line and names the file or its folder."""
    refusal = refusal_of(use)
    if refusal is not None:
        assert file in str(refusal), refusal
        assert len(str(refusal).splitlines()) == 1, refusal
        str(refusal).encode()
    return refusal


def use_shards(folder: Path) -> None:
    reader = open_shards(folder)
    reader.fingerprint()
    name, classes = choose_classes(reader, None)
    f"{name} {classes}".encode()
    samples = Samples(reader, (16, 12), LabelSource(reader, classes), (16, 12))
    for position in range(len(samples)):
        with suppress(CorruptSampleError):
            samples[position]


@given(st.data())
@hypothesis_settings(max_examples=200, **EDITS)
def test_an_index(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shards")
    index = drawn_shards(folder, 2, in_a_shard=1).folder / "index.json"
    index.write_text(as_json(edited(json.loads(index.read_text()), data)))
    works_or_is_refused(lambda: use_shards(folder), str(folder))


@given(st.data())
@hypothesis_settings(max_examples=60, **EDITS)
def test_the_bytes_of_a_folder_of_shards(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shards")
    drawn_shards(folder, 2, in_a_shard=1)
    file = folder / data.draw(st.sampled_from(["index.json", "shard-000000.tar", "shard-000001.tar"]))
    file.write_bytes(with_edited_bytes(file.read_bytes(), data))
    works_or_is_refused(lambda: use_shards(folder), str(folder))


def use_entry(file: Path) -> None:
    entry = shard_from(read_content(file, "make it again"))
    assert all(offset + count <= entry.size for one in entry.samples for offset, count, _ in one.members.values())


def use_scores(file: Path) -> None:
    scores = read_scores(file, {})
    if scores:
        assert best_step(scores) in scores


def use_summary(file: Path) -> None:
    summary = read_summary(file)
    f"{100 * summary['kept']:.1f}{100 * (summary['accuracy'] or 0):.1f}".encode()


def use_validations(file: Path) -> None:
    for figures in read_validations(file)[1].values():
        figures.line().encode()


VALIDATED = {
    "format": "esl-dist validation",
    "format_version": 1,
    "made_with": {"data": "c" * 64, "size": [64, 32]},
    "best": 2,
    "steps": {"2": {"entropy": 0.5, "kept": 0.75, "agreement": 0.5, "scores": ONE_SCORE}},
}
ENTRY = {
    "name": "piece-0.tar",
    "bytes": 2048,
    "sha256": "c" * 64,
    "sample_count": 1,
    "samples": [{"key": "a/b", "members": {"label.png": [512, 9, 7], "level.png": [1536, 9, 7]}}],
}
SEGMENTATION = "segmentation.safetensors"
JSON_FILES: dict[str, tuple[Any, Callable[[Path], object]]] = {
    "piece-0.tar.json": (ENTRY, use_entry),
    f"{UNFINISHED}/{JOB}": (MADE_WITH, lambda file: open_unfinished(file.parent, MADE_WITH)),
    SUMMARY: (SUMMARY_OF_A_JOB, use_summary),
    "scores.json": (SCORES, use_scores),
    "validation.json": (VALIDATED, use_validations),
}


@pytest.mark.parametrize("name", JSON_FILES)
@given(st.data())
@hypothesis_settings(max_examples=80, **EDITS)
def test_a_file_that_a_job_keeps(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("job") / name
    file.parent.mkdir(exist_ok=True)
    content, use = JSON_FILES[name]
    use_whole = data.draw(st.booleans())
    text = as_json(edited(content, data)) if use_whole else json.dumps(content)
    file.write_bytes(text.encode() if use_whole else with_edited_bytes(text.encode(), data))
    works_or_is_refused(lambda: use(file), str(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with a tensor in every place that may hold one."""
    return save_checkpoint(tmp_path_factory.mktemp("run"), after_a_step(configuration(), class_set()), KEEP_ALL)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy to be edited; each example edits the whole one anew."""
    return Path(shutil.copytree(whole, tmp_path / "step-00000001"))


def use_checkpoint(folder: Path) -> None:
    """Load a checkpoint and take the next step with it, as a training does."""
    checkpoint = load_checkpoint(folder)
    config = checkpoint.config
    config.seed = 0
    state = build_state(config, METHODS[config.method.name], checkpoint.classes, torch.device("cpu"), False)
    for name, network in state.networks.items():
        network.load_state_dict(checkpoint.networks[name])
    updating = Updating(state.networks, state.optimizers, None)
    updating.load(checkpoint.training)
    if checkpoint.training["scaler"]:
        GradScaler("cpu").load_state_dict(checkpoint.training["scaler"])
    set_rates(state.optimizers, 1, config.optimizer)
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert all(tensor.isfinite().all() for tensor in state.networks.state_dict().values())
    if "journal" in checkpoint.training:
        log = TrainingLog(Curves(folder.parent / "logs", 1), "r", 1, 1, checkpoint.training["journal"])
        log.mean_losses()
        log.close()


def works_or_is_broken(folder: Path) -> None:
    """A checkpoint that does not fit is a broken one, or of another version."""
    refusal = works_or_is_refused(lambda: use_checkpoint(folder), str(folder))
    assert refusal is None or isinstance(refusal, BrokenCheckpointError) or "format version" in str(refusal)


@given(st.data())
@hypothesis_settings(max_examples=90, suppress_health_check=list(HealthCheck), **EDITS)
def test_a_manifest(folder: Path, whole: Path, data: st.DataObject) -> None:
    shutil.copy(whole / MANIFEST, folder)
    reseal(folder, lambda manifest: edited(manifest, data), as_json)
    works_or_is_broken(folder)


TENSORS = [
    *(torch.ones(()), torch.ones(0), torch.ones(3), torch.tensor(float("nan")), torch.ones(24, 3, 7, 7) / 0),
    *(torch.ones(1).expand(10**9), torch.ones(24, 3, 7, 7).to(torch.complex64), torch.eye(3).to_sparse()),
    *(torch.ones(2, device="meta"), torch.ones(24, 3, 7, 7, dtype=torch.int32)),
]
PYTHON_VALUES = [*VALUES, *TENSORS, (0.9, 0.99), {0: {}}, [TENSORS[2]]]


@given(st.data())
@hypothesis_settings(max_examples=90, suppress_health_check=list(HealthCheck), **EDITS)
def test_the_state_of_a_training(folder: Path, whole: Path, data: st.DataObject) -> None:
    training = torch.load(whole / TRAINING, weights_only=True)
    torch.save(edited(training, data, PYTHON_VALUES), folder / TRAINING)
    reseal(folder)
    works_or_is_broken(folder)


@given(st.data())
@hypothesis_settings(max_examples=60, suppress_health_check=list(HealthCheck), **EDITS)
def test_the_tensors_of_a_network(folder: Path, whole: Path, data: st.DataObject) -> None:
    weights = load_file(whole / SEGMENTATION)
    name = data.draw(st.sampled_from([*list(weights)[:9], *list(weights)[-3:]]))
    value = data.draw(st.sampled_from([None, *TENSORS[:5], weights[name] / 0, -weights[name], weights[name].double()]))
    others = {key: tensor for key, tensor in weights.items() if key != name}
    save_file(others if value is None else {**others, name: value.contiguous()}, folder / SEGMENTATION)
    reseal(folder)
    works_or_is_broken(folder)


@given(st.data())
@hypothesis_settings(max_examples=80, suppress_health_check=list(HealthCheck), **EDITS)
def test_the_bytes_of_a_checkpoint(folder: Path, whole: Path, data: st.DataObject) -> None:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from([SEGMENTATION, "discriminators.safetensors", TRAINING, MANIFEST]))
    content = (whole / name).read_bytes()
    # Most bytes are those of weights, which have no other check than that they are finite.
    head, rest = (content[:2000], content[2000:]) if data.draw(st.booleans()) else (content, b"")
    (folder / name).write_bytes(with_edited_bytes(head, data) + rest)
    if name != MANIFEST:
        reseal(folder)
    works_or_is_broken(folder)
