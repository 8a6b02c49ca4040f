"""Results are written only where files can be, and into no folder that is used otherwise."""

from pathlib import Path

import pytest

from esl_dist.errors import UserError
from esl_dist.inference.output_places import is_writable, refuse_other_use


def test_a_folder_that_is_not_there_is_writable_as_the_one_above_it_is(tmp_path: Path) -> None:
    assert is_writable(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == [], "nothing is left"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert not is_writable(tmp_path / "link/a")
    assert not is_writable(tmp_path / "file/a")


def test_a_folder_in_which_not_even_root_can_make_a_file_is_not_writable() -> None:
    assert not is_writable(Path("/proc"))
    assert not is_writable(Path("/proc/a"))


@pytest.mark.parametrize("names", [[], [".lock"], ["index.json", "x"], [".scratch"], ["shard-000000.tar"]])
def test_a_folder_of_a_job_may_be_used_again(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    refuse_other_use("output", tmp_path)
    refuse_other_use("output", tmp_path / "nowhere")
    (tmp_path / "summary.json.partial").touch()
    refuse_other_use("output", tmp_path)


def test_a_folder_of_other_files_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"^output=.*: exists and holds other files \('thesis.tex'\)"):
        refuse_other_use("output", tmp_path)
