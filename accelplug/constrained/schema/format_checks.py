"""What the final check asks of formats beyond jsonschema's validators and the expressions that masks follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from accelplug.constrained.regex.parse import SIGN

_ASCII_LABEL: Final = re.compile(r"xn--", re.IGNORECASE)
_STOPS: Final = re.compile("[.\u3002\uff0e\uff61]")
_RIGHT_TO_LEFT: Final = ("R", "AL", "AN")
_OTHERS: Final = re.compile(r"\(\?(?:P|[A-Za-z]+\))")


def is_hostname(value: str) -> bool:
    """Whether every label that stands for an internationalised one does (RFC 5890, 2.3.2.1)."""
    return all(_is_ascii_label(label) for label in value.split(".") if _ASCII_LABEL.match(label))


def _is_ascii_label(label: str) -> bool:
    import idna

    try:
        idna.check_label(idna.ulabel(label.lower()))
    except (idna.IDNAError, UnicodeError):
        return False
    return True


def is_international_hostname(value: str) -> bool:
    """Whether no label is empty, and where one is written from right to left all keep to the rule of those (RFC 5893, 2)."""
    import unicodedata

    import idna

    labels = _STOPS.split(value)
    if not all(labels) or not is_hostname(".".join(labels)):
        return False
    if any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in value):
        try:
            return all(idna.check_bidi(label, check_ltr=True) for label in labels)
        except idna.IDNAError:
            return False
    return True


def is_ecma(value: str) -> bool:
    """Whether an expression has no group that other dialects alone have: ``(?P<name>`` and flags for the rest of the text."""
    return not any(_OTHERS.match(value, sign.start()) for sign in SIGN.finditer(value))


MORE: Final[Mapping[str, Callable[[str], bool]]] = {
    "hostname": is_hostname,
    "idn-hostname": is_international_hostname,
    "regex": is_ecma,
}
"""Format -> what else must hold of a text."""
