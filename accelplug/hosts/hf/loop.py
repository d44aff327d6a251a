"""The decoding loop that runs behind ``generate(custom_generate=...)``: draft, forward, verify, commit, observe, stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from accelplug._errors import HostError
from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.capabilities import admit
from accelplug.hooks.drafting import CommitView, DraftView, IntArray
from accelplug.hosts.hf.compat import HOST
from accelplug.hosts.hf.forward import Forward, check_cache, recording_past
from accelplug.hosts.hf.masks import check_trees
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.hf.verify import Walk

if TYPE_CHECKING:
    from accelplug.hosts.hf.session import Session


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
        """Decode a batch of prompts; same contract as ``GenerationMixin._sample``."""
        session = self.session
        check_call(model, generation_config, model_kwargs, with_trees=session.drafts_trees)
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
        pad = generation_config._pad_token_tensor
        requests = Requests(
            input_ids,
            stopping_criteria,
            max_length=min(lengths),
            pad_token_id=0 if pad is None else int(pad),
            on_device=not walk.plain,
        )
        with getattr(model, "_optimize_model_for_decode", nullcontext)():
            forward = self._decode(model, input_ids, generation_config, model_kwargs, requests, walk)
        if self.streamer is not None:
            self.streamer.end()
        if not wants:
            return requests.sequences()
        scores = None if walk.scores is None else tuple(walk.scores)
        logits = None if walk.logits is None else tuple(walk.logits)
        return GenerateDecoderOnlyOutput(sequences=requests.sequences(), scores=scores, logits=logits, past_key_values=forward.cache)

    def _decode(self, model: Any, input_ids: Tensor, config: Any, model_kwargs: Any, requests: Requests, walk: Walk) -> Forward:
        stats = self.session.stats
        stats.requests += requests.count
        with Drafting(self.session, requests) as drafting, recording_past(model_kwargs["past_key_values"]):
            forward = Forward(model, input_ids, config, model_kwargs)
            logits, trees = forward.logits, [EMPTY] * requests.count
            while True:
                active = [row for row in range(requests.count) if not requests.is_over(row)]
                stats.forwards += len(active)
                before = requests.generated
                verdict = walk(logits, trees, requests)
                stats.tokens += requests.generated - before
                stats.lossy_accepts += verdict.lossy
                stats.count(sum(len(trees[row]) for row in active), sum(len(verdict.paths[row]) for row in active))
                if requests.length - verdict.emitted > requests.prompt_length:
                    forward.commit(trees, verdict.paths, verdict.emitted - 1)
                if self.streamer is not None:
                    self._stream(requests, verdict.emitted)
                if verdict.done:
                    return forward
                trees = drafting.propose(verdict.paths)
                logits = forward.step(requests.last(), trees)

    def _stream(self, requests: Requests, count: int) -> None:
        for tokens in requests.tokens[:, requests.length - count : requests.length].T.tolist():
            self.streamer.put(torch.tensor(tokens))


class Drafting:
    """The rows' life with the session's drafter: start, observe and propose each step, finish whatever happens."""

    def __init__(self, session: Session, requests: Requests) -> None:
        self.drafter: BoundDrafter | None = session.drafter
        self.stats, self.vocab_size, self.requests = session.stats, session.vocab_size, requests
        self.given = session.parameters
        self.seen = 0
        self._watch(np.arange(requests.count))

    def _watch(self, rows: IntArray) -> None:
        """Make the views of these rows once: the arrays inside change from step to step."""
        self.rows = rows
        self.lengths, self.fresh, self.accepted, self.budgets = (np.zeros(len(rows), dtype=np.int64) for _ in range(4))
        parameters = {name: np.repeat(value, len(rows)) for name, value in self.given.items()}
        self.commit_view = CommitView(rows, rows, self.requests.tokens, self.lengths, self.fresh, self.accepted)
        self.draft_view = DraftView(rows, rows, self.requests.tokens, self.lengths, self.budgets, parameters)

    def __enter__(self) -> Drafting:
        if self.drafter is not None:
            self._call(self.drafter.start, self.rows)
        return self

    def __exit__(self, *_: object) -> None:
        if self.drafter is not None:
            self._call(self.drafter.finish, self.rows)

    def propose(self, paths: Sequence[Sequence[int]]) -> list[Tree]:
        """Tell the drafter what was committed and ask for the next drafts, one tree per row."""
        trees = [EMPTY] * self.requests.count
        if self.drafter is None:
            return trees
        self._drop_finished()
        length = self.requests.length
        self.lengths[:], self.fresh[:], self.accepted[:] = length, length - self.seen, [len(paths[row]) for row in self.rows]
        # One less than the room left, since the target model adds a token itself: no cache row that plain decoding lacks.
        self.budgets[:] = self.requests.max_length - length - 1
        self.seen = length
        began = time.perf_counter()
        self._call(self.drafter.observe, self.commit_view)
        drafts = self._call(self.drafter.propose, self.draft_view)
        self.stats.propose_seconds += time.perf_counter() - began
        self.drafter.check(drafts, self.budgets, self.vocab_size)
        bounds = drafts.offsets.tolist()
        for i, row in enumerate(self.rows.tolist()):
            trees[row] = Tree.of(drafts, bounds[i], bounds[i + 1])
        return self._with_padding(trees)

    def _drop_finished(self) -> None:
        """Finish the rows that only go on as padding."""
        if len(self.rows) == self.requests.count - self.requests.num_over:
            return
        over = np.array([self.requests.is_over(row) for row in self.rows.tolist()])
        assert self.drafter is not None
        self._call(self.drafter.finish, self.rows[over])
        self._watch(self.rows[~over])

    def _with_padding(self, trees: list[Tree]) -> list[Tree]:
        """Draft padding for the rows that are over, as long as the longest draft."""
        if len(self.rows) < len(trees):
            longest = max(map(len, trees))
            padding = Tree([self.requests.pad_token_id] * longest)
            trees = [padding if self.requests.is_over(row) else tree for row, tree in enumerate(trees)]
        return trees

    def _call(self, method: Callable[[Any], Any], view: Any) -> Any:
        try:
            return method(view)
        except Exception as exc:
            assert self.drafter is not None
            self.drafter.technique.blame(exc)
            raise


def check_call(model: Any, config: Any, model_kwargs: dict[str, Any], *, with_trees: bool) -> None:
    """Refuse a ``generate()`` call that the loop would get wrong.

    :raises HostError: naming the argument and what to use.
    """
    mode = config.get_generation_mode().value
    refusals = {
        f"{mode.replace('_', ' ')}; use greedy search or sampling, with num_beams=1": mode not in ("greedy_search", "sample"),
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
    cache = model_kwargs.get("past_key_values")
    check_cache(model, cache)
    if with_trees:
        check_trees(model, cache)
