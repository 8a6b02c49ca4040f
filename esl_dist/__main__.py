"""The command `esl-dist`, also as `python -m esl_dist` and, on several processes, `torchrun … -m esl_dist`."""

from esl_dist.early import end_at_interrupt


def main() -> None:
    """Take this process for the command, as a script of `launch/` does for its program."""
    # What follows takes its time to import.
    end_at_interrupt()

    from esl_dist.cli.start import start
    from esl_dist.stop_signals import own_process

    own_process()
    start()


if __name__ == "__main__":
    main()
