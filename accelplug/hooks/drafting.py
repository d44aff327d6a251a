"""Drafting: what a drafter is shown, and what it answers.

A drafter guesses the next tokens of every request; the target model verifies the guess in one forward pass.
Views belong to the host: their arrays are reused from step to step and are valid during the call only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from accelplug._errors import PluginError
from accelplug.hooks.declared import check_word, set_of

if TYPE_CHECKING:
    from torch import Tensor

IntArray = npt.NDArray[np.integer]
"""A NumPy array of integers of any width."""

ROOT = -1
"""Parent of a draft node that directly follows the last committed token."""


class NodeKind(IntEnum):
    """How a draft node was drawn. No rule can be exact without it (Leviathan et al. 2023; RSD, arXiv 2402.14160)."""

    DELTA = 0
    """Chosen deterministically: a point mass, whatever score it had."""
    SAMPLED = 1
    """Drawn from a probability row, independently of its siblings."""
    WITHOUT_REPLACEMENT = 2
    """Drawn from a probability row from which the earlier siblings were removed."""


def node_kinds(field: str, given: object) -> frozenset[NodeKind]:
    """Return a trait's node kinds as a set.

    :raises PluginError: it holds something else.
    """
    return set_of(field, given, NodeKind, "{" + ", ".join(f"NodeKind.{kind.name}" for kind in NodeKind) + "}")


@dataclass(frozen=True, slots=True)
class DrafterTraits:
    """What a drafter says about itself, before it runs. The defaults describe the smallest drafter.

    Any collection does for `kinds` and `needs`; a misspelt word is refused where the traits are made. What the drafter returns is held to
    `shape` and `kinds`.

    :param shape: ``"chain"`` or ``"tree"`` of nodes per request.
    :param kinds: the node kinds it may return.
    :param needs: capability words that the host must provide (see `accelplug.hooks.capabilities`).
    :param scope: what its state may remember: one ``"request"``, the requests of one ``"salt"`` (tenant), or the
        whole ``"process"``; the wider two are refused unless the user asks for them by an option ``scope`` that is
        ``"request"`` by default, since acceptance leaks what others wrote.
    :param top_k: how many of the target's likeliest tokens it wants to see after every verified node
        (`CommitView.verified`); needs ``"logits.topk"``.
    :param continues: it may be asked what follows text that is not committed yet (`DraftView.ahead`), as where a grammar forces tokens.
    """

    shape: Literal["chain", "tree"] = "chain"
    kinds: frozenset[NodeKind] = frozenset({NodeKind.DELTA})
    needs: frozenset[str] = frozenset()
    scope: Literal["request", "salt", "process"] = "request"
    top_k: int = 0
    continues: bool = False

    def __post_init__(self) -> None:
        """Refuse misspelt words, and take any collection for `kinds` and `needs`.

        :raises PluginError: naming the trait and what it takes.
        """
        check_word("DrafterTraits.shape", self.shape, ("chain", "tree"))
        check_word("DrafterTraits.scope", self.scope, ("request", "salt", "process"))
        check_word("DrafterTraits.continues", self.continues, (True, False))
        object.__setattr__(self, "kinds", node_kinds("DrafterTraits.kinds", self.kinds))
        object.__setattr__(self, "needs", set_of("DrafterTraits.needs", self.needs, str, "{'hidden.last'}"))
        count: object = self.top_k
        if not isinstance(count, int) or count < 0:
            raise PluginError(f"DrafterTraits.top_k is {self.top_k!r}; make it a whole number, 0 for none")


@dataclass(frozen=True, slots=True)
class DraftView:
    """One drafting step in host memory. Row i of every array is the i-th active request.

    :param tokens: from the row's begin, without a batch's padding.
    :param parameters: the per-request options that some request sets, with the technique's own value for the others; an option that none
        sets is missing.
    :param inputs: what the encoder of an encoder-decoder model reads, without padding; None for an encoder of sound or images, too.
        `tokens` then holds the decoder's.
    :param temperatures: where it is None, deterministic nodes are right.
    :param ahead: counted in `lengths`; a grammar forces them, and the drafts follow them.
    :param warp: a request's temperature, top-k, top-p and the like; None for greedy requests, too.
    """

    slots: IntArray  # [num_reqs] fixed for a request's life, then recycled
    rows: IntArray  # [num_reqs] the row of `tokens` that holds the request this step
    tokens: IntArray  # [num_rows, max_length] committed tokens; what lies past a row's length is undefined
    lengths: IntArray  # [num_reqs] committed tokens, prompt included
    budgets: IntArray  # [num_reqs] the most nodes the host will verify
    parameters: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)  # name -> [num_reqs]
    inputs: Sequence[IntArray] | None = None  # [num_reqs] of [length] the encoder's tokens; None for decoder-only models
    temperatures: npt.NDArray[np.floating] | None = None  # [num_reqs] 0 for greedy requests; None where the host does not tell
    ahead: IntArray | None = None  # [num_reqs] how many of the last tokens are not committed yet; None: none, or traits lack `continues`
    warp: Callable[[Tensor], Tensor] | None = None  # logits [n, vocab_size] -> what sampled requests draw from; None: by temperature alone

    def history(self, i: int) -> IntArray:
        """Return the tokens of the i-th request, [length], those ahead included, without copying."""
        return self.tokens[self.rows[i], : self.lengths[i]]


@dataclass(frozen=True, slots=True)
class Verified:
    """What the target model thought likely after every token of the last forward pass, accepted or not.

    Request i owns rows ``offsets[i]:offsets[i + 1]``: the token that its drafts followed, then what was verified behind it in its order:
    its drafts, and where a grammar was at work what that left of them and forced.
    """

    offsets: IntArray  # [num_reqs + 1] where each request's rows begin
    tokens: IntArray  # [num_rows] the tokens that the candidates follow
    top: IntArray  # [num_rows, top_k] likeliest first, by the model's own logits, before any processor


@dataclass(frozen=True, slots=True)
class CommitView:
    """What was committed since the last call. Rejected drafts never appear here, except in `verified`.

    `slots`, `rows`, `tokens` and `lengths` are those of `DraftView`.
    """

    slots: IntArray  # [num_reqs] fixed for a request's life
    rows: IntArray  # [num_reqs] the row of `tokens` that holds the request
    tokens: IntArray  # [num_rows, max_length] committed tokens
    lengths: IntArray  # [num_reqs] committed tokens, the fresh ones included
    fresh: IntArray  # [num_reqs] how many of the last tokens are new; at a request's first call its prompt and one more
    accepted: IntArray  # [num_reqs] how many of the fresh tokens were drafts
    verified: Verified | None = None  # for drafters whose traits ask for it by top_k

    def history(self, i: int) -> IntArray:
        """Return the committed tokens of the i-th request, [length], without copying."""
        return self.tokens[self.rows[i], : self.lengths[i]]


@dataclass(frozen=True, slots=True)
class Drafts:
    """The drafts of all requests of a step as one structure of arrays, root excluded.

    Request i owns nodes ``offsets[i]:offsets[i + 1]``. Parents count from the request's own first node, come before
    their children, and siblings stand in the order in which they were drawn.
    """

    offsets: IntArray  # [num_reqs + 1] where each request's nodes begin
    tokens: IntArray  # [num_nodes] token ids
    parents: IntArray | None = None  # [num_nodes], ROOT for the first level; None: every request has a chain
    kinds: IntArray | None = None  # [num_nodes] of NodeKind; None: all DELTA
    row_ids: IntArray | None = None  # [num_nodes] into `rows`; ROOT (-1) for DELTA nodes; None: all DELTA
    rows: Tensor | None = None  # [num_rows, vocab_size] draft probabilities, after the request's own processors
    sources: IntArray | None = None  # [num_nodes] which source of a fusion proposed the node

    @classmethod
    def chains(cls, guesses: Sequence[Sequence[int] | IntArray]) -> Drafts:
        """Make deterministic chains, one per request; an empty guess drafts nothing.

        :raises TypeError: a guess is no flat sequence of whole numbers.
        """
        guesses = list(guesses)
        # One array of all lists costs far less than one of each; truth values would pass as numbers beside others' numbers.
        if all(type(guess) is list and (not guess or type(guess[0]) is not bool) for guess in guesses):
            tokens = _token_ids(list(itertools.chain.from_iterable(guesses)))
        else:
            guesses = arrays = [_token_ids(guess) for guess in guesses]
            tokens = np.concatenate(arrays)
        offsets = np.array([0, *itertools.accumulate(map(len, guesses))], dtype=np.int64)
        return cls(offsets, tokens)

    @classmethod
    def trees(cls, guesses: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Drafts:
        """Make deterministic trees, one ``(tokens, parents)`` per request; an empty guess drafts nothing."""
        offsets = np.zeros(len(guesses) + 1, dtype=np.int64)
        np.cumsum([len(tokens) for tokens, _ in guesses], out=offsets[1:])
        tokens, parents = (np.array([node for guess in guesses for node in guess[part]], dtype=np.int64) for part in (0, 1))
        return cls(offsets, tokens, parents)


def _token_ids(guess: object) -> npt.NDArray[np.int64]:
    """Return one guess as an array, [num_tokens]. NumPy would truncate fractions, so they are refused first."""
    try:
        ids = np.asarray(guess)
    except ValueError as exc:  # lists of unequal lengths
        raise TypeError(f"a guess is a flat sequence of token ids, got {shortened(guess)}") from exc
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"a guess is a flat sequence of token ids, got {shortened(guess)}")
    return ids.astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One drafting step on the device, for drafters that never wait for it. Shapes do not change between steps."""

    slots: Tensor  # [num_reqs] int64; also the request's row in `tokens`
    tokens: Tensor  # [num_slots, max_length] int32, committed tokens
    lengths: Tensor  # [num_reqs] int32, committed tokens, prompt included
    num_tokens: int  # how many tokens to draft for each request
    parameters: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [num_reqs]; None for a whole number is the largest int64
    prompt_lengths: Tensor | None = None  # [num_reqs] int32, how many of the tokens are the prompt; None where the host does not tell


@dataclass(frozen=True, slots=True)
class DeviceDrafts:
    """Deterministic chains of one length. Where fewer were found, `counts` says so and the rest is padding."""

    tokens: Tensor  # [num_reqs, num_tokens] int64, every entry a valid token id
    counts: Tensor  # [num_reqs] int32, how many of them are guesses


class RequestDrafter(Protocol):
    """The smallest drafter: one request at a time, tokens in, guess out."""

    def propose_one(self, tokens: IntArray, budget: int) -> Sequence[int]:
        """Guess at most `budget` tokens that follow `tokens` [length]; an empty guess is fine."""


class Drafter(Protocol):
    """Guesses the next tokens of every active request, in host memory.

    Optional beside `propose`: ``traits`` (DrafterTraits), ``start(slots)`` and ``finish(slots)`` (slots are recycled:
    `start` initialises everything), ``observe(view: CommitView)`` (called once per step, before `propose`), and
    ``propose_on_device(view: DeviceView) -> DeviceDrafts`` for asynchronous engines, without synchronisation and with
    fixed shapes; it may be a property that is None where the options allow no such thing. One that remembers across requests
    (``scope``) has ``kept_bytes``, about what that takes, which hosts report.
    The same inputs must give the same drafts on every rank: no clock, no private random numbers.
    """

    def propose(self, view: DraftView) -> Drafts:
        """Return the drafts of this step; more than a request's budget is an error."""


@runtime_checkable
class DeviceDrafter(Protocol):
    """Drafts from tensors on the device: no synchronisation, fixed shapes, capturable in a CUDA graph."""

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        """Return one chain of ``view.num_tokens`` per request."""
