"""The methods by name: what a configuration can be checked with before torch, which takes seconds, is imported."""

from __future__ import annotations

from collections import UserDict
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from esl_dist.adaptation.methods.method import Method


class Entry(NamedTuple):
    """A method that is not imported yet.

    Attributes:
        place: `file:class` in the folder `methods`.
        needs_target: as the class says, which a test holds.
    """

    place: str
    needs_target: bool


class Catalogue(UserDict[str, Any]):
    """Methods by name; one that is an `Entry` is imported when it is asked for."""

    def __getitem__(self, name: str) -> Method:
        """Return a method, a KeyError if there is none of this name."""
        found = self.data[name]
        method: Method = (
            resolve_name(f"esl_dist.adaptation.methods.{found.place}")() if isinstance(found, Entry) else found
        )
        return method

    def needs_target(self, name: str) -> bool:
        """Say whether a method looks at target pictures without labels, without importing it."""
        return bool(self.data[name].needs_target)


METHODS = Catalogue(
    {
        "source_only": Entry("source_only:SourceOnly", needs_target=False),
        "minent": Entry("minent:MinEnt", needs_target=True),
        "advent": Entry("advent:AdvEnt", needs_target=True),
        "self_training": Entry("self_training:SelfTraining", needs_target=True),
        "masked_consistency": Entry("masked_consistency:MaskedConsistency", needs_target=True),
    }
)
