"""Files edited as a person, a bad disk or an attacker might: any value anywhere, or any byte."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

RAW = {
    "@number of 5,000 digits@": "9" * 5000,
    "@a hundred thousand lists@": "[" * 100_000 + "]" * 100_000,
    "@five hundred lists@": "[" * 500 + "]" * 500,
    "@a key twice@": '{"a": 1, "a": 2}',
    "@beyond floats@": "1e999",
}
"""JSON that cannot be made of values: what stands for it → its text."""

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 7, 2**31, 2**63, 10**30, 0.0, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "0", "..", "../../x", "/x", "a/b", "a.b", "x" * 300, "nul\0", "two\nlines", "\ud800", "${x}", "a" * 64),
    *([], {}, [1], [1, 2], [0, 0], [1, 2, 3], [300_000, 300_000], [[]], {"a": 1}, {"": {}}, [{}], [None]),
    *RAW,
]


def places(tree: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to every value in a tree of dictionaries and lists, the tree itself first."""
    yield ()
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from ((key, *inner) for inner in places(value))


def edited(tree: Any, data: st.DataObject, values: Sequence[Any] = VALUES) -> Any:
    """Return a copy of a tree in which one value was deleted, replaced, repeated or renamed."""
    *outer, last = data.draw(st.sampled_from([("",), *(("", *place) for place in places(tree) if place)]), "place")
    copied = {"": copy.deepcopy(tree)}
    group: Any = copied
    for key in outer:
        group = group[key]
    change = data.draw(st.sampled_from(["replace", "replace", "replace", "delete", "repeat"]), "change")
    value = data.draw(st.sampled_from(values), "value")
    if change == "replace" or last == "":
        group[last] = value
    elif change == "delete":
        del group[last]
    elif isinstance(group, list):
        group.append(copy.deepcopy(group[last]))
    else:
        group[value if isinstance(value, str) else "repeated"] = group.pop(last)
    return copied[""]


def as_json(tree: Any) -> str:
    """Return the text of an edited tree."""
    text = json.dumps(tree)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def with_edited_bytes(content: bytes, data: st.DataObject) -> bytes:
    """Return bytes of which some were cut off, changed or put in."""
    place = data.draw(st.integers(0, len(content) - 1), "place")
    match data.draw(st.sampled_from(["cut", "flip", "insert", "zeros"]), "change"):
        case "cut":
            return content[:place]
        case "flip":
            bit = 1 << data.draw(st.integers(0, 7), "bit")
            return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
        case "insert":
            return content[:place] + b"\xef\xbb\xbf" + content[place:]
        case _:
            return content[:place] + bytes(len(content) - place)
