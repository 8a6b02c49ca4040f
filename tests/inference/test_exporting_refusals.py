"""What cannot be exported, or would compute something else, is refused, and leaves no file."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from esl_dist.errors import UserError
from esl_dist.inference.exporting import files, formats, job
from esl_dist.inference.exporting.deployed import Deployed
from esl_dist.programs.export import main
from esl_dist.runs.trained import load_trained
from tests.inference.exports import CPU, SIZE, asked, save_network
from tests.inference.trained import trained_network
from tests.training.small_runs import tiny_network


def test_what_a_file_computes_otherwise_than_its_network_is_an_error_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(tmp_path / "run")
    by_torch = job.by_torch
    monkeypatch.setattr(job, "by_torch", lambda content: lambda pictures: by_torch(content)(pictures.flip(-1)))
    with pytest.raises(UserError, match=r"cannot be exported for that size \(its scores differ by"):
        main(asked(tmp_path / "run", tmp_path / "network.pt2", size=[32, 32]))
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_never_in_agreement(value: float) -> None:
    deployed, pictures = Deployed(tiny_network(1), "target"), (1, 32, 32)

    def other(seen: torch.Tensor) -> torch.Tensor:
        return deployed(seen).index_fill(1, torch.tensor([0]), value)

    with pytest.raises(ValueError, match="its scores are not finite"):
        job.agreement(deployed, other, pictures)
    with torch.no_grad():
        next(deployed.parameters()).fill_(value)
    with pytest.raises(UserError, match=r"^random pictures: the network's scores are not finite"):
        job.agreement(deployed, deployed, pictures)


def test_without_onnxruntime_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert formats.by_onnxruntime(b"") is None


def made_of_one_size(sides: Any) -> job.Made:
    """Stand for a network that looks at the size of its pictures."""
    if sides[1:] != (48, 64):
        raise AssertionError("Input height doesn't match model\nmore")
    return job.Made(b"", sides, None)


def test_what_cannot_be_of_any_size_is_fixed_to_that_of_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    made = job.made_as_can_be(made_of_one_size, ("batch", "height", "width"), SIZE)
    assert made.sides == ("batch", 48, 64)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: fixed to its training's size, 64×48")
    assert line.endswith("(Input height doesn't match model)")
    with pytest.raises(UserError, match=r"for any size \(.*\); give size="):
        job.made_as_can_be(made_of_one_size, ("batch", "height", "width"), None)
    with pytest.raises(UserError, match=r"for that size \(.*\); give batch=1"):
        job.made_as_can_be(made_of_one_size, ("batch", 32, 32), SIZE)


def test_what_is_larger_than_a_file_of_onnx_may_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LARGEST_ONNX", 1000)
    program = formats.followed(Deployed(tiny_network(1), "target"), (1, 16, 16))
    with pytest.raises(UserError, match=r"ends in \.pt2"):
        formats.as_onnx(program, {})


def others_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/extra/metadata.json", '{"format": "another"}')


def damaged_zip(file: Path) -> None:
    text = json.dumps({"format": files.FORMAT, "filling": list(range(100))})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/extra/metadata.json", text)
    content = bytearray(file.read_bytes())
    content[70:90] = bytes(20)
    file.write_bytes(content)


OTHERS: dict[str, Callable[[Path], object]] = {
    "a.onnx": lambda file: file.write_bytes(b"\xffnothing"),
    "b.onnx": lambda file: onnx.save(onnx.ModelProto(ir_version=10), file),
    "c.pt2": lambda file: file.write_text("notes"),
    "d.pt2": others_zip,
    "e.pt2": damaged_zip,
    "f.pt2": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_is_no_export_is_not_replaced(tmp_path: Path, name: str) -> None:
    save_network(tmp_path / "run")
    OTHERS[name](tmp_path / name)
    with pytest.raises(UserError, match=rf"^output=.*{name}: (exists and is no export|a folder)"):
        main(asked(tmp_path / "run", tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "network.bin"}, r"output=network\.bin: expected a name that ends in \.onnx or \.pt2"),
        ({"output": "run/checkpoints/network.pt2"}, "output=.* lies in checkpoint=run, which is read"),
        ({"checkpoint": "nowhere"}, "nowhere: no checkpoint"),
        ({"classes_from": "nowhere.yaml"}, "nowhere.yaml"),
        ({"output": "/proc/network.pt2"}, "output: cannot write into /proc"),
    ],
)
def test_what_cannot_be_is_refused_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / "run")
    with pytest.raises(UserError, match=words):
        main(asked(**{"checkpoint": "run", "output": Path("network.pt2"), **changes}))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript: pip install 'esl-dist\[onnx\]'$"):
        main(asked(tmp_path, tmp_path / "network.onnx"))


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="one process"):
        main(asked(tmp_path, tmp_path / "network.onnx"))


def test_statistics_that_a_file_of_weights_has_not_are_refused(tmp_path: Path) -> None:
    save_network(tmp_path / "run")
    trained = load_trained(tmp_path / "run", {}, None, CPU)
    assert trained.keeps == "per_domain"
    job.refuse_missing_statistics(trained, "source")
    with pytest.raises(UserError, match="domain=source is impossible"):
        job.refuse_missing_statistics(trained_network(tiny_network(1), keeps="target"), "source")
