"""Forced tokens on their way from the scheduler to the workers: in an attribute of the scheduler's output, which travels with it."""

from __future__ import annotations

from typing import Any, Final

FORCED: Final = "accelplug_forced"


def forced_in(output: Any) -> dict[str, int]:
    """Return, for requests with forced drafts in a step, how many of their drafts are the drafter's: those come first.

    :param output: vLLM's SchedulerOutput.
    """
    told: dict[str, int] = getattr(output, FORCED, {})
    return told


def lay(req_states: Any, output: Any) -> None:
    """Put forced drafts where the V2 runner reads drafts, which is on the device; V1 reads the scheduler's output.

    :param req_states: vLLM's RequestState.
    :param output: vLLM's SchedulerOutput.
    """
    told = forced_in(output)
    if not told:
        return
    from vllm.utils.torch_utils import async_tensor_h2d

    width, device = req_states.draft_tokens.shape[1], req_states.draft_tokens.device
    chains = [output.scheduled_spec_decode_tokens[req_id] for req_id in told]
    slots = [req_states.req_id_to_index[req_id] for req_id in told]
    rows = async_tensor_h2d([[slot, *chain, *[0] * (width - len(chain))] for slot, chain in zip(slots, chains, strict=True)], device)
    req_states.draft_tokens[rows[:, 0]] = rows[:, 1:]  # one transfer, which nobody waits for
