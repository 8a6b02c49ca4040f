"""What the ranks of one launcher share on a machine: who says a message that all have, and the launcher's error file.

torchrun, and with it `accelerate launch`, gives every rank the name of a file for its error, in a folder for each
attempt to start the ranks. The first line of a summary that it prints is read from there; without, it says only that
there was an error.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from esl_dist.environment import LOCAL_RANK

WAIT_SECONDS = 1.0
"""How long a rank lets the first one of its machine go before it says a message itself."""

AS_ANOTHER = "as another rank of this machine"


def is_mine_to_say(text: str) -> bool:
    """Say whether this rank is the one on its machine to say a message, and write it where its launcher looks for it.

    That is the first rank, or who has the message alone.
    """
    file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE") or os.devnull)
    attempt = file.parent.parent
    if not attempt.name.startswith("attempt_") or not attempt.is_dir():
        # No torchrun.
        return True
    is_mine = _is_first(attempt / f"said-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}")
    message = {"message": text if is_mine else AS_ANOTHER, "extraInfo": {"timestamp": str(int(time.time()))}}
    # It is only for the launcher's summary, and what is there already is an earlier error.
    with suppress(OSError), open(file, "x", encoding="utf-8", errors="backslashreplace") as opened:
        json.dump({"message": message}, opened)
    return is_mine


def _is_first(claim: Path) -> bool:
    """Say whether no other rank has made the file `claim`, and make it."""
    is_first_rank = next((os.environ[name] for name in LOCAL_RANK if name in os.environ), "0") == "0"
    deadline = time.monotonic() + (0.0 if is_first_rank else WAIT_SECONDS)
    while time.monotonic() < deadline and not claim.exists():
        time.sleep(WAIT_SECONDS / 20)
    try:
        claim.touch(exist_ok=False)
    except OSError as error:
        # A message is said twice rather than never.
        return not isinstance(error, FileExistsError)
    return True
