"""Write docs/configuration.md from the settings' own descriptions: `python docs/make_configuration.py`."""

from pathlib import Path

from esl_dist import config
from esl_dist.config_files import describe

PROGRAMS = (
    *(config.Prepare, config.Train, config.PseudoLabel, config.Evaluate, config.Predict, config.Demo),
    *(config.Export, config.Doctor),
)

OPENING = """# Configuration reference

Made from `esl_dist/config.py` by `python docs/make_configuration.py`; change it there.

Every program takes `--config FILE` (YAML, only what differs from the defaults) and any number of `key=value` words,
which go before the file. `--help` prints the settings of a program.

- A number outside its bounds, of another type, or spelled so that YAML and people read it differently (010 is 8 in
  YAML, 1:30 is 90) is refused. The bounds are far beyond what published trainings use; whether a value fits the
  machine is looked at when it is used.
- A text is taken as it is written: a run named 0001 or `no` has that name. It is at most 4095 bytes without control
  characters and, but for `target.path`, not empty.
- `key=` with nothing behind it makes a setting null that may be null, and undoes a `target.path` of the file. Others
  need a value.
- A file is a regular one (each process reads it, and a pipe can be read once) in UTF-8, without keys that stand twice
  and without YAML tags. `&name` and `*name` work.
- `${other.setting}` and `${oc.env:VARIABLE}` stand for another setting and a variable of the environment. What they
  give is written into the run's config.yaml and may be in messages: keep secrets out of it. What a run has saved
  holds no references.
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
