"""Experts of limited capacity (Switch, NLLB-MoE): how many tokens a step may have for them to make of each what they make of it alone."""

from __future__ import annotations

from typing import Any

from accelplug._errors import HostError


def widest_step(model: Any, count: int) -> int | None:
    """Return how many tokens of each of `count` rows a step may have for no expert to drop one, None for any number.

    An expert with as many places as there are tokens drops none, whatever is routed to it; plain decoding has a token of each row.

    :raises HostError: there is no place for drafts, or plain ``generate()`` draws experts at random.
    """
    text = model.config.get_text_config(decoder=True)
    if not getattr(text, "expert_capacity", None):
        return None
    if getattr(text, "second_expert_policy", "all") != "all":
        raise HostError(
            f"second_expert_policy={text.second_expert_policy!r} draws experts at random for all tokens of a step together; use second_expert_policy='all'"
        )
    routers = [module for module in model.get_decoder().modules() if hasattr(module, "expert_capacity")]
    places = min((room for router in routers if (room := _places(router)) is not None), default=None)
    if places is not None and places < 2 * count:
        raise HostError(
            f"experts of limited capacity have {places} places for the tokens of a step, where {count} rows leave none for drafts; "
            "give the model fewer rows, or a larger expert_capacity"
        )
    return None if places is None else places // count


def _places(router: Any) -> int | None:
    """Return how many tokens of a step a router has places for, None where it makes as many as there are tokens."""
    share = getattr(router, "moe_eval_capacity_token_fraction", 0)
    if router.training or share <= 0:
        return int(router.expert_capacity or 0)
    return None if share >= 1 else 1
