"""The exceptions that a program turns into one message and an exit code (`esl_dist.command_line`)."""

import errno
import re

from esl_dist.gpu_errors import free_of, is_of_gpu


class UserError(Exception):
    """Bad input: the message says what is wrong, where (file, key, rank), what was expected and what to do."""


class CorruptSampleError(UserError):
    """A sample whose bytes are not those that were packed, or are no picture: the message names it."""


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


GPU_MEMORY = "the GPU's memory"
EITHER_MEMORY = f"{GPU_MEMORY}, or the host's that it can reach,"
"""CUDA has the same bare words for both: pinned memory, such as loaders and checkpoints take, is the host's."""
BARE_WORDS = "CUDA error: out of memory"


def memory_words(error: BaseException) -> str | None:
    """Return what to say where an error is one of too little memory, in whichever library; None for another."""
    text = str(error)
    is_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_library = isinstance(error, RuntimeError | MemoryError) or type(error).__module__ == "cv2"
    if not (
        isinstance(error, MemoryError) or is_system or (is_library and any(word in text for word in OUT_OF_MEMORY))
    ):
        return None
    asked = re.search(r"allocate ([0-9.]+ (?:bytes|[KMGT]iB))", text)
    facts = [f"{asked[1]} more were asked for"] if asked is not None else []
    facts += [free] if (free := free_of(text)) else []
    full = EITHER_MEMORY if BARE_WORDS in text else GPU_MEMORY if is_of_gpu(text) else "memory"
    return f"{full} is full" + (f" ({', '.join(facts)})" if facts else "")


def beginning(text: str, most: int) -> str:
    """Return a text as a message shows it: what is beyond `most` characters is left out."""
    return text if len(text) <= most else f"{text[:most]}…"
