"""A plugin's verification rule in the V2 runner: its rejection sampler, swapped on the instance after the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from accelplug.hooks.drafting import IntArray
from accelplug.hosts.vllm.judging import Judge, Judged, places_of

FILLER: Final = 0
"""What stands behind a request's last token; vLLM reads no further."""


def uniforms(seeds: Tensor, *keys: Tensor | int) -> Tensor:
    """Return numbers of [0, 1) that depend on the seeds and the keys alone, of the same shape.

    Every tensor-parallel rank comes to the same numbers, without a generator that would have to be kept in step.
    Source: the finaliser of SplitMix64, Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15.

    :param seeds: int64.
    """
    mixed = seeds
    for key in (*keys, 0):
        mixed = (mixed ^ key) + -7046029254386353131
        mixed = (mixed ^ _shifted(mixed, 30)) * -4658895280553007687
        mixed = (mixed ^ _shifted(mixed, 27)) * -7723592293110705685
        mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).double() * 2.0**-53


def _shifted(values: Tensor, by: int) -> Tensor:
    """Shift to the right as if there were no sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)


class HashedChance:
    """Random numbers from each request's seed and the position at which its step begins, which no two steps share.

    :param seeds: [num_reqs] int64.
    :param begins: the position of each request's first row, [num_reqs].
    :param draw: draws one token per request from its row of probabilities.
    """

    def __init__(self, seeds: Tensor, begins: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
        self.seeds, self.begins = seeds, begins.long()
        self.draw = draw

    def uniforms(self, batch: Judged) -> Tensor:
        """Return one number per draft, [num_drafts]."""
        requests, places, _ = batch.places
        return uniforms(self.seeds[requests], self.begins[requests], places)

    def stream(self, request: int) -> Iterator[float]:
        """Return one request's numbers, one after the other."""
        number = 0
        while True:
            yield float(uniforms(self.seeds[request], self.begins[request], number))
            number += 1


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
