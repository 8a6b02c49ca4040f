"""A program has one name, and a launcher starts it by the words of its own, however it was called."""

import pytest

from esl_dist import called


@pytest.mark.parametrize(
    ("argv", "program", "for_a_launcher"),
    [
        (["launch/train.py", "name=r"], "train", ["launch/train.py", "name=r"]),
        (["/a/bin/esl-dist", "train", "name=r"], "train", ["-m", "esl_dist", "train", "name=r"]),
        (["/a/esl_dist/__main__.py", "pseudo-label"], "pseudo_label", ["-m", "esl_dist", "pseudo-label"]),
        (["/a/bin/esl-dist", "pack"], "prepare", ["-m", "esl_dist", "pack"]),
        (["/a/bin/esl-dist"], "esl-dist", ["-m", "esl_dist"]),
        (["/a/bin/esl-dist", "--help"], "esl-dist", ["-m", "esl_dist", "--help"]),
        (["/other/__main__.py", "train"], "__main__", ["/other/__main__.py", "train"]),
    ],
)
def test_how_a_program_was_called(
    argv: list[str], program: str, for_a_launcher: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert (called.program(), called.for_a_launcher()) == (program, for_a_launcher)
