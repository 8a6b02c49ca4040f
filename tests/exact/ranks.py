"""Names of `tests.on_ranks` under their former place."""

from tests.on_ranks import CHANGED, PROJECT, Job, RankServer, free_port, has_ended

__all__ = ["CHANGED", "PROJECT", "Job", "RankServer", "free_port", "has_ended"]
