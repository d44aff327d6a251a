"""What an author sees of the kit: imports that cost nothing, names, objects and plugins, fixtures, sentences."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from unittest import SkipTest

import pytest

import accelplug
from accelplug.testing import DrafterConformance, GrammarConformance, VerifierConformance

pytest_plugins = ["accelplug.testing.fixtures"]


class Echo:
    def __init__(self, times: int = 2) -> None:
        self.times = times

    def propose_one(self, tokens, budget):
        return [tokens[-1]] * min(self.times, budget)


PLUGIN = types.ModuleType("echo_plugin")
PLUGIN.register_drafters = accelplug.hookimpl(lambda register: register("echo", Echo), specname="register_drafters")


def kit(cls=DrafterConformance, **given):
    return type("Kit", (cls,), given)()


@pytest.mark.parametrize("cls", [DrafterConformance, VerifierConformance, GrammarConformance])
def test_every_check_is_documented(cls):
    page = (Path(__file__).resolve().parents[2] / "docs/testing.md").read_text(encoding="utf-8")
    assert [name for name in vars(cls) if name.startswith("test_") and f"`{name}`" not in page] == []


def test_importing_the_kit_loads_neither_an_engine_nor_pytest():
    heavy = ("torch", "transformers", "vllm", "pytest", "accelplug.hosts")
    code = f"import sys, accelplug.testing; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_pytest_loads_nothing_of_accelplug_by_itself():
    code = "import sys, pytest; pytest.main(['--version']); print('accelplug' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1] == "False"


@pytest.mark.parametrize("technique", ["echo(times=3)", {"name": "echo", "times": 3}, Echo(times=3)], ids=["text", "mapping", "object"])
def test_a_technique_is_given_as_users_give_it(technique):
    built = kit(technique=technique, plugins=[PLUGIN]).build()
    assert isinstance(built.instance, Echo)
    assert built.instance.times == 3


def test_every_check_gets_an_object_of_its_own():
    given = Echo()
    one, other = (kit(technique=given).build().instance for _ in range(2))
    assert one is not given
    assert one is not other


def test_what_does_not_concern_a_technique_is_left_out_with_a_reason():
    with pytest.raises(SkipTest, match=r"drafter 'Echo' .* has no propose_on_device"):
        kit(technique=Echo()).test_device_drafts_need_no_synchronisation()
    with pytest.raises(SkipTest, match=r"verifier 'greedy' .* does not promise the target's distribution"):
        kit(VerifierConformance, technique="greedy").test_sampled_output_has_the_targets_distribution()


class ReadsHidden(Echo):
    """Echoes, once it has seen that it is shown every committed token's hidden states but the last one's."""

    traits = accelplug.hooks.DrafterTraits(hidden_layers={0, -1})

    def start(self, slots):
        self.read = {**getattr(self, "read", {}), **dict.fromkeys(slots.tolist(), 0)}

    def finish(self, slots):
        for slot in slots.tolist():
            del self.read[slot]

    def observe(self, view):
        for slot, length, states in zip(view.slots.tolist(), view.lengths.tolist(), view.hidden, strict=True):
            shapes = {tuple(rows.shape) for rows in states.values()}
            ((count, size),) = shapes
            self.read[slot] += count
            assert (self.read[slot], size, set(states)) == (length - 1, 48, {0, -1})


def test_a_drafter_may_read_hidden_states():
    of_kit = kit(technique=ReadsHidden())
    of_kit.test_requests_do_not_see_each_other()
    of_kit.test_output_is_that_of_plain_generate()


class NeedsHidden(Echo):
    traits = accelplug.hooks.DrafterTraits(needs={"hidden.last"})


def test_a_drafter_that_no_host_here_can_run_is_left_out_of_the_comparison():
    with pytest.raises(SkipTest, match=r"needs 'hidden\.last'"):
        kit(technique=NeedsHidden()).test_output_is_that_of_plain_generate()


def test_an_author_may_expect_less():
    class Silent:
        def propose_one(self, tokens, budget):
            return []

    kit(technique=Silent(), expects=frozenset()).test_output_is_that_of_plain_generate()


def test_the_fixtures_fit_together(small_model, small_tokenizer, build_context):
    assert small_model.config.vocab_size == len(small_tokenizer) == build_context.vocab_size == len(build_context.vocabulary())
    prompt = small_tokenizer("A1B2", return_tensors="pt")
    plain = small_model.generate(**prompt, max_new_tokens=30, do_sample=False).tolist()
    with accelplug.attach(small_model, drafter=Echo(), tokenizer=small_tokenizer) as session:
        assert small_model.generate(**prompt, max_new_tokens=30, do_sample=False).tolist() == plain
    assert session.stats.accepted > 0
