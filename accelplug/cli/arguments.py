"""Arguments that several commands take, and the checks that argparse does for them."""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser
from typing import Any


def at_least(low: float, kind: type[int] | type[float], high: float = sys.float_info.max) -> Any:
    """Return a reader for argparse that refuses numbers below `low` and above `high`, infinity by default."""

    def read(text: str) -> float:
        value = kind(text)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"{text} is too small, it takes at least {low}")
        if value > high:
            raise argparse.ArgumentTypeError(f"{text} is too large")
        return value

    read.__name__ = kind.__name__
    return read


def temperature(text: str) -> float:
    """Read a temperature for argparse: 0, or what scores may be divided by without running over."""
    value: float = at_least(0.0, float)(text)
    if 0 < value < 0.001:
        raise argparse.ArgumentTypeError(f"{text} is too small, it takes at least 0.001, or 0 for greedy decoding")
    return value


def add_verifier(parser: ArgumentParser, default: str | None = "token_wise") -> None:
    """Declare which rule verifies drafts, and whether it may be a lossy one; without a default it is left to a configuration."""
    said = default or "the configuration's, else token_wise"
    parser.add_argument("--verifier", metavar="SPEC", default=default, help=f"(default: {said})")
    parser.add_argument("--allow-lossy", action="store_true", help="accept a verifier that may change the output")


def add_engine(parser: ArgumentParser) -> None:
    """Declare how the model is loaded and how many CPU threads it gets."""
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "auto"), help="auto: as stored (default: float32 for the small model, else auto)"
    )
    parser.add_argument(
        "--threads", type=at_least(1, int, 4096), metavar="N", help="CPU threads (default: 1 for the small model, else the engine's choice)"
    )
