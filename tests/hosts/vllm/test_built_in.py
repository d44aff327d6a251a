"""Which built-in techniques vLLM's runners carry, where they draft, and with what sentence they refuse the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from accelplug import AccelplugError
from accelplug.cli.plugins import said_about
from accelplug.hooks import registry
from accelplug.hooks.capabilities import verifier_traits
from accelplug.hosts.vllm.building import refuse_unbuilt, select
from accelplug.hosts.vllm.clock import Clock
from accelplug.hosts.vllm.compat import RunnerName
from accelplug.hosts.vllm.context import build_context
from accelplug.hosts.vllm.settings import read_settings
from accelplug.hosts.vllm.v2_form import drafts_on_device

CARRIED = {
    "prompt_lookup": {"V1": "host", "V2": "host", "V2 async": "device"},
    "suffix": {"V1": "host", "V2": "host", "V2 async": "device"},
    "suffix(scope='process')": {"V1": "host", "V2": "host", "V2 async": "host"},
    "input_copy": {"V1": "host", "V2": "host", "V2 async": "device"},
    "adaptive": {"V1": "host", "V2": "host", "V2 async": "host"},
}
REFUSED = {
    "suffix(shape='tree')": "needs 'mask.tree' (the forward pass can verify a tree of drafts), which vllm's {} runner does not provide",
    "token_recycling": "needs 'mask.tree'",
    "token_recycling(shape='chain')": "needs 'logits.topk' (the top-k of verified rows), which vllm's {} runner does not provide",
    "fusion": "needs 'mask.tree'",
    "fusion(sources=['suffix', 'prompt_lookup'])": "needs 'mask.tree'",
    "transformers_candidates": "this host has no candidate generators of its own, and 'prompt_lookup' was asked for; use the transformers host",
    "transformers_candidates(generator='mtp')": "needs 'hidden.layer' (hidden states of named layers), which vllm's {} runner does not provide",
    "draft_model(model='somewhere/small')": "needs 'model.second' (a second model beside the target), which vllm's {} runner does not provide",
}
BUILT = {"transformers_candidates"}
"""Those that are refused only when they are built."""
RULES = {
    "token_wise": "vllm's", "greedy": "vllm's", "typical": "lossy", "fly": "lossy", "block": "ours", "k_seq": "ours", "traversal": "ours",
}  # fmt: skip
RUNNERS: tuple[RunnerName, ...] = ("V1", "V2")
MODEL = SimpleNamespace(
    get_vocab_size=lambda: 50, get_hidden_size=lambda: 8, dtype=torch.float32, max_model_len=96,
    try_get_generation_config=lambda: {"eos_token_id": 1}, hf_text_config=None,
)  # fmt: skip
CONFIG = SimpleNamespace(model_config=MODEL, scheduler_config=SimpleNamespace(max_num_seqs=4))
CONTEXT = build_context(SimpleNamespace(vllm_config=CONFIG, device=torch.device("cpu")), Clock(pads=False, ranks=1).seconds)


def offered(kind: str) -> set[str]:
    return {entry.name for entry in registry() if entry.kind == kind and entry.owner.distribution == "accelplug"}


def test_every_built_in_is_here() -> None:
    names = {spelling.partition("(")[0] for spelling in (*CARRIED, *REFUSED)}
    assert (names, set(RULES)) == (offered("drafter"), offered("verifier"))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("drafter", CARRIED)
def test_carried(drafter: str, runner: RunnerName) -> None:
    bound, _ = select(read_settings({"drafter": drafter}), CONTEXT, runner)
    assert bound is not None
    for is_async in (False, True) if runner == "V2" else (False,):
        config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async))
        on_device = runner == "V2" and drafts_on_device(bound, config)
        assert ("device" if on_device else "host") == CARRIED[drafter][f"{runner} async" if is_async else runner]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("drafter", REFUSED)
def test_refused(drafter: str, runner: RunnerName) -> None:
    with pytest.raises(AccelplugError) as refused:
        select(read_settings({"drafter": drafter}), CONTEXT, runner)
    assert REFUSED[drafter].format(runner) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("drafter", REFUSED)
def test_refused_before_anything_is_built(drafter: str, runner: RunnerName) -> None:
    """The same sentence, without a model to be loaded first."""
    settings = read_settings({"drafter": drafter})
    if drafter in BUILT:
        refuse_unbuilt(settings, runner, 1)
        return
    with pytest.raises(AccelplugError) as refused:
        refuse_unbuilt(settings, runner, 1)
    with pytest.raises(AccelplugError) as later:
        select(settings, CONTEXT, runner)
    assert REFUSED[drafter].format(runner) in str(refused.value) == str(later.value)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_before_anything_is_built(rule: str, runner: RunnerName) -> None:
    if RULES[rule] == "lossy":
        with pytest.raises(AccelplugError, match="may change the output; pass allow_lossy=True"):
            refuse_unbuilt(read_settings({"drafter": "suffix", "verifier": rule}), runner, 1)
    for drafter in CARRIED:
        assert refuse_unbuilt(read_settings({"drafter": drafter, "verifier": rule, "allow_lossy": True}), runner, 1) is not None


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, runner: RunnerName) -> None:
    settings = {"drafter": "suffix", "verifier": rule}
    if RULES[rule] == "lossy":
        with pytest.raises(AccelplugError, match="may change the output; pass allow_lossy=True"):
            select(read_settings(settings), CONTEXT, runner)
        settings["allow_lossy"] = True
    _, selection = select(read_settings(settings), CONTEXT, runner)
    assert verifier_traits(selection.verifier).standard == (RULES[rule] == "vllm's")


@pytest.mark.parametrize("runner", RUNNERS)
def test_rule_without_a_drafter(runner: RunnerName) -> None:
    bound, selection = select(read_settings({"verifier": "block"}), CONTEXT, runner)
    assert (bound, selection.drafter, selection.verifier.name) == (None, None, "block")


def test_listing_tells_the_truth() -> None:
    """`accelplug plugins` reads the hosts off the module; what it says of vLLM is what vLLM does."""
    for kind, carried in (("drafter", set(CARRIED)), ("verifier", set(RULES))):
        for name in offered(kind):
            entry, _ = registry().find(kind, name)
            hosts = said_about(entry.resolve(), "Hosts")
            assert ("vllm" in hosts) == (name in carried), f"{kind} {name} says {hosts!r}"
