"""What the probes found with releases that were tested; of other releases they are run when they are needed."""

from __future__ import annotations

from typing import Final

_NOT_IN_OTHERS: Final = frozenset(
    {"$ref to an anchor", "$ref with siblings", "additionalItems", "items as a list", "multipleOf from zero on"}
)
_ALONE: Final = frozenset({"keywords together", "oneOf that overlaps"})
_CALENDAR: Final = frozenset({"format date", "format time", "format date-time"})  # days that a year lacks, seconds that a minute lacks
_NARROWER: Final = frozenset({"format email", "format uri"})  # quoted names, addresses of IPv6 that end in one of IPv4
_COUNTED_OPTIONAL: Final = frozenset({"minProperties beside optional properties", "maxProperties beside optional properties"})
RECORDED: Final[dict[str, frozenset[str]]] = {
    "llguidance 1.7.6": frozenset({"contains", "format hostname", "multipleOf", "propertyNames", "oneOf that overlaps", "uniqueItems"})
    | _COUNTED_OPTIONAL
    | _CALENDAR
    | _NARROWER
    | {"format ipv6"},
    "xgrammar 0.2.8": frozenset(
        {
            "allOf",
            "const of parts",
            "contains",
            "enum of parts",
            "format hostname",
            "maxLength",
            "minLength",
            "pattern",
            "patternProperties",
            "required",
            "uniqueItems",
        }
    )
    | _NOT_IN_OTHERS
    | _ALONE
    | frozenset({"anchors inside expressions"})
    | _CALENDAR
    | _NARROWER,
    "outlines 0.2.14": frozenset(
        {
            "additionalProperties",
            "allOf",
            "bounds of integers",
            "bounds of numbers",
            "contains",
            "exclusiveMaximum",
            "exclusiveMinimum",
            "format hostname",
            "format ipv4",
            "format ipv6",
        }
        | {
            "maxProperties",
            "maximum",
            "minProperties",
            "minProperties beside optional properties",
            "minimum",
            "multipleOf",
            "pattern",
            "pattern with classes",
            "patternProperties",
        }
        | {"patternProperties with classes", "prefixItems", "propertyNames", "required", "uniqueItems"}
        | {"items behind the first", "properties and others"}
    )
    | _NOT_IN_OTHERS
    | _ALONE
    | _CALENDAR
    | _NARROWER,
}
"""Engine and release -> the features of the table that it does not enforce."""
