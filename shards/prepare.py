"""Pack a data set split: `python shards/prepare.py dataset=configs/datasets/… root=… split=… output=…`."""

import sys
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esl_dist.command_line import run_program
from esl_dist.config import Prepare
from esl_dist.data.images import as_size
from esl_dist.data.layouts import read_layout
from esl_dist.data.packing import SKIPPED, Encoding, pack
from esl_dist.machine import usable_processors
from esl_dist.reporting.progress import progress


def main(config: Prepare) -> None:
    """Pack the split, or verify that it is packed already."""
    layout = read_layout(Path(config.dataset), config.split, None if config.root is None else Path(config.root))
    encoding = Encoding(as_size(config.size), as_size(config.label_size), config.image_format, config.jpg_quality)
    index = pack(
        layout,
        Path(config.output),
        encoding,
        config.shard_megabytes * 10**6,
        config.processes or usable_processors(),
        progress,
    )
    skipped = index.made_with[SKIPPED]
    if skipped:
        print(
            f"warning: {len(skipped)} pictures are left out, for their labels have another size: "
            f"{', '.join(skipped[:10])}{', …' if len(skipped) > 10 else ''} (all of them: made_with in index.json)",
            file=sys.stderr,
        )
    size = sum(shard.size for shard in index.shards) / 1e6
    samples = sum(len(shard.samples) for shard in index.shards)
    print(f"{config.output}: {samples} samples in {len(index.shards)} shards, {size:.1f} MB")


if __name__ == "__main__":
    run_program(Prepare, main)
