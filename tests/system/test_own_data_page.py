"""docs/own_data.md, followed word by word: its files are written, its commands run, on small pictures as yours."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from esl_dist.config import Train
from esl_dist.config_files import load_config
from esl_dist.data.toytown import write_toytown
from esl_dist.training.contradictions import check_training
from tests.on_ranks import PROJECT

PAGE = (PROJECT / "docs/own_data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = {"labelled": "source_train", "new": "target_train", "checked": "target_val"}
"""Folder of the page → the split of Toytown whose pictures lie there."""


def lay_out(mine: Path, drawn: Path) -> None:
    """Put pictures where section 2 of the page has them."""
    write_toytown(drawn, seed=1, counts=dict.fromkeys(PLACES.values(), 4), width=64, height=32)
    for name, split in PLACES.items():
        shutil.copytree(drawn / split, mine / name)
    shutil.rmtree(mine / "new/labels")


def follow(page: str, folder: Path) -> Iterator[str]:
    """Write the page's YAML files and run its commands, in the order of the page; yields what each block printed."""
    tools = folder / "bin"
    tools.mkdir()
    # As pip installs it, of this checkout and this Python.
    (tools / "esl-dist").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m esl_dist "$@"\n')
    (tools / "esl-dist").chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    for language, text in BLOCK.findall(page):
        if language == "yaml":
            (folder / text.split()[1]).write_text(text)
        else:
            done = subprocess.run(
                ["bash", "-euc", text],
                cwd=folder,
                env={**os.environ, **path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, text + done.stdout + done.stderr
            yield done.stdout


def test_what_the_page_says_leads_from_pictures_to_masks(tmp_path: Path) -> None:
    lay_out(tmp_path / "mine", tmp_path / "drawn")
    printed = "".join(follow(PAGE, tmp_path))
    assert "building" in printed
    scores = json.loads((tmp_path / "experiments/scores/second.json").read_text())
    assert sorted(scores["iou"]) == ["building", "ground", "nature", "things"]
    pictures = {path.stem for path in (tmp_path / "mine/new/images").iterdir()}
    for kind in ("train_ids", "overlay"):
        assert {path.stem for path in (tmp_path / "masks" / kind).iterdir()} == pictures


def test_the_page_has_a_block_for_every_command_of_the_way() -> None:
    blocks = "".join(text for language, text in BLOCK.findall(PAGE) if language == "bash")
    commands = re.findall(r"^ *esl-dist ([\w-]+)", blocks, re.MULTILINE)
    assert commands == ["pack", "train", "pseudo-label", "train", "evaluate", "report", "predict"]


def test_the_settings_in_earnest_are_a_configuration_that_can_be(tmp_path: Path) -> None:
    (text,) = (text for _, text in BLOCK.findall(PAGE) if text.startswith("# earnest.yaml"))
    (tmp_path / "earnest.yaml").write_text(text)
    loaded = load_config(Train, tmp_path / "earnest.yaml")
    check_training(loaded)
    assert loaded.steps == loaded.optimizer.schedule_steps
