"""Write runs, their scores and pseudo-labels as one page."""

from pathlib import Path

from esl_dist.config import Report
from esl_dist.early import give_interrupt_back
from esl_dist.environment import is_alone
from esl_dist.errors import UserError
from esl_dist.files import refuse_unwritable
from esl_dist.report.writing import refuse_other_file, write_page
from esl_dist.runs.layout import refuse_missing_run


def main(config: Report) -> None:
    """Write the report and print where it is."""
    check_report(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.ranks.session import joined_ranks
    from esl_dist.report.gathering import gathered
    from esl_dist.report.pictures import gallery
    from esl_dist.report.runs import open_run

    give_interrupt_back()
    content = gathered(config)
    runs = [open_run(Path(one)) for one in config.runs if not one.endswith(".json")]
    with joined_ranks(timeout_minutes=10.0) as ranks:
        content["gallery"] = gallery(config, runs, ranks.device)
    write_page(Path(config.output), content)
    for note in content["notes"]:
        print(f"note: {note}")
    print(
        f"{config.output}: {len(content['rows'])} rows of scores, {len(runs)} runs, "
        f"{len(content['rounds'])} rounds of pseudo-labels, {len(content['gallery']['pictures'])} pictures, "
        f"{Path(config.output).stat().st_size / 1e6:.1f} MB"
    )


def check_report(config: Report) -> None:
    """Refuse what no page can be made of, and to write over anything but a report.

    Raises:
        UserError: naming the setting.
    """
    if not is_alone():
        raise UserError("a report is written by one process; start it without torchrun or accelerate launch")
    if not (config.runs or config.scores or config.pseudo_labels):
        raise UserError("nothing to report: name runs, as in: esl-dist report experiments/snapshots/advent")
    for one in config.runs:
        if not one.endswith(".json"):
            refuse_missing_run(Path(one))
    output = Path(config.output)
    refuse_other_file("output", output)
    refuse_unwritable("output", config.output, output.absolute().parent)
