"""What an unfinished pseudo-label job keeps beside its output, and when it may go on with it.

A job that was killed redoes only what is unfinished; one with other settings keeps what does not depend on them.
"""

import shutil
from pathlib import Path
from typing import Any

from esl_dist.engine.conditions import changed_keys, told_changes
from esl_dist.engine.distributed import is_main, say, wait_for_all
from esl_dist.files import read_json, write_json

SCRATCH = ".scratch"
JOB = "job.json"
NOT_FOR_PREDICTIONS = {"bound", "compare_with_labels"}
"""Keys of what a job is made with that its predictions do not depend on."""


def open_scratch(output: Path, made_with: dict[str, Any]) -> Path:
    """Return the scratch folder on every rank; of a job with other settings, only predictions that are the same stay.

    Args:
        output: the folder of the pseudo-labels.
        made_with: everything that they depend on.
    """
    scratch = output / SCRATCH
    if is_main():
        _clear_scratch(scratch, made_with)
        write_json(scratch / JOB, made_with)
    wait_for_all()
    return scratch


def _clear_scratch(scratch: Path, made_with: dict[str, Any]) -> None:
    job = scratch / JOB
    made_before = read_json(job) if job.is_file() else None
    changed = changed_keys(made_before, made_with) if isinstance(made_before, dict) else list(made_with)
    if isinstance(made_before, dict) and changed:
        pieces = len(list(scratch.glob("piece-*.tar.json")))
        fate = "stay" if set(changed) <= NOT_FOR_PREDICTIONS else "are made anew"
        others = told_changes(changed, made_before, made_with)
        say(f"{scratch.parent}: begun with another {others}; its {pieces} finished pieces {fate}")
    if set(changed) <= NOT_FOR_PREDICTIONS:
        for entry in scratch.glob("*.tar.json") if "bound" in changed else []:
            if not entry.name.startswith("piece-"):
                entry.unlink()
    elif scratch.exists():
        # First, so that what a kill in between leaves does not look like a job's folder.
        job.unlink(missing_ok=True)
        shutil.rmtree(scratch)
