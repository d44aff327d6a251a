"""Show a drafter committed tokens as a host would, in reused arrays that are overwritten after every call."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from accelplug.hooks import ROOT, CommitView, Drafts, DraftView, Verified

ROW = np.zeros(1, dtype=np.int64)


def start(drafter: Any, slot: int = 0) -> None:
    drafter.start(np.array([slot]))


def finish(drafter: Any, slot: int = 0) -> None:
    drafter.finish(np.array([slot]))


def commit(drafter: Any, tokens: Sequence[int], steps: Sequence[int] = (), slot: int = 0, verified: Verified | None = None) -> None:
    """Commit `tokens` in pieces that end at `steps`; what the drafter may not keep is overwritten after each."""
    begin = 0
    for end in [*steps, len(tokens)] if not steps or steps[-1] < len(tokens) else steps:
        buffer, lengths, fresh = np.array([[*tokens[:end], 7, 7, 7]]), np.array([end]), np.array([end - begin])
        drafter.observe(CommitView(np.array([slot]), ROW, buffer, lengths, fresh, ROW, verified))
        buffer[:], lengths[:], fresh[:] = 99, 99, 99
        begin = end


def propose(drafter: Any, tokens: Sequence[int], budget: int, slot: int = 0, **parameters: int) -> Drafts:
    buffer = np.array([[*tokens, 7, 7, 7]])
    given = {name: np.array([value]) for name, value in parameters.items()}
    drafts: Drafts = drafter.propose(DraftView(np.array([slot]), ROW, buffer, np.array([len(tokens)]), np.array([budget]), given))
    buffer[:] = 99
    assert drafts.offsets.tolist() == [0, len(drafts.tokens)]
    return drafts


def paths(drafts: Drafts) -> list[tuple[int, ...]]:
    """Return every node as the tokens from the first level down to it."""
    found: list[tuple[int, ...]] = []
    parents = range(ROOT, len(drafts.tokens) - 1) if drafts.parents is None else drafts.parents.tolist()
    for token, parent in zip(drafts.tokens.tolist(), parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    return found


def blocks_left_behind(drafter: Any, tokens: Sequence[int], verified: Verified | None = None, requests: int = 10_000) -> int:
    """Serve requests one after the other; return how many blocks of memory more are in use after the last than after the first."""
    in_use = 0
    for request in range(requests):
        start(drafter)
        commit(drafter, tokens, verified=verified)
        propose(drafter, tokens, 4)
        finish(drafter)
        if request in (0, requests - 1):
            gc.collect()
            before, in_use = in_use, sys.getallocatedblocks()
    return in_use - before
