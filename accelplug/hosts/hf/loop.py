"""The decoding loop that runs behind ``generate(custom_generate=...)``: draft, forward, verify, commit, observe, stream."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from accelplug._errors import HostError
from accelplug.hooks.binding import BoundDrafter, check_drafts
from accelplug.hooks.capabilities import admit
from accelplug.hooks.drafting import CommitView, DraftView
from accelplug.hosts.hf.compat import HOST
from accelplug.hosts.hf.forward import Forward, check_cache
from accelplug.hosts.hf.request import Request
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.hf.verify import Walk

if TYPE_CHECKING:
    from accelplug.hosts.hf.session import Session

_SLOT = np.zeros(1, dtype=np.int64)


class Loop:
    """Passed to ``generate()`` as ``custom_generate``; called once with everything prepared."""

    def __init__(self, session: Session, streamer: Any) -> None:
        self.session, self.streamer = session, streamer

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Decode one prompt; same contract as ``GenerationMixin._sample``."""
        session = self.session
        check_call(model, input_ids, generation_config, model_kwargs)
        admit(session.selection, HOST, sampling=bool(generation_config.do_sample), allow_lossy=session.allow_lossy)
        wants = generation_config.return_dict_in_generate
        walk = Walk(
            session.selection.verifier,
            logits_processor,
            do_sample=bool(generation_config.do_sample),
            keep_scores=bool(wants and generation_config.output_scores),
            keep_logits=bool(wants and generation_config.output_logits),
        )
        lengths = [criterion.max_length for criterion in stopping_criteria if isinstance(criterion, MaxLengthCriteria)]
        request = Request(input_ids, stopping_criteria, max_length=min(lengths), on_device=not walk.plain)
        with getattr(model, "_optimize_model_for_decode", nullcontext)():
            forward = self._decode(model, input_ids, generation_config, model_kwargs, request, walk)
        if self.streamer is not None:
            self.streamer.end()
        if not wants:
            return request.sequences()
        scores = None if walk.scores is None else tuple(walk.scores)
        logits = None if walk.logits is None else tuple(walk.logits)
        return GenerateDecoderOnlyOutput(sequences=request.sequences(), scores=scores, logits=logits, past_key_values=forward.cache)

    def _decode(self, model: Any, input_ids: Tensor, config: Any, model_kwargs: Any, request: Request, walk: Walk) -> Forward:
        stats = self.session.stats
        stats.requests += 1
        with Drafting(self.session, request) as drafting:
            forward = Forward(model, input_ids, config, model_kwargs)
            logits, tree = forward.logits, EMPTY
            while True:
                stats.forwards += 1
                verdict = walk(logits, tree, request)
                stats.tokens += verdict.emitted
                stats.lossy_accepts += verdict.lossy
                stats.count(len(tree), len(verdict.path))
                if request.length - verdict.emitted > request.prompt_length:
                    forward.commit(tree, verdict.path, verdict.emitted - 1)
                if self.streamer is not None:
                    self._stream(request, verdict.emitted)
                if verdict.done:
                    forward.finish()
                    return forward
                tree = drafting.propose(len(verdict.path))
                logits = forward.step(request.last, tree)

    def _stream(self, request: Request, count: int) -> None:
        for token in request.tokens[0, request.length - count : request.length].tolist():
            self.streamer.put(torch.tensor([token]))


class Drafting:
    """One request's life with the session's drafter: start, observe and propose each step, finish whatever happens."""

    def __init__(self, session: Session, request: Request) -> None:
        self.drafter: BoundDrafter | None = session.drafter
        self.stats, self.vocab_size, self.request = session.stats, session.vocab_size, request
        self.lengths, self.fresh, self.accepted, self.budgets = (np.zeros(1, dtype=np.int64) for _ in range(4))
        self.seen = 0
        # Made once: the arrays inside change from step to step.
        self.commit_view = CommitView(_SLOT, _SLOT, request.tokens, self.lengths, self.fresh, self.accepted)
        self.draft_view = DraftView(_SLOT, _SLOT, request.tokens, self.lengths, self.budgets, session.parameters)

    def __enter__(self) -> Drafting:
        if self.drafter is not None:
            self.drafter.start(_SLOT)
        return self

    def __exit__(self, *_: object) -> None:
        if self.drafter is not None:
            self.drafter.finish(_SLOT)

    def propose(self, accepted: int) -> Tree:
        """Tell the drafter what was committed and ask for the next drafts."""
        if self.drafter is None:
            return EMPTY
        length = self.request.length
        self.lengths[0], self.fresh[0], self.accepted[0] = length, length - self.seen, accepted
        # One less than the room left, since the target model adds a token itself: no cache row that plain decoding lacks.
        self.budgets[0] = self.request.max_length - length - 1
        self.seen = length
        began = time.perf_counter()
        try:
            self.drafter.observe(self.commit_view)
            drafts = self.drafter.propose(self.draft_view)
        except Exception as exc:
            self.drafter.technique.blame(exc)
            raise
        self.stats.propose_seconds += time.perf_counter() - began
        check_drafts(self.drafter.technique, drafts, self.budgets, self.vocab_size)
        return Tree.of(drafts)


def check_call(model: Any, input_ids: Tensor, config: Any, model_kwargs: dict[str, Any]) -> None:
    """Refuse a ``generate()`` call that the loop would get wrong.

    :raises HostError: naming the argument and what to use.
    """
    mode = config.get_generation_mode().value
    refusals = {
        f"{mode.replace('_', ' ')}; use greedy search or sampling, with num_beams=1": mode not in ("greedy_search", "sample"),
        f"a batch of {input_ids.shape[0]} prompts; generate one prompt at a time": input_ids.shape[0] != 1,
        "use_cache=False, since drafts are verified against the cache; leave it on": not model_kwargs.get("use_cache"),
        "an encoder-decoder model; use a decoder-only one": model.config.is_encoder_decoder,
        "image, audio or video inputs; use text": any(
            name.startswith(("pixel_values", "mm_encoder", "input_features")) for name in model_kwargs
        ),
        "output_attentions or output_hidden_states; leave them out": bool(config.output_attentions or config.output_hidden_states),
    }
    for reason, refused in refusals.items():
        if refused:
            raise HostError(f"accelplug does not run with {reason}")
    check_cache(model_kwargs.get("past_key_values"))
