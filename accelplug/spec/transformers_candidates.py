"""Transformers' own candidate generators as a drafter: its prompt lookup, a model's early exit or MTP layers, DFlash, or anybody's generator.

Paper      Saxena 2023, "Prompt Lookup Decoding"; Elhoushi et al. 2024, "LayerSkip", arXiv 2404.16710; DeepSeek-AI 2024, arXiv 2412.19437 (MTP)
Output     unchanged (the verifier decides)
Needs      Transformers; for early exit and MTP a model that was trained for it, for DFlash a draft model that was trained for the target
Hosts      transformers
Devices    cpu, cuda
Cost       the generator's, one request after the other: prompt lookup compares the whole text, early exit and MTP run layers per token, DFlash its model once
Good for   generators that exist already, with batches, streamers, stop strings and statistics that their own loop lacks
Poor for   prompt lookup in long texts: prompt_lookup finds the same in a few microseconds
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from accelplug._errors import OptionError, PluginError
from accelplug.hooks.context import BuildContext
from accelplug.hooks.drafting import CommitView, DrafterTraits, Drafts, DraftView, IntArray
from accelplug.hooks.options import option

if TYPE_CHECKING:
    from torch import Tensor

_ON_HIDDEN_STATES = ("mtp", "dflash")


@dataclass(slots=True)
class _Running:
    """One request's generator, and what it drafted last."""

    generator: Any = None
    drafted: int | None = None


@dataclass(slots=True)
class TransformersCandidates:
    """Ask a ``transformers.CandidateGenerator`` per request for its candidates.

    All of them count as chosen deterministically, which is exact for drawn ones, too: the rule for point masses holds whatever
    token it is given.
    """

    generator: object = option("prompt_lookup", help="'prompt_lookup', 'early_exit', 'mtp', 'dflash', or a function: token ids [1, length] -> generator")
    num_tokens: int = option(8, ge=1, le=128, help="most tokens to draft")
    max_ngram: int = option(2, ge=1, le=16, help="of 'prompt_lookup': longest n-gram to look for")
    exit_layer: int | None = option(None, ge=1, help="of 'early_exit': how many of the model's layers draft")
    model: object = option(None, help="of 'dflash': the draft model, a folder, a name on the hub, or a loaded model")
    context: BuildContext = field(kw_only=True, repr=False)
    _make: Callable[[Tensor], Any] = field(init=False, repr=False)
    _running: dict[int, _Running] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        given = self.generator
        self._make = given if callable(given) else self.context.candidates(str(given), self._options())

    def _options(self) -> dict[str, Any]:
        """Return the generator's options as ``generate()`` spells them."""
        if self.generator == "prompt_lookup":
            return {"prompt_lookup_num_tokens": self.num_tokens, "max_matching_ngram_size": self.max_ngram}
        if self.generator == "early_exit" and self.exit_layer is not None:
            return {"assistant_early_exit": self.exit_layer, "num_assistant_tokens": self.num_tokens}
        if self.generator == "mtp":
            return {"use_mtp": True}
        if self.generator == "dflash" and self.model is not None:
            return {"speculation_type": "dflash", "assistant_model": self.model}
        raise OptionError(
            f"transformers_candidates: generator={self.generator!r:.60} is none; choose 'prompt_lookup', 'early_exit' with exit_layer=..., 'mtp', "
            "'dflash' with model=..., or give a function that makes one for a request's token ids"
        )

    @property
    def traits(self) -> DrafterTraits:
        """Of which layers a generator reads the hidden states, if it does, is known once it is built."""
        needs = frozenset({"hidden.layer"} if self.generator in _ON_HIDDEN_STATES else ())
        return DrafterTraits(needs=needs, hidden_layers=getattr(getattr(self, "_make", None), "layers", frozenset()) if needs else frozenset())

    def start(self, slots: IntArray) -> None:
        """Begin without a generator in each slot: it is made for the tokens of its request."""
        self._running |= {slot: _Running() for slot in slots.tolist()}

    def finish(self, slots: IntArray) -> None:
        """Drop each slot's generator and what it holds."""
        for slot in slots.tolist():
            self._running.pop(slot, None)

    def observe(self, view: CommitView) -> None:
        """Tell each generator how many of its candidates were right, as Transformers' own loop does, or show it the hidden states that it reads.

        Scores are [1, 1 + candidates, 0]: the built-in generators look at their number only.
        """
        import torch

        for i, (slot, accepted) in enumerate(zip(view.slots.tolist(), view.accepted.tolist(), strict=True)):
            running = self._running[slot]
            if view.hidden is not None:
                if running.generator is None:
                    running.generator = self._make(self._ids(view.history(i)))
                running.generator.read(view.history(i), view.hidden[i])
            elif running.drafted is not None:
                scores = torch.empty(1, 1 + running.drafted, 0)
                running.generator.update_candidate_strategy(self._ids(view.history(i)), scores, accepted)
                running.drafted = None

    def propose(self, view: DraftView) -> Drafts:
        """Ask each request's generator, one after the other: they take one prompt at a time."""
        return Drafts.chains([self._guess(slot, view.history(i), int(view.budgets[i])) for i, slot in enumerate(view.slots.tolist())])

    def _guess(self, slot: int, history: IntArray, budget: int) -> IntArray | tuple[()]:
        if budget <= 0:
            return ()
        running, ids = self._running[slot], self._ids(history)
        if running.generator is None:
            running.generator = self._make(ids)
            if getattr(running.generator, "requires_model_outputs", False):
                name = type(running.generator).__name__
                raise PluginError(f"{name} reads the target's hidden states, which generators of a function's are not shown; use 'mtp' or 'dflash'")
        candidates, _ = running.generator.get_candidates(ids)
        guess: IntArray = candidates[0, ids.shape[1] :][: min(budget, self.num_tokens)].cpu().numpy()
        running.drafted = len(guess)
        return guess

    def _ids(self, history: IntArray) -> Tensor:
        import torch

        return torch.from_numpy(history.astype(np.int64)).unsqueeze(0).to(self.context.device)
