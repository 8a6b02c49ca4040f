"""The frames of a video as pictures: decoded one after another by OpenCV, one in memory at a time.

What a container says of its number of frames may be wrong, and to go to a frame by its number may lead beside it. So
frames are counted by decoding them, and those between two that are wanted are decoded, too.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from esl_dist.data.cache import note
from esl_dist.errors import UserError

DIGITS = 6
"""Least number of digits in a frame's name."""


class Video:
    """Frames in the order in which they are shown, turned as a player shows them.

    Args:
        path: the file.
        frames: how many there are, as `frames_decoded` finds them.
        progress: called for each frame that is passed over: before the one that is wanted there may be hours of them.

    Attributes:
        folder: the file, for messages.
        names: the frames' numbers from 0, `000000` the first.
        most_readers: 1: each process that reads decodes all frames.
    """

    def __init__(self, path: Path, frames: int, progress: Callable[[], None] = lambda: None) -> None:
        """Name the frames; nothing is opened yet."""
        self.folder: Path | str = path
        self.names = [f"{number:0{DIGITS}d}" for number in range(frames)]
        self.most_readers: int | None = 1
        self._path, self._progress = path, progress
        self._capture: cv2.VideoCapture | None = None
        self._next = 0

    def where(self, position: int) -> str:
        """Name a frame in messages."""
        return f"{self._path}, frame {position}"

    def pixels(self, position: int) -> NDArray[np.uint8]:
        """Return a frame's pixels, BGR (height, width, 3); an earlier one than before makes it begin again.

        Raises:
            UserError: the video has changed, or can no longer be read.
        """
        if self._capture is None or position < self._next:
            self._capture, self._next = opened(self._path), 0
        while self._next < position and self._capture.grab():
            self._next += 1
            note(self._progress)
        is_read, frame = self._capture.read()
        self._next += 1
        if not is_read:
            raise UserError(f"{self.where(position)}: cannot be decoded, as it could before; start again")
        return frame.astype(np.uint8, copy=False)


def opened(path: Path) -> cv2.VideoCapture:
    """Open a video.

    Raises:
        UserError: OpenCV cannot.
    """
    # What it warns of is said below, in one line.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    # Its reader of files alone: others take a path for a camera, or for a pattern of names. And it would take what
    # stands before a colon for a protocol.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UserError(
            f"{path}: neither a picture by its name nor a video that OpenCV can read; expected mp4, avi or such, or "
            "unpack its frames and give their folder"
        )
    return capture


def frames_said(path: Path) -> int:
    """Return how many frames a video says it has; 0 where it does not say."""
    return max(0, int(opened(path).get(cv2.CAP_PROP_FRAME_COUNT)))


def frames_decoded(path: Path) -> Iterator[int]:
    """Yield the number of each frame that can be decoded, from 0 on."""
    capture, number = opened(path), 0
    while capture.grab():
        yield number
        number += 1
