"""A host without an engine: it knows what every request will say, and does to a drafter all that a host may do.

Rows of the token buffer move from step to step, slots are recycled, budgets come and go, and after each call every array
that the drafter saw is overwritten. Drafts are verified as under greedy decoding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.drafting import ROOT, CommitView, Drafts, DraftView, IntArray, Verified
from accelplug.testing.building import require
from accelplug.testing.models import HIDDEN, MAX_LENGTH, VOCAB
from accelplug.testing.parameters import own_values

if TYPE_CHECKING:
    from torch import Tensor

Answer = tuple[tuple[int, ...], tuple[int, ...]]
"""The drafts of one request in one step: tokens and parents."""


@dataclass
class ToyRequest:
    """A prompt and what the target will say after it.

    :param tokens: both, token ids.
    :param prompt: how many of them are the prompt.
    :param budgets: what the host allows in each step, repeated.
    :param parameters: per-request options that it sets, name -> value.
    """

    tokens: Sequence[int]
    prompt: int
    budgets: Sequence[int] = (8,)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    def fresh(self) -> ToyRequest:
        """Return the same request, unanswered."""
        return replace(self, answers=[])


def toy_requests(seed: int, count: int) -> list[ToyRequest]:
    """Return requests that repeat themselves here and there, with budgets from 0 to 12.

    The first has a prompt of one token, the second one that leaves room for a single token.
    """
    rng = np.random.default_rng(seed)
    requests = []
    for number in range(count):
        length = MAX_LENGTH if number == 1 else int(rng.integers(20, 44))
        prompt = {0: 1, 1: MAX_LENGTH - 1}.get(number, int(rng.integers(2, 16)))
        requests.append(ToyRequest(_text(rng, length), prompt, (*rng.integers(0, 13, 3).tolist(), 0, 1, 12)))
    return requests


def _text(rng: np.random.Generator, length: int) -> list[int]:
    """Return tokens in which phrases of one to eight tokens come several times, at once and later."""
    tokens: list[int] = []
    phrases = [rng.integers(0, VOCAB, size).tolist() for size in (1, 2, 5, 8)]
    while len(tokens) < length:
        tokens += phrases[rng.integers(4)] * int(rng.integers(1, 4)) + rng.integers(0, VOCAB, int(rng.integers(0, 3))).tolist()
    return tokens[:length]


@dataclass
class _Running:
    """What the host keeps of a request between steps."""

    request: ToyRequest
    length: int
    seen: int = 0
    accepted: int = 0
    verified: list[tuple[int, int]] = field(default_factory=list)  # tokens of the last forward pass, each with the likeliest next

    def budget(self) -> int:
        """Return what the request allows in this step: never more than the room left, since the target adds a token itself."""
        budgets = self.request.budgets
        return max(0, min(budgets[len(self.request.answers) % len(budgets)], len(self.request.tokens) - self.length - 1))

    def verify(self, answer: Answer, vocab_size: int) -> None:
        """Commit the drafts that come true, and one token more."""
        tokens, parents = answer
        known, begin = self.request.tokens, self.length
        path = [ROOT]
        while begin + len(path) < len(known):
            nodes = [node for node, parent in enumerate(parents) if parent == path[-1] and tokens[node] == known[begin + len(path) - 1]]
            if not nodes:
                break
            path.append(nodes[0])
        likeliest = {node: known[begin + depth] for depth, node in enumerate(path) if begin + depth < len(known)}
        nodes_with_root = [(known[begin - 1], likeliest[ROOT])] if begin < len(known) else []
        self.verified = nodes_with_root + [(token, likeliest.get(node, (token * 7 + 1) % vocab_size)) for node, token in enumerate(tokens)]
        self.seen, self.accepted = begin, len(path) - 1
        self.length = begin + len(path)
        self.request.answers.append(answer)


class ToyHost:
    """Serves requests with one drafter.

    :param overwrites: overwrite every array of a view after the call, as a host does that reuses them.
    :param temperature: of every request.
    :ivar order: in which order requests stand; `serve` begins it anew, so that a drafter that draws at random, from the same seed,
        draws the same for the same request.
    :ivar rng: where tokens stand, and what stands where nothing is defined: it goes on.
    """

    def __init__(self, drafter: BoundDrafter, vocab_size: int, *, overwrites: bool = True, temperature: float = 0.0) -> None:
        self.drafter, self.vocab_size, self.overwrites, self.temperature = drafter, vocab_size, overwrites, temperature
        self.own = own_values(drafter.technique)
        self.order, self.rng = np.random.default_rng(0), np.random.default_rng(1)
        self.running: dict[int, _Running] = {}
        self.events = Counter[str]()
        self.drew_at_random = False

    def serve(self, requests: Sequence[ToyRequest], num_slots: int, *, stagger: bool = False) -> list[list[Answer]]:
        """Serve the requests to their ends, at most `num_slots` at once; return the drafts of every step, per request.

        :param stagger: begin one request per step at most, so that they meet at different lengths.
        """
        waiting = list(requests)
        self.order = np.random.default_rng(0)
        while waiting or self.running:
            free = [slot for slot in range(num_slots) if slot not in self.running][: 1 if stagger else None]
            self.start({slot: waiting.pop(0) for slot in free if waiting})
            self.step()
            self.finish([slot for slot, running in self.running.items() if running.length >= len(running.request.tokens)])
        return [request.answers for request in requests]

    def start(self, begun: dict[int, ToyRequest]) -> None:
        """Give slots to requests."""
        if begun:
            hand(self.drafter, "start", np.array(list(begun)))
        for slot, request in begun.items():
            self.running[slot] = _Running(request, request.prompt)
            self.running[slot].verified = [(request.tokens[request.prompt - 1], request.tokens[request.prompt])]

    def finish(self, slots: Sequence[int]) -> None:
        """Take slots back."""
        if slots:
            hand(self.drafter, "finish", np.array(slots))
        for slot in slots:
            del self.running[slot]

    def step(self) -> tuple[list[int], Drafts]:
        """Show what was committed, ask for drafts, and verify them; return whom was asked about, by slot, and what was drafted."""
        slots = self.order.permutation([slot for slot, running in self.running.items() if running.length < len(running.request.tokens)]).tolist()
        if not slots:
            return [], Drafts.chains([])
        active = [self.running[slot] for slot in slots]
        fresh, accepted = (np.array(counts) for counts in ([r.length - r.seen for r in active], [r.accepted for r in active]))
        self._show(self.drafter.observe, CommitView(*self._shown(slots), fresh, accepted, self._verified(active), self._hidden(active)))
        budgets = np.array([running.budget() for running in active])
        temperatures = np.full(len(active), self.temperature)
        view = DraftView(*self._shown(slots), budgets.copy(), self._parameters(active), temperatures=temperatures)
        drafts: Drafts = self._show(self.drafter.propose, view)
        self.drafter.check(drafts, budgets, self.vocab_size)
        self.drew_at_random |= drafts.kinds is not None and bool(drafts.kinds.any())
        for i, running in enumerate(active):
            answer = answer_of(drafts, i)
            running.verify(answer, self.vocab_size)
            self.events.update(drafted=len(answer[0]), accepted=running.accepted, **{f"budget {min(budgets[i], 2)}": 1})
        return slots, drafts

    def _parameters(self, active: Sequence[_Running]) -> dict[str, npt.NDArray[Any]]:
        """Return the options that some request sets, with the technique's own value for the others."""
        every = [running.request.parameters for running in active]
        return {name: np.array([each.get(name, own) for each in every]) for name, own in self.own.items() if any(name in each for each in every)}

    def _shown(self, slots: Sequence[int]) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Put every request's tokens into some row; return slots, rows, tokens and lengths.

        Wherever nothing is defined stand token ids that are valid and mean nothing.
        """
        active = [self.running[slot] for slot in slots]
        width = max(running.length for running in active) + int(self.rng.integers(1, 9))
        tokens = self.rng.integers(0, self.vocab_size, (len(active) + 2, width))
        rows = self.rng.permutation(len(tokens))[: len(active)]
        for row, running in zip(rows, active, strict=True):
            tokens[row, : running.length] = running.request.tokens[: running.length]
        return np.array(slots), rows, tokens, np.array([running.length for running in active])

    def _verified(self, active: Sequence[_Running]) -> Verified | None:
        """Rank the next tokens after every verified node."""
        top_k = min(self.drafter.traits.top_k, self.vocab_size)
        if not top_k:
            return None
        rows = [row for running in active for row in running.verified]
        top = [[(likeliest + rank) % self.vocab_size for rank in range(top_k)] for _, likeliest in rows]
        offsets = np.cumsum([0, *(len(running.verified) for running in active)])
        return Verified(offsets, np.array([token for token, _ in rows]), np.array(top))

    def _hidden(self, active: Sequence[_Running]) -> list[dict[int, Tensor]] | None:
        """Make hidden states up, of each token once: those of a token are the same wherever it stands."""
        if not (layers := self.drafter.traits.hidden_layers):
            return None
        import torch

        tables = {layer: torch.from_numpy(np.random.default_rng([layer + MAX_LENGTH]).normal(size=(self.vocab_size, HIDDEN))) for layer in layers}
        read = [list(running.request.tokens[max(running.seen - 1, 0) : running.length - 1]) for running in active]
        return [{layer: table[tokens] for layer, table in tables.items()} for tokens in read]

    def _show(self, method: Any, view: CommitView | DraftView) -> Any:
        """Show a view; then see that it was left alone, keep the answer, and overwrite everything shown."""
        arrays = _arrays(view)
        before = {name: array.copy() for name, array in arrays.items()}
        answer = _copied(self.drafter.technique.call(method, view))
        for name, array in arrays.items():
            require(np.array_equal(array, before[name]), f"{self.drafter.technique} wrote into view.{name}; work on a copy, views are the host's")
            if self.overwrites:
                array[...] = self.rng.integers(0, 2, array.shape)
        return answer


def hand(drafter: BoundDrafter, method: Literal["start", "finish"], slots: IntArray) -> None:
    """Call `start` or `finish`; then see that the slots were left alone."""
    before = slots.copy()
    call: Callable[[IntArray], None] = getattr(drafter, method)
    drafter.technique.call(call, slots)
    require(np.array_equal(slots, before), f"{drafter.technique} wrote into the slots of {method}(slots); work on a copy, they are the host's")


def _arrays(view: CommitView | DraftView) -> dict[str, npt.NDArray[Any]]:
    own = {name: value for name in type(view).__slots__ if isinstance(value := getattr(view, name), np.ndarray)}
    verified = getattr(view, "verified", None)
    ranked = {} if verified is None else {f"verified.{name}": getattr(verified, name) for name in Verified.__slots__}
    return own | ranked | dict(getattr(view, "parameters", {}))


def _copied(answer: Any) -> Any:
    """Copy drafts at once, as a host reads them: they may point into the view."""
    if not isinstance(answer, Drafts):
        return answer
    arrays = {name: np.array(value) for name in Drafts.__slots__ if isinstance(value := getattr(answer, name), np.ndarray)}
    rest = {name: getattr(answer, name) for name in Drafts.__slots__ if name not in arrays}
    return Drafts(**{**rest, **arrays})


def answer_of(drafts: Drafts, i: int) -> Answer:
    """Return the i-th request's part of the drafts."""
    begin, end = int(drafts.offsets[i]), int(drafts.offsets[i + 1])
    parents = range(ROOT, end - begin - 1) if drafts.parents is None else drafts.parents[begin:end].tolist()
    return tuple(drafts.tokens[begin:end].tolist()), tuple(parents)
