"""Feeds many equal requests to the samplers that stand in a runner's place, without an engine, and writes down what came out.

``python drive_samplers.py v1|v2 RESULT``: a file of ``{"target": [rows of probabilities], "drafts": [...], "runs": {name: [outputs]}}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from accelplug.hooks import Drafts, DraftView, VerifyView
from accelplug.hooks.binding import bind_drafter
from accelplug.hooks.capabilities import Selection
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.session import Session
from accelplug.spec.block import Block
from accelplug.spec.token_wise import TokenWise

COUNT = {"v1": 20_000, "v2": 1_000}
TEMPERATURE, TOP_K = 1.3, 3
RULES = {"candidates": TokenWise(), "paths": Block()}


class Everything(TokenWise):
    """Keeps whatever was drafted."""

    def accept(self, view: VerifyView) -> Tensor:
        return torch.ones(len(view.tokens))


def judge(rule: Any) -> Judge:
    made = Judge(Technique("verifier", "rule", Owner("p", "d", "1"), rule, type(rule), "rule"), torch.device("cpu"))
    made.serving = True
    return made


def scores() -> tuple[Tensor, list[int]]:
    """Return a request's rows of logits, [3, 5], and two drafts, the first of which the target likes and the second less."""
    torch.manual_seed(2)
    rows = torch.randn(3, 5)
    return rows, [int(rows[0].argmax()), int(rows[1].argsort()[-2])]


def masked(rows: Tensor) -> Tensor:
    """Return the rows at the temperature, less what top-k takes away."""
    least = rows.topk(TOP_K).values[..., -1:]
    return (rows / TEMPERATURE).masked_fill(rows < least, -torch.inf)


def on_v1(count: int, rule: Any, seeded: bool) -> list[list[int]]:
    from vllm.platforms import current_platform
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    from accelplug.hosts.vllm import cpu_expand
    from accelplug.hosts.vllm.v1_judging import JudgingSampler

    current_platform.register_triton_kernel_overrides()  # as a worker does
    cpu_expand.repair()
    rows, drafts = scores()
    indices = torch.arange(3 * count)
    metadata = SpecDecodeMetadata(
        draft_token_ids=torch.tensor(drafts, dtype=torch.int32).repeat(count), num_draft_tokens=[2] * count,
        cu_num_draft_tokens=(torch.arange(1, count + 1) * 2).int(), cu_num_sampled_tokens=(torch.arange(1, count + 1) * 3).int(),
        target_logits_indices=indices[indices % 3 < 2], bonus_logits_indices=indices[indices % 3 == 2], logits_indices=indices,
    )  # fmt: skip
    sampling = SamplingMetadata(
        temperature=torch.full((count,), TEMPERATURE), all_greedy=False, all_random=True, top_p=None, top_k=torch.full((count,), TOP_K),
        generators={i: torch.Generator().manual_seed(i % 7) for i in range(count)} if seeded else {}, max_num_logprobs=None, no_penalties=True,
        prompt_token_ids=None, frequency_penalties=torch.zeros(0), presence_penalties=torch.zeros(0), repetition_penalties=torch.zeros(0),
        output_token_ids=[[]] * count, allowed_token_ids_mask=None, bad_words_token_ids={}, logitsprocs=LogitsProcessors(), spec_token_ids=[[]] * count,
    )  # fmt: skip
    torch.manual_seed(8)
    sampler = JudgingSampler(RejectionSampler(Sampler()), judge(rule), dict)
    found = sampler(metadata, None, rows.repeat(count, 1), sampling).sampled_token_ids
    return [[token for token in row if token >= 0] for row in found.tolist()]


def on_v2(count: int, rule: Any, seeded: bool, real: Tensor | None = None) -> list[list[int]]:
    import numpy as np

    from accelplug.hosts.vllm.v2_judging import JudgingSampler

    rows, drafts = scores()
    torch.manual_seed(8)
    seeds = torch.arange(count) % 7 if seeded else torch.randint(-(2**62), 2**62, (count,))
    temperature = torch.full((count,), TEMPERATURE)
    states = SimpleNamespace(temperature=SimpleNamespace(gpu=temperature, np=temperature.numpy()), seeds=SimpleNamespace(gpu=seeds))
    sampler = SimpleNamespace(sampling_states=states, use_fp64_gumbel=False, apply_sampling_params=lambda logits, *_: masked(logits))
    made = JudgingSampler(SimpleNamespace(sampler=sampler, num_speculative_steps=2), judge(rule), lambda _: {}, real)  # type: ignore[arg-type]
    slots = torch.arange(count, dtype=torch.int32)
    each = torch.tensor([0, *drafts]).repeat(count)
    positions = torch.arange(10, 13).repeat(count)
    cu_num_logits = (torch.arange(count + 1) * 3).int()
    per_row = slots.repeat_interleave(3)
    _, tokens, counts = made._verify(
        rows.repeat(count, 1), None, each, positions, cu_num_logits, slots, np.arange(count), per_row, positions - 10, np.zeros(count), each
    )
    return [row[:number] for row, number in zip(tokens.tolist(), counts.tolist(), strict=True)]


def padded_on_v2() -> dict[str, Any]:
    """Draft for three of four slots in host memory, 2, 0 and 1 tokens of 2, and let a rule that keeps everything judge what that leaves real."""
    import numpy as np

    from accelplug.hosts.vllm.v2_host import HostSource

    class Chains:
        def propose(self, view: DraftView) -> Drafts:
            return Drafts.chains([[40, 41][:length] for length, _ in zip((2, 0, 1), view.slots, strict=True)])

    owner = Owner("p", "d", "1")
    drafter, rule = (Technique(kind, "odd", owner, made, type(made), "odd") for kind, made in (("drafter", Chains()), ("verifier", Everything())))
    tokens = torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0], [0] * 8, [3, 4, 5, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    states = SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=tokens), total_len=SimpleNamespace(gpu=torch.tensor([2, 0, 3, 1], dtype=torch.int32)), max_num_reqs=4, max_model_len=8
    )
    source = HostSource(Session(bind_drafter(drafter), Selection(drafter, rule), 50), states, 2)
    slots = torch.tensor([2, 0, 3], dtype=torch.int32)
    batch = SimpleNamespace(req_ids=["a", "b", "c"], idx_mapping=slots, idx_mapping_np=slots.numpy().astype(np.int64), num_draft_tokens_per_req=None)
    drafts = torch.zeros(3, 2, dtype=torch.int64)
    source.propose(batch, torch.ones(3), torch.zeros(4), drafts)
    kept = on_v2(4, Everything(), seeded=True, real=source.real)
    return {"drafts": drafts.tolist(), "real": source.real.tolist(), "kept": [len(output) - 1 for output in kept]}


def kernels_on_v2() -> dict[str, Any]:
    """Run two of vLLM's kernels that Triton's interpreter takes only with `accelplug.testing.v2_on_cpu`'s help."""
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator
    from vllm.v1.worker.gpu.structured_outputs import _apply_grammar_bitmask_kernel

    tokens = torch.tensor([[1, 2, 3, 4, 1, 2, 0, 0], [5, 6, 7, 0, 0, 0, 0, 0]], dtype=torch.int32)
    states = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=tokens), total_len=SimpleNamespace(gpu=torch.tensor([6, 3], dtype=torch.int32)))
    speculative = SimpleNamespace(prompt_lookup_min=1, prompt_lookup_max=3, num_speculative_tokens=3)
    sizes = {"scheduler_config": SimpleNamespace(max_num_seqs=2), "model_config": SimpleNamespace(max_model_len=8)}
    ngram = NgramGPUSpeculator(SimpleNamespace(speculative_config=speculative, **sizes), torch.device("cpu"), states)  # type: ignore[arg-type]
    batch: Any = SimpleNamespace(num_reqs=2, idx_mapping=torch.tensor([0, 1]))
    nothing: Any = None
    ones, last = torch.ones(2, dtype=torch.int32), torch.tensor([[2], [7]])
    drafts = ngram.propose(batch, nothing, nothing, nothing, nothing, ones, nothing, last, nothing, nothing, nothing)
    logits, bits = torch.zeros(3, 40), torch.tensor([[5, 0], [-1, 1]], dtype=torch.int32)  # for the first row and the last of a request
    rows, cu_num_logits = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    _apply_grammar_bitmask_kernel[2, 1](logits, 40, rows, cu_num_logits, bits, 2, 40, MASK_STRIDE=3, BLOCK_SIZE=64)
    return {"ngram": drafts.tolist(), "allowed": [row.isfinite().nonzero().squeeze(1).tolist() for row in logits]}


if __name__ == "__main__":
    runner, result = sys.argv[1], Path(sys.argv[2])
    run = {"v1": on_v1, "v2": on_v2}[runner]
    runs = {name: run(COUNT[runner], rule, seeded=False) for name, rule in RULES.items()}
    runs |= {f"{name}, seeded": run(35, rule, seeded=True) for name, rule in RULES.items()}
    of_v2 = {"kernels": kernels_on_v2(), "padded": padded_on_v2()} if runner == "v2" else {}
    result.write_text(json.dumps({**of_v2, "target": masked(scores()[0]).double().softmax(-1).tolist(), "drafts": scores()[1], "runs": runs}))
