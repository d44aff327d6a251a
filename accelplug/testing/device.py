"""Hold a drafter on the device to fixed shapes and to never waiting, without a device."""

from __future__ import annotations

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.drafting import DeviceDrafts, DeviceView
from accelplug.hooks.registry import Technique
from accelplug.testing.building import require
from accelplug.testing.models import MAX_LENGTH, VOCAB
from accelplug.testing.toy_host import hand

NUM_SLOTS, NUM_REQS = 4, 3


def check_device_drafts(drafter: BoundDrafter) -> None:
    """Ask with random histories of every length; look at shapes, dtypes and token ids, and at who drafts what."""
    propose, who, rng = drafter.propose_on_device, drafter.technique, np.random.default_rng(23)
    assert propose is not None
    for num_tokens in (1, 4, 9):
        tokens = torch.from_numpy(rng.integers(0, 5, (NUM_SLOTS, MAX_LENGTH))).int()
        lengths = torch.tensor([1, MAX_LENGTH, int(rng.integers(2, MAX_LENGTH))], dtype=torch.int32)
        slots = torch.from_numpy(rng.permutation(NUM_SLOTS)[:NUM_REQS])
        prompts = (lengths // 2).clamp(min=1)
        before = tokens.clone()
        hand(drafter, "start", slots.numpy())
        drafts = propose(DeviceView(slots, tokens, lengths, num_tokens, {}, prompts))
        _check(who, drafts, num_tokens)
        require(torch.equal(tokens, before), f"{who} wrote into view.tokens; they are the engine's")
        order = torch.tensor([2, 0, 1])
        moved = propose(DeviceView(slots[order], tokens, lengths[order], num_tokens, {}, prompts[order]))
        same = torch.equal(moved.counts, drafts.counts[order])
        for i, count in enumerate(moved.counts.tolist()):
            same = same and torch.equal(moved.tokens[i, :count], drafts.tokens[order[i], :count])
        hand(drafter, "finish", slots.numpy())
        require(same, f"{who} drafts otherwise for the same requests in another order; row i of the view is request i, slots[i] its row of tokens")


def _check(who: Technique, drafts: DeviceDrafts, num_tokens: int) -> None:
    tokens, counts = drafts.tokens, drafts.counts
    require(
        tokens.shape == (NUM_REQS, num_tokens) and tokens.dtype == torch.int64,
        f"{who} returned tokens {list(tokens.shape)} {tokens.dtype}; make them [num_reqs, num_tokens] int64",
    )
    require(
        counts.shape == (NUM_REQS,) and counts.dtype == torch.int32,
        f"{who} returned counts {list(counts.shape)} {counts.dtype}; make them [num_reqs] int32",
    )
    require(bool(((tokens >= 0) & (tokens < VOCAB)).all()), f"{who} returned the token id {int(tokens.min())} or {int(tokens.max())}; pad with valid ones")
    require(bool(((counts >= 0) & (counts <= num_tokens)).all()), f"{who} counts {counts.tolist()} guesses of {num_tokens}")


def check_nothing_waits(drafter: BoundDrafter) -> None:
    """Ask with tensors that have shapes and no values: reading a value, or a shape that depends on one, fails."""
    assert drafter.propose_on_device is not None
    with FakeTensorMode(allow_non_fake_inputs=True):
        tokens = torch.zeros(NUM_SLOTS, MAX_LENGTH, dtype=torch.int32)
        lengths = torch.ones(NUM_REQS, dtype=torch.int32)
        view = DeviceView(torch.arange(NUM_REQS), tokens, lengths, 4, {}, lengths)
        try:
            drafts = drafter.propose_on_device(view)
        except Exception as exc:
            said = str(exc).partition("\n")[0]
            raise AssertionError(
                f"{drafter.technique} reads values of the device, or has shapes that depend on them ({type(exc).__name__}: {said}); "
                "use operations of fixed shapes, such as torch.where"
            ) from exc
    require(drafts.tokens.shape == (NUM_REQS, 4), f"{drafter.technique} has no fixed shape without values: {list(drafts.tokens.shape)}")
