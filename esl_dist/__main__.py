"""The command `esl-dist`, also as `python -m esl_dist` and, on several processes, `torchrun … -m esl_dist`."""

import os

from esl_dist.early import COMPLETION_VARIABLE, STATE_FILE, end_at_interrupt


def main() -> None:
    """Take this process for the command, as a script of `launch/` does for its program."""
    if COMPLETION_VARIABLE in os.environ:
        # No program runs: what the last one noted stays.
        os.environ.pop(STATE_FILE, None)
    # What follows takes its time to import.
    end_at_interrupt()

    from esl_dist.cli.start import start
    from esl_dist.stop_signals import own_process

    own_process()
    start()


if __name__ == "__main__":
    main()
