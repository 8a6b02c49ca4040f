"""YAML text → plain values, as text of a stranger is read: one message for whatever is wrong with it.

Python's YAML reader takes the last of two equal keys, builds objects from tags, follows references that grow without
bound, and has a traceback for a number of 5000 digits. OmegaConf's does so in part, depending on its version.
"""

import re
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

from esl_dist.errors import UserError, beginning

MOST_VALUES = 10**6
"""Values of a text whose references (`*name`) are all written out."""

SHOWN_CHARACTERS = 200
SHOWN_NUMBER = 40


@dataclass(frozen=True)
class Spelled:
    """A number or a truth value, and how it was written: a run named 0001 or no is not named 1 or False."""

    text: str
    value: bool | int | float


Values = Any
"""What a text holds: None, str, `Spelled`, lists and dictionaries of them."""


def values_of(text: str, origin: str) -> Values:
    """Read a YAML text; None where it holds nothing.

    Raises:
        UserError: no YAML, a key that stands twice, a reference to itself or to very much, a tag (`!…`) of a value that
            settings do not have. The message starts with `origin`.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise UserError(f"{origin} cannot be read as YAML: lists or groups are nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin} cannot be read as YAML: {_reason(error)}") from error


def _reason(error: yaml.YAMLError) -> str:
    """Return what the reader found wrong, on one line and without its picture of the place."""
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        text = place + ", ".join(part for part in (error.context, error.problem) if part)
    return beginning(" ".join(text.split()), SHOWN_CHARACTERS)


def plain(values: Values) -> Any:
    """Return the values without their spelling."""
    if isinstance(values, Spelled):
        return values.value
    if isinstance(values, dict):
        return {plain(key): plain(value) for key, value in values.items()}
    return [plain(value) for value in values] if isinstance(values, list) else values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with numbers such as 1e3, without dates, sets and binary values."""


def _spelled(loader: _Loader, node: yaml.ScalarNode) -> Spelled:
    kind = _kind(node)
    constructed = {"bool": loader.construct_yaml_bool, "int": loader.construct_yaml_int}
    try:
        return Spelled(node.value, constructed.get(kind, loader.construct_yaml_float)(node))
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        what = beginning(node.value, SHOWN_NUMBER)
        is_long = kind == "int" and sum(map(str.isdigit, node.value)) > sys.get_int_max_str_digits() > 0
        problem = "has too many digits" if is_long else f"is no {kind}"
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {what!r} {problem}") from error


TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in TAGS and not tag.endswith("float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?(?:[0-9][0-9_]*)[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
for _name in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _spelled)


def _kind(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node with its references written out, and refuse what settings cannot hold.

    A node that is being counted has the size 0 in `known`.
    """
    place = f"line {node.start_mark.line + 1}"
    if (size := known.get(id(node))) is not None:
        if size == 0:
            raise yaml.YAMLError(f"{place}: a reference to what it stands in")
        return size
    if _kind(node) not in TAGS or not node.tag.startswith("tag:yaml.org,2002:"):
        raise yaml.YAMLError(f"{place}: a value with the tag {node.tag!r}; expected none")
    known[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _refuse_twice([key for key, _ in node.value])
        size += sum(_size(key, known) + _size(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(value, known) for value in node.value)
    if size > MOST_VALUES:
        raise yaml.YAMLError(f"{place}: more than {MOST_VALUES} values, with its references (*name) written out")
    known[id(node)] = size
    return size


def _refuse_twice(keys: list[yaml.Node]) -> None:
    seen: set[Hashable] = set()
    for key in keys:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                how = ", as <<: [*one, *other]" if _kind(key) == "merge" else ""
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice; expected once{how}"
                )
            seen.add((key.tag, key.value))
