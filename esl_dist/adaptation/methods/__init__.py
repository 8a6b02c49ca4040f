"""The adaptation methods. A new one is one new file with a `Method`, and one line in the table below."""

from esl_dist.adaptation.methods.advent import AdvEnt
from esl_dist.adaptation.methods.method import Method, build_networks
from esl_dist.adaptation.methods.minent import MinEnt
from esl_dist.adaptation.methods.source_only import SourceOnly

METHODS: dict[str, Method] = {
    "source_only": SourceOnly(),
    "minent": MinEnt(),
    "advent": AdvEnt(),
}

__all__ = ["METHODS", "Method", "build_networks"]
