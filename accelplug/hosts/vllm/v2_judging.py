"""A plugin's verification rule in the V2 runner: its rejection sampler, swapped on the instance after the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from accelplug.hooks.drafting import IntArray
from accelplug.hosts.vllm.hashed import mixed, uniforms
from accelplug.hosts.vllm.judged import Judged, places_of
from accelplug.hosts.vllm.judging import Judge

FILLER: Final = 0
"""What stands behind a request's last token; vLLM reads no further."""


class HashedChance:
    """Random numbers from each request's seed and the position at which its step begins, which no two steps share.

    :param seeds: [num_reqs] int64.
    :param begins: the position of each request's first row, [num_reqs].
    :param draw: draws one token per request from its row of probabilities.
    """

    def __init__(self, seeds: Tensor, begins: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
        self._seeds, self._begins, self._asked = seeds, begins.long(), 0
        self.draw = draw

    def uniforms(self, batch: Judged) -> Tensor:
        """Return one number per draft, [num_drafts]; others in every call."""
        requests, places, _ = batch.places
        self._asked += 1
        return uniforms(self.seeds(batch)[requests], places, self._asked)

    def seeds(self, batch: Judged) -> Tensor:
        """Return one number per request, [num_reqs]."""
        del batch
        return mixed(self._seeds, self._begins)


class JudgingSampler(RejectionSampler):  # type: ignore[misc]
    """vLLM's rejection sampler with another rule in it.

    :param replaced: the runner's own, whose settings it takes over.
    :param parameters: call it with slots [num_reqs], in host memory, for the options that those requests set for themselves.
    :param real: how many drafts of each slot are no padding, [num_slots]; None where nothing is padded.
    """

    def __init__(
        self, replaced: RejectionSampler, judge: Judge, parameters: Callable[[IntArray], Mapping[str, Tensor]], real: Tensor | None
    ) -> None:
        self.__dict__.update(replaced.__dict__)
        self.judge = judge
        self.parameters_of = parameters
        self.real = real

    def _verify(self, *given: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Judge as `_judged` does; as vLLM's own sampler does, with what vLLM gave, where the rule failed."""
        judged = None if self.judge.switched_off is not None else self._judged(*given, **named)
        if judged is None:
            vllms: tuple[Tensor, Tensor, Tensor] = super()._verify(*given, **named)
            return vllms
        return judged

    def _judged(  # noqa: PLR0913, PLR0917  vLLM's signature
        self,
        logits: Tensor,
        draft_logits: Tensor | None,
        draft_sampled: Tensor,
        pos: Tensor,
        cu_num_logits: Tensor,
        idx_mapping: Tensor,
        idx_mapping_np: IntArray,
        expanded_idx_mapping: Tensor,
        expanded_local_pos: Tensor,
        seq_lens_upper_bound_np: Any,
        verify_draft_sampled: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return processed logits [num_rows, vocab_size], tokens [num_reqs, num_speculative_steps + 1], and how many there are, [num_reqs].

        None where the rule fails.
        """
        states, slots = self.sampler.sampling_states, idx_mapping.long()
        processed = self.sampler.apply_sampling_params(
            logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, draft_sampled, expanded_local_pos, seq_lens_upper_bound_np
        )
        temperature, ends = states.temperature.gpu[slots], cu_num_logits[1:].long()
        requests, places, rows = places_of(ends, len(logits) - len(slots))
        tokens = verify_draft_sampled[rows + 1].long()
        if self.real is not None:
            tokens = tokens.where(places < self.real[slots[requests]], -1)
        draft = None if draft_logits is None else _draft_rows(draft_logits[slots[requests], places], temperature[requests], logits.shape[1])
        greedy = states.temperature.np[idx_mapping_np] == 0  # the same in host memory, where looking waits for nothing
        batch = Judged(
            processed.float(), ends, tokens, temperature == 0, draft, self.parameters_of(idx_mapping_np),
            all_greedy=bool(greedy.all()), all_random=not greedy.any(),
        )  # fmt: skip
        begins = pos[batch.begins]

        def draw(rest: Tensor) -> Tensor:
            drawn: Tensor = gumbel_sample(
                rest.log(), idx_mapping, states.temperature.gpu, states.seeds.gpu, begins,
                apply_temperature=False, is_drafting=False, use_fp64=self.sampler.use_fp64_gumbel,
            )  # fmt: skip
            return drawn

        verdict = self.judge(batch, HashedChance(states.seeds.gpu[slots], begins, draw), self.num_speculative_steps, FILLER)
        return None if verdict is None else (processed, verdict.tokens, (verdict.kept + 1).to(torch.int32))


def _draft_rows(logits: Tensor, temperature: Tensor, vocab_size: int) -> Tensor:
    """Return the probabilities that drafts were drawn from, [num_drafts, vocab_size]; a draft model may have fewer padding tokens."""
    rows = (logits.float() / temperature.where(temperature > 0, 1.0).unsqueeze(1)).softmax(-1)
    return torch.nn.functional.pad(rows, (0, vocab_size - rows.shape[1]))
