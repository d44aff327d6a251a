"""A repair of vLLM's CPU build, without which sampled requests are wrong on its V1 runner as soon as anything drafts.

The rejection sampler expands each request's temperature, top-k and top-p to its rows of logits. vLLM 0.32's CPU
kernel for that, and that of the releases before, writes into a converted copy of the output and drops it, so that logits are
divided by whatever the memory held; 0.30's raises. This is the one function of vLLM that is replaced for a whole process: a
worker's, on a CPU, with V1, only while the kernel proves wrong, and with the same meaning. `plugin.unregister` puts it back.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch

from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.plugin import replace

MODULE: Final = "vllm.v1.sample.rejection_sampler"
NAME: Final = "expand_batch_to_tokens"


def expand_batch_to_tokens(x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> torch.Tensor:
    """Repeat each request's value for each of its tokens.

    :param x: [num_reqs].
    :param cu_num_tokens: [num_reqs] tokens of the requests so far, each one's own included.
    :param replace_from: a value that becomes `replace_to`.
    :returns: [num_tokens].
    """
    counts = torch.diff(cu_num_tokens.long(), prepend=cu_num_tokens.new_zeros(1).long())
    return x.masked_fill(x == replace_from, replace_to).repeat_interleave(counts, output_size=num_tokens)


def is_broken() -> bool:
    """Whether vLLM's own function loses what it expands, or raises; tried on three requests."""
    expand = getattr(importlib.import_module(MODULE), NAME)
    x, cu_num_tokens = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([2, 2, 3], dtype=torch.int32)
    try:
        return not torch.equal(expand(x, cu_num_tokens, 3), torch.tensor([0.5, 0.5, 2.0]))
    except Exception as exc:  # noqa: BLE001  it would raise the same in the middle of a request
        LOG.info("accelplug: vLLM's CPU kernel behind %s fails (%s: %s)", NAME, type(exc).__name__, exc)
        return True


def repair() -> bool:
    """Replace vLLM's function if it is broken.

    :returns: whether the repair is in effect.
    """
    module: Any = importlib.import_module(MODULE)
    if getattr(module, NAME) is expand_batch_to_tokens:
        return True
    if not is_broken():
        return False
    replace(module, NAME, expand_batch_to_tokens)
    LOG.info("accelplug: vLLM's CPU kernel behind %s gives no temperatures; torch stands in for it in this process", NAME)
    return True
