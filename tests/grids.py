"""Large grids of cases: the telling ones are tested at every `make test`, the others with `make test-all`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def grid(cases: Iterable[Any], stay: Collection[Any]) -> list[Any]:
    """Return parameters for `pytest.mark.parametrize`, all but those that stay under the marker `grid`.

    A case of several parameters is a tuple.
    """
    every = list(cases)
    assert all(case in every for case in stay), f"{stay} are not all among {every}"
    return [pytest.param(*_values(case), marks=[] if case in stay else [pytest.mark.grid]) for case in every]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
