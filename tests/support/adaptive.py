"""What the tests of adaptive drafting share: tables of costs, sources, and a context that builds them."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelplug.hooks import DrafterTraits, NodeKind, Owner, Technique
from accelplug.hooks.paying import seconds_by_width

FLAT = {width: 1.0 + 0.02 * (width - 1) for width in range(1, 10)}
STEEP = {1: 1.0, 3: 1.6, 9: 4.0}


def seconds_of(table, width):
    """Return what a step of a width takes by a table."""
    return seconds_by_width(table, width)[-1]


RIGHT, WRONG = 0, 1


class Always:
    """Drafts the token that is right."""

    def propose_one(self, tokens, budget):
        return [RIGHT] * budget


class Dear(Always):
    """Needs more than tokens, so that nothing is asked of it in vain."""

    traits = DrafterTraits(kinds={NodeKind.DELTA, NodeKind.SAMPLED})


@dataclass
class Given:
    """As much of an engine as adaptive drafting asks."""

    table: dict = field(default_factory=lambda: dict(FLAT))
    source: object = field(default_factory=Always)
    vocab_size: int = 2

    def build(self, kind, source):
        return Technique(kind, "always", Owner("tests", "tests", "0"), self.source, type(self.source), str(source))

    def step_seconds(self):
        return self.table
