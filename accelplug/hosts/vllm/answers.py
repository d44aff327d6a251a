"""What vLLM answers of one request's drafts (``--per-request-spec-decode-metrics``), with the names of who drafted and who verified.

vLLM counts drafts by request in its scheduler and shows them where it makes the answer; neither has a place for a name, so that is put in there.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from accelplug.hooks.registry import registry
from accelplug.hooks.spelling import Spec
from accelplug.hosts.vllm.compat import ENGINE, require_answers
from accelplug.hosts.vllm.plugin import wrap
from accelplug.hosts.vllm.settings import Settings

STATS: Final = "vllm.v1.metrics.stats"
_told: list[dict[str, str]] = []
"""The names of every engine of this process, each once."""


def name_techniques(config: Any, settings: Settings) -> None:
    """Have the answers of a server name its techniques, where it was asked for such metrics. Calling it again does nothing.

    :raises HostError: vLLM makes these answers elsewhere now.
    """
    if getattr(config.observability_config, "per_request_spec_decode_metrics", "none") == "none" or ENGINE.restriction() is not None:
        return
    require_answers()
    if (names := _names(config, settings)) not in _told:
        _told.append(names)
    wrap(importlib.import_module(STATS), "RequestSpecDecodeMetrics", "to_dict", _to_dict)


def _names(config: Any, settings: Settings) -> dict[str, str]:
    drafter = config.speculative_config.method if settings.drafter is None else _name("drafter", settings.drafter)
    return {"drafter": "nothing (accelplug)" if settings.drafts and settings.drafter is None else drafter, "verifier": _name("verifier", settings.verifier)}


def _name(kind: str, spec: Spec) -> str:
    entry, _ = registry().find(kind, spec)
    return f"{entry.name} ({entry.owner})"


def _to_dict(self: Any, original: Any) -> dict[str, Any]:
    """Stand in for ``RequestSpecDecodeMetrics.to_dict``; with several engines in one process nobody knows whose request it was."""
    return {**original(self), **(_told[0] if len(_told) == 1 else {})}
