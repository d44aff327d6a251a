"""The rows' life with the session's drafter: what it is shown, and the trees that it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.drafting import CommitView, DraftView, IntArray
from accelplug.hosts.hf.guided import Guide
from accelplug.hosts.hf.hidden import Hidden
from accelplug.hosts.hf.ragged import Rows
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.hf.verified import verified

if TYPE_CHECKING:
    from accelplug.hosts.hf.session import Session


class Drafting:
    """The rows' life with the session's drafter: start, observe and propose each step, finish whatever happens."""

    def __init__(
        self,
        session: Session,
        requests: Requests | Rows,
        temperature: float = 0.0,
        guide: Guide | None = None,
        warp: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.drafter: BoundDrafter | None = session.drafter
        self.hidden = session.hidden
        self.guide, self.warp = guide, warp
        self.stats, self.vocab_size, self.requests = session.stats, session.vocab_size, requests
        self.temperature = temperature
        self.given = {} if session.selection.drafter is None else session.requested.rows(session.selection.drafter, requests.count)
        self.roots = requests.last()  # what the next forward pass's drafts follow
        self.tokens: IntArray = requests.tokens
        self.prompts: IntArray | None = None  # [count] prompt lengths, where some are padded
        if requests.own is not None:
            self._leave_padding_out(requests.own)
        self._watch(np.arange(requests.count), np.zeros(requests.count, dtype=np.int64))

    def _leave_padding_out(self, own: npt.NDArray[np.bool_]) -> None:
        """Begin a copy of the rows' tokens without padding, `own` bool [count, prompt length] saying which are none."""
        self.tokens, self.prompts = np.zeros_like(self.requests.tokens), own.sum(1)
        self.padding = own.shape[1] - self.prompts
        for text, given, real in zip(self.tokens, self.requests.tokens, own, strict=True):
            text[: real.sum()] = given[: len(real)][real]

    def _advance(self, lengths: IntArray | int) -> IntArray | int:
        """Return the rows' lengths without padding, having copied what was committed since."""
        if self.prompts is None:
            return lengths
        padding = self.padding[self.rows]
        ends: IntArray = lengths - padding
        for row, begin, end, skipped in zip(self.rows, np.maximum(self.lengths, self.prompts[self.rows]), ends, padding, strict=True):
            self.tokens[row, begin:end] = self.requests.tokens[row, begin + skipped : end + skipped]
        return ends

    def _watch(self, rows: IntArray, lengths: IntArray) -> None:
        """Make the views of these rows once: the arrays inside change from step to step."""
        rows = rows.copy()
        rows.flags.writeable = False  # drafters are shown this very array
        self.rows, self.lengths = rows, lengths
        self.fresh, self.accepted, self.budgets = (np.zeros(len(rows), dtype=np.int64) for _ in range(3))
        parameters = {name: values[rows] for name, values in self.given.items()}
        self.commit_view = CommitView(rows, rows, self.tokens, self.lengths, self.fresh, self.accepted)
        inputs = None if self.requests.inputs is None else [self.requests.inputs[row] for row in rows]
        temperatures = np.full(len(rows), self.temperature)
        ahead = np.zeros_like(rows) if self.guide is not None and self.guide.leads else None
        self.draft_view = DraftView(rows, rows, self.tokens, self.lengths, self.budgets, parameters, inputs, temperatures, ahead, self.warp)

    def __enter__(self) -> Drafting:
        if self.drafter is not None:
            self.drafter.technique.call(self.drafter.start, self.rows)
        return self

    def __exit__(self, *_: object) -> None:
        if self.drafter is not None:
            self.drafter.technique.call(self.drafter.finish, self.rows)

    def propose(self, paths: Sequence[Sequence[int]], logits: Tensor, verified_trees: Sequence[Tree], outputs: Any = None) -> list[Tree]:
        """Tell the drafter what was committed, and of which forward pass, and ask for the next drafts, one tree per row.

        :param outputs: the pass's, where the drafter reads hidden states.
        """
        trees = [EMPTY] * self.requests.count
        if self.drafter is None and self.guide is None:
            return trees
        self._drop_finished()
        committed = self.requests.lengths(self.rows)
        lengths = self._advance(committed)
        self.fresh[:] = lengths - self.lengths
        self.lengths[:] = lengths
        self.budgets[:] = self.requests.budgets(committed)
        began = time.perf_counter()
        if self.guide is None:
            self.accepted[:] = [len(paths[row]) for row in self.rows]
        else:
            self.accepted[:] = [self.guide.accepted(row, verified_trees[row], paths[row]) for row in self.rows.tolist()]
        if self.drafter is not None:
            view = self._commit(logits, verified_trees)
            if self.hidden is not None:
                view = replace(view, hidden=self._states(self.hidden, outputs, logits.shape[1], paths))
            self.drafter.technique.call(self.drafter.observe, view)
        if self.guide is None:
            self._ask(trees)
        else:
            with self.guide.shaping(self.draft_view, committed, trees):
                self._ask(trees)
        self.stats.propose_seconds += time.perf_counter() - began
        return self.requests.with_padding(trees)

    def _ask(self, trees: list[Tree]) -> None:
        """Have the drafter, if there is one, fill in the rows' trees."""
        if self.drafter is None:
            return
        drafts = self.drafter.ask(self.draft_view, self.vocab_size)
        bounds = drafts.offsets.tolist()
        for i, row in enumerate(self.rows.tolist()):
            trees[row] = Tree.of(drafts, bounds[i], bounds[i + 1])

    def _commit(self, logits: Tensor, trees: Sequence[Tree]) -> CommitView:
        """Return what was committed, with the runners-up where the drafter asks for them."""
        assert self.drafter is not None
        if not (top_k := self.drafter.traits.top_k):
            return self.commit_view
        seen = verified(logits, trees, self.roots, self.rows, self.requests.places(self.rows), top_k)
        self.roots = self.requests.last()
        return replace(self.commit_view, verified=seen)

    def _states(self, hidden: Hidden, outputs: Any, width: int, paths: Sequence[Sequence[int]]) -> list[dict[int, Tensor]]:
        """Return the hidden states of what the last forward pass has read of each row for good."""
        rows, fresh, places = self.rows.tolist(), self.fresh.tolist(), self.requests.places(self.rows).tolist()
        if self.fresh[0] < self.lengths[0]:
            return hidden.shown(outputs, width, places, [[0, *(node + 1 for node in paths[row][: new - 1])] for row, new in zip(rows, fresh, strict=True)])
        own = self.requests.own  # of the prompt, which is all that has been read
        slots = [range(new - 1) if own is None else np.flatnonzero(own[row]).tolist() for row, new in zip(rows, fresh, strict=True)]
        return hidden.shown(outputs, None, places, slots)

    def _drop_finished(self) -> None:
        """Finish the rows that only go on as padding."""
        if len(self.rows) == self.requests.count - self.requests.num_over:
            return
        over = np.array([self.requests.is_over(row) for row in self.rows.tolist()])
        if self.drafter is not None:
            self.drafter.technique.call(self.drafter.finish, self.rows[over])
        self._watch(self.rows[~over], self.lengths[~over])
