"""shards/prepare.py tells what it is about to do and what it made, holds sizes to limits, and ends with Ctrl-C."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from esl_dist.config import Prepare
from esl_dist.config_files import load_config
from esl_dist.data import packing
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.errors import UserError
from esl_dist.programs import prepare
from tests.builders import SPLIT, write_description, write_pictures
from tests.programs import command, environment, signal_when


def words(tmp_path: Path, *further: str) -> list[str]:
    output = tmp_path / "my shards"
    return [f"dataset={tmp_path}/village.yaml", f"split={SPLIT}", f"output={output}", "processes=1", *further]


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(packing, "worker_processes", lambda _: nullcontext(map))
    write_pictures(tmp_path, ["a", "b"])
    return lambda *further: prepare.main(load_config(Prepare, None, words(tmp_path, *further)))


def test_the_beginning_and_the_end_are_told(
    tmp_path: Path, pack: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pack("size=[8,6]", "image_format=jpg")
    told = capsys.readouterr()
    for fact in (
        "packing village, split train",
        rf"data +2 pairs of picture and label, {tmp_path}/train/images/a\.png first",
        "sizes +pictures 8×6, labels as they are",
        "format +jpg of quality 95, shards of at most 256 MB",
        f"output +{tmp_path}/my shards",
        "processes +1",
    ):
        assert re.search(f"^ *{fact}$", told.err, re.MULTILINE), fact
    place = f"'{tmp_path}/my shards'"
    next_line = f"  next  esl-dist train source.path={place} …, or esl-dist evaluate data.path={place} …\n"
    assert re.fullmatch(rf"{tmp_path}/my shards: 2 samples in 1 shards, 0\.0 MB\n  took  \d+ s\n{next_line}", told.out)


def test_a_second_start_says_that_nothing_was_written(
    pack: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for further in ((), (), ("repack=true",)):
        pack(*further)
    first, second, third = re.findall(r"^.*my shards: .*\n  took .*$", capsys.readouterr().out, re.MULTILINE)
    assert "nothing was written" not in first
    for told in (second, third):
        assert re.search(r": already packed and current: 2 samples .*\n.* nothing was written$", told)


def test_pictures_without_labels_are_a_target(
    tmp_path: Path, pack: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_description(tmp_path, label=None, class_sets=None, ignore_ids=None)
    pack()
    told = capsys.readouterr()
    assert "2 pictures without labels" in told.err
    assert "next  esl-dist train target.path='" in told.out


def test_shards_of_an_earlier_version_get_a_warning(
    tmp_path: Path, pack: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pack()
    file = tmp_path / "my shards" / INDEX_NAME
    content = json.loads(file.read_text())
    del content["sources"]
    file.write_text(json.dumps(content))
    pack()
    told = capsys.readouterr()
    assert "warning: " in told.err
    assert "packed by an earlier version, which did not note its source files" in told.err
    assert "my shards: already packed: 2 samples" in told.out
    pack("repack=true")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("size=[1000000,1000000]", "size=.* is impossible: expected at least 1, at most 32_768"),
        ("label_size=[32769,1]", "label_size=.* is impossible: expected at least 1, at most 32_768"),
        ("size=[2000,1000] largest_megapixels=1", r"size=\[2000, 1000\] has 2 megapixels; .*largest_megapixels=1"),
        ("processes=100000", "processes=100000 is impossible: expected at least 1, at most 1_024"),
        ("shard_megabytes=10000000", "shard_megabytes=10000000 is impossible"),
        ("largest_megapixels=2000", "largest_megapixels=2000 is impossible: expected at least 1, at most 1_073"),
    ],
)
def test_sizes_and_numbers_have_limits(tmp_path: Path, pack: Callable[..., None], word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(*word.split())
    assert not (tmp_path / "my shards").exists()


def test_ctrl_c_ends_it_and_its_processes_with_one_line(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{number:03d}" for number in range(60)], 400, 300)
    partial = tmp_path / "my shards/shard-000000.tar.partial"
    with subprocess.Popen(
        command("shards/prepare.py", *words(tmp_path, "size=[390,290]")),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        assert signal_when(process, partial.exists, signal.SIGINT) == 130
        told = process.stderr.read()
    assert "Traceback" not in told
    assert sum(line.startswith("interrupted") for line in told.splitlines()) == 1
    assert not (tmp_path / "my shards").exists(), "nothing was whole yet"
