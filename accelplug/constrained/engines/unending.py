r"""Lark grammars in which llguidance might force a text without an end, where it would never come back.

A terminal takes as much as it can. Where all that may follow it begins as it goes on (``start: A B``, ``A: /a+/``, ``B: /a/``), its one way on is one
more of the same, for ever. That takes a terminal that repeats one text only, which few have: ``/[a-z]+/`` and ``/(\\.|[^"])*/`` are none.
Several texts are told by a class of several characters: ``(a|a)*`` and ``(a?a)*`` repeat one, and ``(ab|c)*``, taken for one text, only loses its forcing.
"""

from __future__ import annotations

import re
from typing import Final

from accelplug.constrained.regex.parse import SIGN, Reader, UnsupportedPatternError
from accelplug.constrained.regex.tree import normal

NO_FORCING: Final = '\n%llguidance {"no_forcing": true}\n'
_SIGNS: Final = re.compile(
    r"""//[^\n]* | (?P<text>"(?:\\.|[^"\\\n])*"i?) | /(?P<regex>(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n])+)/[a-z]*
    | (?P<begins>^[ \t]*(?:%\w+|[?!]?(?P<defined>[A-Za-z_]\w*)[^:\n"/|]*:)) | (?P<used>[A-Za-z_]\w*) | (?P<other>\S)""",
    re.VERBOSE | re.MULTILINE,
)
_IMPORTED: Final = re.compile(r"^[ \t]*%import\b(.*)", re.MULTILINE)
_ONE_CHARACTER: Final = re.compile(r"\b(?:CR|LF)\b")
"""Of the terminals that may be imported."""
_GROUP: Final = re.compile(r"\(\?(?:[A-Za-z-]*:|P?<\w+>)")
_SHORT: Final = re.compile(r"\\[dDwWsS]|\.")
_PLAIN_CLASS: Final = re.compile(r"\[\^?(?:\\(?:[dDwWsSnrtfv]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|\W)|[^\[\]\\&~-]|([-&~])(?!\1))+\]")
"""A class that every dialect reads alike."""
_CHANGES: Final = re.compile(r"\{0+(?:,0+)?\}|\(\?[a-z-]*x|(?<![\s(|:&~])/[a-z]*x[a-z]*(?![\w/])")
"""What takes a class out again, or reads it otherwise: no repetition, and the flag for blanks that mean nothing."""
_WITHOUT_END: Final = re.compile(r"[*+]|\{\d*,\}")
_SET_TO_SET: Final = ("&", "~")


def may_go_on(lark: str) -> bool:
    """Whether a terminal of a Lark grammar may repeat one text only, as far as that is seen at sight."""
    if not _WITHOUT_END.search(lark.replace(" ", "")):
        return False
    defined, expressions = _terminals(_IMPORTED.sub("", lark))
    varied = {name for line in _IMPORTED.findall(lark) if not _ONE_CHARACTER.search(line) for name in re.findall(r"\w+", line)}
    varied |= {name for name, signs in defined.items() if any(map(_has_several, signs))}
    terminals = [["." if sign in varied else sign for sign in signs] for signs in defined.values()]
    changed = _CHANGES.search(lark) or any(sign in _SET_TO_SET for signs in terminals for sign in signs)
    return bool(changed) or any(map(_repeats_one, [*expressions, *terminals]))


def _has_several(sign: str) -> bool:
    """Whether one of several characters may stand here, as far as that is read alike everywhere."""
    if not _PLAIN_CLASS.fullmatch(sign):
        return _SHORT.fullmatch(sign) is not None
    try:
        ranges = normal(Reader(sign[1:]).bracket())
    except UnsupportedPatternError:
        return False
    return sum(last - first + 1 for first, last in ranges) > 1


def _terminals(lark: str) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Return what the definition of each terminal is made of, by its name, and what each expression is."""
    defined, expressions, inside = dict[str, list[str]](), list[list[str]](), list[str]()
    for sign in _SIGNS.finditer(lark):
        if sign["begins"]:
            inside = list[str]()
            if sign["defined"] and sign["defined"].isupper():
                defined[sign["defined"]] = inside
        elif sign["regex"]:
            expressions.append([one[0] for one in SIGN.finditer(_GROUP.sub("(", sign["regex"]))])
            inside += ["(", *(f" {one}" if one in _SET_TO_SET else one for one in expressions[-1]), ")"]
        elif sign["text"] or sign["used"] or sign["other"]:
            inside.append('"' if sign["text"] else sign[0])
    return defined, expressions


def _repeats_one(signs: list[str]) -> bool:
    """Whether one text is repeated without a bound."""
    opened, last = list[int](), 0
    for at, sign in enumerate(signs):
        if _WITHOUT_END.match("".join(signs[at : at + 12])) and not any(map(_has_several, signs[last:at])):
            return True
        if sign == "(":
            opened.append(at)
        last = at if sign != ")" else opened.pop() if opened else 0
    return False
