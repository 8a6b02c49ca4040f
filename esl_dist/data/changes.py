"""What differs between a folder of shards and what would be packed into it now.

Files are compared by a digest of their bytes, noted when they were packed: a corrected label is found even where a
copy kept its time and size.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from esl_dist.data.layouts import Layout, key_of
from esl_dist.data.shard_index import ShardIndex
from esl_dist.data.source_files import first_few
from esl_dist.made_with import changes

Sources = Mapping[str, Mapping[str, str]]
"""key → `image`, `label` → SHA-256 of the file; without digests where nobody noted them."""

SKIPPED = "skipped"
"""Key in an index's `made_with`: names of the samples left out because picture and label differ in size."""
SHOWN_KEYS = 3
DESCRIBED = ("dataset", "split", "keep_aspect_ratio")
"""What both an index and a layout say."""
NOTED_LATER = ("ignore_ids", "jpg_quality")
"""Settings that say nothing where an index lacks them: its version did not note them, or they did not matter."""


def changed_sources(index: ShardIndex, now: Sources) -> list[str]:
    """Return which samples were added, removed or changed: how many, and the first of their keys.

    Of what an earlier version packed, which noted no digests, keys alone are compared.
    """
    packed = [sample.key for shard in index.shards for sample in shard.samples]
    noted: Sources = {key: {} for key in [*packed, *map(key_of, index.made_with.get(SKIPPED) or [])]}
    old, new = _composed(noted if index.sources is None else index.sources), _composed(now)
    found = {
        "pictures changed": [key for key in new if key in old and old[key].get("image") != new[key].get("image")],
        "labels changed": [key for key in new if key in old and old[key].get("label") != new[key].get("label")],
        "samples added": [key for key in new if key not in old],
        "samples removed": [key for key in old if key not in new],
    }
    return [f"{len(keys)} {what} ({first_few(keys, SHOWN_KEYS)})" for what, keys in found.items() if keys]


def _composed(sources: Sources) -> Sources:
    """Return the keys in the Unicode form of names; earlier versions kept that of the disk."""
    composed = {unicodedata.normalize("NFC", key): found for key, found in sources.items()}
    return composed if len(composed) == len(sources) else sources


def changed_settings(index: ShardIndex, layout: Layout, made_with: Mapping[str, Any]) -> list[str]:
    """Return what of settings and description differs, as `name: old → new`.

    Settings that an index of an earlier version does not name have the value that leaves pictures as they are.
    """
    before = {**index.made_with, **{name: getattr(index, name) for name in DESCRIBED}}
    now = {**made_with, **{name: getattr(layout, name) for name in DESCRIBED}}
    names = [name for name in now if name in before or name not in NOTED_LATER]
    # Null and false are the same.
    old, new = ({name: one.get(name) or None for name in names} for one in (before, now))
    told = list(changes(old, new).values())
    both = dict.fromkeys([*index.class_sets, *layout.class_sets])
    other = [name for name in both if index.class_sets.get(name) != layout.class_sets.get(name)]
    if other:
        told.append(f"classes of {', '.join(other)}")
    elif list(index.class_sets) != list(layout.class_sets):
        # The first is the one that is taken where none is named.
        told.append(f"order of class sets: {', '.join(index.class_sets)} → {', '.join(layout.class_sets)}")
    return told
