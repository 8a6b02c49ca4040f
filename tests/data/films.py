"""Small videos."""

from pathlib import Path

import cv2

from tests.builders import draw


def write_film(file: Path, frames: int, width: int = 64, height: int = 48) -> Path:
    """Write a video of noise, another in every frame, each frame coded by itself."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    for seed in range(frames):
        writer.write(draw(seed, width, height)[0])
    writer.release()
    return file
