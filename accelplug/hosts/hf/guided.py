"""A grammar's part in drafting: tokens that must follow are drafted, drafts that may not follow are cut before they cost a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from accelplug.hooks.capabilities import Selection, drafter_traits, verifier_traits
from accelplug.hooks.drafting import ROOT, DrafterTraits, DraftView, IntArray, NodeKind
from accelplug.hooks.masking import Matcher
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.stats import Forced, Stats

if TYPE_CHECKING:
    from accelplug.hosts.hf.grammar import GrammarProcessor, RowGrammars


class Guide:
    """Shapes each row's drafts by where the row stands in the grammar.

    :param tokens: [count, max_length], the rows' committed tokens, prompts and padding included.
    :ivar leads: the drafter goes on behind what is forced.
    """

    def __init__(self, processor: GrammarProcessor | RowGrammars, tokens: IntArray, selection: Selection, stats: Stats) -> None:
        self.positions_of, self.begin, self.tokens, self.stats = processor.positions_of, processor.prompt_length, tokens, stats
        self.forces = NodeKind.DELTA in verifier_traits(selection.verifier).kinds
        traits = DrafterTraits() if selection.drafter is None else drafter_traits(selection.drafter)
        self.leads, self.draws = traits.continues, bool(traits.kinds - {NodeKind.DELTA})
        self.asked: dict[int, tuple[Tree, int]] = {}  # row -> what the drafter drafted where something else was verified, behind how many

    @contextmanager
    def shaping(self, view: DraftView, lengths: IntArray | int, trees: list[Tree]) -> Iterator[None]:
        """Find what is forced before the drafter is asked, and shape what it has put into `trees` afterwards.

        A drafter that draws tokens and cannot go on behind forced ones is not asked about a row that has some: its draws would be
        left out depending on what they are, and the text's distribution would no longer be the target's.

        :param view: what the drafter is asked; while it is, forced tokens are a part of the rows' texts if it can go on behind them.
        :param lengths: [num_reqs] committed tokens, padding included, or one number for all.
        """
        ends, budgets = np.broadcast_to(lengths, view.rows.shape).tolist(), view.budgets.copy()
        rows: list[int] = view.rows.tolist()
        texts = [self.tokens[row, self.begin : end].tolist() for row, end in zip(rows, ends, strict=True)]
        forced = [self._forced(row, text, budget) for row, text, budget in zip(rows, texts, budgets.tolist(), strict=True)]
        counts = np.array([len(tokens) for tokens in forced], dtype=np.int64)
        if view.ahead is not None:
            _go_ahead(view, forced, counts)
        elif self.draws:
            view.budgets[counts > 0] = 0
        yield
        view.budgets[:] = budgets
        if view.ahead is not None:
            view.lengths[:] -= counts
        self.asked = {}
        for row, text, tokens, budget in zip(rows, texts, forced, budgets.tolist(), strict=True):
            tree = self._shaped(row, text, trees[row], tokens, budget)
            if tree is not trees[row]:
                self.asked[row], trees[row] = (trees[row], len(tokens) if self.leads else 0), tree

    def accepted(self, row: int, tree: Tree, path: Sequence[int]) -> int:
        """Return how many tokens of an accepted path the drafter itself had drafted."""
        if row not in self.asked:
            return len(path)
        own, skipped = self.asked[row]
        at, count = ROOT, 0
        for node in path[skipped:]:
            child = own.follow(at, tree.tokens[node])
            if child is None:
                break
            at, count = child, count + 1
        return count

    def _forced(self, row: int, text: list[int], budget: int) -> list[int]:
        positions = self.positions_of(row)
        if positions is None or not self.forces or budget <= 0:
            return []
        position = positions.at(text)
        return [] if position.strayed or position.matcher.is_terminated else list(position.matcher.forced()[:budget])

    def _shaped(self, row: int, text: list[int], tree: Tree, forced: list[int], budget: int) -> Tree:
        before = forced if self.leads else []
        positions = self.positions_of(row)
        if positions is not None and len(tree) and not (position := positions.at(text)).strayed:
            kept = pruned(tree, position.matcher, before)
            self.stats.pruned += len(tree) - len(kept)
            tree = kept
        if not forced:
            return tree
        return behind(forced, tree) if self.leads else merged(forced, tree, budget)


def _go_ahead(view: DraftView, forced: Sequence[Sequence[int]], counts: IntArray) -> None:
    """Put the forced tokens behind the rows' texts."""
    assert view.ahead is not None
    for row, length, tokens in zip(view.rows, view.lengths, forced, strict=True):
        view.tokens[row, length : length + len(tokens)] = tokens
    view.ahead[:] = counts
    view.lengths[:] += counts
    view.budgets[:] -= counts


def pruned(tree: Tree, matcher: Matcher, before: Sequence[int] = ()) -> Tree:
    """Return the tree without illegal nodes and what hangs below them.

    :param before: tokens that the tree follows, behind the matcher's.

    A sampled node stays as a leaf: rejecting it changes what the next token is drawn from, so leaving it out would change
    the distribution. A point mass that the target cannot produce changes nothing.
    """
    legal = _legal(tree, matcher, before)
    if all(legal):
        return tree
    kept: dict[int, int] = {ROOT: ROOT}  # old -> new
    for node, parent in enumerate(tree.above):
        if (parent == ROOT or (parent in kept and legal[parent])) and (legal[node] or tree.kind(node) != NodeKind.DELTA):
            kept[node] = len(kept) - 1
    nodes = list(kept)[1:]
    if not nodes:
        return EMPTY
    kinds = None if tree.kinds is None else [tree.kinds[node] for node in nodes]
    row_ids = None if tree.row_ids is None else [tree.row_ids[node] for node in nodes]
    return Tree.grown([tree.tokens[node] for node in nodes], [kept[tree.above[node]] for node in nodes], kinds, row_ids, tree.rows)


def _legal(tree: Tree, matcher: Matcher, before: Sequence[int]) -> list[bool]:
    """Return which nodes the grammar allows behind their ancestors, asking once per leaf and without moving the matcher."""
    if tree.parents is None:
        count = matcher.validate([*before, *tree.tokens]) - len(before)
        return [node < count for node in range(len(tree))]
    legal = [True] * len(tree)
    for leaf in sorted(set(range(len(tree))) - set(tree.parents)):
        path = [leaf]
        while (parent := tree.parents[path[-1]]) != ROOT:
            path.append(parent)
        path.reverse()
        if all(legal[node] for node in path):
            for node in path[matcher.validate([*before, *(tree.tokens[node] for node in path)]) - len(before) :]:
                legal[node] = False
    return legal


def behind(forced: list[int], tree: Tree) -> Tree:
    """Return the forced tokens with the tree behind the last of them."""
    count = len(forced)
    parents = None if tree.parents is None else [*range(ROOT, count - 1), *(parent + count for parent in tree.parents)]
    kinds = None if tree.kinds is None else [int(NodeKind.DELTA)] * count + tree.kinds
    row_ids = None if tree.row_ids is None else [ROOT] * count + tree.row_ids
    return Tree.grown(forced + tree.tokens, parents, kinds, row_ids, tree.rows, count)


def merged(forced: list[int], tree: Tree, budget: int) -> Tree:
    """Return the forced tokens, and those of the tree's nodes that fit beside or behind them; of a chain only what continues them.

    :param tree: of point masses.
    """
    if tree.parents is None:
        agrees = tree.tokens[: len(forced)] == forced
        return Tree(tree.tokens if agrees else forced, forced=len(forced))
    tokens, parents = list(forced), list(range(ROOT, len(forced) - 1))
    nodes = {key: node for node, key in enumerate(zip(parents, tokens, strict=True))}  # (parent, token) -> node
    place = {ROOT: ROOT}  # the tree's node -> node
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent not in place:
            continue
        key = place[parent], token
        if key not in nodes:
            if len(tokens) >= budget:
                continue
            nodes[key] = len(tokens)
            tokens.append(token)
            parents.append(key[0])
        place[node] = nodes[key]
    return Tree.grown(tokens, parents, forced=len(forced))


def forced_share(trees: Sequence[Tree], paths: Sequence[Sequence[int]], rows: Sequence[int]) -> Forced:
    """Return what a grammar had forced of the trees verified in these rows."""
    forced = [row for row in rows if trees[row].forced]
    accepted = sum(node < trees[row].forced for row in forced for node in paths[row])
    alone = sum(trees[row].forced == len(trees[row]) for row in forced)
    return Forced(sum(trees[row].forced for row in forced), accepted, len(forced), alone)
