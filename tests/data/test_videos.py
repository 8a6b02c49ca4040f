"""Frames of a video are counted by decoding them, and read in any order."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from esl_dist.data import cache
from esl_dist.data.videos import Video, frames_decoded, frames_said
from esl_dist.errors import UserError
from tests.data.films import write_film

FRAMES = 8


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.avi", FRAMES)


def all_frames(file: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG), []
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return frames
        frames.append(frame)


def test_frames_have_their_numbers_as_names(film: Path) -> None:
    assert list(frames_decoded(film)) == list(range(FRAMES))
    video = Video(film, FRAMES)
    assert video.names == [f"00000{number}" for number in range(FRAMES)]
    assert video.where(3) == f"{film}, frame 3"
    assert Video(film, 1_000_001).names[-1] == "1000000"


@pytest.mark.parametrize("order", [range(FRAMES), (1, 4, 7), (5, 2, 2, 0)])
def test_a_frame_is_the_same_whichever_were_read_before(film: Path, order: tuple[int, ...]) -> None:
    expected, video = all_frames(film), Video(film, FRAMES)
    assert len(expected) == FRAMES
    for number in order:
        np.testing.assert_array_equal(video.pixels(number), expected[number])


def test_each_frame_that_is_passed_over_is_a_sign_of_getting_on(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, heard = list[int](), list[int]()
    video = Video(film, FRAMES, lambda: own.append(1))
    video.pixels(5)
    assert (len(own), len(heard)) == (5, 0)
    # As in a process that was forked to read.
    monkeypatch.setattr(cache, "_HEARD", [lambda: heard.append(1)])
    video.pixels(3)
    assert (len(own), len(heard)) == (5, 3)


def test_only_frames_that_can_be_decoded_are_counted(film: Path, tmp_path: Path) -> None:
    content = film.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[: 2 * len(content) // 3])
    decoded = sum(1 for _ in frames_decoded(cut))
    assert 0 < decoded < frames_said(cut) == FRAMES
    with pytest.raises(UserError, match=r"cut\.avi, frame 7: cannot be decoded"):
        Video(cut, FRAMES).pixels(FRAMES - 1)


def test_a_film_may_be_named_by_the_time_of_day_and_lie_beside_a_linked_folder(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "2024-01-01T10:00:00.avi").write_bytes(film.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert frames_said(Path("2024-01-01T10:00:00.avi")) == FRAMES
    (tmp_path / "elsewhere/films").mkdir(parents=True)
    (tmp_path / "elsewhere/film.avi").write_bytes(film.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/films")
    assert frames_said(Path("link/../film.avi")) == FRAMES, "beside the folder that is linked to"


def test_what_is_no_video_is_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "film.mp4").write_bytes(b"text")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_WARNING)
    with pytest.raises(UserError, match=r"film\.mp4: neither a picture by its name nor a video that OpenCV can read"):
        frames_said(tmp_path / "film.mp4")
    assert "VIDEOIO" not in capfd.readouterr().err
