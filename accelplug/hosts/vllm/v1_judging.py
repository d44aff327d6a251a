"""A plugin's verification rule in the V1 runner: its rejection sampler, swapped on the instance after the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample import rejection_sampler as vllms

from accelplug.hosts.vllm.judged import Judged
from accelplug.hosts.vllm.judging import Judge


class SeededChance:
    """Random numbers from each request's own generator where it has one, else from torch's default."""

    def __init__(self, generators: Mapping[int, torch.Generator], num_drafts: list[int], greedy: Tensor, *, all_greedy: bool) -> None:
        self.generators = generators
        self.num_drafts = num_drafts
        self.greedy, self.all_greedy = greedy, all_greedy

    def uniforms(self, batch: Judged) -> Tensor:
        """Return one number per draft, [num_drafts]."""
        numbers: Tensor = vllms.generate_uniform_probs(len(batch.tokens), self.num_drafts, dict(self.generators), batch.tokens.device)
        return numbers

    def seeds(self, batch: Judged) -> Tensor:
        """Return one number per request, [num_reqs]."""
        del batch
        seeds = torch.empty(len(self.greedy), dtype=torch.int64, device=self.greedy.device).random_()
        for request, generator in self.generators.items():
            seeds[request].random_(generator=generator)
        return seeds

    def draw(self, rest: Tensor) -> Tensor:
        """Draw one token per request, [num_reqs], by exponential races; greedy requests take the likeliest."""
        if self.all_greedy:
            return rest.argmax(-1)
        noise = torch.empty_like(rest).exponential_()
        for request, generator in self.generators.items():
            noise[request].exponential_(generator=generator)
        return torch.where(self.greedy, rest.argmax(-1), (rest / noise).argmax(-1))


class JudgingSampler(vllms.RejectionSampler):  # type: ignore[misc]
    """vLLM's rejection sampler with another rule in it.

    :param replaced: the runner's own, whose settings it takes over.
    :param parameters: call it for the options that the requests of the batch set for themselves.
    """

    def __init__(self, replaced: vllms.RejectionSampler, judge: Judge, parameters: Callable[[], Mapping[str, Tensor]]) -> None:
        self.__dict__.update(replaced.__dict__)
        self.judge = judge
        self.parameters_of_batch = parameters

    def forward(self, metadata: Any, draft_probs: Tensor | None, logits: Tensor, sampling_metadata: Any) -> SamplerOutput:
        """Verify a step's drafts.

        :param metadata: vLLM's SpecDecodeMetadata, which says whose rows of logits are whose.
        :param draft_probs: [num_drafts, vocab_size], if the drafts were drawn from them.
        :param logits: [num_drafts + num_reqs, vocab_size].
        :returns: the accepted drafts and one more token of each request, [num_reqs, max_spec_len + 1] with -1 behind them.
        """
        judged = None if self.judge.switched_off is not None else self._judged(metadata, draft_probs, logits, sampling_metadata)
        return super().forward(metadata, draft_probs, logits, sampling_metadata) if judged is None else judged

    def _judged(self, metadata: Any, draft_probs: Tensor | None, logits: Tensor, sampling_metadata: Any) -> SamplerOutput | None:
        """Return what the rule decides; None where it fails."""
        scores = self._process(logits, metadata, sampling_metadata)
        greedy, all_greedy = _greedy(sampling_metadata, metadata), bool(sampling_metadata.all_greedy)
        batch = Judged(
            scores, metadata.cu_num_sampled_tokens.long(), metadata.draft_token_ids.long(), greedy, draft_probs, self.parameters_of_batch(),
            all_greedy=all_greedy, all_random=bool(sampling_metadata.all_random),
        )  # fmt: skip
        chance = SeededChance(sampling_metadata.generators, metadata.num_draft_tokens, greedy, all_greedy=all_greedy)
        verdict = self.judge(batch, chance, metadata.max_spec_len, vllms.PLACEHOLDER_TOKEN_ID)
        if verdict is None:
            return None
        tokens = verdict.tokens.to(torch.int32)
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=self._logprobs(tokens, scores, logits, metadata, sampling_metadata))

    def _process(self, logits: Tensor, metadata: Any, sampling_metadata: Any) -> Tensor:
        """Return what tokens are sampled from, [num_drafts + num_reqs, vocab_size]; `logits` stay as they are."""
        scores = logits.to(torch.float32, copy=True)
        at, last = metadata.target_logits_indices, metadata.bonus_logits_indices
        # In vLLM's order: the first of the two learns what was committed (`thinking_token_budget`), and the second goes by it.
        scores[last] = self.sampler.apply_logits_processors(scores[last], sampling_metadata, predict_bonus_token=True)
        scores[at] = self.apply_logits_processors(scores[at], sampling_metadata, metadata)
        constrained: Tensor = vllms.apply_sampling_constraints(scores, metadata.cu_num_sampled_tokens, sampling_metadata)
        return constrained

    def _logprobs(self, tokens: Tensor, scores: Tensor, logits: Tensor, metadata: Any, sampling_metadata: Any) -> Any:
        """Return the log-probabilities of the tokens, where a request asked for them."""
        if sampling_metadata.max_num_logprobs is None:
            return None
        shown = scores if self.is_processed_logprobs_mode else logits.float()
        target, bonus = shown[metadata.target_logits_indices], shown[metadata.bonus_logits_indices]
        return self._get_logprobs_tensors(sampling_metadata.max_num_logprobs, metadata, logits, target, bonus, tokens)


def _greedy(sampling_metadata: Any, metadata: Any) -> Tensor:
    """Return which requests take the likeliest token, [num_reqs] bool."""
    if sampling_metadata.all_greedy:
        return torch.ones(len(metadata.num_draft_tokens), dtype=torch.bool, device=metadata.draft_token_ids.device)
    greedy: Tensor = sampling_metadata.temperature == vllms.GREEDY_TEMPERATURE
    return greedy
