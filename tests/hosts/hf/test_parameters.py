"""Options that requests set for themselves reach drafters and rules row by row, however a batch advances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import accelplug
from accelplug import OptionError
from accelplug.hooks import Choice, Drafts, VerifierTraits, load_registry, option
from accelplug.testing import Oracle
from tests.hosts.hf.conftest import VOCAB

PROMPTS = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6], [3, 4, 5, 6]])
MASK = torch.ones_like(PROMPTS)
LIKELY = [[*row, *[11] * 60] for row in PROMPTS.tolist()]


@dataclass
class Takes:
    """Accept every candidate, or none, as each request says."""

    all: bool = option(True, per_request=True)
    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def accept(self, view: Any) -> Any:
        return view.parameters["all"].to(view.target.dtype)


@dataclass
class TakesPaths:
    """The same, of whole drafts."""

    all: bool = option(True, per_request=True)
    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None, shape="chain")

    def choose(self, view: Any) -> Choice:
        kept = len(view.tokens) if view.parameters["all"] else 0
        return Choice(range(kept), view.target[kept])


@dataclass
class Worded:
    """An option that no tensor holds."""

    word: str = option("a", per_request=True)
    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="greedy")

    def accept(self, view: Any) -> Any:
        return view.target_at_tokens()


@dataclass
class Tells:
    """Draft nothing, and note what each request sets."""

    number: int = option(0, per_request=True)
    seen: ClassVar[set[tuple[tuple[int, ...], ...]]] = set()

    def propose(self, view: Any) -> Drafts:
        self.seen.add((tuple(view.slots.tolist()), tuple(view.parameters["number"].tolist())))
        return Drafts.chains([()] * len(view.slots))


class Offers:
    @accelplug.hookimpl
    def register_drafters(self, register: Any) -> None:
        register("tells", Tells)

    @accelplug.hookimpl
    def register_verifiers(self, register: Any) -> None:
        for rule in (Takes, TakesPaths, Worded):
            register(rule.__name__.lower(), rule)


PLUGINS = load_registry([Offers()], entry_points=False)


def run(model, parameters, *, arguments=None, **selection):
    given = {"allow_lossy": True, "plugins": PLUGINS, "parameters": parameters, **selection}
    with accelplug.attach(model, **given) as session:
        given = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **(arguments or {})}
        output = model.generate(PROMPTS, attention_mask=MASK, **given)
    return output[:, PROMPTS.shape[1] :].tolist(), session


@pytest.mark.parametrize("batches", ["ragged", "lockstep"])
@pytest.mark.parametrize("rule", ["takes", "takespaths"])
def test_a_rule_is_told_what_each_row_sets(random_models, rule, batches):
    """Row 1 keeps all drafts, which are of token 11 alone; the others none, and are plain."""
    model = random_models["llama"]
    plain = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=24, do_sample=False, pad_token_id=0)[:, 4:].tolist()
    output, session = run(model, {"all": [False, True, False]}, drafter=Oracle(LIKELY, [(3, 0)], VOCAB), verifier=rule, batches=batches)
    assert session.stats.batches == batches
    assert output[0] == plain[0]
    assert output[2] == plain[2]
    assert output[1] != plain[1]
    assert output[1].count(11) >= 12
    both = run(model, {"all": True}, drafter=Oracle(LIKELY, [(3, 0)], VOCAB), verifier=rule, batches=batches)[0]
    assert all(row.count(11) >= 12 for row in both)


def test_rows_that_are_over_take_their_values_along(random_models):
    """Row 0 ends at once, since its first token is made an EOS; the others keep what they set."""
    model = random_models["llama"]
    first = int(model.generate(PROMPTS[:1], attention_mask=MASK[:1], max_new_tokens=1, do_sample=False)[0, -1])
    arguments = {"eos_token_id": first}
    output, session = run(
        model, {"all": [True, False, True]}, drafter=Oracle(LIKELY, [(3, 0)], VOCAB), verifier="takes", batches="ragged", arguments=arguments
    )
    assert session.stats.batches == "ragged"
    assert output[0].count(11) == 0
    assert output[2].count(11) > output[1].count(11)


def test_a_drafter_is_told_what_each_row_sets(random_models):
    model = random_models["llama"]
    first = int(model.generate(PROMPTS[:1], attention_mask=MASK[:1], max_new_tokens=1, do_sample=False)[0, -1])
    Tells.seen.clear()
    arguments = {"eos_token_id": first, "max_new_tokens": 8}
    run(model, {"all": True, "number": [1, 2, 3]}, drafter="tells", verifier="takes", arguments=arguments)
    assert Tells.seen <= {((1, 2), (2, 3)), ((1,), (2,)), ((2,), (3,))}
    assert ((1, 2), (2, 3)) in Tells.seen, "row 0 is over after its first token, and takes its value along"


def test_they_cannot_be_changed_past_the_checks(random_models):
    """Neither through what the session shows nor through a list that it was given."""
    given = {"num_tokens": [3, 3, 3]}
    with accelplug.attach(random_models["llama"], drafter="prompt_lookup", parameters=given) as session:
        with pytest.raises(TypeError, match="does not support item assignment"):
            session.parameters["num_tokens"] = -5
        given["num_tokens"][0] = -5
        assert session.parameters == {"num_tokens": (3, 3, 3)}


def test_they_are_set_anew_between_calls(random_models):
    model = random_models["llama"]
    with accelplug.attach(model, drafter="prompt_lookup(min_ngram=1)", parameters={"num_tokens": 1}) as session:
        counts = []
        for parameters in ({"num_tokens": 1}, {"num_tokens": [6, 6, 6]}, {}):
            session.parameters = parameters
            before = session.stats.drafted
            model.generate(PROMPTS.repeat(1, 4), attention_mask=MASK.repeat(1, 4), max_new_tokens=16, do_sample=False)
            counts.append(session.stats.drafted - before)
        assert session.parameters == {}
        with pytest.raises(OptionError, match="num_tokens=0 is out of range"):
            session.parameters = {"num_tokens": [3, 0]}
    assert counts[0] < counts[1] <= counts[2]


@pytest.mark.parametrize(
    ("verifier", "parameters", "sentence"),
    [
        ("typical", {"epsilom": 0.2}, r"no per-request option 'epsilom'; did you mean 'epsilon'\? it takes delta, epsilon, num_tokens"),
        ("typical", {"epsilon": [0.1, 1.5, 0.2]}, r"verifier 'typical' .*: epsilon=1.5 is out of range, it takes between 0.0 and 1.0"),
        ("typical", {"epsilon": (0.1, 0.2, 0.3)}, "is a tuple, it takes float"),
        ("typical", "epsilon=0.2", r"parameters are a mapping such as \{'num_tokens': 4\}, got 'epsilon=0.2'"),
        ("fly", {"window": 2.5}, r"window=2.5 is a float, it takes int"),
        ("fly", {"num_tokens": [2, 200]}, r"drafter 'prompt_lookup' .*num_tokens=200 is out of range"),
        ("worded", {"word": "b"}, "lets requests set 'word', which rules read in a tensor; make it int, float or bool"),
    ],
)
def test_wrong_values_are_refused_when_they_are_given(random_models, verifier, parameters, sentence):
    with pytest.raises(OptionError, match=sentence) as caught:
        accelplug.attach(random_models["llama"], drafter="prompt_lookup", verifier=verifier, parameters=parameters, allow_lossy=True, plugins=PLUGINS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[], [0.1, 0.2]])
def test_a_list_of_another_length_than_the_batch_is_refused(random_models, values):
    with pytest.raises(OptionError, match=rf"parameters: 'epsilon' has {len(values)} values for 3 rows; give one value for each row, or one for all"):
        run(random_models["llama"], {"epsilon": values}, drafter="prompt_lookup", verifier="typical")
