"""Numbers of JSON without their sign, as expressions over their digits: bounds, multiples, fractions.

A number is written plainly, ``12.50``, or with one digit before the point and an exponent, ``1.25e+01``.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from accelplug.constrained.regex.tree import EMPTY, NOTHING, Regex, alt, both, cat, chars, literal, rep

MOST_ENDINGS: Final = 1000
_MOST_PLAIN: Final = 4  # digits behind the point, up to which floats are written without an exponent
_LONGEST_FLOAT: Final = 16  # digits behind the point of its mantissa


def _digit(low: int, high: int) -> Regex:
    return chars([(0x30 + low, 0x30 + high)]) if low <= high else NOTHING


def _maybe(part: Regex) -> Regex:
    return rep(part, 0, 1)


_DIGIT: Final = _digit(0, 9)
_DIGITS: Final = rep(_DIGIT)
_ZEROS: Final = rep(literal("0"))
_NO_FRACTION: Final = _maybe(cat(literal("."), literal("0"), _ZEROS))
_FRACTION: Final = cat(literal("."), _DIGIT, _DIGITS)
_E: Final = chars([(0x45, 0x45), (0x65, 0x65)])
_PLUS, _MINUS = _maybe(literal("+")), literal("-")
_MANTISSA: Final = cat(_digit(1, 9), _maybe(_FRACTION))
_SMALL: Final = cat(_MANTISSA, _E, _MINUS, _ZEROS, _digit(1, 9), _DIGITS)
INTEGER: Final = alt(literal("0"), cat(_digit(1, 9), _DIGITS))
NUMBER: Final = alt(cat(INTEGER, _maybe(_FRACTION)), cat(_MANTISSA, _E, alt(_PLUS, _MINUS), _DIGIT, _DIGITS))
ANY: Final = cat(_maybe(literal("-")), INTEGER, _maybe(_FRACTION), _maybe(cat(_E, alt(_PLUS, _MINUS), _DIGIT, _DIGITS)))
"""Whatever JSON calls a number, its sign included."""
ANY_INTEGER: Final = cat(_maybe(literal("-")), INTEGER)
FRACTIONAL: Final = alt(cat(INTEGER, literal("."), _DIGITS, _digit(1, 9), _DIGITS), _SMALL)


@lru_cache(maxsize=1024)
def integers_up_to(bound: int) -> Regex:
    """Return the integers from 0 to a bound that is no less, written without a point."""
    return alt(_integers_below(str(bound)), literal(str(bound)))


@lru_cache(maxsize=1024)
def up_to(bound: Any, *, exclusive: bool) -> Regex:
    """Return the numbers below a bound that is no less than 0, and the bound itself unless `exclusive`."""
    value = Decimal(str(bound))
    whole, _, fraction = format(value, "f").partition(".")
    fraction = fraction.rstrip("0")
    found = [_up_to(whole, fraction, exclusive=exclusive)]
    if value:
        power, digits = value.adjusted(), (whole + fraction).strip("0")
        found.append(cat(_MANTISSA, _E, _powers_below(power)))
        found.append(cat(_up_to(digits[0], digits[1:], exclusive=exclusive), _E, _power(power)))
    return alt(*found)


def _up_to(whole: str, fraction: str, *, exclusive: bool) -> Regex:
    """Return what is written plainly and lies below ``whole.fraction``."""
    below = [cat(_integers_below(whole), _maybe(_FRACTION))]
    if fraction:
        below.append(cat(literal(whole), _maybe(cat(literal("."), _fractions_below(fraction)))))
    same = cat(literal(whole), cat(literal("." + fraction), _ZEROS) if fraction else _NO_FRACTION)
    return alt(*below, *([] if exclusive else [same]))


def _integers_below(number: str) -> Regex:
    shorter = [literal("0"), cat(_digit(1, 9), rep(_DIGIT, 0, len(number) - 2))] if len(number) > 1 else []
    long = len(number) > 1
    return alt(*shorter, *(cat(literal(number[:at]), _digit(int(long and at == 0), int(digit) - 1), left) for at, digit, left in _digits_of(number)))


def _integers_above(number: str) -> Regex:
    above = (cat(literal(number[:at]), _digit(int(digit) + 1, 9), left) for at, digit, left in _digits_of(number))
    return alt(cat(_digit(1, 9), rep(_DIGIT, len(number), None)), *above)


def _digits_of(number: str) -> Iterator[tuple[int, str, Regex]]:
    """Yield the digits, each with as many as are left behind it. Expressions are written side by side: engines take none within a hundred others."""
    for at, digit in enumerate(number):
        yield at, digit, rep(_DIGIT, len(number) - at - 1, len(number) - at - 1)


def _fractions_below(digits: str) -> Regex:
    """Return the digits behind a point, at least one, of less than `digits`, whose last is no 0."""
    less = (cat(literal(digits[:at]), _digit(0, int(digit) - 1), _DIGITS) for at, digit in enumerate(digits))
    return alt(*less, *(literal(digits[:end]) for end in range(1, len(digits))))


def _powers_below(bound: int) -> Regex:
    if bound > 0:
        return alt(cat(_MINUS, _DIGIT, _DIGITS), cat(_PLUS, _ZEROS, _integers_below(str(bound))))
    return cat(_MINUS, _ZEROS, _integers_above(str(-bound)))


def _power(value: int) -> Regex:
    sign = _MINUS if value < 0 else _PLUS if value else alt(_PLUS, _MINUS)
    return cat(sign, _ZEROS, literal(str(abs(value))))


@lru_cache(maxsize=256)
def multiples(step: Fraction) -> Regex | None:
    """Return the multiples of a step; None where that is no short expression.

    The step has an end in decimal. In units of its last place it is 3 or 1 times what the last digits of a number decide.
    """
    places = 0
    while (step * 10**places).denominator != 1:
        places += 1
    units = (step * 10**places).numerator
    threes = units % 3 == 0
    if places > _MOST_PLAIN and units > 1:
        return None  # floats so small are written with an exponent
    small = [_small(places - power, power) for power in range(1, places + 1)] if units == 1 else []
    units //= 3 if threes else 1
    decided = next((count for count in range(10) if 10**count % units == 0), None)
    if decided is None or 10**decided // units > MOST_ENDINGS:
        return None
    endings = [str(number).rjust(decided, "0") if decided else "" for number in range(0, 10**decided, units)]
    found = alt(*(_ending(text, places, decided) for text in endings))
    if threes:
        return both(found, _THREES)
    large = cat(_digit(1, 9), _maybe(cat(literal("."), rep(_DIGIT, 1, _LONGEST_FLOAT))), _E)
    return alt(found, *small, cat(large, _PLUS, _ZEROS, _integers_above(str(_LONGEST_FLOAT - 1 + max(0, decided - places)))))


def _small(most: int, power: int) -> Regex:
    """Return numbers with a negative exponent and at most so many digits behind the point, where every last digit will do."""
    digits = cat(literal("."), rep(_DIGIT, 1, most)) if most else EMPTY
    return cat(_digit(1, 9), _maybe(digits), _E, _MINUS, _ZEROS, literal(str(power)))


def _ending(text: str, places: int, decided: int) -> Regex:
    """Return the numbers that, with `places` digits behind the point, end in `text`."""
    split = max(0, decided - places)
    whole, fraction = text[:split], text[split:].rstrip("0")
    front = alt(cat(_digit(1, 9), _DIGITS, literal(whole)), literal(str(int(whole or "0")))) if split else INTEGER
    free = max(0, places - decided)
    if fraction:
        return cat(front, literal("."), rep(_DIGIT, free, free), literal(fraction), _ZEROS)
    return cat(front, _maybe(cat(literal("."), rep(_DIGIT, 1, free), _ZEROS)) if free else _NO_FRACTION)


def _threes() -> Regex:
    """Return the digits, and points among them, of multiples of 3: the automaton of remainders, its states taken out one by one."""
    same, one, two = (chars([(ord(sign), ord(sign)) for sign in signs]) for signs in ("0369.", "147", "258"))
    stay = rep(same)
    to_two, at_two, home = alt(two, cat(one, stay, one)), alt(same, cat(two, stay, one)), alt(one, cat(two, stay, two))
    return rep(alt(same, cat(one, stay, two), cat(to_two, rep(at_two), home)))


_THREES: Final = _threes()
