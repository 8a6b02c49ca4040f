"""(b) The published programs' arrays, in float64 to 1e-8 on this device, which `pytest tests/reference` is told."""

import os
import subprocess
import sys

import torch

from benchmarks.gpu.sizes import TINY, Rows, Sizes
from benchmarks.programs import PROJECT

QUICK = ("scores", "pseudo_labels")
FILES = (*QUICK, "forward_losses", "training")
"""Of tests/reference, those that compute on the device."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield how many of the tests passed; they hold the bounds, the larger grid of runs included."""
    files = [f"tests/reference/test_{name}.py" for name in (QUICK if sizes is TINY else FILES)]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-rs", "-p", "no:cacheprovider"]
    environment = {**os.environ, "ESL_TEST_DEVICE": str(device.type)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    yield {"what": f"tests/reference on {device.type}", "exit code": done.returncode, "words": lines[-1][:200]}
    for line in lines:
        if line.startswith(("FAILED", "ERROR", "SKIPPED")):
            yield {"what": line.split()[0].lower(), "words": line[:200]}
