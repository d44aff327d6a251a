"""The target's likeliest tokens after every node of the last forward pass, for drafters that learn from the runners-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from accelplug.hooks.drafting import IntArray, Verified
from accelplug.hosts.hf.device import upload
from accelplug.hosts.hf.tree import Tree


def verified(logits: Tensor, trees: Sequence[Tree], roots: Sequence[int], rows: IntArray, places: IntArray, top_k: int) -> Verified:
    """Take the top-k of every verified position: one operation, one transfer.

    :param logits: [rows of the pass, width, vocab_size] of the last forward pass, padded behind each row's last node.
    :param trees: what was drafted for it, one per row of the batch.
    :param roots: the token that each row's drafts followed.
    :param rows: [num_reqs], the rows that the drafter still serves.
    :param places: [num_reqs], where they are in `logits`.
    """
    served = rows.tolist()
    widths = [1 + len(trees[row]) for row in served]
    offsets = np.zeros(len(served) + 1, dtype=np.int64)
    np.cumsum(widths, out=offsets[1:])
    tokens = np.array([token for row in served for token in (roots[row], *trees[row].tokens)], dtype=np.int64)
    chosen = logits if len(served) == len(logits) else logits[upload(torch.from_numpy(places), logits.device)]
    top = chosen.topk(min(top_k, logits.shape[-1])).indices.cpu().numpy()
    inside = np.arange(top.shape[1]) < np.array(widths)[:, None]
    return Verified(offsets, tokens, top[inside])
