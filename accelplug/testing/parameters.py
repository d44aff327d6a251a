"""Options that requests may set for themselves: what they are for requests that set none, and what else they may be."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any

from accelplug._errors import OptionError
from accelplug.hooks.options import check_value, fields_of, offers_of, per_request_options
from accelplug.hooks.registry import Technique


def own_values(technique: Technique) -> dict[str, Any]:
    """Return the value that each of a technique's per-request options has for requests that set none."""
    fields = fields_of(technique.factory)
    return {name: getattr(technique.instance, name, fields[name].default) for name in per_request_options(technique.factory)}


def other_values(technique: Technique, name: str) -> Iterator[Any]:
    """Yield other values of an option, as far as its declaration tells: of a number the bounds and those next to its own, of a truth value the other."""
    own, offer = own_values(technique)[name], offers_of(str(technique), technique.factory)[name]
    bounds = [bound for bound in (offer.metadata["ge"], offer.metadata["le"]) if bound is not None]
    if not isinstance(own, int | float | NoneType):
        return
    beside = [own - 1, own + 1] if bounds and isinstance(own, int | float) else []
    for value in [not own] if isinstance(own, bool) else dict.fromkeys([*bounds, *beside]):
        try:
            check_value(offer.who, name, value, offer.annotation, offer.metadata)
        except OptionError:
            continue
        if value != own:
            yield value
