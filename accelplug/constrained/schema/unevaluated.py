"""``unevaluatedProperties`` and ``unevaluatedItems``."""

from __future__ import annotations

from collections.abc import Iterator

from accelplug.constrained.schema.clauses import Clause, Place


def unevaluated(place: Place) -> Iterator[Clause]:
    """What no keyword beside, or in a schema applied beside, has looked at. Checked at the end."""
    kind = "object" if place.keyword == "unevaluatedProperties" else "array"
    if place.kind == kind and place.document.draft >= 2019 and place.value is not True:
        yield place.unknown()
