"""Where a drafter drafts beside either runner, and what a step of it waits for."""

from __future__ import annotations

from typing import Any

from accelplug.hooks.binding import BoundDrafter
from accelplug.hooks.registry import Entry


def drafts_on_device(bound: BoundDrafter, config: Any) -> bool:
    """Whether a drafter drafts on the device: under asynchronous scheduling where it can, else only where it can nowhere else.

    Without asynchronous scheduling the engine waits for every step's tokens anyway. In host memory drafters know more
    there, and the padding behind their drafts need not be verified.

    :param config: vLLM's VllmConfig.
    """
    return bound.propose_on_device is not None and (bound.is_device_only or bool(config.scheduler_config.async_scheduling))


def cost_on_v1(drafter: Entry) -> str:
    """Return what a drafter costs beside the V1 runner, for the log; known before anything is built or loaded."""
    return f"{drafter} drafts in host memory beside the V1 runner: vLLM has no asynchronous scheduling with it there, so that every step waits for its tokens"


def expected_cost(bound: BoundDrafter, config: Any, device: str) -> str:
    """Return where it drafts and what that costs, for the log.

    :param device: its type, e.g. "cuda".
    """
    if drafts_on_device(bound, config):
        return f"{bound.technique} drafts on the device: no wait for it, one pass over the tokens of every request a step"
    where = f"{bound.technique} drafts in host memory"
    if device == "cpu":
        return f"{where}: no wait on a CPU"
    if not config.scheduler_config.async_scheduling:
        return f"{where}: one wait for the device a step, for tokens that are waited for anyway without asynchronous scheduling"
    has_other = hasattr(type(bound.technique.instance), "propose_on_device")
    instead = "with other options it drafts on the device" if has_other else "a drafter that has propose_on_device would not"
    return f"{where}: one wait for the device a step, which drains the pipeline of asynchronous scheduling; {instead}"
