"""A program that reads what a training would read and notes the keys: `read_sequence.py --config … FIRST LAST FILE`."""

import json
import sys
from itertools import islice
from pathlib import Path

from esl_dist import config as settings
from esl_dist.config_files import load_config
from esl_dist.engine.beginning import check_training
from esl_dist.engine.distributed import joined_ranks, rank
from esl_dist.engine.training_data import open_training_data, own_passes

first, last, notes, *words = sys.argv[1:]
config = load_config(settings.Train, None, words)
with joined_ranks(config.timeout_minutes) as ranks:
    data = open_training_data(config, check_training(config))
    assert data.target is not None
    steps = own_passes(config, data, int(first), ranks.accelerator.device)
    keys = [
        {
            "source": [data.source.images.key(place) for place in one.source["positions"].tolist()],
            "target": [data.target.images.key(place) for place in one.target["positions"].tolist()],
        }
        for one in islice(steps, int(last) - int(first))
        if one.target is not None
    ]
    Path(f"{notes}.{rank()}").write_text(json.dumps(keys))
    steps.close()
