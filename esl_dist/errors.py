"""The exceptions that a program turns into one message and an exit code (`esl_dist.command_line`)."""

import errno
import re


class UserError(Exception):
    """Bad input: the message says what is wrong, where (file, key, rank), what was expected and what to do."""


class CorruptSampleError(UserError):
    """A sample whose bytes are not those that were packed, or are no picture: the message names shard and key."""


class LostRankError(Exception):
    """Another rank ended, or did not come where this one waited for it: the message names it and says why.

    Args:
        message: the words.
        cause: how the other rank ended (`esl_dist.endings.Ending`); None where it left no last words.
    """

    def __init__(self, message: str, cause: object = None) -> None:
        """Say who is lost."""
        super().__init__(message)
        self.cause = cause


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


OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "std::bad_alloc", "out of memory", "Out of memory", "Insufficient memory"),
    *("annot allocate memory", "Unable to allocate", "MemoryError", "STATUS_ALLOC_FAILED"),
)
"""How torch, NumPy, OpenCV, CUDA and the system say it; a reading process hands on only the text."""


def memory_words(error: BaseException) -> str | None:
    """Return what to say where an error is one of too little memory, in whichever library; None for another."""
    text = str(error)
    is_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_library = isinstance(error, RuntimeError | MemoryError) or type(error).__module__ == "cv2"
    if not (
        isinstance(error, MemoryError) or is_system or (is_library and any(word in text for word in OUT_OF_MEMORY))
    ):
        return None
    where = "the GPU's memory" if "CUDA" in text or "HIP" in text else "memory"
    asked = re.search(r"allocate ([0-9.]+ (?:bytes|[KMGT]iB))", text)
    more = "" if asked is None else f" ({asked[1]} more were asked for)"
    return f"{where} is full{more}"


def beginning(text: str, most: int) -> str:
    """Return a text as a message shows it: what is beyond `most` characters is left out."""
    return text if len(text) <= most else f"{text[:most]}…"
