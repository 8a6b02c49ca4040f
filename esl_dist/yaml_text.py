"""YAML text → plain values, as text of a stranger is read: one message for whatever is wrong with it.

Python's YAML reader takes the last of two equal keys, builds objects from tags, follows references that grow without
bound, and takes 010 for 8, 1:30 for 90 and `no` for False. Here every scalar but null is text, until it is known what
is wanted (`config_values.converted`).
"""

from typing import Any

import yaml

from esl_dist.errors import UserError, beginning

MOST_VALUES = 10**6
"""Values of a text whose references (`*name`) are all written out."""

SHOWN_CHARACTERS = 200

TAGS = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "seq", "map", "merge")]

Values = Any
"""What a text holds: None, text, lists and dictionaries of them."""


class Unquoted(str):
    """Text that was written without quotation marks, and may be meant as a number."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without numbers, truth values and dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _text(_: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value) if node.style else Unquoted(node.value)


_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def values_of(text: str, origin: str) -> Values:
    """Read a YAML text; None where it holds nothing.

    Raises:
        UserError: no YAML, a key that stands twice or is null, a reference to itself or to very much, a tag (`!…`). The
            message starts with `origin`.
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


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node with its references written out, and refuse what settings cannot hold.

    A node that is being counted has the size 0 in `known`.
    """
    place = f"line {node.start_mark.line + 1}"
    if (size := known.get(id(node))) is not None:
        if size == 0:
            raise yaml.YAMLError(f"{place}: a reference to what it stands in")
        return size
    if node.tag not in TAGS:
        raise yaml.YAMLError(f"{place}: a value with the tag {node.tag!r}; expected none")
    known[id(node)] = 0
    inner = []
    if isinstance(node, yaml.MappingNode):
        _refuse_keys([key for key, _ in node.value])
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    size = 1 + sum(_size(part, known) for part in inner)
    if size > MOST_VALUES:
        raise yaml.YAMLError(f"{place}: more than {MOST_VALUES} values, with its references (*name) written out")
    known[id(node)] = size
    return size


def _refuse_keys(keys: list[yaml.Node]) -> None:
    seen = set()
    for key in (key for key in keys if isinstance(key, yaml.ScalarNode)):
        place, kind = f"line {key.start_mark.line + 1}", key.tag.rpartition(":")[2]
        if kind == "null":
            raise yaml.YAMLError(f"{place}: a key is nothing (null); expected a name")
        if key.value in seen:
            how = ", as <<: [*one, *other]" if kind == "merge" else ""
            raise yaml.YAMLError(f"{place}: the key {key.value!r} stands twice; expected once{how}")
        seen.add(key.value)
