"""Formats as expressions, where those say what the format means.

`exact` formats are those of whose expression every match passes jsonschema's validator too, so that nothing is left to check; of the others the
expression is what a mask follows, and the finished text is checked further.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Format(NamedTuple):
    """A format's expression, in ECMA 262, and whether that is all of it."""

    pattern: str
    exact: bool = True


_LEAP_YEAR: Final = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY: Final = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_YEAR: Final = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DATE: Final = rf"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME: Final = rf"{_CLOCK}:(?:[0-5][0-9])(?:\.[0-9]+)?(?:[zZ]|[+-]{_CLOCK})"
_DAYS: Final = r"(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)"
_HOURS: Final = r"T(?:[0-9]+S|[0-9]+M(?:[0-9]+S)?|[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?)"
_BYTE: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX: Final = r"[0-9a-fA-F]"
_H16: Final = rf"{_HEX}{{1,4}}"
_LS32: Final = rf"(?:{_H16}:{_H16}|{_IPV4})"
_FRONT: Final = [rf"(?:{_H16})?", *(rf"(?:(?:{_H16}:){{0,{n}}}{_H16})?" for n in range(1, 7))]
_BEHIND: Final = [*(rf"(?:{_H16}:){{{4 - n}}}{_LS32}" for n in range(4)), _LS32, _H16, ""]
_IPV6: Final = "|".join(
    [
        rf"(?:{_H16}:){{6}}{_LS32}",
        rf"::(?:{_H16}:){{5}}{_LS32}",
        *(f"{front}::{behind}" for front, behind in zip(_FRONT, _BEHIND, strict=True)),
    ]
)
_IP_LITERAL: Final = rf"{_IPV6}|[vV]{_HEX}+\.[A-Za-z0-9._~!$&'()*+,;=:-]+"
"""What stands in brackets in the place of a host (RFC 3986, 3.2.2)."""
_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_ESCAPED: Final = rf"%{_HEX}{{2}}"
_SCHEME: Final = r"[A-Za-z][A-Za-z0-9+.-]*"
_VARIABLE: Final = rf"(?:[A-Za-z0-9_]|{_ESCAPED})(?:\.?(?:[A-Za-z0-9_]|{_ESCAPED}))*(?::[1-9][0-9]{{0,3}}|\*)?"
_EXPANDED: Final = rf"\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}}"
_UCS: Final = [(0xA0, 0xD7FF), (0xF900, 0xFDCF), (0xFDF0, 0xFFEF), *((plane << 16, (plane << 16) + 0xFFFD) for plane in range(1, 14)), (0xE1000, 0xEFFFD)]
_PRIVATE: Final = [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]
_BEYOND_ASCII: Final = {"uri": ("", ""), "iri": tuple("".join(f"{chr(low)}-{chr(high)}" for low, high in ranges) for ranges in (_UCS, _PRIVATE))}
"""What may stand anywhere, and what in a query alone (RFC 3987, 2.2)."""
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"


def _resource(kind: str, *, relative: bool = False) -> str:
    """Return the expression of a resource's identifier (RFC 3986, appendix A; RFC 3987, 2.2), or of a reference, which may be relative."""
    everywhere, private = _BEYOND_ASCII[kind]

    def one(more: str = "") -> str:
        return rf"(?:[A-Za-z0-9._~!$&'()*+,;={more}{everywhere}-]|{_ESCAPED})"

    name, user, char, without_colon = one(), one(":"), one(":@"), one("@")
    segments = rf"(?:/{char}*)*"
    authority = rf"(?:{user}*@)?(?:\[(?:{_IP_LITERAL})\]|{name}*)(?::[0-9]*)?"
    rooted = rf"//{authority}{segments}|/(?:{char}+{segments})?"
    query, fragment = rf"(?:\?{one(':@/?' + private)}*)?", rf"(?:#{one(':@/?')}*)?"
    ways = [rf"{_SCHEME}:(?:{rooted}|{char}+{segments})?", *([rf"(?:{rooted}|{without_colon}+{segments})?"] if relative else [])]
    return f"^(?:{'|'.join(ways)}){query}{fragment}$"


FORMATS: Final[dict[str, Format]] = {
    "date": Format(rf"^{_DATE}$"),
    "time": Format(rf"^{_TIME}$"),
    "date-time": Format(rf"^{_DATE}[tT]{_TIME}$"),
    "duration": Format(rf"^P(?:[0-9]+W|{_DAYS}(?:{_HOURS})?|{_HOURS})$"),
    "email": Format(rf"^(?:{_ATOM}(?:\.{_ATOM})*|\"[^\"\\\r\n]*\")@(?:{_LABEL}(?:\.{_LABEL})*|\[(?:{_IPV4}|IPv6:(?:{_IPV6}))\])$"),
    "idn-email": Format(r"^[^@\s]+@[^@\s]+$"),
    "hostname": Format(rf"^(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*$", exact=False),  # xn-- begins a label that not every text makes
    "idn-hostname": Format(r"^[^\s/?#@]+$", exact=False),
    "ipv4": Format(rf"^{_IPV4}$"),
    "ipv6": Format(rf"^(?:{_IPV6})$"),
    "uuid": Format(rf"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$"),
    "uri": Format(_resource("uri")),
    "uri-reference": Format(_resource("uri", relative=True)),
    "iri": Format(_resource("iri")),
    "iri-reference": Format(_resource("iri", relative=True)),
    "json-pointer": Format(r"^(?:/(?:[^~/]|~[01])*)*$".replace("[^~/]", r"(?:[^~/]|\n|\r)")),
    "relative-json-pointer": Format(r"^(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/]|~[01])*)*)$", exact=False),
    "uri-template": Format(rf"^(?:[^\s\"'%<>\\^`{{|}}\x00-\x1f\x7f-\x9f]|{_ESCAPED}|{_EXPANDED})*$", exact=False),
    "regex": Format(r"^[\s\S]*$", exact=False),
}
"""Formats that are not here constrain nothing: an unknown format describes, says the specification."""
