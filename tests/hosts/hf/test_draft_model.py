"""The drafter draft_model inside ``generate()``: greedy output is plain's, a perfect model is always right, options are checked."""

from __future__ import annotations

import collections
import copy
import dataclasses

import pytest
import torch

import accelplug
from accelplug import AccelplugError
from accelplug.hooks import BuildContext, CommitView, DraftView, NodeKind, load_registry
from accelplug.hosts.hf.context import build_context
from tests.hosts.hf.conftest import MAKERS

EVENTS: collections.Counter[str] = collections.Counter()
TREES = ("chain", "top_k(width=3, depth=4)", "best_first(rounds=4)", "gumbel_top_k", "stochastic_beam", "sequoia(acceptance=[0.5, 0.3])")


@pytest.fixture(scope="module")
def noisy_models(random_models):
    """The targets with noise on their matrices: often right, often wrong."""
    torch.manual_seed(1)
    found = {}
    for name, model in random_models.items():
        found[name] = copy.deepcopy(model)
        with torch.no_grad():
            for weights in found[name].parameters():
                if weights.ndim > 1:
                    weights.add_(0.12 * weights.std() * torch.randn_like(weights))
    return found


class Watch:
    """A drafter that counts what became of another one's drafts."""

    def __init__(self, inner):
        self.inner, self.traits, self.finish, self.costs = inner, inner.traits, inner.finish, []

    def start(self, slots):
        self.inner.start(slots)
        self.drafts = None

    def observe(self, view: CommitView):
        if self.drafts is None or len(self.drafts.offsets) - 1 != len(view.slots):
            return
        for i, (begin, end) in enumerate(zip(self.drafts.offsets, self.drafts.offsets[1:], strict=False)):
            accepted, length = int(view.accepted[i]), int(view.lengths[i])
            EVENTS["zero accepted"] += end > begin and accepted == 0
            EVENTS["part accepted"] += 0 < accepted < end - begin
            first = [t for t, p in zip(self.drafts.tokens[begin:end], self.drafts.parents[begin:end], strict=True) if p < 0]
            EVENTS["a later sibling accepted"] += accepted > 0 and view.history(i)[length - view.fresh[i]] in first[1:]
        EVENTS["rows accept different counts"] += len(set(view.accepted.tolist())) > 1

    def propose(self, view: DraftView):
        before = self.inner._second.forwards
        self.drafts = self.inner.propose(view)
        self.costs += [self.inner._second.forwards - before] * int(view.budgets.min() >= self.inner.num_tokens)
        EVENTS["budget clipped"] += bool((view.budgets < self.inner.num_tokens).any())
        return self.drafts


def watched(target, **options):
    spec = {"name": "draft_model", "model": target, **options}
    return Watch(load_registry(entry_points=False).build("drafter", spec, build_context(target, None)).instance)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_greedy_equals_plain_generate(random_models, noisy_models, name, tree):
    model = random_models[name]
    for prompt in ([[9, 8, 7, 6, 5]], [[3, 4, 5], [11, 12, 13]]):
        arguments = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones(len(prompt), len(prompt[0]), dtype=torch.long)}
        plain = model.generate(torch.tensor(prompt), **arguments)
        length = "confidence(threshold=0.2)" if name == "qwen3" else "fixed"
        drafter = watched(model, model=noisy_models[name], tree=tree, num_tokens=6, length=length)
        with accelplug.attach(model, drafter=drafter) as session:
            fast = model.generate(torch.tensor(prompt), **arguments)
            assert fast.tolist() == plain.tolist()
            if len(prompt) == 1:
                eos = plain[0, len(prompt[0]) + 9].item()
                expected = plain[0, : plain[0].tolist().index(eos, len(prompt[0])) + 1].tolist()
                accepted = session.stats.accepted
                assert model.generate(torch.tensor(prompt), **arguments, eos_token_id=eos)[0].tolist() == expected
                EVENTS["stopped at EOS"] += session.stats.accepted > accepted
    assert session.stats.accepted > 0


def test_every_hard_event_happened():
    print(dict(EVENTS))
    wanted = (
        "zero accepted", "part accepted", "a later sibling accepted", "budget clipped", "rows accept different counts", "stopped at EOS",
    )  # fmt: skip
    assert not [event for event in wanted if not EVENTS[event]]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_target_itself_is_always_right(random_models, name):
    model, prompt = random_models[name], torch.tensor([[9, 8, 7, 6, 5]])
    with accelplug.attach(model, drafter={"name": "draft_model", "model": model, "num_tokens": 4}) as session:
        model.generate(prompt, max_new_tokens=41, do_sample=False)
        assert session.stats.acceptance == 1.0
        assert session.stats.forwards == 1 + 8
        torch.manual_seed(0)
        model.generate(prompt, max_new_tokens=41, do_sample=True, temperature=0.7, top_k=0)
        assert session.stats.acceptance == 1.0, "drawn at the target's temperature, every token has its probability"
        model.generate(prompt, max_new_tokens=41, do_sample=True, temperature=0.7, top_k=9, top_p=0.8, min_p=0.05)
        assert session.stats.acceptance == 1.0, "and within its top-k and top-p"


@pytest.mark.parametrize("tree", ["chain", "gumbel_top_k", "stochastic_beam", "best_first"])
def test_nothing_is_drafted_that_the_targets_top_k_leaves_out(random_models, noisy_models, tree):
    """With a draft as wide as the model's own, the same seeds accept fewer."""
    model, accepted, drawn = random_models["llama"], [], []
    arguments = {"max_new_tokens": 40, "do_sample": True, "temperature": 1.5, "top_k": 4, "top_p": 0.95}
    for knows in (True, False):
        drafter = watched(model, model=noisy_models["llama"], tree=tree, num_tokens=4)
        if knows:
            inner = drafter.propose
            drafter.propose = lambda view, inner=inner: drawn.append(inner(view)) or drawn[-1]
        else:
            inner = drafter.propose
            drafter.propose = lambda view, inner=inner: inner(dataclasses.replace(view, warp=None))
        with accelplug.attach(model, drafter=drafter) as session:
            for seed in range(4):
                torch.manual_seed(seed)
                model.generate(torch.tensor([[9, 8, 7, seed + 1]]), **arguments)
        accepted.append(session.stats.tokens_per_forward)
    assert accepted[0] > accepted[1] + 0.15
    supports = [int((row > 0).sum()) for drafts in drawn if drafts.rows is not None for row in drafts.rows]
    assert supports
    assert max(supports) <= 4


def test_one_forward_per_level_for_all_requests(random_models):
    model = random_models["llama"]
    for tree, levels in (("chain", 4), ("top_k(depth=3)", 3), ("gumbel_top_k(branching=[2, 1])", 2)):
        drafter = watched(model, tree=tree, num_tokens=4)
        with accelplug.attach(model, drafter=drafter):
            model.generate(torch.tensor([[3, 4], [5, 6]]), attention_mask=torch.ones(2, 2), max_new_tokens=12, do_sample=False)
        assert set(drafter.costs) == {levels}


def test_how_often_each_sibling_is_accepted_is_measured_and_shapes_a_sequoia(random_models, noisy_models):
    model, prompt = random_models["llama"], torch.tensor([[9, 8, 7, 6, 5]])
    wide = {"name": "draft_model", "model": noisy_models["llama"], "tree": "gumbel_top_k(branching=[4, 2])", "num_tokens": 12}
    with accelplug.attach(model, drafter=wide) as session:
        model.generate(prompt, max_new_tokens=300, do_sample=False)
    stats = session.stats
    (first, _), *others = stats.siblings
    assert len(stats.sibling_acceptance) == 4
    assert all(reached <= first for reached, _ in others), "below the root there are two"
    assert first == others[0][0] > others[1][0] == others[2][0] > 0
    assert sum(accepted for _, accepted in stats.siblings) == stats.accepted
    assert stats.sibling_acceptance[0] == max(stats.sibling_acceptance) > 0.2
    measured = sorted((share for share in stats.sibling_acceptance if share > 0), reverse=True)
    sequoia = {**wide, "tree": {"name": "sequoia", "acceptance": measured}, "num_tokens": 8}
    with accelplug.attach(model, drafter=sequoia) as session:
        model.generate(prompt, max_new_tokens=40, do_sample=False)
    assert session.stats.accepted > 0
    with accelplug.attach(model, drafter={**wide, "tree": "chain", "num_tokens": 4}) as session:
        model.generate(prompt, max_new_tokens=40, do_sample=False)
    assert session.stats.sibling_acceptance == []


def test_as_one_source_of_a_fusion(random_models, noisy_models):
    """As RASD has it: a model's tree and what was found in the text, in one tree."""
    model, prompt = random_models["llama"], torch.tensor([[9, 8, 7, 6, 5, 9, 8, 7, 6, 5]])
    plain = model.generate(prompt, max_new_tokens=60, do_sample=False)
    second = {"name": "draft_model", "model": noisy_models["llama"], "tree": "top_k(width=3, depth=3)", "num_tokens": 8}
    accepted = {}
    for sources in (("suffix",), (second,), ("suffix", second)):
        with accelplug.attach(model, drafter={"name": "fusion", "sources": sources}) as session:
            assert model.generate(prompt, max_new_tokens=60, do_sample=False).tolist() == plain.tolist()
        accepted[len(sources), sources[0] == "suffix"] = session.stats.accepted
    assert 0 < session.stats.accepted < session.stats.drafted
    assert accepted[2, True] >= max(accepted[1, True], accepted[1, False])
    assert "\n" not in session.stats.techniques[0].spec


def test_a_length_policy_stops_earlier_and_keeps_what_was_drawn(random_models, noisy_models):
    model = random_models["llama"]
    drafted = []
    for threshold in (0.0, 0.06, 1.0):
        drafter = watched(model, model=noisy_models["llama"], num_tokens=6, length=f"confidence(threshold={threshold})")
        with accelplug.attach(model, drafter=drafter) as session:
            model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=40, do_sample=False)
        drafted.append(session.stats.drafted / session.stats.forwards)
    assert drafted[0] > drafted[1] > drafted[2]
    assert 0.9 < drafted[2] <= 1, "the first token is drawn before anything can be unsure"


def test_a_request_may_ask_for_fewer_tokens(random_models):
    model = random_models["llama"]
    drafter = {"name": "draft_model", "model": model, "num_tokens": 6}
    with accelplug.attach(model, drafter=drafter, parameters={"num_tokens": 2}) as session:
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=31, do_sample=False)
    assert session.stats.forwards == 1 + 10


def test_traits_follow_the_tree(random_models):
    chain, top_k = (watched(random_models["llama"], tree=tree) for tree in ("chain", "top_k"))
    assert (chain.traits.shape, chain.traits.kinds) == ("chain", {NodeKind.DELTA, NodeKind.SAMPLED})
    assert (top_k.traits.shape, top_k.traits.kinds) == ("tree", {NodeKind.DELTA})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tree": "bush"}, "draft_model: tree='bush' is unknown; choose one of chain, top_k"),
        ({"length": "short"}, "draft_model: length='short' is unknown; choose one of fixed, confidence"),
        ({"tree": "top_k(depth=0)"}, "depth=0 is out of range"),
        ({"tree": "gumbel_top_k(branching=[2, 0])"}, "is no list of whole numbers above 0"),
        ({"tree": "sequoia(acceptance=[0.2, 0.5])"}, "is no falling list of chances"),
        ({"tree": "sequoia(acceptance=['0.5', '0.2'])"}, "is no falling list of chances"),
        ({"tree": "sequoia(acceptance=0.5)"}, "is no falling list of chances"),
        ({"tree": 5}, "draft_model: tree=5 has no grow"),
        ({"length": 5}, "draft_model: length=5 has no more"),
    ],
)
def test_refusals(random_models, options, sentence):
    with pytest.raises(AccelplugError) as refusal:
        watched(random_models["llama"], **options)
    assert sentence in str(refusal.value)


def test_a_verifier_that_cannot_judge_its_nodes_is_refused(random_models):
    model = random_models["llama"]
    with pytest.raises(AccelplugError, match=r"verifier 'block' .* judges chains only"):
        accelplug.attach(model, drafter={"name": "draft_model", "model": model, "tree": "best_first"}, verifier="block")


def test_without_a_model(random_models):
    with pytest.raises(AccelplugError, match="needs model"):
        accelplug.attach(random_models["llama"], drafter="draft_model")


def test_a_host_that_runs_no_second_model_says_so(random_models):
    default = next(field.default for field in dataclasses.fields(BuildContext) if field.name == "load_model")
    context = dataclasses.replace(build_context(random_models["llama"], None), host="other", load_model=default)
    with pytest.raises(AccelplugError, match="runs no second model beside the target, and 'small' was asked for"):
        load_registry(entry_points=False).build("drafter", "draft_model(model='small')", context)
