"""Which rules of a grammar lead to a finished text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

Symbols = list[str]
Rules = dict[str, list[Symbols]]
MOST_LOOKS: Final = 3
"""So often all rules are looked at again before it is counted what they wait for, which takes longer for the few rules that most grammars are."""


def alive(rules: Rules) -> set[str]:
    """Return the rules that lead to a finished text. They are looked at from the first on, then from the last, as most lead on one way."""
    found: set[str] = set()
    left = list(rules)
    for _ in range(MOST_LOOKS):
        before = len(left)
        left = _others(left, rules, found)[::-1]
        if not left or len(left) == before:
            return found
    _count(left, rules, found)
    return found


def finished(alternatives: list[Symbols], rules: Rules, alive_ones: set[str]) -> Iterator[Symbols]:
    """Return the alternatives that lead to a finished text, without what may be left out and does not."""
    for symbols in alternatives:
        if alive_ones.issuperset(_needed(symbols, rules)):
            yield [symbol for symbol in symbols if not symbol[0].islower() or symbol.partition("{")[0] in alive_ones]


def _others(names: list[str], rules: Rules, found: set[str]) -> list[str]:
    """Add what is seen to lead to a finished text by what was found before; return the other rules."""
    others = []
    for name in names:
        for symbols in rules[name]:
            if found.issuperset(_needed(symbols, rules)):
                found.add(name)
                break
        else:
            others.append(name)
    return others


def _count(names: list[str], rules: Rules, found: set[str]) -> None:
    """Add what else leads to a finished text, by counting what each alternative still waits for."""
    waiting: defaultdict[str, list[list[Any]]] = defaultdict(list)
    ready: list[str] = []
    for name in names:
        for symbols in rules[name]:
            needed = [one for one in _needed(symbols, rules) if one not in found]
            left: list[Any] = [name, len(needed)]
            for one in needed:
                waiting[one].append(left)
            if not needed:
                ready.append(name)
    while ready:
        name = ready.pop()
        if name in found:
            continue
        found.add(name)
        for left in waiting[name]:
            left[1] -= 1
            if not left[1]:
                ready.append(left[0])


def _needed(symbols: Symbols, rules: Rules) -> list[str]:
    """Return the rules without which an alternative leads to no finished text: not those that may be left out."""
    found = [symbol for symbol in symbols if symbol in rules]
    repeated = symbols[-1] if symbols else ""
    if repeated[-1:] == "}" and repeated[0].islower() and "{0," not in repeated:
        found.append(repeated.partition("{")[0])
    return found
