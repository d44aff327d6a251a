"""A Lark grammar being written: rules by state, terminals by expression, and what no rule could say."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from decimal import Decimal
from functools import lru_cache
from itertools import permutations
from operator import attrgetter
from typing import Any, Final

from accelplug._errors import ConstraintError
from accelplug.constrained.lark.finished import Symbols, finished
from accelplug.constrained.lark.terminals import choice, terminal
from accelplug.constrained.regex.derive import grows_far, is_empty_if_decided, is_tangled
from accelplug.constrained.regex.quoted import quoted
from accelplug.constrained.regex.tree import EVERY, Regex, alt, both, without
from accelplug.constrained.schema.atoms import Atom, Inexact, written
from accelplug.constrained.schema.branches import Tableau
from accelplug.constrained.schema.document import State
from accelplug.constrained.schema.ledger import Branch
from accelplug.constrained.schema.sources import sources

Cell = tuple[Regex, frozenset[Regex]]
MOST_SYMBOLS: Final = 60_000
"""llguidance makes a symbol of every rule, and of every step within an alternative, and numbers them in 16 bits."""
MOST_PERMUTED: Final = 4
FREE_STRING: Final = r'/"(\\(["\\\/bfnrt]|u[a-fA-F0-9]{4})|[^"\\\x00-\x1F])*"/'
_SEPARATORS: Final = {"any": ('","', '":"'), "spaced": ('", "', '": "'), "compact": ('","', '":"')}


class TooLargeError(ConstraintError):
    """A schema's grammar is larger than an engine should be given."""


class Builder:
    """Collects rules. A rule's name begins with a small letter, a terminal's with a capital; anything else is written as it is."""

    def __init__(self, tableau: Tableau, whitespace: str, *, any_order: bool, coarse: bool = False, may_nest: bool = True) -> None:
        """Begin a grammar.

        :param whitespace: as in a GrammarSpec.
        :param any_order: whether an object's required properties may come in any order.
        :param coarse: leave intersections and complements of expressions to the final check.
        :param may_nest: whether the engine takes a schema within a grammar, as it does not behind blanks in every release.
        """
        self.tableau, self.whitespace, self.any_order, self.coarse = tableau, whitespace, any_order, coarse
        self.may_nest = may_nest
        self.comma, self.colon = _SEPARATORS[whitespace]
        self.rules: dict[str, list[Symbols]] = {}
        self.inexact: dict[str, None] = {}
        self.cells: dict[tuple[tuple[str, ...], tuple[Regex, ...]], tuple[list[Cell], int]] = {}
        self.shared: dict[tuple[int, bool], str] = {}
        self._numbers: dict[Hashable, int] = {}
        self._terminals: dict[str, str] = {}
        self._strings: dict[Regex, str | None] = {}
        self._weakened: dict[Regex, Regex] = {}
        self._too_much: dict[Regex, bool] = {}
        self._given_up: set[tuple[State, str, frozenset[Atom]]] = set()
        self._writing: tuple[State, str, Branch] = (frozenset(), "null", ())
        self._states: dict[State, str] = {}
        self._waiting: list[tuple[str, State]] = []
        self._symbols = 0

    def terminal(self, text: str) -> str:
        """Return the name of a terminal."""
        return self._terminals.setdefault(text, f"T{len(self._terminals)}")

    def string(self, regex: Regex) -> str | None:
        """Return the terminal of the JSON strings whose value matches, None if there are none."""
        found = self._strings.get(regex, "")  # which no terminal is called
        if found == "":
            found = self._strings[regex] = self._new_string(regex)
        return found

    def _new_string(self, regex: Regex) -> str | None:
        name = _name(regex) if regex.op == "cat" else None
        if name is not None:
            return self.terminal(name)
        regex = self.weakened(regex)
        if is_empty_if_decided(regex):
            return None
        return self.terminal(FREE_STRING if regex == EVERY else _string(regex))

    def is_too_much(self, regex: Regex) -> bool:
        """Whether an expression would take engines for ever, too."""
        found = self._too_much.get(regex)
        if found is None:
            self.tableau.check_time()
            empty = is_empty_if_decided(regex)
            found = empty is None or (regex.is_algebraic and (self.coarse or (not empty and (is_tangled(regex) or grows_far(regex)))))
            self._too_much[regex] = found
        return found

    def weakened(self, regex: Regex) -> Regex:
        """Return an expression, or of one that is too much as many of the conditions in it, the small ones first, as are not."""
        found = self._weakened.get(regex)
        if found is None:
            found = self._weakened[regex] = both(*self.kept(_conditions(regex))) if self.is_too_much(regex) else regex
        return found

    def kept(self, regexes: list[Regex]) -> list[Regex]:
        """Return those of several expressions that are together not too much, the small ones first as far as that goes."""
        kept: list[Regex] = []
        for regex in sorted(regexes, key=_SIZE):
            if not self.is_too_much(both(*kept, regex)):
                kept.append(regex)
        return kept

    def texts(self, texts: list[str]) -> str:
        """Return the terminal of literal texts."""
        return self.terminal(choice(texts))

    def new(self, kind: str) -> str:
        """Return a fresh rule name."""
        name = f"{kind}{len(self.rules)}"
        self.rules[name] = []
        return name

    def add(self, rule: str, *symbols: str) -> None:
        """Give a rule one more alternative.

        :raises TooLargeError: the grammar has grown too large.
        """
        self.rules[rule].append([*symbols])
        if len(symbols) > 1:
            self._symbols += len(symbols) - 1
        if self._symbols + len(self.rules) > MOST_SYMBOLS:
            raise TooLargeError(f"the schema becomes a grammar of more than {MOST_SYMBOLS} symbols; simplify its combinations")

    def number(self, what: Hashable) -> int:
        """Return a number that is the same for what is equal."""
        return self._numbers.setdefault(what, len(self._numbers))

    def checked(self, *atoms: object) -> None:
        """Note what is checked at the end."""
        for atom in atoms:
            if isinstance(atom, Inexact):
                self.inexact[atom.place] = None

    def give_up(self, is_meant: Callable[[Atom], bool]) -> None:
        """Leave atoms of the branch that is being written to the final check: the keywords that said them."""
        state, kind, branch = self._writing
        atoms = frozenset(filter(is_meant, branch))
        if atoms and (state, kind, atoms) not in self._given_up:
            self._given_up.add((state, kind, atoms))
            self.inexact.update(dict.fromkeys(sources(self.tableau.document, state, kind, atoms)))

    def value(self, state: State) -> str:
        """Return the rule of a state."""
        name = self._states.get(state)
        if name is not None:
            return name
        said = [signed for signed in state if signed[1].value is not signed[0]]
        if len(said) < len(state):
            return self.value(frozenset(said))
        self._states[state] = name = f"v{len(self._states)}"
        self.rules[name] = []
        self._waiting.append((name, state))
        return name

    def work(self, shapes: dict[str, Callable[[Builder, Branch], list[Symbols]]]) -> None:
        """Write the rules of every state that was asked for, and of those that they ask for."""
        while self._waiting:
            name, state = self._waiting.pop()
            for kind, branches in self.tableau.kinds(state):
                for branch in branches:
                    self._writing = state, kind, branch
                    if (written := shapes[kind](self, branch)) and branch:
                        self.checked(*branch)
                    for symbols in written:
                        self.add(name, *symbols)

    def literal(self, value: Any) -> Symbols:
        """Return the symbols of a fixed value, with freedom between its parts only."""
        if isinstance(value, dict) and value:
            pairs = [[self.texts([written(key)]), self.colon, *self.literal(one)] for key, one in value.items()]
            return ['"{"', *self._in_order(pairs), '"}"']
        if isinstance(value, list) and value:
            return ['"["', *self._listed([self.literal(one) for one in value]), '"]"']
        if value in ({}, []) and not isinstance(value, bool | int | float):
            return ['"{"', '"}"'] if value == {} else ['"["', '"]"']
        return [self.texts(spellings(written(value)))]

    def _in_order(self, pairs: list[Symbols]) -> Symbols:
        """Put a fixed object's properties one after the other, in any order where that is asked for and they are few."""
        if not self.any_order or not 1 < len(pairs) <= MOST_PERMUTED:
            return self._listed(pairs)
        rule = self.new("fixed")
        for order in permutations(pairs):
            self.add(rule, *self._listed(list(order)))
        return [rule]

    def _listed(self, parts: list[Symbols]) -> Symbols:
        return [*parts[0], *(symbol for part in parts[1:] for symbol in (self.comma, *part))]

    def write(self, start: str) -> str | None:
        """Return the grammar's text, None where it has no text at all. What can never be finished is left out."""
        rules = finished(self.rules, start)
        if rules is None:
            return None
        lines, used = [f"start: {start}"], set[str]()
        for name, alternatives in rules.items():
            kept = dict.fromkeys([" ".join(symbols) or '""' for symbols in alternatives])
            used.update(*alternatives)
            lines.append(f"{name}: " + "\n  | ".join(kept))
        lines.extend(f"{name}: {text}" for text, name in self._terminals.items() if name in used)
        if self.whitespace == "any":
            lines.append(r"%ignore /[ \t\r\n]+/")
        return "\n".join(lines) + "\n"


def _conditions(regex: Regex) -> list[Regex]:
    """Return expressions all of which match where this one does; texts that are forbidden stay together."""
    found: list[Regex] = []
    for part in regex.parts if regex.op == "and" else (regex,):
        inner = part.parts[0] if part.op == "not" else part
        if part.op == "not" and inner.op == "alt":
            texts = [one for one in inner.parts if one.literals]
            found += [without(one) for one in (*([alt(*texts)] if texts else []), *inner.unwritten)]
        else:
            found.append(part)
    return found


_SIZE: Final = attrgetter("size")


@lru_cache(maxsize=1 << 13)
def _name(regex: Regex) -> str | None:
    """Return the terminal of one literal text, as most are: `_string` would come to the same."""
    if len(regex.literals) != 1 or not (text := next(iter(regex.literals))).isascii():
        return None
    return choice([written(text)])


@lru_cache(maxsize=256)
def _string(regex: Regex) -> str:
    """Return the terminal of the JSON strings whose value matches; formats come again with many schemas."""
    return terminal(quoted(regex))


def spellings(text: str) -> list[str]:
    """Return how a value that is no object and no list may be written: as the schema has it, and a number without a fraction of 0, or an exponent."""
    value = None if text[0] == '"' else json.loads(text)
    if isinstance(value, float) and value.is_integer():
        return [text, str(int(value))]
    return [text, format(Decimal(text), "f")] if isinstance(value, float) and "e" in text else [text]
