"""Compiled forward passes: room for the graphs that steps with drafts need beside those of plain generation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from accelplug.hosts.hf.forward import is_compiled

_MOST_GRAPHS: Final = 32
"""Static windows take five graphs for one row and five for several, beside plain generation's three and two; other models take fewer."""


def room_for_graphs(model: Any, generation_config: Any, model_kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
    """Let torch compile as many graphs for a call as steps with drafts need: beyond its own limit of eight it runs what is missing uncompiled.

    A higher limit of the user's stays. The setting is this thread's, and only holds while the context lasts. Where plain generation has run into
    the limit before, it comes too late: torch compiles nothing more of that forward pass.
    """
    if not is_compiled(model, generation_config, model_kwargs):
        return nullcontext()
    config: Any = torch._dynamo.config
    room: AbstractContextManager[Any] = config.patch(recompile_limit=max(_MOST_GRAPHS, config.recompile_limit))
    return room
