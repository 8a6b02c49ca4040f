"""The results as Markdown: a table for each stage, of the rows that it found, in the order in which it found them."""

from collections.abc import Sequence
from typing import Any

TITLES = {
    "machine": "The machine and its ceilings",
    "reference": "The published programs' numbers",
    "precisions": "Precisions",
    "waits": "Waits and kernels of a step",
    "step": "The step",
    "ranks": "Two ranks on one card",
    "jobs": "Jobs",
    "training": "Loader and whole trainings",
}


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return a section for each result of `run.run_stage`."""
    return "\n".join(_section(result) for result in results)


def _section(result: dict[str, Any]) -> str:
    title = f"### {TITLES[result['stage']]} ({result['seconds']:g} s)\n"
    ended = [] if result["ended"] == "done" else [f"Not whole: {result['ended']}: {result.get('words', '')}\n"]
    return "\n".join([title, *ended, *_tables(result["rows"])])


def _tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return tables of the rows, a new one wherever the columns are others."""
    lines: list[str] = []
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines += [*([""] if lines else []), _line(columns), _line(["---"] + ["---:"] * (len(columns) - 1))]
        lines.append(_line([_cell(value) for value in row.values()]))
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
