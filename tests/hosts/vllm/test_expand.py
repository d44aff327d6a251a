"""What stands in for vLLM's CPU kernel repeats each request's value for each of its tokens, where that kernel fails and only there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelplug.hosts.seams import Engine
from accelplug.hosts.vllm import cpu_expand, cpu_kernels, plugin
from accelplug.hosts.vllm.compat import LAUNCHERS
from accelplug.hosts.vllm.cpu_expand import expand_batch_to_tokens


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 4)), min_size=1))
def test_repeats(requests: list[tuple[float, int]]) -> None:
    values, counts = zip(*requests, strict=True)
    cu_num_tokens = torch.tensor(counts, dtype=torch.int32).cumsum(0).to(torch.int32)
    found = expand_batch_to_tokens(torch.tensor(values), cu_num_tokens, sum(counts), replace_from=0, replace_to=1)
    assert found.tolist() == [value or 1.0 for value, count in requests for _ in range(count)]


@pytest.mark.parametrize("kernel", ["loses", "raises"])
def test_it_stands_in_where_vllms_own_fails(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> torch.Tensor:
        if kernel == "raises":
            raise TypeError("Cannot inspect kernel parameters for function")
        return x.new_zeros(num_tokens)

    module = SimpleNamespace(expand_batch_to_tokens=failing)
    monkeypatch.setitem(sys.modules, cpu_expand.MODULE, module)
    assert cpu_expand.repair()
    assert module.expand_batch_to_tokens is expand_batch_to_tokens
    assert cpu_expand.repair(), "once more changes nothing"
    for _ in range(2):
        plugin.unregister()
        assert module.expand_batch_to_tokens is failing


def test_a_sound_one_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def sound(*given: torch.Tensor) -> torch.Tensor:
        return expand_batch_to_tokens(*given)

    module = SimpleNamespace(expand_batch_to_tokens=sound)
    monkeypatch.setitem(sys.modules, cpu_expand.MODULE, module)
    assert not cpu_expand.repair()
    assert module.expand_batch_to_tokens is sound


@pytest.mark.parametrize(("release", "handed"), [("0.29.0", False), ("0.30.0", True), ("0.30.1+cpu", True), ("0.31.0", False)])
def test_launchers_get_the_kernels_that_lie_beside_them(release: str, handed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "version", lambda self: release)
    module = SimpleNamespace()
    for name in LAUNCHERS:
        setattr(module, f"_{name}", SimpleNamespace(kernel="none that runs on a CPU"))
        setattr(module, f"{name}_kernel", f"{name} on a CPU")
    monkeypatch.setitem(sys.modules, cpu_expand.MODULE, module)
    assert cpu_kernels.hand_over() == ([f"_{name}" for name in LAUNCHERS] if handed else [])
    for name in LAUNCHERS:
        assert (getattr(module, f"_{name}").kernel == f"{name} on a CPU") is handed
    cpu_kernels.hand_over()
    for _ in range(2):
        plugin.unregister()
        assert {launcher.kernel for launcher in (getattr(module, f"_{name}") for name in LAUNCHERS)} == {"none that runs on a CPU"}
