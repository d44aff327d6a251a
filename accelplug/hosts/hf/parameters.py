"""Options that requests set for themselves: one value for every row of a call, or a list with one value per row."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from accelplug._errors import OptionError
from accelplug.hooks.capabilities import Selection
from accelplug.hooks.options import check_request, is_number, offers_of
from accelplug.hooks.registry import Technique


class Parameters:
    """What the requests of a session set, checked against what its drafter and its verifier offer to requests.

    :raises OptionError: nobody offers such an option, or a value is of another type or out of its bounds.
    """

    def __init__(self, selection: Selection, given: Mapping[str, Any]) -> None:
        if not isinstance(given, Mapping):
            raise OptionError(f"parameters are a mapping such as {{'num_tokens': 4}}, got {given!r:.60}")
        self.given = MappingProxyType({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
        techniques = [technique for technique in (selection.drafter, selection.verifier) if technique is not None]
        self._offers = {technique.kind: offers_of(str(technique), technique.factory) for technique in techniques}
        everybody = {name: offer for offers in self._offers.values() for name, offer in offers.items()}
        for name, value in given.items():
            for one in value if isinstance(value, list) else [value]:
                check_request("accelplug", {name: one}, everybody)
                for offers in self._offers.values():  # a drafter and a verifier may have an option of the same name
                    check_request("accelplug", {name: one} if name in offers else {}, offers)
        for name, offer in self._offers[selection.verifier.kind].items():
            if name in self.given and not is_number(offer.annotation):
                raise OptionError(f"{selection.verifier} lets requests set {name!r}, which rules read in a tensor; make it int, float or bool")

    def rows(self, technique: Technique, count: int) -> dict[str, npt.NDArray[Any]]:
        """Return what the rows of a call set of a technique's options, name -> [count].

        :raises OptionError: a list has another number of values than the call has rows.
        """
        found = {}
        for name, value in self.given.items():
            values = value if isinstance(value, tuple) else [value] * count
            if len(values) != count:
                raise OptionError(f"parameters: {name!r} has {len(values)} values for {count} rows; give one value for each row, or one for all")
            if name in self._offers[technique.kind]:
                found[name] = np.array(values)
        return found
