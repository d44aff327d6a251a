"""Offloaded caches: a layer that is on its way back is waited for before anything touches it. No accelerator: what is under way is nothing yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import CacheLayerMixin

import accelplug
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded

PROMPTS = {"one": [[5, 6, 7, 8, 9]], "padded": [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13]]}
PATTERN = [(3, 1), (0, 2), (2, 0), (0, 0), (6, 0), (1, 3)]


class Stream:
    """What Transformers brings layers back on: nothing has come before it is waited for."""

    coming: list[tuple[torch.Tensor, torch.Tensor]] = []  # noqa: RUF012 - one for all, as a device has one memory
    waits = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def wait_stream(self, _other: Stream) -> None:
        Stream.waits += 1
        for there, kept in Stream.coming:
            there.copy_(kept)
        Stream.coming = []


def offload(layer: Any) -> None:
    layer.is_away = True


def prefetch(layer: Any) -> None:
    if not layer.is_initialized or not getattr(layer, "is_away", False):
        return
    for name in ("keys", "values"):
        kept = getattr(layer, name)
        setattr(layer, name, torch.full_like(kept, torch.nan))
        Stream.coming.append((getattr(layer, name), kept))
    layer.is_away = False


@pytest.fixture
def _far_away(monkeypatch):
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _device: Stream())
    monkeypatch.setattr(CacheLayerMixin, "offload", offload)
    monkeypatch.setattr(CacheLayerMixin, "prefetch", prefetch)
    Stream.coming, Stream.waits = [], 0


@pytest.mark.usefixtures("_far_away")
@pytest.mark.parametrize("batches", ["auto", "ragged"])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(
    ("name", "implementation"), [("llama", "offloaded"), ("gemma3", "offloaded"), ("llama", "offloaded_static"), ("gemma3", "offloaded_static")]
)
def test_output_is_plain_generates(random_models, name, implementation, prompts, width, batches):
    if batches == "ragged" and "static" in implementation:
        pytest.skip("rows over static caches advance together")
    model, inputs = random_models[name], padded(prompts)
    arguments = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs, **arguments).tolist()
    assert model.generate(**inputs, **arguments, cache_implementation=implementation).tolist() == plain
    waits, Stream.waits = Stream.waits, 0
    assert waits
    with accelplug.attach(model, drafter=Oracle(unpadded(plain, inputs), PATTERN, VOCAB, width), batches=batches) as session:
        assert model.generate(**inputs, **arguments, cache_implementation=implementation).tolist() == plain
    assert Stream.waits
    assert 0 < session.stats.accepted < session.stats.drafted
