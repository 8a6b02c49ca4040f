"""Programs end with an exit code and one line for people, not with a traceback."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch

from esl_dist.command_line import EXIT_INTERRUPTED, EXIT_USER_ERROR, run_program
from esl_dist.config import Demo, Evaluate, Prepare, PseudoLabel, Train
from esl_dist.config_files import describe
from esl_dist.errors import UserError
from esl_dist.gpu_errors import DEFECTS, MISTAKES

PROJECT = Path(__file__).resolve().parent.parent
WORDS = ("dataset=d", "split=s", "output=o")


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)


def ending(
    monkeypatch: pytest.MonkeyPatch,
    schema: type,
    words: tuple[str, ...],
    main: Callable[[object], None] = lambda config: None,
) -> object:
    """Run a program in this process; returns its exit code, None for a plain end."""
    monkeypatch.setattr(sys, "argv", ["program", *words])
    try:
        run_program(schema, main)
    except SystemExit as end:
        return end.code
    return None


def raising(error: BaseException) -> Callable[[object], None]:
    def main(_: object) -> None:
        raise error

    return main


def test_main_gets_the_configuration_of_file_and_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("split: s\nsize: [4, 2]\njpg_quality: 5\n")
    seen: list[Prepare] = []
    words = ("dataset=d", "--config", str(tmp_path / "some.yaml"), "output=o", "jpg_quality=6")
    assert ending(monkeypatch, Prepare, words, seen.append) is None
    assert (seen[0].size, seen[0].jpg_quality, seen[0].split) == ([4, 2], 6, "s")


@pytest.mark.parametrize(
    "words",
    [
        ("siz=[1,2]",),
        ("size=[1]",),
        ("novalue",),
        ("--config", "absent.yaml"),
        ("output=null",),
        ("size={a: 1}",),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert ending(monkeypatch, Prepare, (*WORDS, *words)) == EXIT_USER_ERROR == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


def test_a_mistake_found_by_the_program_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(monkeypatch, Prepare, WORDS, raising(UserError("d.yaml: is wrong"))) == 2
    assert capsys.readouterr().err == "error: d.yaml: is wrong\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files: a process may open "),
        (RuntimeError("can't start new thread"), "no further thread can be started; "),
        (OSError(errno.EIO, "Input/output error", "a/file"), "a/file: Input/output error"),
    ],
)
def test_what_the_machine_refuses_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, text: str
) -> None:
    assert ending(monkeypatch, Prepare, WORDS, raising(error)) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"error: {text}")
    assert captured.count("\n") == 1


def test_one_rank_of_several_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    ending(monkeypatch, Prepare, WORDS, raising(UserError("wrong")))
    assert capsys.readouterr().err == "error (rank 3): wrong\n"


@pytest.mark.parametrize(("variable", "text"), [("WORLD_SIZE", "abc"), ("RANK", "x"), ("WORLD_SIZE", "-1")])
def test_a_bad_launcher_does_not_hide_another_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    assert ending(monkeypatch, Prepare, WORDS, raising(UserError("wrong"))) == 2
    assert capsys.readouterr().err == "error: wrong\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--jpg_quality", "20"), "'--jpg_quality' is not of the form key=value; write jpg_quality=20"),
        (("--jpg-quality=20",), "'--jpg-quality=20' is not of the form key=value; write jpg_quality=20"),
        (("jpg_quality", "20"), "'jpg_quality' is not of the form key=value; write jpg_quality=20"),
        (("jpg_quality", "=", "20"), "'jpg_quality' is not of the form key=value; write jpg_quality=20"),
        (("--jpg_quality",), "'--jpg_quality' is not of the form key=value; write jpg_quality=…"),
        (("--hlep",), "unrecognized arguments: --hlep; --help is near, and --help lists all settings"),
        (("-n",), "unrecognized arguments: -n; --help lists all settings"),
        *(
            (words, "argument --config: expected a file behind it; --help lists what may be given")
            for words in [("--config",), ("--config", "--size", "3"), ("--config", "--config", "a"), ("--config=",)]
        ),
        (("--config", "a", "--config", "b"), "--config is given 2 times; expected one file"),
        (("--config", "http://k:s/1@b/c"), "--config: http://…@b/c: a URL; expected a file on this machine"),
        (("--root", "s3://k:s/1@b"), "'--root' is not of the form key=value; write root=s3://…@b"),
        (("s3://k:s/1@b",), "'s3://…@b' is not of the form key=value; --help lists all settings"),
        (("--s3://k:s/1@b",), "unrecognized arguments: --s3://…@b; --help lists all settings"),
    ],
)
def test_a_word_of_another_form_is_told_how_it_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], hint: str
) -> None:
    assert ending(monkeypatch, Prepare, (*WORDS, *words)) == 2
    assert capsys.readouterr().err == f"error: command line: {hint}\n"


MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 1.50 GiB for an array with shape (1, 2) and data type uint8"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 9830400 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n x"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    cv2.error("OpenCV(4.10.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 30000000000 bytes"),
]


@pytest.mark.parametrize("error", MEMORY)
def test_too_little_memory_is_one_line_that_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert ending(monkeypatch, Train, ("source.path=a", "target.path=b"), raising(error)) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: memory is full( \([0-9.]+ (bytes|GiB) more were asked for\))?; give less to batch_size, "
        r"source\.size, target\.size, network\.architecture, .*, loader\.workers, or more to accumulate, "
        r"or checkpoint_activations=true\n",
        said,
    )


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which "
                "1.50 GiB is free. Including non-PyTorch memory, this process has 77.57 GiB memory in use."
            ),
            r" \(20\.00 MiB more were asked for, 1\.50 GiB of 79\.10 GiB free\)",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ""),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
    ],
)
def test_too_little_memory_of_a_gpu_is_one_line_that_says_what_takes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, facts: str
) -> None:
    assert ending(monkeypatch, Train, ("source.path=a", "target.path=b"), raising(error)) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: the GPU's memory is full{facts}; give less to batch_size, source\.size, target\.size, "
        r"network\.architecture, method\.discriminator_channels, or more to accumulate, or choose precision=bf16, "
        r"or checkpoint_activations=true\n",
        said,
    )


def test_memory_of_which_cuda_does_not_say_whose_it_is_may_be_the_hosts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the same words for pinned memory, of which loaders take more than anybody."""
    error = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere")
    assert ending(monkeypatch, Train, ("source.path=a", "target.path=b"), raising(error)) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith(
        "error: the GPU's memory, or the host's that it can reach, is full; give less to batch_size, "
    )
    assert all(f" {name}" in said for name in ("loader.workers", "network.architecture", "precision=bf16"))


@pytest.mark.parametrize(("error", "words"), MISTAKES.items())
def test_an_error_of_cuda_that_is_no_defect_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str, words: str
) -> None:
    raised = torch.AcceleratorError(f"CUDA error: {error} for x\nCUDA kernel errors might be reported elsewhere")
    assert ending(monkeypatch, Prepare, WORDS, raising(raised)) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"error: CUDA error: {error} for x: {words}\n"


@pytest.mark.parametrize(("error", "words"), DEFECTS.items())
def test_an_error_of_a_kernel_keeps_its_traceback_and_says_what_it_means(
    monkeypatch: pytest.MonkeyPatch, error: str, words: str
) -> None:
    raised = torch.AcceleratorError(f"CUDA error: {error} triggered\nCUDA kernel errors might be reported elsewhere")
    with pytest.raises(torch.AcceleratorError) as caught:
        ending(monkeypatch, Prepare, WORDS, raising(raised))
    assert caught.value.__notes__ == [f"CUDA error: {error} triggered: {words}"]


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("out of memory"), AssertionError(), RecursionError("too deep")]
)
def test_other_errors_are_not_taken_for_too_little_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        ending(monkeypatch, Prepare, WORDS, raising(error))


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(monkeypatch, Prepare, WORDS, raising(KeyboardInterrupt())) == EXIT_INTERRUPTED == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_a_defect_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ending(monkeypatch, Prepare, WORDS, raising(ZeroDivisionError()))


@pytest.mark.parametrize("columns", ["0", "1", "5", "12", "abc", "-3"])
def test_help_comes_at_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert ending(monkeypatch, Prepare, ("--help",)) == 0
    assert "jpg_quality" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [("-h",), ("--config", "-h"), ("--config", "--help"), ("--config", "absent.yaml", "-h"), ("novalue", "--help")],
)
def test_help_comes_wherever_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert ending(monkeypatch, Prepare, words) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: ")
    assert captured.err == ""


@pytest.mark.parametrize("schema", [Train, PseudoLabel, Evaluate, Prepare, Demo])
def test_help_lists_every_setting_with_type_and_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], schema: type
) -> None:
    assert ending(monkeypatch, schema, ("--help",)) == 0
    text = capsys.readouterr().out
    for key, kind, default, meaning in describe(schema):
        assert f"  {key} ({kind}; {default})\n      {meaning}\n" in text
    assert "--config FILE" in text


def started(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "shards/prepare.py"), *words]
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_real_program_ends_with_one_line_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("name: a\nimage: [\n")
    done = started("dataset=broken.yaml", "split=s", "output=o")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: broken.yaml: cannot be read as YAML")
    assert not (tmp_path / "o").exists()


PROGRAMS = ["launch/train.py", "launch/evaluate.py", "launch/pseudo_label.py", "launch/demo.py", "shards/prepare.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_uses_the_package_of_its_own_checkout(tmp_path: Path, program: str) -> None:
    """Though the environment has another one, installed or in PYTHONPATH."""
    copy = tmp_path / program
    copy.parent.mkdir()
    shutil.copy(PROJECT / program, copy)
    (tmp_path / "esl_dist").mkdir()
    (tmp_path / "esl_dist/__init__.py").write_text("raise SystemExit('the one beside the program')")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == "the one beside the program\n"
