"""What a network was trained on goes along with its weights, and is checked where it is read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esl_dist.config import LONGEST_SIDE, Train
from esl_dist.errors import UserError
from esl_dist.models.weight_files import write_weights
from esl_dist.runs.checkpoints import Checkpoint
from esl_dist.runs.trained import description_of, provenance_from, provenance_of
from tests.builders import class_set
from tests.training.small_runs import KNOWN, configuration


def test_a_description_is_read_back_as_it_was_written() -> None:
    assert provenance_from(description_of(KNOWN), Path("file")) == KNOWN


WRITTEN = (
    '{"format": "esl-dist weights", "format_version": 1, "run": "r", "class_set": "village3", "classes": '
    '[{"name": "road", "color": [128, 64, 128], "ids": [7]}, '
    '{"name": "house", "color": [70, 70, 70], "ids": [11, 12]}, '
    '{"name": "sky", "color": [70, 130, 180], "ids": [23]}], "architecture": "tiny", "auxiliary_head": true, '
    '"per_domain": false, "batch_size": 3, "precision": "bf16", "sizes": {"source": null, "target": [40, 36]}, '
    f'"data_sets": {{"source": "a", "target": "b"}}, "shards": {{"source": "{"1" * 64}", "target": "{"2" * 64}"}}}}'
)
"""How a residual network is described, byte by byte, as it was before there were others."""


def test_the_same_network_trained_alike_is_the_same_file_of_weights_in_later_versions(tmp_path: Path) -> None:
    """A file is known by its SHA-256, to a mirror or in a paper; what is added later is told only where it differs."""
    assert description_of(KNOWN) == WRITTEN
    write_weights(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, description_of(KNOWN))
    content = (tmp_path / "w.safetensors").read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert header.rstrip().startswith(f'{{"__metadata__":{{"esl_dist":{json.dumps(WRITTEN)}}},'.encode())


def test_only_what_was_chosen_of_a_backbone_is_told() -> None:
    assert not {"head", "output_stride"} & json.loads(description_of(KNOWN)).keys()
    chosen = replace(KNOWN, head="transposed", output_stride=16)
    assert json.loads(description_of(chosen))["head"] == "transposed"
    assert provenance_from(description_of(chosen), Path("file")) == chosen


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(description_of(KNOWN)) | changes)


MISFITS: list[tuple[str, Any]] = [
    ("run", "../evil"),
    ("run", 3),
    ("class_set", "a\0b"),
    ("classes", []),
    ("classes", [{"name": "road"}]),
    ("architecture", "vgg"),
    ("auxiliary_head", 1),
    ("per_domain", None),
    ("batch_size", 0),
    ("batch_size", True),
    ("batch_size", 2.0),
    ("precision", "fp8"),
    ("sizes", {"target": [0, 3]}),
    ("sizes", {"target": [4, 3, 2]}),
    ("sizes", {"elsewhere": None}),
    ("sizes", {"target": [10**9, 3]}),
    ("sizes", {"target": [LONGEST_SIDE + 1, 3]}),
    ("data_sets", {"source": 1}),
    ("shards", []),
]


@pytest.mark.parametrize(("key", "value"), MISFITS)
def test_what_does_not_fit_is_refused_with_file_and_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^w\.safetensors: {key}"):
        provenance_from(changed(**{key: value}), Path("w.safetensors"))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "other"}', "[" * 100_000, '{"a": NaN}'])
def test_text_that_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^w\.safetensors: (its description cannot be read|expected the format)"):
        provenance_from(text, Path("w.safetensors"))


def test_a_description_of_a_later_version_is_refused() -> None:
    with pytest.raises(UserError, match="format version 2, this program reads 1"):
        provenance_from(changed(format_version=2), Path("w.safetensors"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("x" * 400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(key=st.sampled_from(sorted(json.loads(description_of(KNOWN)))), value=VALUES, remove=st.booleans())
@hypothesis_settings(deadline=None, max_examples=300, derandomize=True)
def test_an_edited_description_works_or_is_one_message(key: str, value: Any, remove: bool) -> None:
    content = json.loads(description_of(KNOWN)) | {key: value}
    if remove:
        del content[key]
    message = "w.safetensors: "
    try:
        provenance_from(json.dumps(content), Path("w.safetensors"))
    except UserError as error:
        message = str(error)
    assert message.startswith("w.safetensors: ")
    assert "\n" not in message


def checkpoint(config: Train, shards: dict[str, str], **training: Any) -> Checkpoint:
    return Checkpoint(3, config, "village3", class_set(), shards, {}, training, data_sets={"source": "a"})


def test_a_checkpoint_says_all_that_its_weights_are_described_with() -> None:
    config = configuration(target={"path": "t", "size": [40, 36]})
    known = provenance_of(
        replace(
            checkpoint(config, {**KNOWN.shards, "pseudo_labels": "3" * 64}, precision="bf16"),
            data_sets={"source": "a", "target": "b"},
        )
    )
    assert known == KNOWN
    assert provenance_of(checkpoint(config, {"source": "1"})).precision == "no", "as older checkpoints do not say"


def test_a_run_without_target_sees_others_as_its_source_unless_it_was_given_a_size() -> None:
    source = {"path": "s", "size": [32, 24]}
    known = provenance_of(checkpoint(configuration(source=source), {"source": "1"}))
    assert known.sizes == {"source": [32, 24], "target": [32, 24]}
    target = {"path": "", "size": [40, 36]}
    known = provenance_of(checkpoint(configuration(source=source, target=target), {"source": "1"}))
    assert known.sizes == {"source": [32, 24], "target": [40, 36]}
    both = {"source": "1", "target": "2"}
    assert provenance_of(checkpoint(configuration(source=source), both)).sizes["target"] is None, "as packed"
