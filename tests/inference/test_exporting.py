"""An exported file computes what its network does, at any size, says what it is, and works without this project."""

import io
import json
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from esl_dist import config as settings
from esl_dist.config_files import from_dictionary
from esl_dist.data.images import encode_png
from esl_dist.errors import UserError
from esl_dist.inference.contradictions import check_evaluation
from esl_dist.inference.evaluation import evaluate
from esl_dist.inference.exporting import job
from esl_dist.inference.exporting.deployed import Deployed, metadata
from esl_dist.inference.exporting.files import metadata_of
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.models.weight_files import write_weights
from esl_dist.programs.export import main
from esl_dist.runs.checkpoints import checkpoint_folder
from tests.builders import class_set, draw, drawn_shards, write_description
from tests.grids import grid
from tests.inference.exports import CPU, SHAPES, SIZE, TIMM, asked, network_of, pictures_of, save_network, scores_of
from tests.inference.trained import trained_network
from tests.on_ranks import PROJECT
from tests.training.small_runs import tiny_network


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert len(expected.argmax(1).unique()) > 1, "one class everywhere would be equal to anything"


def in_onnxruntime(file: Path, pictures: np.ndarray) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file))
    return torch.from_numpy(session.run(["logits"], {"pictures": pictures})[0])


class Exported(NamedTuple):
    file: Path
    network: SegmentationNetwork
    printed: str
    chatter: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export the tiny network of a run to ONNX, of any size; no test changes it."""
    folder = tmp_path_factory.mktemp("exported")
    network = save_network(folder / "run")
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(out), redirect_stderr(err):
        main(asked(folder / "run", folder / "network.onnx"))
    chatter = err.getvalue() + "".join(str(one.message) for one in warned)
    return Exported(folder / "network.onnx", network, out.getvalue(), chatter)


def test_onnx_computes_what_the_network_does_at_any_size_with_the_targets_statistics(exported: Exported) -> None:
    for shape in SHAPES:
        pictures = pictures_of(shape)
        assert_equal(in_onnxruntime(exported.file, pictures), scores_of(exported.network, pictures))


def test_an_onnx_file_says_what_it_takes_and_whose_classes_it_scores(exported: Exported) -> None:
    model = onnx.load(exported.file)
    onnx.checker.check_model(model, full_check=True)
    sides = [
        [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert sides == [["batch", "height", "width", 3], ["batch", 3, "height", "width"]]
    found = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert found == metadata_of(exported.file)
    assert found["classes"][1] == {"name": "house", "color": [70, 70, 70], "ids": [11, 12]}
    assert found["network"] == {"name": "r", "step": 3, "architecture": "tiny", "statistics": "target"}
    assert (found["class_set"], found["size"]) == ("village3", list(SIZE))
    assert [found[one]["shape"] for one in ("input", "output")] == sides
    assert (found["input"]["name"], found["output"]["name"]) == (model.graph.input[0].name, model.graph.output[0].name)


def test_an_onnx_file_has_batch_norm_folded_and_nothing_of_the_machine(exported: Exported) -> None:
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(exported.file).graph.node}
    content = exported.file.read_bytes()
    assert [word for word in (str(PROJECT), sys.prefix, "esl_dist", ".py") if word.encode() in content] == []


def test_an_export_tells_what_it_made_and_exporters_keep_silent(exported: Exported) -> None:
    assert exported.chatter == ""
    first, *lines = exported.printed.splitlines()
    assert first == "exporting"
    assert [line for line in lines if not line.startswith(("  ", "done in "))] == []
    pixels = sum(batch * height * width for batch, height, width in job.COMPARED_AT)
    assert f"the same class at all {pixels:,} pixels" in exported.printed


def test_the_script_of_the_page_works_without_this_project_and_gives_the_mask_of_evaluation(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (PROJECT / "docs/onnx.md").read_text(encoding="utf-8")
    (script,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in one)
    assert len([line for line in script.splitlines() if line]) <= 20
    without = "import sys; sys.modules |= dict.fromkeys(('esl_dist', 'torch', 'onnx'))\n"
    (tmp_path / "label.py").write_text(without + script)
    shards = drawn_shards(tmp_path / "data", 2, width=SIZE[0], height=SIZE[1])
    values = {
        "checkpoint": str(exported.file.parent / "run"),
        "data": {"path": str(shards.folder)},
        "workers": 0,
        "output": "scores.json",
        "predictions": "masks",
        "prediction_format": "train_ids",
        "precision": "no",
    }
    config = from_dictionary(settings.Evaluate, values, "tests")
    check_evaluation(config)
    evaluate(config, CPU)
    for seed, size in enumerate((SIZE, SIZE, (100, 50))):
        (tmp_path / "street.png").write_bytes(encode_png(draw(seed, *size)[0]))
        words = [sys.executable, "label.py", str(exported.file), "street.png", "mask.png"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["road", "house", "sky"]
        mask = Image.open("mask.png")
        assert (mask.mode, mask.size, mask.getpalette()[3:6]) == ("P", size, [70, 70, 70])
        if size == SIZE:
            expected = np.array(Image.open(f"masks/{shards.key(seed)}.png"))
            assert len(np.unique(expected)) > 1
            np.testing.assert_array_equal(np.array(mask), expected)


def loaded(file: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, Any]]:
    """Return what a file of torch.export computes and says, as its users have it."""
    texts = {"metadata.json": ""}
    return torch.export.load(file, extra_files=texts).module(), json.loads(texts["metadata.json"])


def test_a_file_of_torch_export_does_the_same_and_may_replace_itself(tmp_path: Path) -> None:
    network, file = save_network(tmp_path / "run"), tmp_path / "new/network.pt2"
    file.parent.mkdir()
    file.touch()
    # Twice: over an empty file, and over an export.
    for changes in ({"domain": "source", "size": [50, 33]}, {}):
        main(asked(checkpoint_folder(tmp_path / "run", 3), file, **changes))
        compute, about = loaded(file)
        domain = changes.get("domain", "target")
        for shape in SHAPES if not changes else SHAPES[1:2]:
            pictures = pictures_of(shape)
            assert_equal(compute(torch.from_numpy(pictures)), scores_of(network, pictures, domain))
        assert about == metadata_of(file)
        assert about["network"]["statistics"] == domain
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert str(PROJECT).encode() not in zipfile.ZipFile(file).read("archive/models/model.json")


def test_batch_and_size_are_fixed_where_they_are_given(tmp_path: Path) -> None:
    network, file = save_network(tmp_path / "run"), tmp_path / "network.pt2"
    main(asked(tmp_path / "run", file, batch=2, size=[50, 33]))
    compute, about = loaded(file)
    assert (about["input"]["shape"], about["size"]) == ([2, 33, 50, 3], [50, 33])
    pictures = pictures_of((2, 33, 50))
    assert_equal(compute(torch.from_numpy(pictures)), scores_of(network, pictures))
    with pytest.raises(AssertionError, match="size"):
        compute(torch.from_numpy(pictures[:1]))


@pytest.mark.grid
def test_onnx_is_fixed_where_that_is_given(tmp_path: Path) -> None:
    network, file = save_network(tmp_path / "run"), tmp_path / "network.onnx"
    main(asked(tmp_path / "run", file, batch=2, size=[50, 33]))
    assert onnxruntime.InferenceSession(str(file)).get_inputs()[0].shape == [2, 33, 50, 3]
    pictures = pictures_of((2, 33, 50))
    assert_equal(in_onnxruntime(file, pictures), scores_of(network, pictures))


@pytest.mark.parametrize("name", grid(TIMM, stay=["test_efficientnet"]))
def test_backbones_of_timm_are_exported_to_onnx_of_any_size(tmp_path: Path, name: str) -> None:
    options = {"batch_norm": "shared", "auxiliary_head": "vit" not in name, "architecture": f"timm/{name}"}
    network, file = save_network(tmp_path / "run", **options), tmp_path / "network.onnx"
    main(asked(tmp_path / "run", file))
    for shape in SHAPES:
        pictures = pictures_of(shape)
        found, expected = in_onnxruntime(file, pictures), scores_of(network, pictures)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(found.argmax(1), expected.argmax(1))


def test_a_file_of_weights_takes_its_classes_from_elsewhere(tmp_path: Path) -> None:
    network, file = tiny_network(1), tmp_path / "network.pt2"
    write_weights(tmp_path / "published.pth", network.state_dict())
    with pytest.raises(UserError, match="classes_from="):
        main(asked(tmp_path / "published.pth", file))
    main(asked(tmp_path / "published.pth", file, classes_from=str(write_description(tmp_path)), size=[50, 33]))
    compute, about = loaded(file)
    assert [one["name"] for one in about["classes"]] == ["road", "house", "sky"]
    pictures = pictures_of(SHAPES[1])
    assert_equal(compute(torch.from_numpy(pictures)), scores_of(network, pictures))


@pytest.mark.parametrize("name", ["tiny", "timm/test_efficientnet"])
def test_the_normalisation_that_is_told_is_the_one_that_is_done(name: str) -> None:
    network = network_of(from_dictionary(settings.Network, {"architecture": name}, "tests"))
    deployed = Deployed(network, "target")
    told = metadata(trained_network(network), class_set(), deployed, ("batch", "height", "width"))["normalisation"]
    seen: list[torch.Tensor] = []
    first = network.conv1 if name == "tiny" else network.backbone.conv_stem
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pictures = pictures_of((1, 32, 32))
    deployed(torch.from_numpy(pictures))
    expected = torch.from_numpy((pictures - np.array(told["mean"])) / np.array(told["deviation"])).permute(0, 3, 1, 2)
    # The published network sees blue first.
    expected = expected.flip(1) if name == "tiny" else expected
    torch.testing.assert_close(seen[0][..., :32, :32].double(), expected, rtol=0, atol=1e-3)
