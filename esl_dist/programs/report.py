"""Write runs, their scores and pseudo-labels as one page."""

from collections.abc import Sequence
from pathlib import Path

from esl_dist.config import Report
from esl_dist.data.shard_index import read_index, refuse_missing_shards
from esl_dist.early import give_interrupt_back
from esl_dist.environment import is_alone
from esl_dist.errors import UserError
from esl_dist.files import refuse_unwritable
from esl_dist.inference.output_places import refuse_replacing
from esl_dist.report.writing import is_report, write_page
from esl_dist.reporting.accounts import account
from esl_dist.runs.layout import refuse_missing_run
from esl_dist.urls import is_url


def main(config: Report) -> None:
    """Write the report and print where it is."""
    check_report(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    import torch

    from esl_dist.report.gathering import gathered, open_runs
    from esl_dist.report.pictures import gallery

    give_interrupt_back()
    runs = open_runs(config)
    content = gathered(config, runs)
    content["gallery"] = gallery(config, runs, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write_page(Path(config.output), content)
    told = {
        "runs": str(len(runs)),
        "scores": f"{len(content['rows'])} rows",
        "rounds": f"{len(content['rounds'])} of pseudo-labels",
        "pictures": content["gallery"]["note"] or str(len(content["gallery"]["pictures"])),
        "not shown": "; ".join(content["notes"]),
    }
    print(account(f"{config.output}: {Path(config.output).stat().st_size / 1e6:.1f} MB", told))


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
        # A file is one of scores.
        if Path(one).suffix == ".json" and not Path(one).exists():
            raise UserError(f"runs: {one}: no such file; expected run folders, or files of scores")
        if not Path(one).is_file():
            refuse_missing_run(Path(one))
    _refuse_repeated(config.runs)
    _refuse_what_is_named_and_not_there(config)
    output = Path(config.output)
    if output.is_dir():
        raise UserError(f"output={output}: a folder; expected the name of an HTML file")
    refuse_replacing("output", output, is_report, "is no report")
    refuse_unwritable("output", config.output, output.absolute().parent)


def _refuse_what_is_named_and_not_there(config: Report) -> None:
    for file in config.scores:
        if not Path(file).is_file():
            raise UserError(f"scores: {file}: no such file; expected one that esl-dist evaluate has written")
    for folder in config.pseudo_labels:
        if not Path(folder).is_dir():
            raise UserError(
                f"pseudo_labels: {folder}: no such folder; expected one that esl-dist pseudo-label has written"
            )
    if config.target is not None and config.runs and config.pictures and not is_url(config.target):
        try:
            refuse_missing_shards(config.target)
            read_index(Path(config.target))
        except UserError as error:
            raise UserError(f"target: {error}") from error


def _refuse_repeated(runs: Sequence[str]) -> None:
    places = [Path(one).resolve() for one in runs]
    for place, one in zip(places, runs, strict=True):
        if places.count(place) > 1:
            raise UserError(f"runs: {one} is named twice; take one out")
