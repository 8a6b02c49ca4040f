"""What a result was made with, compared with what it would be made with now."""

import json
from collections.abc import Mapping
from typing import Any

UNSAID = {"domain": "target", "precision": "no"}
"""Conditions of scores and pseudo-labels that do not say them: those of older versions."""

TOLD = ("size", *UNSAID)
"""What scores and pseudo-labels are made with whose values a message shows; others are fingerprints, or speak alone."""


def changed_keys(made_before: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[str]:
    """Return the keys of which only one has a value, or another one; older versions left out `UNSAID`."""
    before = {key: value for key, value in UNSAID.items() if key in made_with} | dict(made_before)
    return [key for key in dict(made_with) | before if before.get(key) != made_with.get(key)]


def told_changes(keys: list[str], made_before: Mapping[str, Any], made_with: Mapping[str, Any]) -> str:
    """Write what something was made with otherwise: `target, size ([40, 36] → null)`."""

    def told(key: str) -> str:
        before, now = (json.dumps(one.get(key, UNSAID.get(key))) for one in (made_before, made_with))
        return f"{key} ({before} → {now})" if key in TOLD else key

    return ", ".join(map(told, keys))
