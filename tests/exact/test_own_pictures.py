"""Predictions of one's own pictures have the same bits for any number of ranks, and after a kill whole files stay."""

import hashlib
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from tests.builders import draw, encoded
from tests.data.films import write_film
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, RankServer

pytestmark = pytest.mark.exact

PROGRAM = "launch/predict.py"
KINDS = ("train_ids", "raw_ids", "colors", "overlay", "entropy", "confidence")
PICTURES = 9
SLOWLY = """
import time
from esl_dist.inference import predicting
plain = predicting.most_likely
def slowly(*arguments):
    time.sleep(0.03)
    return plain(*arguments)
predicting.most_likely = slowly
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures of mixed sizes, some of them in folders of their own."""
    folder = tmp_path_factory.mktemp("own") / "pictures"
    for seed in range(PICTURES):
        file = folder / f"{'even' if seed % 2 == 0 else '.'}/{seed:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(draw(seed, 40 + 3 * seed, 60 - 2 * seed)[0]))
    return folder


@pytest.fixture(scope="module")
def words(teacher: Path, pictures: Path) -> Callable[..., list[str]]:
    """Return the command line, by output and number of workers, of a job with everything that a prediction can have."""

    def words_of(output: Path, workers: int = 0) -> list[str]:
        places = [f"checkpoint={teacher}", f"pictures={pictures}", f"output={output}", f"workers={workers}"]
        return [*places, f"save=[{','.join(KINDS)}]", "size=[48,40]", "window=[30,24]", "mirror=true"]

    return words_of


def bits(output: Path) -> dict[str, str]:
    files = [file for file in output.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def expected(
    server: RankServer, words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Return the bits of what one process without workers makes."""
    output = tmp_path_factory.mktemp("expected") / "out"
    assert server.run(PROGRAM, words(output), 1) == [0], server.log.read_text()
    found = bits(output)
    assert len(found) == PICTURES * len(KINDS) + 1
    assert {"predictions.json", "overlay/even/04.png", "raw_ids/01.png"} < found.keys()
    return found


@pytest.mark.parametrize(("ranks", "workers"), grid(product([1, 2, 4], [0, 2]), stay=[(2, 2)]))
def test_the_numbers_of_ranks_and_workers_are_not_visible_by_a_single_bit(
    server: RankServer,
    words: Callable[..., list[str]],
    tmp_path: Path,
    expected: dict[str, str],
    ranks: int,
    workers: int,
) -> None:
    job = server.start(PROGRAM, words(tmp_path / "out", workers), ranks)
    assert job.exit_codes() == [0] * ranks, job.output()
    assert bits(tmp_path / "out") == expected
    assert job.output().count(f"pictures     {PICTURES} predicted") == 1


@pytest.mark.parametrize(("ranks", "then"), grid(product([1, 2], [1, 3]), stay=[(2, 3)]))
def test_killed_and_started_on_other_ranks_it_makes_only_what_is_missing(
    server: RankServer,
    words: Callable[..., list[str]],
    tmp_path: Path,
    expected: dict[str, str],
    ranks: int,
    then: int,
) -> None:
    output, job_words = tmp_path / "out", words(tmp_path / "out")

    def whole() -> dict[Path, tuple[int, int]]:
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in output.rglob("*.png")}

    job = server.start(CHANGED, [SLOWLY, str(PROJECT / PROGRAM), *job_words], ranks)
    # Of a picture, files are written in this order.
    job.wait_until(lambda: any(output.glob(f"{KINDS[-1]}/*.png")))
    job.kill(ranks - 1)
    job.kill_all()
    assert set(job.exit_codes()) <= {-signal.SIGKILL, EXIT_LOST_RANK}, job.output()
    before = whole()
    assert len(before) < len(expected) - 1

    job = server.start(PROGRAM, job_words, then)
    assert job.exit_codes() == [0] * then, job.output()
    after = whole()
    assert after | before == after
    assert "were there already" in job.output()
    assert bits(output) == expected

    job = server.start(PROGRAM, [*job_words, "mirror=false"], 2)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    told = f"{output}: holds predictions made with another mirror: true → false; choose another output or delete it"
    assert told in job.output()
    assert bits(output) == expected


def test_frames_of_a_video_are_shared_by_ranks_that_each_decode_it(
    server: RankServer, teacher: Path, tmp_path: Path
) -> None:
    film = write_film(tmp_path / "film.avi", 7)
    outputs = {ranks: tmp_path / f"out{ranks}" for ranks in (1, 2)}
    for ranks, output in outputs.items():
        given = [f"checkpoint={teacher}", f"pictures={film}", f"output={output}", "workers=2"]
        assert server.run(PROGRAM, given, ranks) == [0] * ranks, server.log.read_text()
    one, two = map(bits, outputs.values())
    assert one == two
    assert {f"{kind}/00000{number}.png" for kind in ("train_ids", "overlay") for number in range(7)} < one.keys()


@pytest.mark.parametrize(("ranks", "workers"), grid(product([1, 2], [0, 1]), stay=[(1, 0), (2, 1)]))
def test_broken_pictures_are_left_out_and_named_and_all_others_are_predicted(
    server: RankServer, teacher: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    folder, output = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for seed in range(5):
        (folder / f"{seed}.png").write_bytes(encoded(draw(seed)[0]))
    (folder / "0.png").write_bytes(b"no picture")
    (folder / "3.png").write_bytes(b"")
    given = [f"checkpoint={teacher}", f"pictures={folder}", f"output={output}", f"workers={workers}"]
    job = server.start(PROGRAM, given, ranks)
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    for told in ("0.png: not a picture in a format that can be read", "3.png: an empty file"):
        assert job.output().count(f"warning: left out: {folder}/{told}") == 1
    assert f"2 of 5 pictures left out: {folder}/0.png, {folder}/3.png; the warnings above say why" in job.output()
    assert job.output().count("pictures     3 predicted\n") == 1
    assert "size        64×32, as the target in training\n" in job.output(), "as they were packed"
    assert {file.stem for file in (output / "train_ids").iterdir()} == {"1", "2", "4"}
    (folder / "0.png").write_bytes(encoded(draw(0)[0]))
    (folder / "3.png").unlink()
    assert server.run(PROGRAM, given, ranks) == [0] * ranks, server.log.read_text()
    assert {file.stem for file in (output / "train_ids").iterdir()} == {"0", "1", "2", "4"}
