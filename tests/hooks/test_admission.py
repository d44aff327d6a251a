"""Admission: every reason for which a selection is refused, and that one message lists them all."""

from __future__ import annotations

import pytest

from accelplug import HostError, PluginError
from accelplug.hooks import DrafterTraits, NodeKind, Owner, Technique, VerifierTraits
from accelplug.hooks.capabilities import WORDS, Host, Selection, admit, drafter_traits, verifier_traits

FULL = Host("full", frozenset(WORDS))
BARE = Host("bare", frozenset())
STANDARD = VerifierTraits(lossless="sampling", standard=True)


class Something:
    """A technique that is its traits."""

    def __init__(self, traits):
        self.traits = traits

    def accept(self, view):
        raise AssertionError("admission judges nothing")


def technique(kind, name, traits):
    return Technique(kind, name, Owner(name, f"accelplug-{name}", "1.0"), Something(traits), Something, name)


def select(drafter=None, verifier=STANDARD):
    made = None if drafter is None else technique("drafter", "made", drafter)
    return Selection(made, technique("verifier", "rule", verifier))


def refusal(selection, host, *, sampling=False, allow_lossy=False):
    with pytest.raises(HostError, match=f"^{host.name} cannot run this selection: ") as caught:
        admit(selection, host, sampling=sampling, allow_lossy=allow_lossy)
    return str(caught.value)


@pytest.mark.parametrize("sampling", [False, True])
def test_the_smallest_drafter_and_the_standard_rule_run_anywhere(sampling):
    admit(select(DrafterTraits()), BARE, sampling=sampling)
    admit(select(), BARE, sampling=sampling)


def test_a_drafter_without_traits_is_the_smallest_one():
    drafter = Technique("drafter", "plain", Owner("plain", "plain", "1"), object(), object, "plain")
    admit(Selection(drafter, select().verifier), BARE, sampling=True)


@pytest.mark.parametrize("word", WORDS)
def test_a_missing_capability_is_named_with_its_meaning(word):
    message = refusal(select(DrafterTraits(needs=frozenset({word}))), BARE)
    assert f"drafter 'made' (accelplug-made 1.0) needs {word!r} ({WORDS[word]}), which bare does not provide" in message
    admit(select(DrafterTraits(needs=frozenset({word}))), FULL, sampling=True)


def test_a_word_that_is_none_is_refused_with_the_words_there_are():
    message = refusal(select(DrafterTraits(needs=frozenset({"hiden.last"}))), FULL)
    assert "needs 'hiden.last', which is no capability; the words are" in message
    assert all(word in message for word in WORDS)


def test_a_tree_needs_a_tree_mask():
    assert "'mask.tree'" in refusal(select(DrafterTraits(shape="tree")), BARE)
    admit(select(DrafterTraits(shape="tree")), FULL, sampling=True)


@pytest.mark.parametrize("kind", [NodeKind.SAMPLED, NodeKind.WITHOUT_REPLACEMENT])
def test_sampled_nodes_need_their_rows(kind):
    drafter = DrafterTraits(kinds=frozenset({kind}))
    assert "'draft.rows'" in refusal(select(drafter), BARE)
    admit(select(drafter), FULL, sampling=True)


def test_a_rule_that_cannot_judge_a_kind_is_refused():
    drafter = DrafterTraits(kinds=frozenset({NodeKind.SAMPLED, NodeKind.DELTA}))
    verifier = VerifierTraits(lossless="sampling", kinds=frozenset({NodeKind.DELTA}))
    message = refusal(select(drafter, verifier), FULL)
    assert "drafts sampled nodes, which verifier 'rule' (accelplug-rule 1.0) cannot judge; use verifier 'token_wise'" in message


@pytest.mark.parametrize("scope", ["salt", "process"])
def test_memory_across_requests_is_refused(scope):
    assert f"remembers across requests (scope {scope!r})" in refusal(select(DrafterTraits(scope=scope)), FULL)


def test_a_rule_of_its_own_needs_a_host_that_runs_rules():
    assert "'verify.rule'" in refusal(select(verifier=VerifierTraits(lossless="sampling")), BARE)
    admit(select(verifier=VerifierTraits(lossless="sampling")), FULL, sampling=True)


@pytest.mark.parametrize("sampling", [False, True])
def test_a_lossy_rule_must_be_asked_for(sampling):
    lossy = select(verifier=VerifierTraits(lossless=None))
    assert "may change the output; pass allow_lossy=True" in refusal(lossy, FULL, sampling=sampling)
    admit(lossy, FULL, sampling=sampling, allow_lossy=True)


def test_a_greedy_rule_does_not_sample():
    greedy = select(verifier=VerifierTraits(lossless="greedy", standard=True))
    assert "is exact for greedy decoding only and do_sample is on" in refusal(greedy, FULL, sampling=True)
    admit(greedy, FULL, sampling=False)
    admit(greedy, FULL, sampling=True, allow_lossy=True)


def test_a_rule_must_say_what_it_preserves():
    silent = Technique("verifier", "mute", Owner("mute", "mute", "1"), object(), object, "mute")
    with pytest.raises(HostError, match=r"verifier 'mute' \(mute 1\): it has no traits; give it 'traits = "):
        admit(Selection(None, silent), FULL, sampling=False)


def test_traits_of_another_type_are_refused():
    with pytest.raises(HostError, match=r"its traits are a dict; make them an accelplug.hooks.DrafterTraits"):
        admit(select({"shape": "chain"}), FULL, sampling=False)


@pytest.mark.parametrize("read", [drafter_traits, verifier_traits])
def test_traits_that_cannot_be_read_are_not_taken_for_none(read):
    class Unfinished:
        @property
        def traits(self):
            return self.source.traits

    technique = Technique("drafter", "half", Owner("half", "half", "1"), Unfinished(), Unfinished, "half")
    with pytest.raises(HostError, match=r"half.*: reading its traits raised AttributeError: .*'source'; mend the property"):
        read(technique)


@pytest.mark.parametrize("accept", [None, 0.5])
def test_a_rule_must_be_able_to_judge_even_where_it_is_not_asked(accept):
    broken = type("Broken", (), {"traits": STANDARD, "accept": accept})()
    rule = Technique("verifier", "mute", Owner("mute", "mute", "1"), broken, type(broken), "mute")
    with pytest.raises(HostError, match=r"verifier 'mute' \(mute 1\) has no accept\(view\); give it one"):
        admit(Selection(None, rule), FULL, sampling=False)


@pytest.mark.parametrize("more", [{}, {"accept": lambda view: view}])
def test_a_rule_that_judges_on_the_device_must_have_the_other_form(more):
    made = type("Chains", (), {"traits": STANDARD, "choose_on_device": lambda view: view, **more})()
    rule = Technique("verifier", "mute", Owner("mute", "mute", "1"), made, type(made), "mute")
    with pytest.raises(HostError, match=r"verifier 'mute' \(mute 1\) has choose_on_device\(view\) without choose\(view\), which other hosts ask; give it both"):
        admit(Selection(None, rule), FULL, sampling=False)


MISSPELT = [
    (DrafterTraits, {"shape": "Tree"}, "DrafterTraits.shape is 'Tree'; it takes 'chain', 'tree'"),
    (DrafterTraits, {"scope": "tenant"}, "DrafterTraits.scope is 'tenant'; it takes 'request', 'salt', 'process'"),
    (DrafterTraits, {"kinds": NodeKind.SAMPLED}, r"DrafterTraits.kinds is <NodeKind.SAMPLED: 1>; it takes a set such as \{NodeKind.DELTA, "),
    (DrafterTraits, {"kinds": ["sampled"]}, "DrafterTraits.kinds holds 'sampled'; it takes a set such as"),
    (DrafterTraits, {"needs": "embed"}, "DrafterTraits.needs is 'embed'; it takes a set such as"),
    (DrafterTraits, {"needs": [3]}, "DrafterTraits.needs holds 3; it takes a set such as"),
    (VerifierTraits, {"lossless": "gready"}, "VerifierTraits.lossless is 'gready'; it takes 'sampling', 'greedy', None"),
    (VerifierTraits, {"lossless": True}, "VerifierTraits.lossless is True; it takes 'sampling', 'greedy', None"),
    (VerifierTraits, {"lossless": None, "standard": "no"}, "VerifierTraits.standard is 'no'; it takes True, False"),
    (VerifierTraits, {"lossless": None, "shape": "list"}, "VerifierTraits.shape is 'list'; it takes 'chain', 'tree'"),
    (VerifierTraits, {"lossless": None, "kinds": "delta"}, "VerifierTraits.kinds is 'delta'; it takes a set such as"),
    (VerifierTraits, {"lossless": None, "needs": "embed"}, "VerifierTraits.needs is 'embed'; it takes a set such as"),
]


@pytest.mark.parametrize(("traits", "given", "sentence"), MISSPELT)
def test_a_misspelt_trait_is_refused_where_it_is_written(traits, given, sentence):
    with pytest.raises(PluginError, match=f"^{sentence}"):
        traits(**given)


@pytest.mark.parametrize("collection", [list, tuple, set, iter])
def test_traits_take_any_collection(collection):
    drafter = DrafterTraits(kinds=collection([NodeKind.SAMPLED]), needs=collection(["embed"]))
    assert drafter == DrafterTraits(kinds=frozenset({NodeKind.SAMPLED}), needs=frozenset({"embed"}))
    assert hash(drafter) == hash(DrafterTraits(kinds=drafter.kinds, needs=drafter.needs))
    verifier = VerifierTraits("greedy", collection([NodeKind.DELTA]), collection(["logits.full"]))
    assert verifier == VerifierTraits("greedy", frozenset({NodeKind.DELTA}), frozenset({"logits.full"}))


def test_one_message_lists_every_problem():
    drafter = DrafterTraits("tree", frozenset({NodeKind.SAMPLED}), frozenset({"embed", "typo"}), "process")
    verifier = VerifierTraits(None, frozenset({NodeKind.DELTA}), frozenset({"logits.full"}))
    problems = refusal(select(drafter, verifier), BARE, sampling=True).split("; ")
    words = ("'draft.rows'", "'embed'", "'mask.tree'", "'typo'", "'logits.full'", "'verify.rule'")
    for part in (*words, "cannot judge", "across requests", "allow_lossy"):
        assert any(part in problem for problem in problems), part


def test_a_selection_iterates_over_what_was_chosen():
    assert [str(t.kind) for t in select(DrafterTraits())] == ["drafter", "verifier"]
    assert [str(t.kind) for t in select()] == ["verifier"]


def test_every_word_has_a_meaning_for_people():
    assert all(meaning and not meaning.endswith(".") for meaning in WORDS.values())
