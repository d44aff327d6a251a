"""Rules for whole drafts that cannot be asked on the device: one request after the other, in host memory.

Everything that the rule is shown comes there at once, and nothing that it does with it waits for the device again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accelplug.hooks.drafting import ROOT, NodeKind
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import PathView
from accelplug.hosts.choices import choose
from accelplug.hosts.vllm.hashed import stream
from accelplug.hosts.vllm.judged import Judged


def choose_in_host_memory(rule: Technique, batch: Judged, seeds: Tensor, *, lossless: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Ask a rule for each request's path; on a device this waits for it once.

    :param seeds: of each request's random numbers, [num_reqs] int64.
    :returns: how many drafts of each request are kept, [num_reqs], what the token behind them is drawn from, [num_reqs, vocab_size], and how
        many of them are lossy, [num_reqs].
    """
    here, target, seeds = _brought(batch, seeds)
    kept, lossy, rests = [], [], []
    for request, (begin, end) in enumerate(itertools.pairwise([0, *here.ends.tolist()])):
        drafts = _valid(here.tokens[begin - request : end - request - 1].tolist())
        rows = slice(begin, begin + len(drafts) + 1)
        drawn = None if here.draft is None or bool(here.greedy[request]) else here.draft[begin - request :][: len(drafts)]
        parameters = {name: float(values[request]) for name, values in here.parameters.items()}
        number, rest, overruled = _choose(rule, drafts, target[rows], here.scores[rows], drawn, stream(seeds[request]), parameters, lossless=lossless)
        kept.append(number)
        lossy.append(overruled)
        rests.append(rest)
    device = batch.scores.device
    return _sent(kept, device), _sent(torch.stack(rests), device), _sent(lossy, device)


def _brought(batch: Judged, seeds: Tensor) -> tuple[Judged, Tensor, Tensor]:
    """Return the batch, its target and the seeds in host memory: copies follow one another on the device, so that waiting for the last is enough."""
    if batch.scores.device.type == "cpu":
        return batch, batch.target, seeds
    from vllm.utils.gpu_sync_debug import gpu_sync_allowed

    def sent(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", non_blocking=True)

    here = replace(
        batch, scores=sent(batch.scores), ends=sent(batch.ends), tokens=sent(batch.tokens), greedy=sent(batch.greedy),
        draft=None if batch.draft is None else sent(batch.draft), parameters={name: sent(values) for name, values in batch.parameters.items()},
    )  # fmt: skip
    seeds = sent(seeds)
    with gpu_sync_allowed():
        return here, batch.target.cpu(), seeds


def _sent(values: Any, device: torch.device) -> Tensor:
    """Return values on the device, without waiting for it."""
    if device.type == "cpu":
        return torch.as_tensor(values)
    from vllm.utils.torch_utils import async_tensor_h2d

    there: Tensor = async_tensor_h2d(values, device)
    return there


def _choose(
    rule: Technique,
    drafts: list[int],
    target: Tensor,
    scores: Tensor,
    drawn: Tensor | None,
    numbers: Iterator[float],
    parameters: Mapping[str, float],
    *,
    lossless: bool,
) -> tuple[int, Tensor, int]:
    """Return how many drafts of a request are kept, the distribution of the token behind them, and how many were lossy."""
    if not drafts:
        return 0, target[0], 0
    kind = NodeKind.DELTA if drawn is None else NodeKind.SAMPLED
    view = PathView(
        tokens=drafts, parents=range(ROOT, len(drafts) - 1), kinds=[kind] * len(drafts), target=target, logits=scores,
        below=lambda probability: next(numbers) < probability,
        rows=drawn, row_ids=None if drawn is None else range(len(drafts)), parameters=parameters,
    )  # fmt: skip
    choice = choose(rule, view, lossless=lossless)
    return len(choice.path), choice.rest, len(choice.lossy)


def _valid(drafts: list[int]) -> list[int]:
    """Return a chain up to the first draft that must not be accepted."""
    bad = [i for i, token in enumerate(drafts) if token < 0]
    return drafts[: bad[0]] if bad else drafts
