"""Steps of the V1 runner in which nobody has a draft: they should cost what they cost in an engine that never speculates.

vLLM works out in every step whose logits are whose, which takes some thirty small operations where anything speculates. Without
drafts the answer depends on the number of requests alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from accelplug.hooks.drafting import IntArray


class Undrafted:
    """Stands in for a runner's `_calc_spec_decode_metadata`, which goes on to answer where there are drafts.

    :param runner: vLLM's V1 model runner, which has sent each step's `query_start_loc` to the device by then.
    """

    def __init__(self, runner: Any) -> None:
        self.calculate = runner._calc_spec_decode_metadata
        self.starts = runner.query_start_loc.gpu
        self.always = functools.cache(functools.partial(_always, device=runner.device))

    def __call__(self, num_draft_tokens: IntArray, cu_num_scheduled_tokens: IntArray) -> SpecDecodeMetadata:
        """Return whose logits are whose.

        :param num_draft_tokens: [num_reqs].
        :param cu_num_scheduled_tokens: [num_reqs], tokens of the requests so far, each one's own included.
        """
        if num_draft_tokens.any():
            return self.calculate(num_draft_tokens, cu_num_scheduled_tokens)
        num_reqs = len(num_draft_tokens)
        return SpecDecodeMetadata(num_draft_tokens=[0] * num_reqs, logits_indices=self.starts[1 : num_reqs + 1] - 1, **self.always(num_reqs))


def _always(num_reqs: int, device: torch.device) -> Mapping[str, torch.Tensor]:
    """Return what is the same in every such step of as many requests: each has one row of logits, and no row is a draft's."""
    none, ends = torch.zeros(0, dtype=torch.int32, device=device), torch.arange(num_reqs, dtype=torch.int32, device=device)
    return {
        "draft_token_ids": none,
        "cu_num_draft_tokens": torch.zeros_like(ends),
        "cu_num_sampled_tokens": ends + 1,
        "target_logits_indices": none,
        "bonus_logits_indices": ends,
    }
