"""The exceptions that a program turns into one message and an exit code (`esl_dist.command_line`)."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where (file, key, rank), what was expected and what to do."""


class CorruptSampleError(UserError):
    """A sample whose bytes are not those that were packed, or are no picture: the message names shard and key."""


class LostRankError(Exception):
    """Another rank ended, or did not come where this one waited for it: the message names it and says why."""


class StoppedError(Exception):
    """The job was asked to stop, and has saved what it did: the message says where.

    Args:
        message: the words.
        interrupted: whether it was asked with Ctrl-C, and not by a signal of a cluster.
    """

    def __init__(self, message: str, interrupted: bool = False) -> None:
        """Say who asked."""
        super().__init__(message)
        self.interrupted = interrupted
