"""What differs between a folder of shards and what would be packed into it now.

Files are compared by a digest of their bytes, noted when they were packed: a corrected label is found even where a
copy kept its time and size.
"""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from esl_dist.data.layouts import Layout, Pair
from esl_dist.data.shard_index import ShardIndex
from esl_dist.errors import UserError
from esl_dist.files import sha256_of_file

Sources = Mapping[str, Mapping[str, str]]
"""key → `image`, `label` → SHA-256 of the file."""

SKIPPED = "skipped"
"""Key in an index's `made_with`: names of the samples left out because picture and label differ in size."""
READING_THREADS = 16
"""Files that are read at once where little is done with them: a slow disk is waited for, not a processor."""
SHOWN_KEYS = 3
SHOWN_CHARACTERS = 60
DESCRIBED = ("dataset", "split", "keep_aspect_ratio")
"""What both an index and a layout say."""
NOTED_LATER = ("ignore_ids", "jpg_quality")
"""Settings that say nothing where an index lacks them: its version did not note them, or they did not matter."""


def keys(pairs: Iterable[Pair]) -> list[str]:
    """Return the samples' keys: their names, with underscores for dots.

    Raises:
        UserError: two names give one key.
    """
    names: dict[str, str] = {}
    for pair in pairs:
        key = pair.name.replace(".", "_")
        if key in names:
            raise UserError(f"samples {names[key]!r} and {pair.name!r} would both have the key {key!r}; rename one")
        names[key] = pair.name
    return list(names)


def digests(pairs: Sequence[Pair]) -> Iterator[dict[str, str]]:
    """Yield each pair's digests in order; reads all files.

    Raises:
        OSError: a file cannot be read; its `filename` says which.
    """
    executor = ThreadPoolExecutor(READING_THREADS)
    try:
        yield from executor.map(_digests, pairs)
    finally:
        executor.shutdown(cancel_futures=True)


def _digests(pair: Pair) -> dict[str, str]:
    files = zip(("image", "label"), pair.files(), strict=False)
    return {kind: sha256_of_file(file) for kind, file in files}


def changed_settings(index: ShardIndex, layout: Layout, made_with: Mapping[str, Any]) -> list[str]:
    """Return what of settings and description differs, as `name: old → new`.

    Settings that an index of an earlier version does not name have the value that leaves pictures as they are.
    """
    old = {**index.made_with, **{name: getattr(index, name) for name in DESCRIBED}}
    new = {**made_with, **{name: getattr(layout, name) for name in DESCRIBED}}
    new = {name: value for name, value in new.items() if name in old or name not in NOTED_LATER}
    # The same in JSON, where a size is a list, is the same; so are null and false.
    told = [
        _told(name, json.dumps(old.get(name) or None), json.dumps(new[name] or None))
        for name in new
        if json.dumps(old.get(name) or None) != json.dumps(new[name] or None)
    ]
    names = [*index.class_sets, *(name for name in layout.class_sets if name not in index.class_sets)]
    other = [name for name in names if index.class_sets.get(name) != layout.class_sets.get(name)]
    if other:
        told.append(f"classes of {', '.join(other)}")
    elif list(index.class_sets) != list(layout.class_sets):
        # The first is the one that is taken where none is named.
        told.append(f"order of class sets: {', '.join(index.class_sets)} → {', '.join(layout.class_sets)}")
    return told


def _told(name: str, old: str, new: str) -> str:
    return f"{name}: {old} → {new}" if len(old) + len(new) <= SHOWN_CHARACTERS else f"{name} differ"


def changed_sources(old: Sources, new: Sources) -> list[str]:
    """Return which samples were added, removed or changed: how many, and the first of their keys.

    Where nobody noted digests, both have keys alone.
    """
    old, new = _composed(old), _composed(new)
    both = [key for key in new if key in old]
    found = {
        "pictures changed": [key for key in both if _differ(old[key], new[key], "image")],
        "labels changed": [key for key in both if _differ(old[key], new[key], "label")],
        "samples added": [key for key in new if key not in old],
        "samples removed": [key for key in old if key not in new],
    }
    return [
        f"{len(changed)} {what} ({', '.join(changed[:SHOWN_KEYS])}{', …' if len(changed) > SHOWN_KEYS else ''})"
        for what, changed in found.items()
        if changed
    ]


def _composed(sources: Sources) -> Sources:
    """Return the keys in the Unicode form of names; earlier versions kept that of the disk."""
    composed = {unicodedata.normalize("NFC", key): found for key, found in sources.items()}
    return composed if len(composed) == len(sources) else sources


def _differ(old: Mapping[str, str], new: Mapping[str, str], kind: str) -> bool:
    return old.get(kind) != new.get(kind)


def noted_sources(index: ShardIndex) -> Sources:
    """Return the sources that an index noted; of an earlier version's index the keys alone."""
    if index.sources is not None:
        return index.sources
    packed = [sample.key for shard in index.shards for sample in shard.samples]
    return {key: {} for key in [*packed, *(name.replace(".", "_") for name in index.made_with.get(SKIPPED) or [])]}
