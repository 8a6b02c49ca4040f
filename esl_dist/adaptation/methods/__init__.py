"""The adaptation methods. A new one is one new file with a `Method`, and one line in `adaptation/catalogue.py`."""

from esl_dist.adaptation.catalogue import METHODS
from esl_dist.adaptation.methods.method import Method, build_networks

__all__ = ["METHODS", "Method", "build_networks"]
