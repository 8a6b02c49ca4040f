"""The command `esl-dist` as a user calls it, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

from tests.on_ranks import PROJECT

COMMAND = (sys.executable, "-P", "-m", "esl_dist")


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, in which the package is that of this checkout."""
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}


def esl_dist(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder."""
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, env=environment(**variables), capture_output=True, text=True, check=False
    )
