from __future__ import annotations

from collections.abc import Callable

import pytest

from accelplug.hooks.binding import bind_drafter
from accelplug.hooks.capabilities import Selection
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm.session import Session

VOCAB_SIZE = 50


@pytest.fixture
def session() -> Callable[[object], Session]:
    """Start a session with an object as the drafter of a distribution named 'strange'."""

    def start(drafter: object) -> Session:
        owner = Owner("odd", "strange", "2.0")
        technique = Technique("drafter", "odd", owner, drafter, type(drafter), "odd")
        rule = Technique("verifier", "rule", owner, object(), object, "rule")
        return Session(bind_drafter(technique), Selection(technique, rule), VOCAB_SIZE)

    return start
