"""Write a trained network as one file; docs/onnx.md says what it takes, what it gives, and how it is used."""

from esl_dist.config import Export
from esl_dist.early import give_interrupt_back


def main(config: Export) -> None:
    """Write the file, and print what it takes and gives."""
    from esl_dist.inference.contradictions import check_export

    check_export(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.inference.exporting.job import export

    give_interrupt_back()
    export(config)
