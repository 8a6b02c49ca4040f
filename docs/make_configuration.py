"""Write docs/configuration.md from the settings' own descriptions: `python docs/make_configuration.py`."""

from pathlib import Path

from esl_dist import config
from esl_dist.config_files import describe

PROGRAMS = (config.Prepare, config.Train, config.PseudoLabel, config.Evaluate, config.Demo)

OPENING = """# Configuration reference

Made from `esl_dist/config.py` by `python docs/make_configuration.py`; change it there.

Every program takes `--config FILE` (YAML, only what differs from the defaults) and any number of `key=value` words,
which go before the file. `--help` prints the settings of a program.
"""


def reference() -> str:
    """Return the page: a table of settings for each program."""
    parts = [OPENING]
    for program in PROGRAMS:
        title, _, rest = (program.__doc__ or "").partition(": ")
        parts += [f"## {title}", "", rest[:1].upper() + rest[1:], ""]
        parts += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        parts += [
            f"| `{key}` | {kind} | {'**required**' if default == 'required' else f'`{default}`'} | {meaning} |"
            for key, kind, default, meaning in describe(program)
        ]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(reference(), encoding="utf-8")
