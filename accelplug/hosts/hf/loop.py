"""The decoding loop that runs behind ``generate(custom_generate=...)``: draft, forward, verify, commit, observe, stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from accelplug.hooks import ROOT
from accelplug.hooks.capabilities import admit
from accelplug.hosts.hf.checking import check_call
from accelplug.hosts.hf.compat import HOST, cache_argument, cache_name
from accelplug.hosts.hf.compiled import room_for_graphs
from accelplug.hosts.hf.drafting import Drafting
from accelplug.hosts.hf.forward import Forward
from accelplug.hosts.hf.given import without_positions
from accelplug.hosts.hf.guided import Guide, forced_share
from accelplug.hosts.hf.inside import Inside
from accelplug.hosts.hf.layers import growing, is_recurrent
from accelplug.hosts.hf.masks import capacity
from accelplug.hosts.hf.processors import warping
from accelplug.hosts.hf.ragged import Ragged, Rows, choose_batches, has_windows_to_keep, obstacle_to_ragged
from accelplug.hosts.hf.reading_on import mixers_to_slow
from accelplug.hosts.hf.recurrent import Recurrent
from accelplug.hosts.hf.request import Requests, encoder_tokens, own_tokens
from accelplug.hosts.hf.rollback import recording_past
from accelplug.hosts.hf.tree import EMPTY, Tree
from accelplug.hosts.hf.verify import Verdict, Walk
from accelplug.hosts.hf.whole import Whole, reads_whole
from accelplug.hosts.stats import NOTHING_FORCED

if TYPE_CHECKING:
    from accelplug.hosts.hf.grammar import GrammarProcessor, RowGrammars
    from accelplug.hosts.hf.session import Session


class Loop:
    """Passed to ``generate()`` as ``custom_generate``; called once with everything prepared."""

    def __init__(self, session: Session, streamer: Any, *, keeps_cache: bool, masking: GrammarProcessor | RowGrammars | None = None) -> None:
        self.session, self.streamer, self.keeps_cache, self.masking = session, streamer, keeps_cache, masking
        self.has_run = False

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        inputs_tensor: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Decode a batch of prompts; same contract as ``GenerationMixin._sample``."""
        session = self.session
        self.has_run = True
        model_kwargs = without_positions(model, input_ids, model_kwargs)
        check_call(model, generation_config, model_kwargs, with_trees=session.drafts_trees)
        admit(session.selection, HOST, sampling=bool(generation_config.do_sample), allow_lossy=session.allow_lossy)
        wants = generation_config.return_dict_in_generate
        walk = Walk(
            session.selection.verifier,
            logits_processor,
            do_sample=bool(generation_config.do_sample),
            keep_scores=bool(wants and generation_config.output_scores),
            keep_logits=bool(wants and generation_config.output_logits),
            parameters=session.requested.rows(session.selection.verifier, len(input_ids)),
        )
        requests = requests_of(model, input_ids, stopping_criteria, generation_config, inputs_tensor, model_kwargs, on_device=not walk.plain)
        obstacle = self._kept(wants) or obstacle_to_ragged(
            model, logits_processor, stopping_criteria, model_kwargs, whole=reads_whole(model, model_kwargs)
        )
        drawback = None if obstacle else self._drawback(generation_config, model_kwargs.get(cache_argument(model)))
        batch = choose_batches(session, requests, obstacle, drawback)
        if self.masking is not None:
            self.masking.begin(requests, generation_config.num_return_sequences or 1)
        with getattr(model, "_optimize_model_for_decode", nullcontext)():
            forward, inside = self._decode(model, input_ids, generation_config, model_kwargs, batch, walk)
        if self.streamer is not None:
            self.streamer.end()
        if self.masking is not None:
            session.checks = self.masking.problems(batch.sequences())
        if not wants:
            return batch.sequences()
        scores = None if walk.scores is None else tuple(walk.scores)
        logits = None if walk.logits is None else tuple(walk.logits)
        output = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
        return output(sequences=batch.sequences(), scores=scores, logits=logits, **inside.returned(model_kwargs), **{cache_name(): forward.past})

    def _kept(self, wants: bool) -> str | None:
        """Return what the caller gets beside the tokens, in which finished rows go on."""
        given = {"a streamer": self.streamer, "return_dict_in_generate": wants, "a cache of the caller's": self.keeps_cache}
        return next((name for name, is_given in given.items() if is_given), None)

    def _drawback(self, config: Any, cache: Any) -> str | None:
        """Return why rows advance together unless the user wants otherwise."""
        if config.do_sample:
            return "sampling, to draw the random numbers of plain generate()"
        if has_windows_to_keep(cache, config.max_length):
            return "attention windows, behind which layers would keep everything"
        return None if self.session.drafter or self.masking else "no drafter"

    def _decode(self, model: Any, input_ids: Tensor, config: Any, model_kwargs: Any, requests: Requests | Rows, walk: Walk) -> tuple[Forward | Whole, Inside]:
        self.session.stats.requests += requests.count
        guide = None if self.masking is None else Guide(self.masking, requests.tokens, self.session.selection, self.session.stats)
        warp = warping(walk.processors) if config.do_sample else None
        past = model_kwargs.get(cache_argument(model))
        drafts = Drafting(self.session, requests, temperature_of(config), guide, warp)
        with drafts as drafting, recording_past(past), room_for_graphs(model, config, model_kwargs):
            forward = forward_of(model, input_ids, config, model_kwargs, requests)
            inside = Inside(config, is_encoder_decoder=model.config.is_encoder_decoder)
            self._steps(forward, drafting, walk, inside)
            if config.return_dict_in_generate or self.keeps_cache:
                forward.finish()
        return forward, inside

    def _steps(self, forward: Forward | Whole, drafting: Drafting, walk: Walk, inside: Inside) -> None:
        """Verify, commit and draft, until every row has stopped."""
        requests = drafting.requests
        lockstep = requests if isinstance(requests, Requests) else None
        if lockstep is not None:
            lockstep.has_doubling_widths = forward.pads
        logits, trees = forward.logits, [EMPTY] * requests.count
        has_stepped, began = False, 0.0
        while True:
            active = requests.active
            before = requests.generated
            verdict = requests.verify(walk, logits, trees)
            self._count(trees, verdict, active, requests.generated - before, drafting.guide)
            inside.add(forward, verdict.paths, verdict.emitted, is_prompt=not has_stepped)
            if has_stepped:
                forward.commit(trees, verdict.paths, verdict.emitted - 1)
                self.session.costs.add(1 + max(map(len, trees)), time.perf_counter() - began, len(active))
            if lockstep is not None:
                self._stream(lockstep, verdict.emitted)
                lockstep.most_drafts = forward.most_drafts
            if verdict.done:
                return
            if lockstep is not None:
                lockstep.check_room()
            began = time.perf_counter()
            trees = drafting.propose(verdict.paths, logits, trees)
            last = requests.last()
            trees = forward.readable(trees, last, [requests.is_over(row) for row in range(requests.count)])
            logits = forward.step(last, trees)
            has_stepped = True

    def _count(self, trees: Sequence[Tree], verdict: Verdict, active: Sequence[int], tokens: int, guide: Guide | None) -> None:
        """Add a step of the `active` rows to the session's statistics."""
        stats = self.session.stats
        stats.forwards += len(active)
        stats.tokens += tokens
        stats.lossy_accepts += verdict.lossy
        sizes = [len(trees[row]) for row in active]
        forced = NOTHING_FORCED if guide is None else forced_share(trees, verdict.paths, active)
        stats.count(len(sizes) - sizes.count(0), sum(sizes), sum(len(verdict.paths[row]) for row in active), forced)
        for row in active:
            if trees[row].children:
                path = verdict.paths[row]
                for node, accepted in zip((ROOT, *path), (*path, ROOT), strict=True):
                    stats.count_siblings(trees[row].children_of(node), accepted)

    def _stream(self, requests: Requests, count: int) -> None:
        if self.streamer is None:
            return
        for tokens in requests.tokens[:, requests.length - count : requests.length].T.tolist():
            self.streamer.put(torch.tensor(tokens))


def forward_of(model: Any, input_ids: Tensor, config: Any, model_kwargs: dict[str, Any], requests: Requests | Rows) -> Forward | Whole:
    """Return the target model, the prompts read, as its cache, its layers and the rows need it."""
    if reads_whole(model, model_kwargs):
        return Whole(model, input_ids, config, model_kwargs, requests if isinstance(requests, Rows) else None)
    if isinstance(requests, Rows):
        return Ragged(model, input_ids, config, model_kwargs, requests)
    prompt = (model, input_ids, config, model_kwargs)
    past = model_kwargs.get(cache_argument(model))
    if is_recurrent(model, past):
        return Recurrent(*prompt, mixers_to_slow(model, len(input_ids), past))
    return Forward(*prompt)


def requests_of(
    model: Any, input_ids: Tensor, criteria: Any, config: Any, inputs: Tensor | None, model_kwargs: dict[str, Any], *, on_device: bool
) -> Requests:
    """Return the rows of a call, with the room that its cache leaves them and what an encoder was given for them."""
    pad = config._pad_token_tensor
    requests = Requests(
        input_ids,
        criteria,
        max_length=min(criterion.max_length for criterion in criteria if isinstance(criterion, MaxLengthCriteria)),
        pad_token_id=0 if pad is None else int(pad),
        on_device=on_device,
    )
    if slots := capacity(growing(model_kwargs.get(cache_argument(model)))):
        requests.room = min(requests.room, slots + 1)
    side = "decoder_" if model.config.is_encoder_decoder else ""
    if side:
        requests.inputs = encoder_tokens(inputs, model_kwargs.get("attention_mask"), requests.count)
    requests.own = own_tokens(input_ids, model_kwargs.get(f"{side}attention_mask"))
    return requests


def temperature_of(config: Any) -> float:
    """Return the temperature that a call samples at, 0 for greedy decoding."""
    return float(config.temperature or 1.0) if config.do_sample else 0.0
