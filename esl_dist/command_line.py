"""What every program does before and after its one function: read the configuration, turn mistakes into one line.

Exit codes: 0 done, 2 the user's mistake (one message on standard error), 3 another rank was lost, 75 stopped by SIGTERM
or SIGUSR1 after saving (start it again), 130 interrupted with Ctrl-C (a training saves first).
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from esl_dist.config_files import describe, load_config
from esl_dist.errors import LostRankError, StoppedError, UserError

Config = TypeVar("Config")

EXIT_USER_ERROR = 2
EXIT_LOST_RANK = 3
EXIT_STOPPED = 75
"""Of sysexits.h's codes the one that says: try again later."""
EXIT_INTERRUPTED = 130


def run_program(schema: type[Config], main: Callable[[Config], None]) -> None:
    """Read `--config FILE` and `key=value` words against `schema`, call `main`, leave with an exit code."""
    try:
        file, overrides = _arguments(schema)
        main(load_config(schema, file, overrides))
    except UserError as error:
        _say(f"error{_rank()}: {error}")
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"error{_rank()}: {error.filename}: {error.strerror}")
        sys.exit(EXIT_USER_ERROR)
    except LostRankError as error:
        _say(f"error{_rank()}: {error}")
        sys.exit(EXIT_LOST_RANK)
    except StoppedError as error:
        how = "interrupted" if error.interrupted else "stopped"
        _say(f"{how}{_rank()}: {error}; the same command goes on from there")
        sys.exit(EXIT_INTERRUPTED if error.interrupted else EXIT_STOPPED)
    except KeyboardInterrupt:
        _say(f"interrupted{_rank()}; the same command goes on from what is saved")
        sys.exit(EXIT_INTERRUPTED)


def _arguments(schema: type) -> tuple[Path | None, list[str]]:
    settings = "\n".join(f"  {key} ({kind}; {default})\n      {text}" for key, kind, default, text in describe(schema))
    parser = argparse.ArgumentParser(
        description=schema.__doc__,
        epilog=f"settings (type; default):\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that go before those of the file")
    arguments = parser.parse_intermixed_args()
    return arguments.config, arguments.overrides


def _say(text: str) -> None:
    # At once: two ranks may share the stream, and print may write the end of a line apart.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _rank() -> str:
    """Name the rank where the launcher started several; known from its environment before any set-up."""
    return f" (rank {os.environ.get('RANK', '0')})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
