"""(f) Two ranks on the one card: their weights beside one rank's, then what ends one of them, and how soon all end.

NCCL refuses two ranks on a card, so tensors travel over gloo, through the host; the whole program runs. What NCCL says
to it, and what the project says, is asked, too.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.difference import largest_difference
from benchmarks.gpu.sizes import TINY, Row, Rows, Sizes
from benchmarks.programs import PROJECT, packed_toytown
from esl_dist.runs.checkpoints import checkpoint_folder, load_checkpoint

SHARE, IN_FLOAT64, TRAIN = (
    str(PROJECT / name) for name in ("benchmarks/gpu/share_gpu.py", "tests/exact/in_float64.py", "launch/train.py")
)
STEPS, ENDLESS = 4, 700
FAULTS = {"killed": "kill", "a mistake of its user": "mistake", "out of memory": "memory"}
LONGEST_SECONDS = 60
"""That ranks may take to their end before they are killed; 20 are promised from the fault on."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield the weights' difference, then the faults, then what is said to NCCL on one card."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = sizes is TINY
        picture = (64, 32) if small else (192, 96)
        town = packed_toytown(folder, picture, {"source_train": 8, "target_train": 8})
        training = Training(folder, town, device)
        for number in ("float64",) if small else ("float64", "float32"):
            yield training.weights(number)
        for told, fault in FAULTS.items():
            yield training.fault(told, fault)
        if device.type == "cuda":
            yield training.on_nccl("the project's words", [TRAIN])
            yield training.on_nccl("the library's words", [SHARE, "nccl", "none", TRAIN])


@dataclass(frozen=True)
class Ended:
    """How ranks ended: exit codes, when the last one did, and what they printed."""

    codes: list[int]
    when: float
    output: str

    def words(self) -> str:
        """Return the lines that say what went wrong, or the last line."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.output) if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return " / ".join(errors or lines[-1:])[:600]


@dataclass(frozen=True)
class Training:
    """Small trainings on shards of Toytown."""

    folder: Path
    town: Path
    device: torch.device

    def weights(self, number: str) -> Row:
        """Return how far the weights of two ranks are from those of one."""
        program = [IN_FLOAT64, TRAIN] if number == "float64" else [TRAIN]
        found = []
        for ranks in (1, 2):
            ended = self._run([SHARE, "gloo", "none", *program], ranks, f"{number}_{ranks}", STEPS)
            if any(ended.codes):
                return {"what": f"two ranks, {number}", "exit codes": str(ended.codes), "words": ended.words()}
            checkpoint = load_checkpoint(checkpoint_folder(self.folder / f"snapshots/{number}_{ranks}", STEPS))
            found.append(
                {f"{net}.{name}": one for net, state in checkpoint.networks.items() for name, one in state.items()}
            )
        one, two = found
        return {
            "what": f"weights of two ranks against one, {number}, {STEPS} steps",
            "largest relative difference": largest_difference(two, one),
        }

    def fault(self, told: str, fault: str) -> Row:
        """Return how soon all ranks end after a fault of one, with which codes and words."""
        ended = self._run([SHARE, "gloo", fault, TRAIN], 2, fault, ENDLESS)
        moment = self.folder / f"{fault}.moment"
        if not moment.exists():
            return {"what": f"rank 1 of two: {told}", "words": f"it did not come to it: {ended.words()}"}
        return {
            "what": f"rank 1 of two: {told}",
            "seconds to the end": round(ended.when - float(moment.read_text(encoding="utf-8")), 2),
            "exit codes": str(ended.codes),
            "words": ended.words(),
        }

    def on_nccl(self, told: str, program: list[str]) -> Row:
        """Return what becomes of two ranks on one card over NCCL."""
        ended = self._run(program, 2, f"nccl_{len(program)}", STEPS)
        return {"what": f"NCCL, two ranks, one card: {told}", "exit codes": str(ended.codes), "words": ended.words()}

    def _run(self, program: list[str], ranks: int, name: str, steps: int) -> Ended:
        words = ["--config", str(PROJECT / "configs/demo/advent.yaml"), f"name={name}", f"experiments={self.folder}"]
        words += [f"source.path={self.town}/source_train", f"target.path={self.town}/target_train", f"steps={steps}"]
        words += [f"optimizer.schedule_steps={ENDLESS}", "pictures_every=0", "checkpoints.every=100000"]
        words += ["precision=no", "timeout_minutes=1"]
        output = self.folder / f"{name}.txt"
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        processes = []
        with output.open("wb") as file:
            for rank in range(ranks):
                environment = {**os.environ, "FAULT_FILE": str(self.folder / f"{name}.moment")}
                if self.device.type == "cpu":
                    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
                if ranks > 1:
                    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                    environment |= {key: str(value) for key, value in numbers.items()}
                    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
                command = [sys.executable, *program, *words]
                processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
        codes = [_end_of(process) for process in processes]
        return Ended(codes, time.time(), output.read_text(encoding="utf-8", errors="replace"))


def _end_of(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
