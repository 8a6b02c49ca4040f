"""What can be held of docker/ without Docker: linters, what is installed and given, its steps in a root of Debian."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import compose
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.on_ranks import PROJECT

DOCKER = PROJECT / "docker"


def load_try_install() -> ModuleType:
    """Import the script; its folder has the name of a package that it uses."""
    spec = importlib.util.spec_from_file_location("try_install", DOCKER / "try_install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["try_install"] = module
    spec.loader.exec_module(module)
    return module


try_install = load_try_install()


def check(*words: str | Path, seconds: int = 60) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    check(Path(sys.executable).with_name("hadolint"), DOCKER / "Dockerfile")


def test_compose_understands_its_file() -> None:
    # The package's own script ends with 0 whatever Compose says.
    check(Path(compose.__file__).with_name("docker-compose"), "--file", DOCKER / "compose.yaml", "config", "--quiet")


def pins() -> dict[str, str]:
    """Return the releases that the image installs, by name."""
    lines = (DOCKER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(found) == sorted(found), "in order, so that a change can be read"
    return found


def test_the_image_installs_releases_that_the_project_allows_and_reads_from_far_away() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["remote"]]:
        requirement = Requirement(text)
        release = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(release), f"{text}: the image has {release}"


def test_the_image_installs_all_that_its_packages_ask_for() -> None:
    """As pip check does in the image; where this environment has another release, that one's needs count."""
    for name, release in pins().items():
        extras = ("", "http") if name == "fsspec" else ("",)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": one}) for one in extras):
                needed = canonicalize_name(requirement.name)
                assert needed in pins(), f"{name}=={release} needs {text}"


WANTED = [
    "configs/datasets/a.txt",
    "configs/datasets/a.yaml",
    "configs/demo/recipe.yaml",
    "docker/requirements.txt",
    "esl_dist/a.py",
    "esl_dist/data/shards.py",
    "launch/accelerate/cpu.yaml",
    "launch/slurm/run.sh",
    "launch/slurm/train.sbatch",
    "launch/train.py",
    "shards/prepare.py",
]
STRANGE = [
    "index.json",
    "data/shard-0.tar",
    "weights.safetensors",
    "a.log",
    "id_rsa",
    "a.png",
    "key.pem",
    "a.pyc",
    "a.npz",
]
HIDDEN = [
    ".env",
    ".netrc",
    ".aws/credentials",
    ".secret.py",
    ".a/b.yaml",
    "data/.env",
    "my_secrets.yaml",
    "a/secret.yaml",
]
NOT_WANTED = [
    *(f"{folder}/{name}" for folder in ("configs", "esl_dist", "launch", "shards") for name in (*STRANGE, *HIDDEN)),
    *(f"{folder}/{name}" for folder in ("experiments", "data", "tests", "source_train", "docker") for name in STRANGE),
    *("data/a.py", "tests/a.py", "tests/a.yaml", "a.py", "a.yaml", ".git/config", ".venv/pyvenv.cfg", "shards/a.yaml"),
    *(
        "configs/a.yaml",
        "configs/demo/b/c.yaml",
        "configs/data/a.yaml",
        "configs/camvid/a.txt",
        "launch/data/a.py",
        "docker/compose.yaml",
    ),
    *("launch/kubernetes/a.yaml", "esl_dist/data/__pycache__/b.pyc", "shards/source_train/prepare.py", "launch/a.yaml"),
]


def test_the_image_is_given_the_programs_and_nothing_of_anyones_own(tmp_path: Path) -> None:
    for name in [*WANTED, *NOT_WANTED]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_bytes((PROJECT / ".dockerignore").read_bytes())
    assert try_install.context(tmp_path) == WANTED


def test_the_image_is_given_all_that_the_project_has_of_programs_and_recipes() -> None:
    list_files = ["git", "ls-files", "--", "configs", "esl_dist", "launch", "shards", ":!launch/kubernetes"]
    listed = subprocess.run(list_files, cwd=PROJECT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a checkout of Git")
    assert set(listed) - set(try_install.context(PROJECT)) == set()


def test_instructions_are_read_over_lines_and_comments() -> None:
    text = "# syntax=x\nFROM debian:12 AS a\n# why\nRUN one \\\n    # and\n    && two\n"
    assert list(try_install.instructions(text)) == [("FROM", "debian:12 AS a"), ("RUN", "one     && two")]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what would be run or copied, in place of doing it."""
    done: list[str] = []
    monkeypatch.setattr(try_install, "run", lambda *words: done.append(words[-1]))
    monkeypatch.setattr(try_install, "copy", lambda stages, image, words: done.append(f"COPY {' '.join(words)}"))
    return done


def test_the_image_is_that_of_the_dockerfiles_last_stage(tmp_path: Path, steps: list[str]) -> None:
    image = try_install.build((DOCKER / "Dockerfile").read_text(encoding="utf-8"), tmp_path, tmp_path, tmp_path)
    assert image.user == "1000:1000", "a number: Kubernetes cannot tell who a name is"
    assert image.entrypoint[0] == "tini", "signals reach the program"
    assert image.environment["PATH"] == f"/opt/venv/bin:{try_install.PATH}"
    assert image.folder == "/workspace"
    [(installed, _)] = [(i, step) for i, step in enumerate(steps) if "pip install" in step]
    assert installed < steps.index("COPY . ."), "a change of the code installs nothing again"
    final = " ".join(steps[installed + 1 :])
    assert not {"gcc", "g++", "build-essential", "python3-dev", "python3-venv"} & set(final.split())


FROM = "FROM debian:12 AS first\n"


@pytest.mark.parametrize(
    "text",
    [
        "ARG VERSION=12\nFROM debian:12\n",
        f"{FROM}FROM first\n",
        f"{FROM}FROM debian:13\n",
        f"{FROM}ADD a b\n",
        f'{FROM}SHELL ["bash"]\n',
        f"{FROM}RUN --mount=type=cache,target=/a true\n",
        f'{FROM}RUN ["true"]\n',
        f"{FROM}COPY --chown=1 a b\n",
        f"{FROM}COPY a b c\n",
        f"{FROM}USER ${{WHO}}\n",
        f"{FROM}ENV a b\n",
        f"{FROM}CMD true\n",
    ],
)
def test_what_the_try_would_do_otherwise_than_docker_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(try_install.TryError, match="not known here"):
        try_install.build(text, tmp_path / "base", tmp_path, tmp_path)


def test_a_step_that_fails_ends_the_try_with_what_it_said() -> None:
    with pytest.raises(try_install.TryError, match="exit code 4\nno space"):
        try_install.run("sh", "-c", "echo no space; exit 4")


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_the_steps_of_the_dockerfile_make_a_root_in_which_its_user_trains() -> None:
    check(sys.executable, DOCKER / "try_install.py", seconds=1500)
