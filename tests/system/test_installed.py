"""The package as it is installed, away from a checkout: the command, recipes and data sets by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.toytown import write_toytown
from tests.on_ranks import PROJECT
from tests.programs import TINY_TRAINING

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a wheel of this checkout is installed."""
    folder = tmp_path_factory.mktemp("package")
    source, site = folder / "source", folder / "site"
    no_code = shutil.ignore_patterns("__pycache__")
    for part in ("esl_dist", "configs"):
        shutil.copytree(PROJECT / part, source / part, symlinks=True, ignore=no_code)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source / name)
    install = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), str(source))
    subprocess.run([*PIP, *install], check=True)
    shutil.rmtree(source)
    return site


def command(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    called = [sys.executable, str(installed / "bin/esl-dist"), *words]
    return subprocess.run(called, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def pack(installed: Path, folder: Path, *splits: str) -> None:
    write_toytown(folder / "town", seed=1, counts=dict.fromkeys(splits, 2), width=64, height=32)
    for split in splits:
        words = ["dataset=toytown", "root=town", f"split={split}", f"output={split}", "processes=1"]
        done = command(installed, folder, "pack", *words)
        assert done.returncode == 0, done.stderr


def test_an_installed_package_has_all_recipes_and_packs_a_data_set_by_name(installed: Path, tmp_path: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(file.relative_to(folder)) for file in folder.glob("*/*")}

    assert files(installed / "esl_dist/recipes") == files(PROJECT / "configs")
    pack(installed, tmp_path, "source_train")
    assert (tmp_path / "source_train" / INDEX_NAME).is_file()


@pytest.mark.grid
def test_an_installed_package_trains_a_recipe_by_name(installed: Path, tmp_path: Path) -> None:
    pack(installed, tmp_path, "source_train", "target_train")
    words = ["source.path=source_train", "target.path=target_train", "steps=1", "name=r", *TINY_TRAINING]
    done = command(installed, tmp_path, "train", "--config", "demo/advent", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experiments/snapshots/r/weights.safetensors").is_file()
