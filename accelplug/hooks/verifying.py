"""Verifying: the rule that decides which draft nodes stay.

A rule for one candidate at a time is two small functions on tensors; a rule that must see a request's drafts together
is one. The host draws random numbers, steps processors, walks the tree, and applies the answer; that is what lets one
rule run in a lazy walk, over a whole batch, or in an engine's sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from accelplug.hooks.declared import check_word, set_of
from accelplug.hooks.drafting import NodeKind, node_kinds

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class VerifierTraits:
    """What a verification rule says about itself.

    :param lossless: the decoding for which its output is exactly the target model's: ``"sampling"`` (and so greedy
        too), ``"greedy"`` only, or None for a lossy rule, which must be asked for by ``allow_lossy=True``.
    :param kinds: the node kinds it can judge.
    :param needs: capability words that the host must provide.
    :param standard: it is token-wise speculative sampling, so an engine may run its own kernel of that rule.
    :param shape: the drafts it can judge: trees, and so chains too, or chains only.
    """

    lossless: Literal["sampling", "greedy"] | None
    kinds: frozenset[NodeKind] = frozenset(NodeKind)
    needs: frozenset[str] = frozenset()
    standard: bool = False
    shape: Literal["chain", "tree"] = "tree"

    def __post_init__(self) -> None:
        """Refuse misspelt words, and take any collection for `kinds` and `needs`.

        :raises PluginError: naming the trait and what it takes.
        """
        check_word("VerifierTraits.lossless", self.lossless, ("sampling", "greedy", None))
        check_word("VerifierTraits.standard", self.standard, (True, False))
        check_word("VerifierTraits.shape", self.shape, ("chain", "tree"))
        object.__setattr__(self, "kinds", node_kinds("VerifierTraits.kinds", self.kinds))
        object.__setattr__(self, "needs", set_of("VerifierTraits.needs", self.needs, str, "{'logits.full'}"))


@dataclass(frozen=True, slots=True)
class VerifyView:
    """Candidates to judge, one per row. At a tree's node, siblings are judged one after the other in drawing order;
    `target` and `draft` are then what the earlier siblings' rejections left of the two distributions.
    """

    tokens: Tensor  # [n] int64, the candidates
    kinds: Tensor  # [n] of NodeKind
    target: Tensor  # [n, vocab_size] probabilities the token would be sampled from; one-hot for greedy requests
    logits: Tensor  # [n, vocab_size] processed scores of the same rows, before greedy requests became one-hot
    draft: Tensor | None = None  # [n, vocab_size] the drafter's probabilities; undefined for DELTA candidates
    parameters: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [n], per-request options, as in `DraftView`

    def target_at_tokens(self) -> Tensor:
        """Return the target probability of each candidate, [n]."""
        return self.target.gather(1, self.tokens.unsqueeze(1)).squeeze(1)

    def draft_at_tokens(self) -> Tensor:
        """Return the draft probability of each candidate, [n]: 1 for DELTA candidates, which are point masses."""
        ones = self.target.new_ones(len(self.tokens))
        if self.draft is None:
            return ones
        drawn = self.draft.gather(1, self.tokens.unsqueeze(1)).squeeze(1)
        return drawn.where(self.kinds != NodeKind.DELTA, ones)

    def drawn(self) -> Tensor:
        """Return the distribution that each candidate was drawn from, [n, vocab_size]; a DELTA candidate's is its point mass."""
        mass = self.target.new_zeros(self.target.shape).scatter_(1, self.tokens.unsqueeze(1), 1.0)
        return mass if self.draft is None else mass.where((self.kinds == NodeKind.DELTA).unsqueeze(1), self.draft)

    def at(self, rows: Tensor) -> VerifyView:
        """Return the candidates in these rows, [m] int64."""
        draft = None if self.draft is None else self.draft[rows]
        parameters = {name: values[rows] for name, values in self.parameters.items()}
        return VerifyView(self.tokens[rows], self.kinds[rows], self.target[rows], self.logits[rows], draft, parameters)


def residual(view: VerifyView) -> Tensor:
    """Return ``norm[target - draft]+`` for each candidate, [n, vocab_size], a DELTA candidate's draft being its point mass.

    Where nothing is left (a rule was stricter than the lossless one) the target itself is returned.
    Source: Leviathan et al. 2023, arXiv 2211.17192, theorem 1.
    """
    return normalised((view.target - view.drawn()).clamp(min=0), view.target)


def without(rows: Tensor, tokens: Tensor) -> Tensor:
    """Return probability rows [n, vocab_size] each without one of `tokens` [n]: what a later sibling is drawn from.

    A row with nothing left stays as it was.
    """
    return normalised(rows.scatter(1, tokens.unsqueeze(1), 0.0), rows)


def normalised(left: Tensor, otherwise: Tensor) -> Tensor:
    """Return probability rows, [n, vocab_size] or one [vocab_size], made to sum to 1; those of `otherwise` where nothing is left."""
    total = left.sum(-1, keepdim=True)
    return (left / total).where(total > 0, otherwise)


class Verifier(Protocol):
    """A verification rule. `traits` is required: a rule that does not say what it preserves cannot be admitted.

    Optional: ``residual(view) -> Tensor`` [n, vocab_size], the distribution to go on with after every candidate was
    rejected; without it the host takes ``norm[target - draft]+``, or the target without the token for DELTA
    candidates. A masked token is never accepted, whatever a rule says.
    """

    @property
    def traits(self) -> VerifierTraits:
        """What the rule preserves and needs."""

    def accept(self, view: VerifyView) -> Tensor:
        """Return each candidate's acceptance probability, [n], between 0 and 1."""


@dataclass(frozen=True, slots=True)
class PathView:
    """One request's drafts with all that the target model said about them, for rules that judge them together.

    Row 0 of `target` and `logits` follows the last committed token, row ``i + 1`` follows node i.
    """

    tokens: Sequence[int]  # [num_nodes] the drafts
    parents: Sequence[int]  # [num_nodes], ROOT (-1) for the first level
    kinds: Sequence[int]  # [num_nodes] of NodeKind
    target: Tensor  # [1 + num_nodes, vocab_size] probabilities; one-hot for greedy requests
    logits: Tensor  # [1 + num_nodes, vocab_size] processed scores, before greedy requests became one-hot
    below: Callable[[float], bool]  # draws a uniform number: whether it lies below the given probability
    rows: Tensor | None = None  # [num_rows, vocab_size] the drafter's probabilities
    row_ids: Sequence[int] | None = None  # [num_nodes] into `rows`, -1 for DELTA nodes
    parameters: Mapping[str, float] = field(default_factory=dict)  # name -> number, per-request options, as in `DraftView`

    def children(self, node: int) -> Sequence[int]:
        """Return the nodes drafted after `node` (ROOT: after the last committed token), in drawing order."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def drawn_from(self, node: int) -> Tensor:
        """Return the distribution the node was drawn from, [vocab_size], before siblings were removed; a DELTA node's is its point mass."""
        if self.kinds[node] != NodeKind.DELTA and self.rows is not None and self.row_ids is not None:
            return self.rows[self.row_ids[node]].to(self.target)
        return self.target.new_zeros(self.target.shape[1]).index_fill_(0, self.target.new_tensor([self.tokens[node]]).long(), 1.0)


@dataclass(frozen=True, slots=True)
class ChainsView:
    """The chains of a whole batch, for rules that judge them on the device: nothing here waits for it, and shapes depend on no value.

    The drafts of all requests stand one after the other, each judged by the row of the target that follows the drafts before it.

    :param below: others in every call; False for padding.
    """

    drafts: VerifyView  # [num_drafts] candidates
    requests: Tensor  # [num_drafts] int64, whose draft it is, ascending
    places: Tensor  # [num_drafts] int64, its place in that request's chain, from 0
    counts: Tensor  # [num_reqs] int64, how long each chain is; drafts at later places are padding
    width: int  # the most drafts of a request, padding included
    below: Callable[[Tensor], Tensor]  # [num_reqs, width] probabilities -> bool: draws a uniform number for each, whether it lies below

    def there(self) -> Tensor:
        """Return which places hold a draft and no padding, [num_reqs, width] bool."""
        import torch

        return torch.arange(self.width, device=self.counts.device) < self.counts.unsqueeze(1)

    def padded(self, values: Tensor, fill: float = 0) -> Tensor:
        """Return one value per draft [num_drafts] laid out by request and place, [num_reqs, width], with `fill` in place of padding."""
        laid = values.new_full((len(self.counts), self.width), fill)
        laid[self.requests, self.places] = values
        return laid.masked_fill_(~self.there(), fill)

    def following(self, kept: Tensor) -> Tensor:
        """Return which draft stands behind the first `kept` [num_reqs] of each chain, [num_reqs] int64 into `drafts`.

        Where a chain ends there it is some other draft; what is said of that is not used.
        """
        import torch

        firsts = torch.searchsorted(self.requests, torch.arange(len(kept), device=kept.device))
        return (firsts + kept).clamp(max=len(self.places) - 1)


@dataclass(frozen=True, slots=True)
class ChainsChoice:
    """What a rule decided about the chains of a batch.

    :param kept: how many drafts of each chain are accepted, from its first on, [num_reqs] int64.
    :param rest: the distribution of the token that takes the place of the first rejected draft, [num_reqs, vocab_size]; where a whole
        chain is kept it is not used, and the token behind that is drawn from the target.
    :param lossy: which drafts a lossless rule would have rejected, for the statistics, [num_reqs, width] bool; those not kept do not count.
    """

    kept: Tensor
    rest: Tensor
    lossy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule for whole drafts decided.

    :param path: the accepted nodes from the first level down, each the parent of the next.
    :param rest: the distribution of the one token that follows them, [vocab_size].
    :param lossy: the nodes of the path that a lossless rule would have rejected, for the statistics.
    """

    path: Sequence[int]
    rest: Tensor
    lossy: Collection[int] = ()


class PathVerifier(Protocol):
    """A verification rule that looks at a request's drafts as a whole; needs ``"verify.path"``.

    The host applies processors to every node's scores before it asks, each along its own path; that is right for
    processors that depend on a row's tokens and scores alone, and a host refuses others. A path through a masked token
    is cut there. It is asked only where something was drafted. The tensors of a view may lie in host memory, wherever the engine's do.

    Optional: ``choose_on_device(view: ChainsView) -> ChainsChoice``, the same rule on the chains of a whole batch, for engines on which
    waiting for the device is dear. What it keeps has the same distribution as what `choose` keeps.
    """

    @property
    def traits(self) -> VerifierTraits:
        """What the rule preserves and needs."""

    def choose(self, view: PathView) -> Choice:
        """Return the accepted path, and what the token after it is drawn from."""
