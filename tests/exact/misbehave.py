"""A training whose rank 1 does not do as the others: `misbehave.py HOW PROGRAM words…`."""

import os
import runpy
import sys
import time
from dataclasses import replace
from typing import Any

from esl_dist import config as settings
from esl_dist.ranks.heartbeat import SILENT_SECONDS
from esl_dist.training import loop, setup

LAST_STEP = 3
"""Where the rank's way parts from that of the others."""

how, program = sys.argv[1:3]
sys.argv = sys.argv[2:]
train, plain_loop, add_gradients = loop.train, loop._loop, loop.add_gradients
initialise = setup.initialise
steps_begun = 0


def with_another_configuration(config: settings.Train, *arguments: Any) -> Any:
    return train(replace(config, seed=7), *arguments)


def with_other_shards(config: settings.Train, *arguments: Any) -> Any:
    # The validation shards stand under the very path of the others, as they might on another machine.
    plain = setup.open_training_data

    def other(config: settings.Train, method: Any) -> Any:
        return plain(
            replace(config, target=replace(config.target, path=config.target.path.replace("train", "val"))), method
        )

    setup.open_training_data = other
    return train(config, *arguments)


def with_other_weights(network: Any) -> None:
    initialise(network)
    network.conv1.weight.data.add_(1)


def with_fewer_steps(training: setup.Training, *arguments: Any) -> Any:
    return plain_loop(replace(training, config=replace(training.config, steps=LAST_STEP)), *arguments)


def hanging(*arguments: Any) -> Any:
    global steps_begun
    steps_begun += 1
    if steps_begun == LAST_STEP:
        time.sleep(600)
    return add_gradients(*arguments)


def computing_for_long(*arguments: Any) -> Any:
    time.sleep(SILENT_SECONDS + 3)
    return add_gradients(*arguments)


if os.environ["RANK"] == "1":
    match how:
        case "another configuration":
            loop.train = with_another_configuration
        case "other shards":
            loop.train = with_other_shards
        case "other weights to start from":
            setup.initialise = with_other_weights
        case "fewer steps":
            loop._loop = with_fewer_steps
        case "another precision":
            os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        case "another ZeRO stage":
            os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
        case "not come":
            sys.exit(0)
        case "compute for long":
            loop.add_gradients = computing_for_long
        case "hang":
            loop.add_gradients = hanging
runpy.run_path(program, run_name="__main__")
