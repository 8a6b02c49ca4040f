"""What a result was made with, compared with what it would be made with now.

For runs, shards, scores and pseudo-labels alike: each keeps, as plain values by name, what it depends on, and goes on
only with the same.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from esl_dist.checked import SHA256
from esl_dist.errors import UserError, beginning
from esl_dist.files import shortened

UNSAID = {"domain": "target", "precision": "no"}
"""What scores and pseudo-labels of older versions do not say, for there was no other."""
UNKNOWN = ("device", "data_name")
"""What they do not say though there were others: it is compared only where it is known."""
SHOWN_CHANGES = 4
SHOWN_CHARACTERS = 60
"""How many changes a message shows, and how much of each value."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs: key → what a message says of it, `size: [40, 36] → null`; of checksums the key alone.

    Values are compared as JSON keeps them, where a tuple is a list. Those of inner mappings have dotted keys. A key
    that only one side has counts as null on the other.
    """
    old = dict(_flat({key: value for key, value in UNSAID.items() if key in now} | dict(before)))
    new = dict(_flat({key: value for key, value in now.items() if key in before or key not in UNKNOWN}))
    return {key: _told(key, old.get(key), new.get(key)) for key in new | old if old.get(key) != new.get(key)}


def require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], what: str, remedy: str, may_change: Collection[str] = ()
) -> None:
    """Refuse a result that was made otherwise.

    Args:
        before: what it was made with.
        now: what it would be made with.
        what: the beginning of the message; the changes follow: `labels: holds pseudo-labels made with another`.
        remedy: its end: what the user may do.
        may_change: keys that do not matter.

    Raises:
        UserError: something else differs; the message shows the first few changes.
    """
    told = [words for key, words in changes(before, now).items() if key not in may_change]
    if told:
        raise UserError(f"{what} {listed(told)}; {remedy}")


def listed(told: Collection[str]) -> str:
    """Return changes as a list for a message: the first few, and how many more there are."""
    more = len(told) - SHOWN_CHANGES
    return ", ".join(list(told)[:SHOWN_CHANGES]) + (f" and {more} more" if more > 0 else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))


def _told(key: str, old: Any, new: Any) -> str:
    key = key if key.isprintable() else shortened(key)
    if any(isinstance(value, str) and re.fullmatch(SHA256, value) for value in (old, new)):
        return key
    shown = (beginning(json.dumps(value), SHOWN_CHARACTERS) for value in (old, new))
    return f"{key}: {' → '.join(shown)}"
