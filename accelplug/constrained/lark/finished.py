"""Which rules of a grammar lead to a finished text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

Symbols = list[str]
Rules = dict[str, list[Symbols]]
MOST_LOOKS: Final = 3
"""So often all rules are looked at again before it is counted what they wait for, which takes longer for the few rules that most grammars are."""


def finished(rules: Rules, start: str) -> Rules | None:
    """Return the rules that lead to a finished text, None where the first does not; without what may be left out and does not."""
    is_rule = rules.__contains__
    needed = {
        name: [_needed(symbols, rules) if symbols and symbols[-1][-1] == "}" else list(filter(is_rule, symbols)) for symbols in alternatives]
        for name, alternatives in rules.items()
    }
    alive = _alive(needed)
    if start not in alive:
        return None
    if len(alive) == len(rules):
        return rules
    return {name: list(_left(rules[name], needed[name], alive)) for name in rules if name in alive}


def _left(alternatives: list[Symbols], needed: list[Symbols], alive: set[str]) -> Iterator[Symbols]:
    for symbols, rules in zip(alternatives, needed, strict=True):
        if alive.issuperset(rules):
            yield [symbol for symbol in symbols if not symbol[0].islower() or symbol.partition("{")[0] in alive]


def _alive(needed: Rules) -> set[str]:
    """Return the rules that lead to a finished text. They are looked at from the first on, then from the last, as most lead on one way."""
    found: set[str] = set()
    left = list(needed)
    for _ in range(MOST_LOOKS):
        before = len(left)
        left = _others(left, needed, found)[::-1]
        if not left or len(left) == before:
            return found
    _count(left, needed, found)
    return found


def _others(names: list[str], needed: Rules, found: set[str]) -> list[str]:
    """Add what is seen to lead to a finished text by what was found before; return the other rules."""
    others = []
    for name in names:
        for rules in needed[name]:
            if found.issuperset(rules):
                found.add(name)
                break
        else:
            others.append(name)
    return others


def _count(names: list[str], needed: Rules, found: set[str]) -> None:
    """Add what else leads to a finished text, by counting what each alternative still waits for."""
    waiting: defaultdict[str, list[list[Any]]] = defaultdict(list)
    ready: list[str] = []
    for name in names:
        for rules in needed[name]:
            others = [one for one in rules if one not in found]
            left: list[Any] = [name, len(others)]
            for one in others:
                waiting[one].append(left)
            if not others:
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
    """Return the rules without which an alternative that ends in a repetition leads to no finished text: not those that may be left out."""
    found = list(filter(rules.__contains__, symbols))
    repeated = symbols[-1]
    if repeated[0].islower() and "{0," not in repeated:
        found.append(repeated.partition("{")[0])
    return found
