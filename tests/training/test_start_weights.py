"""A training starts from a network of the same classes, or from all but the classifiers of another one."""

import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from esl_dist.adaptation.methods import METHODS
from esl_dist.data.labels import ClassSet, SemanticClass
from esl_dist.errors import UserError
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.ranks import collectives
from esl_dist.ranks.heartbeat import PROGRESS
from esl_dist.runs.trained import Provenance, description_of
from esl_dist.training.contradictions import check_training
from esl_dist.training.setup import build_state
from tests.builders import class_set
from tests.training.small_runs import configuration, save_run, tiny_network

CPU = torch.device("cpu")
ROAD, HOUSE, SKY = class_set()
FIVE = (ROAD, HOUSE, SKY, SemanticClass("car", (1, 2, 3), (30,)), SemanticClass("tree", (3, 2, 1), (31,)))
HEADS = ("layer5.", "layer6.")


def started(start: Path | None, classes: ClassSet, **network: Any) -> DeepLab:
    options = {"architecture": "tiny", "start": None if start is None else str(start), **network}
    config = configuration(seed=0, network=options)
    network = build_state(config, METHODS["source_only"], classes, CPU, with_start=True).networks["segmentation"]
    assert isinstance(network, DeepLab)
    return network


def described(path: Path, classes: ClassSet) -> Path:
    known = Provenance("other", "mine", classes, "tiny", True, False, 1, "no", {}, {}, {})
    write_weights(path, tiny_network(1, classes=len(classes)).state_dict(), description_of(known))
    return path


def place_of(kind: str, tmp_path: Path, classes: ClassSet) -> Path:
    if kind == "run":
        save_run(tmp_path / "snapshots/other", 3, classes=classes)
        return tmp_path / "snapshots/other"
    if kind == "described file":
        return described(tmp_path / "other.safetensors", classes)
    write_weights(tmp_path / "other.pth", tiny_network(1, classes=len(classes)).state_dict())
    return tmp_path / "other.pth"


@pytest.mark.parametrize("kind", ["run", "described file", "foreign file"])
def test_all_but_the_heads_come_from_a_network_of_other_classes(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = place_of(kind, tmp_path, class_set())
    with pytest.raises(UserError, match=r"other.*: .*network\.start_without=heads"):
        started(start, FIVE)
    network = started(start, FIVE, start_without="heads")
    out = capsys.readouterr().out
    assert f"{start}: 16 tensors are left out as asked: layer5 (8), layer6 (8)\n" in out
    assert "find no place" not in out
    other, fresh = started(start, class_set()).state_dict(), started(None, FIVE).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith(HEADS) else other[name]), name


@pytest.mark.parametrize("kind", ["run", "described file"])
def test_as_many_classes_of_other_names_are_refused(tmp_path: Path, kind: str) -> None:
    start = place_of(kind, tmp_path, class_set())
    with pytest.raises(UserError, match=r"its classes are road, house, sky, this run's sky, house, road; take all but"):
        started(start, (SKY, HOUSE, ROAD))
    started(start, (SKY, HOUSE, ROAD), start_without="heads")


def test_what_is_left_out_of_nothing_is_refused() -> None:
    config = configuration(network={"architecture": "tiny", "start_without": "heads"})
    with pytest.raises(UserError, match=r"network\.start_without=heads needs weights to start from: network\.start=…"):
        check_training(config)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"pretrained": True, "start": "w.pth"},
            r"^network\.pretrained=true and network\.start=… are both .* one",
        ),
        ({"pretrained": True}, r"^network\.pretrained=true is for backbones of timm .* leave it out for tiny$"),
        ({"head": "transposed"}, r"^network\.head=transposed is for backbones of timm .* leave it out for tiny$"),
        ({"output_stride": 16}, r"^network\.output_stride=16 is for backbones of timm .* leave it out for tiny$"),
    ],
)
def test_weights_from_two_places_and_what_only_timms_can_are_refused(network: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_training(configuration(network={"architecture": "tiny", **network}))
    check_training(configuration(network={"architecture": "tiny", "head": "deeplab", "output_stride": 8}))


def test_a_wrapped_state_dict_is_unwrapped_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny_network(1).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth")
    assert torch.equal(started(tmp_path / "wrapped.pth", class_set()).conv1.weight, state["conv1.weight"])
    assert capsys.readouterr().out == f"{tmp_path}/wrapped.pth: takes what it holds under 'state_dict'\n"


@pytest.mark.parametrize(("local_rank", "order"), [("0", ["asks the hub", "waits"]), ("1", ["waits", "asks the hub"])])
def test_one_process_of_a_machine_fetches_weights_from_the_hub_and_the_others_find_them(
    monkeypatch: pytest.MonkeyPatch, local_rank: str, order: list[str]
) -> None:
    done: list[str] = []

    def fetched(*_: Any, **__: Any) -> dict[str, Tensor]:
        done.append("asks the hub")
        return dict(timm.create_model("test_resnet").state_dict())

    # There is no hub here.
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetched)
    monkeypatch.setattr("esl_dist.training.setup.wait_for_all", lambda: done.append("waits"))
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    options = {"architecture": "timm/test_resnet", "pretrained": True}
    build_state(configuration(seed=0, network=options), METHODS["source_only"], class_set(), CPU, with_start=True)
    assert done == order


def test_other_ranks_see_that_a_rank_which_fetches_weights_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hubs = timm.create_model("test_resnet").state_dict()

    def fetched_slowly(*_: Any, **__: Any) -> dict[str, Tensor]:
        deadline, before = time.monotonic() + 60, PROGRESS.work
        while PROGRESS.work == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert PROGRESS.work > before
        return dict(hubs)

    monkeypatch.setattr(collectives, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetched_slowly)
    options = {"architecture": "timm/test_resnet", "pretrained": True}
    build_state(configuration(seed=0, network=options), METHODS["source_only"], class_set(), CPU, with_start=True)


def test_what_a_file_has_not_is_told_by_the_parts_of_a_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside the file's name stand those parts alone of which something is missing.
    whole = timm.create_model("test_resnet", num_classes=0).state_dict()
    write_weights(tmp_path / "w.pth", {name: one for name, one in whole.items() if not name.startswith("layer2.")})
    options = {"architecture": "timm/test_resnet", "start": str(tmp_path / "w.pth"), "auxiliary_head": False}
    build_state(configuration(seed=0, network=options), METHODS["source_only"], class_set(), CPU, with_start=True)
    missing = sum(name.startswith("layer2.") for name in whole)
    told = f"w.pth: {missing + 8} tensors keep their initial values: backbone.layer2 ({missing}), head (8)\n"
    assert told in capsys.readouterr().out
