"""The adaptation methods: what each adds to supervised training, at one level of the network.

A new method is one new file with a `Method` and one line in the table below.
"""

from esl_dist.adaptation.methods.advent import ADVENT
from esl_dist.adaptation.methods.method import Method
from esl_dist.adaptation.methods.minent import MINENT
from esl_dist.adaptation.methods.source_only import SOURCE_ONLY

METHODS: dict[str, Method] = {
    "source_only": SOURCE_ONLY,
    "minent": MINENT,
    "advent": ADVENT,
}

__all__ = ["METHODS", "Method"]
