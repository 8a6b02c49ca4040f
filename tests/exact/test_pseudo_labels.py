"""Pseudo-labels have the same bits for any number of ranks and workers, and after a kill whole pieces stay."""

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path

import pytest

from esl_dist.adaptation.entropy import HIGHEST_LEVEL
from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import open_shards
from esl_dist.inference.labelling.pieces import piece_name, pieces_by_shard
from tests.exact.trainings import run_in, train
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, Job, RankServer
from tests.programs import small_town

pytestmark = pytest.mark.exact

PROGRAM = "launch/pseudo_label.py"
TARGET = 40
SCORES = 2
"""Both are counted, the one that decides and the other."""
COUNT_BYTES = 8
"""Of an int64."""


@pytest.fixture(scope="module")
def large_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a town whose target has more pieces than ranks, some of them in one shard."""
    return small_town(tmp_path_factory.mktemp("town"), source=4, target=TARGET, shard_bytes=90_000)


@pytest.fixture(scope="module")
def trained(server: RankServer, large_town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_in(tmp_path_factory.mktemp("trained"))
    train(server, large_town, run, 1, "steps=8", "checkpoints.every=100")
    return run


def words(town: Path, trained: Path, output: Path, workers: int) -> list[str]:
    places = [f"checkpoint={trained}", f"target.path={town}/target_train", f"output={output}"]
    return [*places, f"workers={workers}", "compare_with_labels=true", "count_both_scores=true"]


def bits(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def expected(
    server: RankServer, large_town: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Return the bits of what one process without workers makes."""
    output = tmp_path_factory.mktemp("expected") / "labels"
    assert server.run(PROGRAM, words(large_town, trained, output, 0), 1) == [0], server.log.read_text()
    found = bits(output)
    assert {"index.json", "summary.json", "histograms.json"} < found.keys()
    assert len(found) > 4, "several shards"
    return found


@pytest.fixture
def words_with(large_town: Path, trained: Path, tmp_path: Path) -> Callable[[int], list[str]]:
    """Return the command line of the job that fills the folder `labels`, by its number of workers."""
    return lambda workers: words(large_town, trained, tmp_path / "labels", workers)


@pytest.mark.parametrize(("ranks", "workers"), grid(product([1, 2, 3], [0, 2]), stay=[(3, 2)]))
def test_the_numbers_of_ranks_and_workers_are_not_visible_by_a_single_bit(
    server: RankServer,
    words_with: Callable[[int], list[str]],
    tmp_path: Path,
    expected: dict[str, str],
    ranks: int,
    workers: int,
) -> None:
    job = server.start(PROGRAM, words_with(workers), ranks)
    assert job.exit_codes() == [0] * ranks, job.output()
    assert bits(tmp_path / "labels") == expected


def test_the_histograms_are_one_sum_over_the_ranks(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path
) -> None:
    job_words = [str(tmp_path / "sent"), str(PROJECT / PROGRAM), *words(large_town, trained, tmp_path / "labels", 0)]
    job = server.start("tests/exact/note_collectives.py", job_words, 2)
    assert job.exit_codes() == [0, 0], job.output()
    classes = len(json.loads((tmp_path / "labels/summary.json").read_text())["classes"])
    one_class = COUNT_BYTES * (HIGHEST_LEVEL + 1)
    for rank in range(2):
        notes = [json.loads(line) for line in Path(f"{tmp_path}/sent.{rank}").read_text().splitlines()]
        assert [sent for _, _, sent in notes if sent > one_class // 2] == [SCORES * classes * one_class]
        # What else is agreed on is small: digests, which pieces are there, the confusion matrix, what is right by bin.
        assert sum(sent for _, _, sent in notes) < (SCORES * classes + 1) * one_class


def start_slowly(server: RankServer, ranks: int, job_words: list[str]) -> Job:
    return server.start("tests/exact/label_slowly.py", [str(PROJECT / PROGRAM), *job_words], ranks)


def whole_tars(output: Path, kind: str) -> dict[str, tuple[int, int]]:
    """Return which file each whole tar of a kind, piece or shard, is, and when it was written."""
    folder = {"piece": output / ".scratch", "shard": output}[kind]
    tars = [folder / entry.stem for entry in (output / ".scratch").glob(f"{kind}-*.tar.json")]
    return {tar.name: (tar.stat().st_ino, tar.stat().st_mtime_ns) for tar in tars}


def some_pieces(output: Path) -> bool:
    return len(whole_tars(output, "piece")) >= 2


def some_labels(output: Path) -> bool:
    return len(whole_tars(output, "shard")) >= 1


@pytest.mark.parametrize(
    ("moment", "kill"),
    grid(
        product([some_pieces, some_labels], [(1, 0, 3), (2, 1, 1), (3, 0, 2)]),
        stay=[(some_pieces, (2, 1, 1))],
    ),
)
def test_killed_and_started_on_other_ranks_it_redoes_only_unfinished_pieces_and_shards(
    server: RankServer,
    words_with: Callable[[int], list[str]],
    tmp_path: Path,
    expected: dict[str, str],
    moment: Callable[[Path], bool],
    kill: tuple[int, int, int],
) -> None:
    """A kill is of so many ranks, one of them first; then, so many go on."""
    (ranks, killed, then), output = kill, tmp_path / "labels"
    job = start_slowly(server, ranks, words_with(0))
    job.wait_until(lambda: moment(output))
    job.kill(killed)
    job.kill_all()
    assert set(job.exit_codes()) <= {-signal.SIGKILL, EXIT_LOST_RANK}, job.output()
    pieces, shards = whole_tars(output, "piece"), whole_tars(output, "shard")
    assert pieces
    assert bool(shards) == (moment is some_labels)
    assert not (output / "index.json").exists()

    job = start_slowly(server, then, words_with(0))
    assert job.exit_codes() == [0] * then, job.output()
    all_pieces, all_shards = whole_tars(output, "piece"), whole_tars(output, "shard")
    assert all_pieces | pieces == all_pieces
    assert all_shards | shards == all_shards
    assert (len(all_pieces) > len(pieces)) == (moment is some_pieces)
    assert len(all_shards) > len(shards)
    assert bits(output) == expected


def test_stopped_by_a_signal_it_ends_at_once_and_goes_on_with_what_it_finished(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    output = tmp_path / "labels"
    job = start_slowly(server, 2, words(large_town, trained, output, 0))
    job.wait_until(lambda: some_pieces(output))
    for rank in (0, 1):
        job.kill(rank, signal.SIGTERM)
    assert job.exit_codes() == [-signal.SIGTERM] * 2, job.output()
    pieces = whole_tars(output, "piece")
    assert not (output / "index.json").exists()
    job = start_slowly(server, 2, words(large_town, trained, output, 0))
    assert job.exit_codes() == [0, 0], job.output()
    all_pieces = whole_tars(output, "piece")
    assert all_pieces | pieces == all_pieces
    assert len(all_pieces) > len(pieces)
    assert bits(output) == expected


def killed_job(server: RankServer, job_words: list[str], output: Path, moment: Callable[[Path], bool]) -> None:
    job = start_slowly(server, 1, job_words)
    job.wait_until(lambda: moment(output))
    job.kill_all()
    job.exit_codes()


@pytest.mark.parametrize(("moment", "kind"), [(some_pieces, "piece"), (some_labels, "shard")])
def test_a_finished_tar_that_was_deleted_is_made_again(
    server: RankServer,
    words_with: Callable[[int], list[str]],
    tmp_path: Path,
    expected: dict[str, str],
    moment: Callable[[Path], bool],
    kind: str,
) -> None:
    output = tmp_path / "labels"
    job_words = words_with(0)
    killed_job(server, job_words, output, moment)
    folder = output / ".scratch" if kind == "piece" else output
    (folder / next(iter(whole_tars(output, kind)))).unlink()
    job = server.start(PROGRAM, job_words, 1)
    assert job.exit_codes() == [0], job.output()
    assert bits(output) == expected


def test_a_piece_that_was_damaged_meanwhile_is_named_and_no_label_is_made_of_it(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    job_words = words(large_town, trained, output, 0)
    killed_job(server, job_words, output, some_pieces)
    piece = output / ".scratch" / next(iter(whole_tars(output, "piece")))
    [offset, count, _] = json.loads(piece.with_name(f"{piece.name}.json").read_text())["samples"][0]["members"][
        "level.npy"
    ]
    content = bytearray(piece.read_bytes())
    content[offset + count - 1] ^= 1
    piece.write_bytes(content)
    job = server.start(PROGRAM, job_words, 1)
    assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    assert f"{piece}: damaged; delete {output / '.scratch'} and start again" in job.output()
    assert not (output / "index.json").exists()


RANK_1_IS_LATE = """
import os, sys, time
from pathlib import Path
from esl_dist.inference.labelling import levels
plain, awaited = levels.label_and_score, [Path(one) for one in sys.argv.pop(1).split(",")]
def late(*arguments):
    while not all(one.exists() for one in awaited):
        time.sleep(0.001)
    return plain(*arguments)
if os.environ["RANK"] == "1":
    levels.label_and_score = late
"""


def test_no_rank_keeps_anything_before_every_rank_has_predicted(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    """In a job that goes on, the pieces of a rank's shards are not those that it predicts."""
    output = tmp_path / "labels"
    job_words = words(large_town, trained, output, 0)
    killed_job(server, job_words, output, some_pieces)
    pieces = chain.from_iterable(pieces_by_shard(open_shards(large_town / "target_train").index))
    entries = [output / f".scratch/{piece_name(piece)}.json" for piece in pieces]
    for entry in entries[1:]:
        entry.unlink(missing_ok=True)
    of_rank_0 = ",".join(map(str, entries[1::2]))
    job = server.start(CHANGED, [RANK_1_IS_LATE, of_rank_0, str(PROJECT / PROGRAM), *job_words], 2)
    assert job.exit_codes() == [0, 0], job.output()
    assert bits(output) == expected


def test_a_job_killed_while_it_removes_what_another_left_leaves_no_folder_that_looks_right(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    output = tmp_path / "labels"
    job_words = words(large_town, trained, output, 0)
    killed_job(server, job_words, output, some_pieces)
    other = server.start("tests/exact/kill_in_removal.py", [str(PROJECT / PROGRAM), *job_words, "score=confidence"], 1)
    assert other.exit_codes() == [-signal.SIGKILL], other.output()
    left = {path.name for path in (output / ".scratch").iterdir()}
    assert any(name.startswith("piece-") for name in left)
    assert "job.json" not in left
    job = server.start(PROGRAM, job_words, 1)
    assert job.exit_codes() == [0], job.output()
    assert bits(output) == expected


def test_labels_of_another_class_set_are_not_taken_for_these(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path
) -> None:
    target = tmp_path / "shards/target_train"
    shutil.copytree(large_town / "target_train", target)
    index = json.loads((target / INDEX_NAME).read_text())
    [(name, classes)] = index["class_sets"].items()
    renamed = [{**one, "name": f"{one['name']} again"} for one in classes]
    index["class_sets"] = {name: classes, "same names": classes, "same number": renamed}
    (target / INDEX_NAME).write_text(json.dumps(index))
    # Away from its run, this file does not know its classes.
    shutil.copy(trained / "weights.pth", tmp_path / "foreign.pth")
    job_words = words(tmp_path / "shards", tmp_path / "foreign.pth", tmp_path / "labels", 0)
    for again in range(2):
        job = server.start(PROGRAM, [*job_words, f"class_set={name}"], 1)
        assert job.exit_codes() == [0], (again, job.output())
    for other, more in (("same names", ""), ("same number", r", classes: \[.* → \[.*")):
        job = server.start(PROGRAM, [*job_words, f"class_set={other}"], 1)
        assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
        told = rf'labels: holds pseudo-labels made with another class_set: "{name}" → "{other}"{more}; choose another'
        assert re.search(told, job.output()), job.output()


def test_labels_of_another_network_of_the_same_name_and_step_are_not_taken_for_these(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path
) -> None:
    other, output = run_in(tmp_path), tmp_path / "labels"
    train(server, large_town, other, 1, "steps=8", "checkpoints.every=100", "seed=7")
    assert server.run(PROGRAM, words(large_town, trained, output, 0), 1) == [0], server.log.read_text()
    job = server.start(PROGRAM, words(large_town, other, output, 0), 1)
    assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    assert "labels: holds pseudo-labels made with another weights; choose another output" in job.output()


def unfinished(server: RankServer, job_words: list[str], output: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Leave a job that has written some labels; returns its pieces, and how many there are."""
    killed_job(server, job_words, output, some_labels)
    pieces = whole_tars(output, "piece")
    return pieces, len(pieces)


def test_another_bound_keeps_the_predictions_of_an_unfinished_job_and_says_so(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path
) -> None:
    output, alone = tmp_path / "labels", tmp_path / "alone"
    pieces, count = unfinished(server, words(large_town, trained, output, 0), output)
    job = start_slowly(server, 2, [*words(large_town, trained, output, 0), "entropy_floor=0.9"])
    assert job.exit_codes() == [0, 0], job.output()
    told = f"{output}: begun with another bound: 0.1 → 0.9; its {count} finished pieces stay"
    assert job.output().count(told) == 1
    assert whole_tars(output, "piece") == pieces
    assert server.run(PROGRAM, [*words(large_town, trained, alone, 0), "entropy_floor=0.9"], 1) == [0]
    assert bits(output) == bits(alone)


def test_an_unfinished_job_of_which_nothing_can_stay_is_told_of(
    server: RankServer, large_town: Path, trained: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    output = tmp_path / "labels"
    _, count = unfinished(server, [*words(large_town, trained, output, 0), "label_size=[32,16]"], output)
    job = server.start(PROGRAM, words(large_town, trained, output, 0), 1)
    assert job.exit_codes() == [0], job.output()
    assert (
        f"{output}: begun with another label_size: [32, 16] → null; its {count} finished pieces are made anew\n"
        in job.output()
    )
    assert bits(output) == expected
    job = server.start(PROGRAM, words(large_town, trained, output, 0), 1)
    assert job.exit_codes() == [0], job.output()
    assert "begun with another" not in job.output()
