"""What the ranks of one launcher share on a machine: who says a message that all have, and the launcher's error file.

torchrun, and with it `accelerate launch`, gives every rank the name of a file for its error, in a folder for each
attempt to start the ranks. The first line of a summary that it prints is read from there; without, it says only that
there was an error.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from esl_dist.environment import LOCAL_RANK

WAIT_SECONDS = 1.0
"""How long a rank lets the first one of its machine go before it says a message itself."""


AS_ANOTHER = "as another rank of this machine"


def is_mine_to_say(text: str) -> bool:
    """Say whether this rank is the one on its machine to say a message, and write it where its launcher looks for it.

    That is the first rank, or who has the message alone.
    """
    is_mine = _is_mine_to_say(text)
    _leave_for_launcher(text if is_mine else AS_ANOTHER)
    return is_mine


def _is_mine_to_say(text: str) -> bool:
    folder = _folder()
    if folder is None:
        return True
    claim = folder / f"said-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    is_first = next((os.environ[name] for name in LOCAL_RANK if name in os.environ), "0") == "0"
    deadline = time.monotonic() + (0.0 if is_first else WAIT_SECONDS)
    while time.monotonic() < deadline and not claim.exists():
        time.sleep(WAIT_SECONDS / 20)
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        # A message is said twice rather than never.
        return True
    return True


def _leave_for_launcher(text: str) -> None:
    """Write the launcher's error file, if it named one and there is none yet."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or _folder() is None:
        return
    message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
    try:
        with open(file, "x", encoding="utf-8", errors="backslashreplace") as opened:
            json.dump({"message": message}, opened)
    except OSError:
        # It is only for the launcher's summary.
        return


def _folder() -> Path | None:
    """Return the folder of this attempt of torchrun, attempt_N, in which each rank has one; None without torchrun."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    folder = None if not file else Path(file).parent.parent
    return folder if folder is not None and folder.name.startswith("attempt_") and folder.is_dir() else None
