"""Weights come from plain files: what is not data is refused, and so is a tensor that no network can compute with."""

import pickle
import resource
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX
from esl_dist.models.sound_tensors import refuse_tensors
from esl_dist.models.weight_files import digest_of_weights, read_weights, write_weights
from esl_dist.models.weights import describe_weights, load_weights
from tests.training.small_runs import tiny_network


def network(seed: int = 0) -> Any:
    return tiny_network(seed, classes=4)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.stem != "legacy")
    return path


FILES = ["weights.pth", "legacy.pth", "weights.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_back_what_was_saved(name: str, tmp_path: Path) -> None:
    saved, loaded = network(1), network(2)
    path = write(tmp_path / name, saved.state_dict())
    report = load_weights(loaded, read_weights(path).tensors, str(path))
    assert same(loaded.state_dict(), saved.state_dict())
    assert (report.missing, report.left_over) == ([], [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    path = write(tmp_path / name, network().state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=name):
        read_weights(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
def test_a_file_of_something_else_is_refused_with_a_reason(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*(damaged|cannot be read as weights: .+)"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_weights(tmp_path / name)


class WritesFile:
    """Unpickled, it writes a file: what an attacker's pickle could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_file_is_refused_and_not_executed(form: str, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "weights.pth"
    content = {"conv1.weight": torch.zeros(1), "evil": WritesFile(witness)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="refused"):
        read_weights(path)
    assert not witness.exists()
    # The file is indeed as bad as it is meant to be.
    if form == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        {"step": 3},
        {0: torch.zeros(1)},
        {},
        {"state_dict": {}},
        {"generator": {"w": torch.zeros(1)}, "critic": {"w": torch.zeros(1)}},
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="expected a state dict"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_disk_that_is_full_in_the_middle_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    file, state = tmp_path / name, {"weight": torch.zeros(10_000)}
    write_weights(file, state)
    whole = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_weights(file, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename == f"{file}{PARTIAL_SUFFIX}"
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


WEIGHT = torch.linspace(-1, 1, 54).reshape(2, 3, 3, 3)
NAME = "conv1.weight"


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)


IMPOSSIBLE = {
    "not a number": (NAME, WEIGHT.clone().fill_(float("nan")), "holds numbers that are not finite"),
    "one infinite": (NAME, torch.cat([WEIGHT, WEIGHT / 0]), "holds numbers that are not finite"),
    "infinite in float32": (NAME, WEIGHT.double() * 1e300, "holds numbers that are not finite"),
    "complex": (NAME, WEIGHT.to(torch.complex64), "is of type complex64"),
    "integer": (NAME, WEIGHT.to(torch.int32), "is of type int32"),
    "bool": (NAME, WEIGHT > 0, "is of type bool"),
    "8 bits": (NAME, WEIGHT.to(torch.float8_e4m3fn), "is of type float8_e4m3fn"),
    "empty": (NAME, WEIGHT[:0], r"has shape \[0, 3, 3, 3\]"),
    "single number": (NAME, torch.tensor(1.0), r"has shape \[\]"),
    "meta": (NAME, WEIGHT.to("meta"), "is on the device meta"),
    "sparse": (NAME, WEIGHT.to_sparse(), "is sparse"),
    "quantised": (NAME, quantised(), "is quantised"),
    "negative variance": ("bn1.running_var", -torch.ones(3), "holds a variance below 0"),
    "fraction as counter": ("bn1.num_batches_tracked", torch.tensor(0.5), "is not one whole number"),
    "several counters": ("bn1.num_batches_tracked", torch.tensor([1, 2]), "is not one whole number"),
    "negative counter": ("bn1.num_batches_tracked", torch.tensor(-1), "is below 0"),
    "larger than memory": (NAME, torch.ones(1).expand(10**8, 10**8), "uses one number in several places"),
    "overlapping rows": (NAME, torch.ones(9).as_strided((3, 4), (2, 1)), "uses one number in several places"),
}
WHOLE = {"bn1.running_var": torch.ones(2), "bn1.num_batches_tracked": torch.tensor(3)}


ONLY_IN_PTH = ("sparse", "quantised", "meta", "larger than memory", "overlapping rows")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("weights.pth", kind) for kind in IMPOSSIBLE]
    + [("weights.safetensors", kind) for kind in IMPOSSIBLE if kind not in ONLY_IN_PTH],
)
def test_a_tensor_that_no_network_can_compute_with_is_named(
    kind: str, name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    tensor_name, tensor, problem = IMPOSSIBLE[kind]
    path = write(tmp_path / name, {**WHOLE, tensor_name: tensor})
    recwarn.clear()
    with pytest.raises(UserError, match=rf"{name}: tensor '{tensor_name}' .*{problem}"):
        read_weights(path)
    assert [str(one.message) for one in recwarn] == [], "one message, no warnings of torch's"


@pytest.mark.parametrize("kept", [torch.arange(4), torch.tensor(2.5), torch.tensor(1), torch.ones(2, dtype=torch.bool)])
def test_indices_and_single_numbers_beside_weights_find_no_place_and_are_told(kept: Tensor, tmp_path: Path) -> None:
    saved = network(1).state_dict()
    state = {f"module.{name}": one for name, one in saved.items()}
    path = write(tmp_path / "weights.pth", {**state, "attn.index": kept, "step": kept})
    loaded = network(2)
    report = load_weights(loaded, read_weights(path).tensors, str(path))
    assert same(loaded.state_dict(), saved)
    assert report.left_over == ["attn.index", "step"]
    assert describe_weights(read_weights(path).tensors, str(path)) == ("tiny", 4, True)


def test_whole_and_single_numbers_are_taken_where_the_network_has_such() -> None:
    state = {"index": torch.arange(4), "gain": torch.tensor(2.0)}
    refuse_tensors(state, "file", {"index": torch.zeros(4, dtype=torch.int64), "gain": torch.tensor(1.0)})
    for name, own in (("index", torch.zeros(4)), ("gain", torch.zeros(1))):
        with pytest.raises(UserError, match=rf"file: tensor '{name}' .*; no network can be filled with it"):
            refuse_tensors(state, "file", {**state, name: own})


@given(place=st.integers(0, 53), value=st.sampled_from([float("nan"), float("inf"), -float("inf")]))
@hypothesis_settings(deadline=None, max_examples=30, derandomize=True)
def test_a_single_number_that_is_not_finite_is_found_wherever_it_is(place: int, value: float) -> None:
    tensor = WEIGHT.clone()
    tensor.view(-1)[place] = value
    refuse_tensors({NAME: WEIGHT}, "file")
    with pytest.raises(UserError, match="not finite"):
        refuse_tensors({NAME: tensor}, "file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_types_fill_a_network(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved, loaded = network(1), network(2)
    state = {key: one.to(dtype) if one.is_floating_point() else one for key, one in saved.state_dict().items()}
    file = read_weights(write(tmp_path / name, state))
    load_weights(loaded, file.tensors, name)
    for key, one in loaded.state_dict().items():
        assert torch.equal(one, state[key].to(one.dtype)), key
    assert digest_of_weights(file.tensors) == digest_of_weights(state)


def test_the_digest_of_float32_is_that_of_earlier_versions_and_tells_types_values_and_names_apart() -> None:
    """Scores and pseudo-labels are kept under it."""
    state = {"b": torch.arange(6.0).reshape(2, 3).t(), "a": torch.tensor(3)}
    assert digest_of_weights(state) == "d9b880344e09cbab79c3ceb2beb054cb103b17c1112a5a68e5942d06b23337de"
    others = [
        {**state, "a": torch.tensor(4)},
        {**state, "b": state["b"].bfloat16()},
        {"c": state["b"], "a": state["a"]},
    ]
    assert len({digest_of_weights(one) for one in [state, *others]}) == 4


@pytest.mark.parametrize(
    ("content", "wrapper"),
    [
        ({"state_dict": {NAME: WEIGHT}}, "state_dict"),
        ({"model": {NAME: WEIGHT}, "epoch": 3}, "model"),
        ({"net": {NAME: WEIGHT}, "optimizer": {"state": {}, "param_groups": []}}, "net"),
        ({"model": {NAME: WEIGHT}, "model_ema": {NAME: WEIGHT + 1}}, "model"),
        ({"model": {"state_dict": {NAME: WEIGHT}, "epoch": 3}}, "model.state_dict"),
        ({"state_dict": {"net": {NAME: WEIGHT}}, "optimizer": {"state": {0: {"step": WEIGHT}}}}, "state_dict.net"),
    ],
)
def test_a_state_dict_is_taken_from_what_other_programs_wrap_around_it(
    content: dict[str, Any], wrapper: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "weights.pth")
    file = read_weights(tmp_path / "weights.pth")
    assert same(file.tensors, {NAME: WEIGHT})
    assert file.wrapper == wrapper


def test_a_description_goes_along_with_safetensors_and_changes_no_tensor(tmp_path: Path) -> None:
    state = network().state_dict()
    for number in range(3):
        write_weights(tmp_path / f"{number}.safetensors", state, '{"ü": 1}')
    file = read_weights(tmp_path / "0.safetensors")
    assert (file.description, file.wrapper) == ('{"ü": 1}', None)
    assert same(file.tensors, state)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1, "the same bytes each time"
    write_weights(tmp_path / "weights.pth", state, "anything")
    assert read_weights(tmp_path / "weights.pth").description is None


def test_what_lies_below_names_of_other_programs_is_told_and_never_looked_for_without_end(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    several = {"model": {"generator": {NAME: WEIGHT}, "critic": {NAME: WEIGHT}}}
    for content, told in (
        (endless, r"'model\.model\.model' there is a mapping"),
        (several, "'model' there is more than"),
    ):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=told):
            read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "name", ["weights.PTH", "weights.pth", "weights", "weights.SafeTensors", "weights.safetensors"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_is_known_by_its_content_and_not_by_its_name(name: str, form: str, tmp_path: Path) -> None:
    state, path = network().state_dict(), tmp_path / name
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    assert same(read_weights(path).tensors, state)


def test_a_header_of_safetensors_whose_length_begins_as_a_pickle_does_is_one(tmp_path: Path) -> None:
    for padding in range(0, 256, 8):
        save_file({NAME: WEIGHT}, tmp_path / "weights.pth", {"padding": "x" * padding})
        if (tmp_path / "weights.pth").read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header has such a length")
    assert same(read_weights(tmp_path / "weights.pth").tensors, {NAME: WEIGHT})


@pytest.mark.parametrize("name", ["scores.json", "weights.pth", "weights.safetensors"])
def test_json_is_told_as_such(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{\n "format": "scores"}')
    with pytest.raises(UserError, match=f"{name}: is JSON, not a file of weights"):
        read_weights(tmp_path / name)


def test_a_name_from_a_file_stays_on_one_line_of_a_message(tmp_path: Path) -> None:
    name = "a\n\x1b[31mb" + "c" * 10_000
    with pytest.raises(UserError, match="holds numbers that are not finite") as refused:
        read_weights(write(tmp_path / "weights.pth", {name: WEIGHT / 0}))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000
