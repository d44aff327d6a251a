"""What stands in for vLLM's CPU kernel repeats each request's value for each of its tokens."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from accelplug.hosts.vllm.cpu_expand import expand_batch_to_tokens


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 4)), min_size=1))
def test_repeats(requests: list[tuple[float, int]]) -> None:
    values, counts = zip(*requests, strict=True)
    cu_num_tokens = torch.tensor(counts, dtype=torch.int32).cumsum(0).to(torch.int32)
    found = expand_batch_to_tokens(torch.tensor(values), cu_num_tokens, sum(counts), replace_from=0, replace_to=1)
    assert found.tolist() == [value or 1.0 for value, count in requests for _ in range(count)]
