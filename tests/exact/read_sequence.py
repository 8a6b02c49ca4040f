"""A program that reads what a training would read and notes the keys: `read_sequence.py --config … FIRST LAST FILE`."""

import json
import sys
from itertools import islice
from pathlib import Path

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_files import load_config
from esl_dist.data.workers import Workers
from esl_dist.ranks.collectives import rank
from esl_dist.ranks.session import joined_ranks
from esl_dist.training.data import Order, open_training_data, own_micro_batches

first, last, notes, *words = sys.argv[1:]
config = load_config(settings.Train, None, words)
with joined_ranks(config.timeout_minutes) as ranks:
    data = open_training_data(config, METHODS[config.method.name])
    assert data.target is not None
    order = Order(config.seed, config.loader.shuffle_window, config.batch_size, config.accumulate)
    workers = Workers(config.loader.workers, config.timeout_minutes)
    steps = own_micro_batches(data, order, int(first), workers, ranks.device)
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
