"""Fixtures for an author's own tests. Nothing is registered by itself: name the module where it is wanted.

``pytest_plugins = ["accelplug.testing.fixtures"]``, in a test module or in the conftest at the root.
"""

from __future__ import annotations

from typing import Any

import pytest

from accelplug.hooks.context import BuildContext
from accelplug.testing import models


@pytest.fixture(scope="session")
def small_model() -> Any:
    """Return the kit's model: a Llama of 40 tokens that goes round in circles, in float64."""
    return models.looping_llama()


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    """Return its tokenizer: one printable character per token."""
    return models.byte_tokenizer()


@pytest.fixture
def build_context() -> BuildContext:
    """Return what factories with a parameter named ``context`` are given for it."""
    return models.build_context()
