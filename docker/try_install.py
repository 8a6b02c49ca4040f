"""The Dockerfile's own steps, run without Docker, and the image's programs run as its user in what they make.

Docker needs an engine that many machines do not have; root on Debian does the same with debootstrap and chroot. Every
instruction is read from the Dockerfile, and one that is not known here ends it: the two cannot part. debootstrap stands
for the base image, from the archive that it is made of. Each RUN, and each program, has mounts and process ids of its
own, as in a container, which go with it; the program's tini is PID 1 there. Untried: Docker itself, GPUs.

    python docker/try_install.py

It takes root, debootstrap, about 10 GB in TMPDIR, and the network as apt and this Python's pip are configured to use
it: wheels are fetched out here and given to the image's pip as a folder. Exit codes: 0, or 1 with what went wrong.
"""

import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template

import psutil
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

CONTEXT = Path(__file__).resolve().parent.parent
DOCKERFILE = CONTEXT / "docker/Dockerfile"
REQUIREMENTS = CONTEXT / "docker/requirements.txt"

ARCHIVE = "http://deb.debian.org"
SUITES = {"debian:12": ("bookworm", "3.11"), "debian:13": ("trixie", "3.13")}
"""What an image is made of, and its Python."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Docker's."""
WHEELS = "/mnt"
"""Where the image's pip finds them: a folder that Debian keeps for such."""
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Docker gives them to each RUN unasked."""
SHM = "64m"
"""Docker's."""
BEGAN = time.monotonic()
SECONDS = 300
"""More than a program here takes; one that hangs is killed."""
LINES = 30
"""Of the output of what went wrong."""

ENTER = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o size="$2" tmpfs "$1/dev/shm"
mount --bind "$3" "$1/mnt"
root=$1 user=$4
shift 4
exec chroot --userspec="$user" "$root" /usr/bin/env -i "$@"
"""


class TryError(Exception):
    """Something that is not as it should be; its text says what."""


@dataclass(frozen=True)
class Image:
    """What a stage of the Dockerfile has made so far: a root, and how programs start in it."""

    root: Path
    wheels: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def at(self, path: str) -> Path:
        """Return where a path of the image lies out here."""
        return self.root / os.path.join(self.folder, path).lstrip("/")


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with their values, without comments, continued lines joined."""
    parser = DockerfileParser(fileobj=io.BytesIO(dockerfile.encode()))
    for one in parser.structure:
        if one["instruction"] != "COMMENT":
            yield one["instruction"], one["value"]


def build(dockerfile: str, base: Path, wheels: Path, work: Path) -> Image:
    """Follow a Dockerfile; returns the image of its last stage.

    Raises:
        TryError: an instruction that is not known here, or one that failed.
    """
    stages: dict[str, Image] = {}
    origin, name = base_image(dockerfile), ""
    for instruction, value in instructions(dockerfile):
        say(f"{instruction} {value}")
        if instruction == "FROM":
            if value.split()[0] != origin:
                raise unknown(f"FROM {value}, and not {origin} again")
            name = value.split()[-1]
            stages[name] = Image(work / f"stage-{len(stages)}", wheels)
            run("cp", "--archive", str(base), str(stages[name].root))
        else:
            stages[name] = follow(stages, name, instruction, value)
    return stages[name]


def base_image(dockerfile: str) -> str:
    """Return the image that a Dockerfile begins with."""
    instruction, value = next(instructions(dockerfile))
    if instruction != "FROM":
        raise unknown(f"{instruction} before FROM")
    return value.split()[0]


def unknown(what: str) -> TryError:
    """Return the error for what Docker may do and this file does not."""
    return TryError(f"{DOCKERFILE}: {what}: not known here; teach {Path(__file__).name} what Docker does")


def follow(stages: Mapping[str, Image], name: str, instruction: str, value: str) -> Image:
    """Follow one instruction of a stage; returns its image behind it."""
    image = stages[name]
    known = {**image.arguments, **image.environment}
    match instruction:
        case "ARG":
            return replace(image, arguments={**image.arguments, **pairs(value, known)})
        case "ENV":
            return replace(image, environment={**image.environment, **pairs(value, known)})
        case "WORKDIR":
            folder = os.path.join(image.folder, filled(value, known))
            image.at(folder).mkdir(parents=True, exist_ok=True)
            return replace(image, folder=folder)
        case "USER":
            return replace(image, user=filled(value, known))
        case "ENTRYPOINT" if value.startswith("["):
            return replace(image, entrypoint=tuple(json.loads(value)))
        case "CMD" if value.startswith("["):
            return replace(image, command=tuple(json.loads(value)))
        case "COPY":
            copy(stages, image, shlex.split(filled(value, known)))
            return image
        case "RUN" if not value.startswith(("[", "--")):
            settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}
            given = {name: os.environ[name] for name in PROXIES if name in os.environ}
            as_root = replace(image, environment={**known, **settings, **given})
            run(*inside(as_root, ["/bin/sh", "-c", value]))
            return image
    raise unknown(f"{instruction} {value}")


def filled(text: str, known: Mapping[str, str]) -> str:
    """Put variables in their places, `$NAME` and `${NAME}`."""
    try:
        return Template(text).substitute(known)
    except (KeyError, ValueError) as error:
        raise unknown(f"a variable in {text} ({error})") from error


def pairs(value: str, known: Mapping[str, str]) -> dict[str, str]:
    """Read the `NAME=value …` of an ENV or ARG."""
    found = [word.partition("=") for word in shlex.split(value)]
    if any(equals == "" for _, equals, _ in found):
        raise unknown(f"{value}, and not NAME=value")
    return {name: filled(text, known) for name, _, text in found}


def copy(stages: Mapping[str, Image], image: Image, words: Sequence[str]) -> None:
    """Copy from another stage, or from what .dockerignore leaves of the context."""
    origin, *paths = words if words[0].startswith("--") else ["", *words]
    if len(paths) != 2 or not (origin == "" or origin.startswith("--from=")):
        raise unknown(f"COPY {shlex.join(words)}, and not [--from=STAGE] PATH PATH")
    target = image.at(paths[1])
    if origin:
        target.mkdir(parents=True, exist_ok=True)
        # Links: the disk holds PyTorch once.
        run("cp", "--archive", "--link", f"{stages[origin.removeprefix('--from=')].at(paths[0])}/.", str(target))
        return
    for path in context(CONTEXT):
        if path == paths[0] or paths[0] == ".":
            into = target if path == paths[0] else target / path
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CONTEXT / path, into, follow_symlinks=False)


def context(folder: Path) -> list[str]:
    """Return the files, and links, that Docker would be given, by .dockerignore."""
    patterns = (folder / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = exclude_paths(str(folder), [line for line in patterns if line and not line.startswith("#")])
    # The builder is always sent these two, and copies neither.
    places = {path: folder / path for path in kept - {".dockerignore", "Dockerfile"}}
    return sorted(path for path, place in places.items() if place.is_file() or place.is_symlink())


def inside(image: Image, words: Sequence[str]) -> list[str]:
    """Return the command line that starts a program in an image, with mounts and process ids of its own."""
    variables = [f"{name}={value}" for name, value in image.environment.items()]
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ceu", ENTER, "sh"]
    return [*enter, str(image.root), SHM, str(image.wheels), image.user, "-C", image.folder, *variables, *words]


def run(*words: str) -> None:
    """Run a command that must succeed; its output is told if it does not."""
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        last = done.stdout.splitlines()[-LINES:]
        raise TryError("\n".join([f"{words[-1]}: exit code {done.returncode}", *last]))


def say(text: str) -> None:
    """Print at once, behind the seconds since the start: steps take long."""
    print(f"{time.monotonic() - BEGAN:4.0f} s  {text}", flush=True)


def debian(dockerfile: str, work: Path) -> tuple[Path, str]:
    """Make the root that the Dockerfile begins with, and say which Python it has."""
    name, _, release = (
        next(value for word, value in instructions(dockerfile) if word == "FROM").split()[0].partition(".")
    )
    if name not in SUITES:
        raise TryError(f"{DOCKERFILE}: FROM {name}: not known here; expected one of {', '.join(SUITES)}")
    suite, python = SUITES[name]
    say(f"debootstrap {suite}")
    run("debootstrap", "--variant=minbase", suite, str(work / "base"), f"{ARCHIVE}/debian")
    with open(work / "base/etc/apt/sources.list", "a", encoding="utf-8") as sources:
        sources.write(f"deb {ARCHIVE}/debian {suite}-updates main\n")
        sources.write(f"deb {ARCHIVE}/debian-security {suite}-security main\n")
    # Docker gives one to each container.
    (work / "base/etc/hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n", encoding="utf-8")
    made = (work / "base/etc/debian_version").read_text().strip()
    asked = f"{name.removeprefix('debian:')}.{release}".removesuffix("-slim")
    say(f"Debian {made}" + ("" if made == asked else f", for the archive has no {asked} any more"))
    return work / "base", python


def fetch(python: str, folder: Path) -> Path:
    """Download the wheels that the image installs."""
    say("pip download")
    which = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--requirement", str(REQUIREMENTS)]
    run(sys.executable, "-m", "pip", "download", "--quiet", *which, "--dest", str(folder))
    return folder


TRAIN = (
    *("python", "launch/train.py", "source.path=experiments/shards/source_train"),
    *("target.path=experiments/shards/target_train", "network.architecture=tiny", "method.discriminator_channels=4"),
    *("batch_size=2", "loader.workers=1", "checkpoints.every=20", "name=try"),
)
DRAW = """
from pathlib import Path
from esl_dist.data.toytown import write_toytown
counts = {"source_train": 6, "target_train": 6, "target_val": 3}
write_toytown(Path("experiments/town"), seed=1, counts=counts, width=64, height=32)
"""
NO_COMPILER = "for name in cc gcc g++ c++ clang make; do ! command -v $name || exit 1; done"


def try_programs(image: Image) -> None:
    """Run programs as a container would; the first that ends with another code than it should ends the try."""
    attempt("what it runs by itself", image, image.command, 0)
    attempt("no compiler", image, ["sh", "-c", NO_COMPILER], 0)
    attempt("the code is not the user's to change", image, ["touch", "launch/train.py"], 1)
    attempt("draw pictures", image, ["python", "-c", DRAW], 0)
    for split in ("source_train", "target_train"):
        words = ["dataset=configs/datasets/toytown.yaml", "root=experiments/town", f"split={split}"]
        pack = ["python", "shards/prepare.py", *words, f"output=experiments/shards/{split}", "processes=1"]
        attempt(f"pack {split}", image, pack, 0)
    checkpoints = image.at("experiments/snapshots/try/checkpoints")
    long = [*TRAIN, "steps=100000"]
    attempt("docker stop after the first checkpoint", image, long, 75, lambda: any(checkpoints.glob("step-*0")))
    newest = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-????????"))
    attempt(f"the same again, from step {newest}", image, [*TRAIN, f"steps={newest + 5}"], 0)
    attempt("a mistake", image, [*TRAIN, "steps=none"], 2)
    try_other_user(image)


def try_other_user(image: Image) -> None:
    """Run as a user that the image does not know, on a folder that is mounted: its own, and one of root's."""
    stranger = replace(image, user="12345:12345")
    for folder, owner, code in (("/srv/own", 12345, 0), ("/srv/root", 0, 2)):
        image.at(folder).mkdir(parents=True)
        os.chown(image.at(folder), owner, owner)
        words = [*TRAIN, f"experiments={folder}", "steps=2"]
        attempt(f"as user 12345, in a folder of user {owner}", stranger, words, code)


def attempt(name: str, image: Image, words: Sequence[str], code: int, stop: Callable[[], bool] | None = None) -> None:
    """Run a program behind the image's entry point; when `stop` holds, SIGTERM goes to PID 1, as at `docker stop`.

    Raises:
        TryError: it ended with another exit code, or before its time, or hung.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(inside(image, [*image.entrypoint, *words]), stdout=output, stderr=output)
        try:
            if stop is not None:
                while process.poll() is None and time.monotonic() < began + SECONDS and not stop():
                    time.sleep(0.02)
                # It may have ended by itself, which its exit code tells.
                with suppress(psutil.NoSuchProcess):
                    for first in psutil.Process(process.pid).children():
                        first.send_signal(signal.SIGTERM)
            ended = process.wait(began + SECONDS - time.monotonic())
        except subprocess.TimeoutExpired:
            ended = -signal.SIGKILL
        finally:
            # Not waited for where it is killed: --kill-child takes PID 1 with it, and PID 1 all others.
            process.kill()
        output.seek(0)
        lines = output.read().rstrip().splitlines()
    said = f"{name}: exit code {ended} after {time.monotonic() - began:.1f} s"
    if ended != code:
        raise TryError("\n".join([f"{said}; expected {code}", *lines[-LINES:]]))
    say(f"{said}{f', {lines[-1]}' if code not in (0, 1) else ''}")


def main() -> int:
    """Build, try, tell."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print("error: expected root and debootstrap (apt-get install debootstrap)", file=sys.stderr)
        return 2
    dockerfile = DOCKERFILE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="esl-dist-image-") as folder:
        try:
            base, python = debian(dockerfile, Path(folder))
            image = build(dockerfile, base, fetch(python, Path(folder) / "wheels"), Path(folder))
            used = subprocess.check_output(["du", "--summarize", "--si", str(image.root)], text=True).split()[0]
            say(f"the image's root has {used}B")
            try_programs(image)
        except TryError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    say("all as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
