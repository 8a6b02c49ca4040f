"""Every setting of every program has a name, a type, a default that it may have, and a text."""

import re

import pytest

from esl_dist.config import Demo, Evaluate, Prepare, PseudoLabel, Train
from esl_dist.config_files import describe, load_config

SCHEMAS = (Train, PseudoLabel, Evaluate, Prepare, Demo)


def test_the_description_names_type_and_default() -> None:
    rows = {key: (kind, default) for key, kind, default, _ in describe(Train)}
    assert rows["name"] == ("str or null", "null")
    assert rows["source.path"] == ("str", "required")
    assert rows["source.size"] == ("list[int] or null", "null")
    assert rows["method.cross_entropy.main"] == ("float", "1.0")
    assert rows["method.target.auxiliary"] == ("float", "0.0002")
    assert rows["optimizer.multipliers.heads"] == ("float", "10.0")
    assert rows["optimizer.discriminator_betas"] == ("list[float]", "[0.9, 0.99]")
    assert rows["network.auxiliary_head"] == ("bool", "True")
    assert {key: kind for key, kind, *_ in describe(Prepare)}["processes"] == "int or null"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_setting_is_described_and_its_default_is_accepted(schema: type) -> None:
    rows = list(describe(schema))
    assert len({key for key, *_ in rows}) == len(rows)
    required = [f"{key}=x" for key, _, default, _ in rows if default == "required"]
    config = load_config(schema, None, required)
    given = [f"{key}={default}" for key, _, default, _ in rows if default != "required"]
    assert load_config(schema, None, required + given) == config
    for key, kind, default, meaning in rows:
        assert re.fullmatch(r"(str|int|float|bool|list\[(str|int|float)\])( or null)?", kind), key
        assert default
        assert meaning.endswith("."), key
    assert schema.__doc__
    assert any("One of entropy, confidence" in row[3] for row in rows) == (schema is PseudoLabel)
