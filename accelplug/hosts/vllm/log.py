"""The log. It hangs below vLLM's own logger, so that its lines appear wherever and however vLLM's do."""

from __future__ import annotations

import logging
from typing import Final

LOG: Final = logging.getLogger("vllm.accelplug")
