"""What a result was made with is compared with what it would be made with now, and a change is told."""

from typing import Any

import pytest

from esl_dist.errors import UserError
from esl_dist.made_with import changes, listed, require_same

FINGERPRINT, OTHER = "0a" * 32, "0b" * 32


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"size": [40, 36]}, {"size": (40, 36)}, []),
        ({"size": [40, 36]}, {"size": None}, ["size: [40, 36] → null"]),
        ({"size": None}, {}, []),
        ({"step": 4}, {}, ["step: 4 → null"]),
        ({"data": FINGERPRINT}, {"data": OTHER}, ["data"]),
        ({}, {"data": OTHER}, ["data"]),
        ({"optimizer": {"rate": 0.1, "kind": "sgd"}}, {"optimizer": {"rate": 0.2, "kind": "sgd"}}, ["optimizer.rate:"]),
        ({"optimizer": {}}, {"optimizer": {"rate": 0.2}}, ["optimizer.rate: null → 0.2", "optimizer: {} → null"]),
        ({"words": "a\u2028b"}, {"words": "c" * 200}, [f'words: "a\\u2028b" → "{"c" * 59}…']),
        ({"a": {"b\u2028c": 1}}, {}, ["'a.b\\u2028c': 1 → null"]),
    ],
)
def test_what_differs_is_told_by_its_key_and_both_values(
    before: dict[str, Any], now: dict[str, Any], told: list[str]
) -> None:
    assert [words[: len(wanted)] for words, wanted in zip(changes(before, now).values(), told, strict=True)] == told


def test_what_older_versions_did_not_say_is_no_change() -> None:
    now = {"size": None, "domain": "target", "precision": "no", "device": "cpu", "target": FINGERPRINT}
    assert changes({"size": None, "target": FINGERPRINT}, now) == {}
    assert changes({"size": None, "target": FINGERPRINT}, now | {"precision": "bf16"}) == {
        "precision": 'precision: "no" → "bf16"'
    }


def test_a_device_that_older_versions_did_not_say_may_have_been_any() -> None:
    now = {"size": None, "device": "cuda"}
    assert changes({"size": None}, now) == {}
    assert list(changes({"size": None, "device": "cpu"}, now)) == ["device"]
    assert list(changes({"size": None, "device": "cpu"}, {"size": None})) == ["device"]


def test_a_message_shows_the_first_changes_and_counts_the_rest() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcdefg") == "a, b, c, d and 3 more"


def test_a_result_that_was_made_otherwise_is_refused_unless_the_key_may_change() -> None:
    before, now = {"bound": 0.5, "run": "r"}, {"bound": 0.4, "run": "r"}
    require_same(before, now, "labels: made with another", "delete it", {"bound"})
    with pytest.raises(UserError, match=r"^labels: made with another bound: 0\.5 → 0\.4; delete it$"):
        require_same(before, now, "labels: made with another", "delete it")
