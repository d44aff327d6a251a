"""Hold drafted nodes to the probability rows that they say they were drawn from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.drafting import CommitView, Drafts, DraftView, NodeKind
from accelplug.testing.building import require, skip
from accelplug.testing.models import VOCAB

Counts = npt.NDArray[np.float64]
DRAWS = 200
TOO_FAR = 5.0  # standard deviations of chi-square; seeds are fixed, so a right drafter passes always or, rarely, never


def check_draws(drafter: BoundDrafter) -> None:
    """Draft after one prompt with many seeds; compare the first nodes with their rows by chi-square."""
    expected, found = np.zeros(VOCAB), np.zeros(VOCAB)
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        drafts = _drafts(drafter)
        if drafts.kinds is None or not len(drafts.kinds) or drafts.kinds[0] == NodeKind.DELTA:
            continue
        assert drafts.rows is not None
        assert drafts.row_ids is not None
        row = drafts.rows[int(drafts.row_ids[0])].double().cpu().numpy()
        who = drafter.technique
        require((row >= 0).all() and abs(row.sum() - 1) < 1e-3, f"{who} drew a node from a row that sums to {row.sum():.6g}; make it a distribution")
        require(row[drafts.tokens[0]] > 0, f"{who} drew token {drafts.tokens[0]} from a row that gives it 0")
        expected += row
        found[drafts.tokens[0]] += 1
    if not found.sum():
        skip(f"{drafter.technique} drew no node at random here")
    _compare(drafter, expected, found)


def _drafts(drafter: BoundDrafter) -> Drafts:
    """Serve one request for one step."""
    slot, row = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    tokens = np.array([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    length = np.array([tokens.shape[1]])
    drafter.start(slot)
    drafter.observe(CommitView(slot, row, tokens, length, length.copy(), np.zeros(1, dtype=np.int64)))
    drafts = drafter.propose(DraftView(slot, row, tokens, length, np.array([4]), temperatures=np.ones(1)))
    drafter.check(drafts, np.array([4]), VOCAB)
    drafter.finish(slot)
    return drafts


def _compare(drafter: BoundDrafter, expected: Counts, found: Counts) -> None:
    common = expected >= 5
    pairs = [np.append(counts[common], counts[~common].sum()) for counts in (expected, found)]
    kept = pairs[0] > 0
    expected, found = pairs[0][kept], pairs[1][kept]
    chi_square, freedom = float(((found - expected) ** 2 / expected).sum()), max(1, len(expected) - 1)
    off = (chi_square - freedom) / (2 * freedom) ** 0.5
    require(off < TOO_FAR, f"{drafter.technique} does not draw its nodes from their rows: chi-square {chi_square:.0f} for {freedom} degrees of freedom")
