"""A grammar beside a drafter: what is forced and cut, what the drafter is shown, and what it is told became of its drafts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from grammars import Listing

import accelplug
from accelplug.hooks import ROOT, CommitView, DrafterTraits, Drafts, DraftView, NodeKind
from accelplug.hosts.hf.guided import behind, merged, pruned
from accelplug.hosts.hf.tree import Tree
from accelplug.spec.prompt_lookup import PromptLookup
from tests.hosts.hf.test_batches import padded

EOS = 1
D, S = int(NodeKind.DELTA), int(NodeKind.SAMPLED)


def tree_of(tokens, parents, kinds=None, row_ids=None, rows=None):
    offsets = np.array([0, len(tokens)])
    kinds, row_ids = (None if given is None else np.array(given) for given in (kinds, row_ids))
    return Tree.of(Drafts(offsets, np.array(tokens), np.array(parents), kinds, row_ids, rows), 0, len(tokens))


def shape(tree):
    return tree.tokens, list(tree.parents if tree.parents is not None else range(ROOT, len(tree) - 1))


class Allows:
    """Validates by a rule for every token behind those before it."""

    def __init__(self, rule):
        self.rule = rule

    def validate(self, tokens):
        return next((i for i in range(len(tokens)) if not self.rule(tuple(tokens[: i + 1]))), len(tokens))


ODD_IS_LEGAL = Allows(lambda text: text[-1] % 2)
TREE = ([1, 2, 3, 5, 4, 7, 9], [ROOT, ROOT, 0, 0, 1, 1, 3])  # 1(3, 5(9)), 2(4, 7)


@pytest.mark.parametrize(
    ("tree", "matcher", "before", "kept"),
    [
        (Tree([1, 3, 4, 5]), ODD_IS_LEGAL, (), ([1, 3], [-1, 0])),
        (Tree([2, 3]), ODD_IS_LEGAL, (), ([], [])),
        (Tree([1, 3]), Allows(lambda text: len(text) < 4), (8, 8), ([1], [-1])),
        (tree_of(*TREE), ODD_IS_LEGAL, (), ([1, 3, 5, 9], [-1, 0, 0, 2])),
        (tree_of(*TREE), Allows(lambda text: text[:2] != (8, 1)), (8,), ([2, 4, 7], [-1, 0, 0])),
        (tree_of(*TREE), Allows(lambda text: True), (), TREE),
        (tree_of(*TREE, kinds=[S] * 7, row_ids=[0] * 7, rows=torch.ones(1, 10)), ODD_IS_LEGAL, (), ([1, 2, 3, 5, 9], [-1, -1, 0, 0, 3])),
        (Tree([1, 2, 3], kinds=[S, S, S], row_ids=[0, 1, 2], rows=torch.ones(3, 10)), ODD_IS_LEGAL, (), ([1, 2], [-1, 0])),
        (Tree([1, 2, 3], kinds=[S, D, S], row_ids=[0, -1, 2], rows=torch.ones(3, 10)), ODD_IS_LEGAL, (), ([1], [-1])),
    ],
)
def test_illegal_nodes_are_cut_with_what_hangs_below_them(tree, matcher, before, kept):
    found = pruned(tree, matcher, before)
    assert shape(found) == kept
    if tree.kinds is not None:
        assert found.row_ids == [tree.row_ids[tree.tokens.index(token)] for token in found.tokens]
        assert found.rows is tree.rows
    for node in range(len(found)):
        assert node in found.children_of(kept[1][node])


def test_forced_tokens_go_before_and_beside():
    assert shape(merged([5, 6], Tree([5, 6, 7]), 9)) == ([5, 6, 7], [-1, 0, 1])
    assert shape(merged([5, 6], Tree([5, 8, 7]), 9)) == ([5, 6], [-1, 0])
    assert shape(merged([5, 6], Tree([]), 9)) == ([5, 6], [-1, 0])
    assert shape(merged([1, 5], tree_of(*TREE), 9)) == ([1, 5, 2, 3, 4, 7, 9], [-1, 0, -1, 0, 2, 2, 1])
    assert shape(merged([1, 5], tree_of(*TREE), 4)) == ([1, 5, 2, 3], [-1, 0, -1, 0])
    assert shape(merged([1, 5], tree_of(*TREE), 2)) == ([1, 5], [-1, 0])
    assert [merged([1, 5], tree_of(*TREE), 4).children_of(node) for node in (ROOT, 0, 1)] == [[0, 2], [1, 3], ()]
    assert merged([1, 5], tree_of(*TREE), 4).forced == 2


def test_a_drafter_that_goes_on_drafts_behind_forced_tokens():
    assert shape(behind([8, 9], Tree([1, 2]))) == ([8, 9, 1, 2], [-1, 0, 1, 2])
    found = behind([8, 9], tree_of(*TREE, kinds=[S] * 7, row_ids=[0] * 7, rows=torch.ones(1, 10)))
    assert shape(found) == ([8, 9, *TREE[0]], [-1, 0, 1, 1, 2, 2, 3, 3, 5])
    assert found.kinds == [D, D] + [S] * 7
    assert found.row_ids == [-1, -1] + [0] * 7
    assert [found.children_of(node) for node in (ROOT, 0, 1, 2)] == [[0], [1], [2, 3], [4, 5]]


@dataclass
class Asked:
    """Drafts what a script says for each text, and keeps what it is shown."""

    script: dict[str, str]
    encode: Any
    decode: Any
    traits: DrafterTraits = field(default_factory=lambda: DrafterTraits(continues=True))
    views: list[tuple[str, int, int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def start(self, slots):
        self.seen = {}

    def observe(self, view):
        for i, slot in enumerate(view.slots.tolist()):
            assert view.lengths[i] == self.seen.get(slot, 0) + view.fresh[i], "what was shown ahead was counted as committed"
            self.seen[slot] = int(view.lengths[i])
            self.accepted.append(int(view.accepted[i]))

    def propose(self, view: DraftView):
        guesses = []
        for i in range(len(view.slots)):
            text = self.decode(view.history(i)).split("|")[-1]
            self.views.append((text, 0 if view.ahead is None else int(view.ahead[i]), int(view.budgets[i])))
            guesses.append(self.encode(self.script.get(text, ""))[: max(0, view.budgets[i])])
        return Drafts.chains(guesses)


@pytest.fixture
def model(random_models, monkeypatch):
    found = random_models["llama"]
    monkeypatch.setattr(found.generation_config, "eos_token_id", EOS)
    return found


def asked(model, tokenizer, choices, script, traits, prompts=("#|",), verifier="token_wise"):
    """Generate under a grammar beside a scripted drafter; return the drafter, the session and the texts."""
    grammar = accelplug.grammar(model, {"choice": choices}, tokenizer=tokenizer, engine=Listing())
    inputs = padded([tokenizer.encode(prompt) for prompt in prompts])
    start = inputs["input_ids"].shape[1]
    arguments = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs, **arguments, logits_processor=[grammar.after(inputs)])
    drafter = Asked(script, tokenizer.encode, tokenizer.decode, traits)
    with accelplug.attach(model, drafter=drafter, grammar=grammar, verifier=verifier) as session:
        assert model.generate(**inputs, **arguments).tolist() == plain.tolist()
    return drafter, session, [tokenizer.decode([token for token in row if token > EOS]) for row in plain[:, start:].tolist()]


@pytest.mark.parametrize("prompts", [("#|",), ("#|", "###|")], ids=["alone", "padded"])
def test_it_is_shown_what_is_forced_and_told_what_became_of_its_own(model, tokenizer, prompts):
    """The text is a or b, then a forced middle, then x or y, and so on."""
    choices = [first + "(middle)" + second + "(more)" + last for first in "ab" for second in "xy" for last in "pq"]
    script = dict.fromkeys(("a(middle)", "b(middle)"), "xq")
    drafter, session, texts = asked(model, tokenizer, choices, script, DrafterTraits(continues=True), prompts)
    shown = [view for view in drafter.views if view[0].endswith("(middle)")]
    assert [ahead for _, ahead, _ in shown] == [8] * len(prompts)
    assert all(budget <= 24 - 1 - 8 for _, _, budget in shown)
    assert session.stats.pruned == len(prompts)  # the q
    assert drafter.accepted[len(prompts) : 2 * len(prompts)] == [int("x" in text) for text in texts]
    shares = {technique.kind: technique for technique in session.stats.techniques}
    assert (shares["drafter"].drafted, shares["drafter"].accepted) == (len(prompts), sum("x" in text for text in texts))
    assert shares["drafter"].drafts == len(prompts)
    assert shares["grammar"].drafts == shares["verifier"].drafts == session.stats.drafts >= 2 * len(prompts), "a middle, and then more"


def test_one_that_does_not_go_on_is_heard_as_far_as_it_agrees(model, tokenizer):
    choices = [first + "(middle)" + last for first in "ab" for last in "xy"]
    script = dict.fromkeys("ab", "(middle)xq")
    drafter, session, _ = asked(model, tokenizer, choices, script, DrafterTraits())
    assert {ahead for _, ahead, _ in drafter.views} == {0}
    assert session.stats.drafted >= 9
    assert session.stats.pruned == 1
    script = dict.fromkeys("ab", "(miffle)x")
    drafter, session, _ = asked(model, tokenizer, choices, script, DrafterTraits())
    assert session.stats.pruned == len("ffle)x")
    assert drafter.accepted[:2] == [0, 3]  # of the eight accepted ones three were its own too


def test_one_that_draws_is_not_asked_where_tokens_are_forced(model, tokenizer):
    choices = [first + "(middle)" + last for first in "ab" for last in "xy"]
    script = dict.fromkeys("ab", "(middle)")
    drafter, session, _ = asked(model, tokenizer, choices, script, DrafterTraits(kinds={NodeKind.DELTA, NodeKind.SAMPLED}))
    budgets = {text: budget for text, _, budget in drafter.views}
    assert [budget for text, budget in budgets.items() if len(text) == 1] == [0]
    assert [technique.drafted for technique in session.stats.techniques if technique.kind == "drafter"] == [0]


def test_forced_tokens_keep_to_the_room_that_is_left(model, tokenizer):
    """Cut off in the middle of forced text, at every place."""
    grammar = accelplug.grammar(model, {"choice": ["a" + "z" * 12]}, tokenizer=tokenizer, engine=Listing())
    ids = torch.tensor([[5, 6]])
    for new in range(1, 16):
        plain = model.generate(ids, max_new_tokens=new, do_sample=False, logits_processor=[grammar.after(ids)])
        with accelplug.attach(model, grammar=grammar) as session:
            assert model.generate(ids, max_new_tokens=new, do_sample=False).tolist() == plain.tolist()
        assert session.stats.forwards <= 2
        assert session.stats.drafted <= max(0, new - 2)  # the target adds a token at either end
        assert (session.checks[0] is None) == (new >= 13)


def test_prompt_lookup_looks_behind_what_is_forced():
    drafter = PromptLookup(num_tokens=3)
    slot, row = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    tokens = np.array([[5, 6, 7, 8, 9, 1, 2, 5, 0, 0, 0]])
    drafter.start(slot)
    drafter.observe(CommitView(slot, row, tokens, np.array([8]), np.array([8]), np.array([0])))
    tokens[0, 8:10] = 6, 7
    view = DraftView(slot, row, tokens, np.array([10]), np.array([9]), ahead=np.array([2]))
    assert drafter.propose(view).tokens.tolist() == [8, 9, 1]
    view = DraftView(slot, row, tokens, np.array([8]), np.array([9]), ahead=np.array([0]))
    assert drafter.propose(view).tokens.tolist() == []


def test_prompt_lookup_repeats_what_ends_in_what_is_forced():
    """As it repeats committed text: a match that overlaps the end goes on with its period."""
    drafter = PromptLookup(num_tokens=5)
    slot, row = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    tokens = np.array([[9, 1, 2, 3, 1, 2, 3, 1, 0, 0]])
    drafter.start(slot)
    drafter.observe(CommitView(slot, row, tokens, np.array([7]), np.array([7]), np.array([0])))
    view = DraftView(slot, row, tokens, np.array([8]), np.array([9]), ahead=np.array([1]))
    assert drafter.propose(view).tokens.tolist() == [2, 3, 1, 2, 3]
