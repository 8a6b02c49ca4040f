"""Pack a data set split into shards, and say what was made."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from esl_dist.config import Prepare
from esl_dist.early import give_interrupt_back
from esl_dist.errors import UserError
from esl_dist.machine import usable_processors
from esl_dist.recipes_by_name import description_file
from esl_dist.reporting.accounts import account, duration

if TYPE_CHECKING:
    from esl_dist.data.layouts import Layout
    from esl_dist.data.packing import Packed


def main(config: Prepare) -> None:
    """Pack the split, or verify that it is packed already."""
    begin = time.monotonic()
    _refuse_too_large(config)
    # Not before: what is wrong with the settings is known without them.
    from esl_dist.data.images import as_size
    from esl_dist.data.layouts import read_layout
    from esl_dist.data.packing import Encoding, pack
    from esl_dist.reporting.progress import progress

    give_interrupt_back()
    root = None if config.root is None else Path(config.root)
    layout = read_layout(description_file(config.dataset), config.split, root, config.largest_megapixels * 10**6)
    encoding = Encoding(
        as_size(config.size),
        as_size(config.label_size),
        config.image_format,
        config.jpg_quality,
        config.shard_megabytes * 10**6,
    )
    processes = config.processes or usable_processors()
    # On standard error, with the bars: standard output is for what was made.
    print(_beginning(config, layout, processes), file=sys.stderr, flush=True)
    packed = pack(layout, Path(config.output), encoding, processes, progress, anew=config.repack)
    _warn(packed, config.output)
    print(_end(packed, config.output, time.monotonic() - begin))


def _refuse_too_large(config: Prepare) -> None:
    for name in ("size", "label_size"):
        size = getattr(config, name)
        if size is not None and size[0] * size[1] > config.largest_megapixels * 10**6:
            raise UserError(
                f"{name}={size} has {size[0] * size[1] / 1e6:.0f} megapixels; expected at most "
                f"largest_megapixels={config.largest_megapixels}"
            )


def _beginning(config: Prepare, layout: Layout, processes: int) -> str:
    labels = "" if layout.pairs[0].label is None else f", labels {_size(config.label_size)}"
    form = f"jpg of quality {config.jpg_quality}" if config.image_format == "jpg" else config.image_format
    facts = {
        "data": f"{len(layout.pairs)} {'pairs of picture and label' if labels else 'pictures without labels'}, "
        f"{layout.pairs[0].image} first",
        "sizes": f"pictures {_size(config.size)}{labels}",
        "format": f"{form}, shards of at most {config.shard_megabytes} MB",
        "output": config.output,
        "processes": str(processes),
    }
    return account(f"packing {layout.dataset}, split {layout.split}", facts)


def _size(size: list[int] | None) -> str:
    return "as they are" if size is None else f"{size[0]}×{size[1]}"


def _warn(packed: Packed, output: str) -> None:
    from esl_dist.data.changes import SKIPPED

    skipped = packed.index.made_with.get(SKIPPED) or []
    if skipped:
        print(
            f"warning: {len(skipped)} pictures are left out, for their labels have another size: "
            f"{', '.join(skipped[:10])}{', …' if len(skipped) > 10 else ''} (all of them: made_with in index.json)",
            file=sys.stderr,
        )
    if packed.index.sources is None:
        print(
            f"warning: {output}: packed by an earlier version, which did not note its source files, so that changes in "
            "them cannot be found; repack=true packs anew",
            file=sys.stderr,
        )


def _end(packed: Packed, output: str, seconds: float) -> str:
    index = packed.index
    size = sum(shard.size for shard in index.shards) / 1e6
    samples = sum(len(shard.samples) for shard in index.shards)
    made = f"{samples} samples in {len(index.shards)} shards, {size:.1f} MB"
    state = "" if packed.anew else "already packed: " if index.sources is None else "already packed and current: "
    place = shlex.quote(output)
    labelled = f"esl-dist train source.path={place} …, or esl-dist evaluate data.path={place} …"
    facts = {
        "took": f"{duration(seconds)}{'' if packed.anew else '; checksums verified, nothing was written'}",
        "next": labelled if index.class_sets else f"esl-dist train target.path={place} …",
    }
    return account(f"{output}: {state}{made}", facts)
