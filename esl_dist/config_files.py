"""YAML and `key=value` → a checked configuration; every mistake is one message with file, key and what to do.

The settings themselves are in `esl_dist.config`. OmegaConf merges and types them; what it cannot know (bounds,
choices, the nearest known key) is checked here.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from esl_dist.errors import UserError
from esl_dist.files import whole_file

Config = TypeVar("Config")


def load_config(schema: type[Config], file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults of `schema`, a YAML file and `key=value` words, in this order, and check the result.

    Raises:
        UserError: an unreadable file, an unknown key, a wrong type, an impossible or a missing value.
    """
    merged = OmegaConf.structured(schema)
    if file is not None:
        merged = _merge(merged, _with_no(read_yaml(file), schema), str(file))
    for word in overrides:
        merged = _merge(merged, _read_override(word, schema), f"command line: {word}")
    return cast(Config, _finished(merged, _origin(file)))


def check_bounds(config: Any, origin: str) -> None:
    """Hold every setting to the bounds in its description.

    Raises:
        UserError: a value outside its bounds; the message starts with `origin`.
    """
    for key, value, bounds in _settings(config):
        for single in value if isinstance(value, list) else [value]:
            problem = _problem(single, bounds)
            if problem:
                raise UserError(f"{origin}: {key}={value} is impossible: {problem}")
        if isinstance(value, list) and key.endswith("size") and len(value) != 2:
            raise UserError(f"{origin}: {key}={value} is impossible: expected [width, height]")
        if isinstance(value, list) and len(value) != bounds.get("length", len(value)):
            raise UserError(f"{origin}: {key}={value} is impossible: expected {bounds['length']} values")


def save_config(config: Any, path: Path) -> None:
    """Write every setting of a configuration, defaults included, as YAML."""
    with whole_file(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def to_dictionary(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain dictionaries."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def from_dictionary(schema: type[Config], values: Any, origin: str) -> Config:
    """Read a configuration of `schema` back from nested dictionaries, as strictly as from a file.

    Raises:
        UserError: as `load_config`; the message starts with `origin`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected settings by name, got {values!r}")
    return cast(Config, _finished(_merge(OmegaConf.structured(schema), OmegaConf.create(values), origin), origin))


def differing_keys(one: Any, other: Any) -> list[str]:
    """Return the dotted keys in which two configurations of one schema differ."""
    pairs = zip(_settings(one), _settings(other), strict=True)
    return [key for (key, value, _), (_, other_value, _) in pairs if value != other_value]


def describe(schema: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every setting of a program, in the order of their definition."""
    hints = get_type_hints(schema)
    template = OmegaConf.structured(schema)
    for item in fields(schema):
        kind = hints[item.name]
        if is_dataclass(kind):
            for key, type_name, default, meaning in describe(cast(type, kind)):
                if default == "required" and not OmegaConf.is_missing(template[item.name], key):
                    default = str(template[item.name][key]) or "''"
                yield f"{item.name}.{key}", type_name, default, meaning
            continue
        default = "required" if OmegaConf.is_missing(template, item.name) else str(template[item.name])
        meaning = item.metadata["meaning"]
        if "choices" in item.metadata:
            meaning += f" One of {', '.join(item.metadata['choices'])}."
        yield item.name, _type_name(kind), "null" if default == "None" else default, meaning


def read_yaml(file: Path) -> DictConfig:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, is no YAML or holds something else.
    """
    try:
        content = OmegaConf.load(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{file}: expected settings of the form `key: value`")
    return content


def _with_no(content: DictConfig, schema: type) -> DictConfig:
    """Give settings that may be `no` the word back; YAML makes it a False."""
    for item in fields(schema):
        if "no" in item.metadata.get("choices", ()) and _given(content, item.name) is False:
            content[item.name] = "no"
    return content


def _read_override(word: str, schema: type) -> DictConfig:
    key, _, text = word.partition("=")
    if not key or "=" not in word:
        raise UserError(f"command line: {word!r} is not of the form key=value")
    try:
        override = OmegaConf.from_dotlist([word])
        # YAML would make a run named 0001 the number 1, and a split named no a False.
        if _kinds(schema).get(key, "").startswith("str") and isinstance(_given(override, key), int | float):
            OmegaConf.update(override, key, text)
    except UnicodeEncodeError:
        raise UserError(f"command line: {word!r} is not UTF-8; expected text, so rename what it names") from None
    except (OmegaConfBaseException, yaml.YAMLError, IndexError) as error:
        raise UserError(f"command line: {word!r} cannot be read: {_first_line(error)}") from error
    return override


def _given(override: DictConfig, key: str) -> Any:
    return OmegaConf.select(override, key, throw_on_resolution_failure=False)


def _merge(base: Any, addition: DictConfig, origin: str) -> Any:
    kinds = _kinds(cast(type, OmegaConf.get_type(base)))
    try:
        _refuse_misfits(OmegaConf.to_container(addition), kinds, origin)
        return OmegaConf.merge(base, addition)
    except ConfigKeyError as error:
        raise UserError(f"{origin}: {_unknown_key(base, error)}") from error
    except (OmegaConfBaseException, TypeError) as error:
        key = str(getattr(error, "full_key", None) or "value")
        expected = f"expected {kinds[key]}: " if key in kinds else ""
        raise UserError(f"{origin}: {key}: {expected}{_first_line(error)}") from error


def _refuse_misfits(values: Any, kinds: dict[str, str], origin: str, prefix: str = "") -> None:
    """Refuse a single value for a group of settings, and a group for a single one, which OmegaConf does not name."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        inner = next((known for known in kinds if known.startswith(f"{key}.")), None)
        if inner is not None and not isinstance(value, dict):
            raise UserError(f"{origin}: {key}: a group of settings, not one; expected such as {inner}=…")
        if inner is not None:
            _refuse_misfits(value, kinds, origin, f"{key}.")
        elif isinstance(value, dict) and not kinds.get(key, "dict").startswith("dict"):
            raise UserError(f"{origin}: {key}: expected {kinds[key]}, got {value}")


def _finished(merged: Any, origin: str) -> Any:
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{origin}: no value for {', '.join(missing)}; give it in the file or as {missing[0]}=…")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{origin}: {getattr(error, 'full_key', None) or 'value'}: {_first_line(error)}") from error
    check_bounds(config, origin)
    return config


@cache
def _kinds(schema: type) -> dict[str, str]:
    return {key: kind for key, kind, _, _ in describe(schema)}


def _unknown_key(base: DictConfig, error: ConfigKeyError) -> str:
    full_key = str(error.full_key)
    group, _, last = full_key.rpartition(".")
    siblings = [item.name for item in fields(error.object_type)] if is_dataclass(error.object_type) else []
    nearest = [f"{group}.{name}".lstrip(".") for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)]
    known = [key for key in _known_keys(base) if not full_key.startswith(f"{key}.")]
    if full_key in known:
        return f"unknown setting {full_key!r}; in a file it is written without dots, below {full_key.split('.')[0]!r}"
    nearest = nearest or difflib.get_close_matches(full_key, known, n=1, cutoff=0.4)
    nearest = nearest or difflib.get_close_matches(last, known, n=1, cutoff=0.3) or known[:1]
    return f"unknown setting {full_key!r}; the nearest known one is {nearest[0]!r}"


def _known_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        full_key = f"{prefix}{key}"
        yield full_key
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _known_keys(node[key], f"{full_key}.")


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, dict(item.metadata)


def _problem(value: Any, bounds: dict[str, Any]) -> str | None:
    if value is None or value == MISSING:
        return None
    if "choices" in bounds and value not in bounds["choices"]:
        return f"expected one of {', '.join(bounds['choices'])}"
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if "minimum" in bounds and value < bounds["minimum"]:
        return f"expected at least {bounds['minimum']}"
    if "above" in bounds and value <= bounds["above"]:
        return f"expected more than {bounds['above']}"
    if "below" in bounds and value >= bounds["below"]:
        return f"expected less than {bounds['below']}"
    if "maximum" in bounds and value > bounds["maximum"]:
        return f"expected at most {bounds['maximum']}"
    return None


def _type_name(kind: Any) -> str:
    names = [getattr(part, "__name__", str(part)) if not get_args(part) else str(part) for part in get_args(kind)]
    if get_args(kind) and type(None) in get_args(kind):
        return " or ".join("null" if name == "NoneType" else name for name in names)
    return str(kind) if get_args(kind) else str(kind.__name__)


def _origin(file: Path | None) -> str:
    return str(file) if file is not None else "command line"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
