"""Rules that judge whole drafts, in real ``generate()``: equal to plain decoding, and refused where they cannot be right."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

import accelplug
from accelplug import HostError, PluginError
from accelplug.hooks import Choice, DrafterTraits, Drafts, NodeKind, PathView, VerifierTraits, load_registry
from accelplug.hooks.capabilities import Host, Selection, admit
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import Tree
from accelplug.hosts.hf.verify import Walk
from accelplug.testing.enumeration import Enumeration, table
from accelplug.testing.oracle import Oracle
from accelplug.testing.plans import Grow, S
from tests.hosts.hf.conftest import VOCAB

PROMPT = torch.tensor([[4, 8, 15, 16, 23]])
EVENTS: collections.Counter[str] = collections.Counter()
HARD = (
    "none accepted",
    "part accepted",
    "all accepted",
    "tree off the first branch",
    "EOS inside a draft",
    "stop string inside a draft",
    "processors on",
)


@dataclass
class Drawn:
    """Draws siblings level by level from rows that favour the right token; goes on below the right sibling, or the first."""

    sequences: list[list[int]]
    width: int = 1
    depth: int = 3
    kind: NodeKind = NodeKind.SAMPLED
    favour: float = 0.6
    last: int = field(init=False, default=0)
    generator: np.random.Generator = field(init=False, default_factory=lambda: np.random.default_rng(3))

    @property
    def traits(self):
        return DrafterTraits(shape="tree" if self.width > 1 else "chain", kinds={self.kind})

    def observe(self, view):
        if self.last:
            kept = int(view.accepted[0])
            EVENTS["none accepted" if not kept else "all accepted" if kept == self.last // self.width else "part accepted"] += 1

    def propose(self, view):
        offsets, tokens, parents, row_ids, rows = [0], [], [], [], []
        for i, slot in enumerate(view.slots):
            begin, parent = len(tokens), -1
            for depth in range(min(self.depth, max(0, int(view.budgets[i])) // self.width)):
                position = int(view.lengths[i]) + depth
                row = np.full(VOCAB, 0.4 / VOCAB)
                known = self.sequences[slot]
                right = known[position] if position < len(known) else 7
                row[right] += self.favour
                rows.append(row / row.sum())
                drawn = self.generator.choice(VOCAB, self.width, replace=self.kind == NodeKind.SAMPLED, p=rows[-1])
                tokens += drawn.tolist()
                parents += [parent] * self.width
                row_ids += [len(rows) - 1] * self.width
                first = len(tokens) - self.width - begin
                parent = first + next((j for j, token in enumerate(drawn) if token == right), 0)
            offsets.append(len(tokens))
        self.last = offsets[1]
        count = len(tokens)
        return Drafts(
            np.array(offsets),
            np.array(tokens, dtype=np.int64),
            np.array(parents, dtype=np.int64),
            np.full(count, int(self.kind)),
            np.array(row_ids, dtype=np.int64),
            torch.from_numpy(np.stack(rows)).float() if rows else torch.zeros(0, VOCAB),
        )


DRAFTS = {
    "block": [(1, NodeKind.SAMPLED)],
    "traversal": [(1, NodeKind.SAMPLED), (3, NodeKind.WITHOUT_REPLACEMENT), (3, NodeKind.SAMPLED)],
    "k_seq": [(1, NodeKind.SAMPLED), (3, NodeKind.SAMPLED)],
}
CASES = [(rule, *draft) for rule, drafts in DRAFTS.items() for draft in drafts]
SETTINGS = [("llama", "none"), ("llama", "penalty"), ("llama", "eos"), ("llama", "string"), ("gemma3", "eos"), ("gemma3", "penalty")]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
@pytest.mark.parametrize(("rule", "width", "kind"), CASES)
def test_greedy_equals_plain_generate(random_models, tokenizer, name, rule, width, kind, setting):
    model = random_models[name]
    arguments: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
    if setting == "penalty":
        arguments |= {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3}
    free = model.generate(PROMPT, **arguments)[0].tolist()
    fresh = list(dict.fromkeys(free[PROMPT.shape[1] : -6]))  # in order of first appearance
    if setting == "eos":
        arguments["eos_token_id"] = fresh[-1]
    if setting == "string":
        arguments |= {"stop_strings": [tokenizer.decode(fresh[-1])], "tokenizer": tokenizer}
    arguments |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    plain = model.generate(PROMPT, **arguments)
    made = plain.sequences.shape[1] - PROMPT.shape[1]
    for drafter in (Drawn([free], width, kind=kind), Oracle([free], [(4, 1), (0, 2), (6, 0)], VOCAB, width)):
        with accelplug.attach(model, drafter=drafter, verifier=rule) as session:
            fast = model.generate(PROMPT, **arguments)
        assert fast.sequences.tolist() == plain.sequences.tolist()
        assert len(fast.scores) == len(plain.scores) == len(fast.logits) == made == session.stats.tokens
        for ours, theirs in zip((*fast.scores, *fast.logits), (*plain.scores, *plain.logits), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert fast.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
        assert session.stats.accepted > 0
        assert session.stats.forwards < made
        inside = session.stats.forwards + session.stats.accepted > made  # the last token was itself a draft
        EVENTS["EOS inside a draft"] += setting == "eos" and made < 32 and inside
        EVENTS["stop string inside a draft"] += setting == "string" and made < 32 and inside
        EVENTS["processors on"] += setting == "penalty"
        EVENTS["tree off the first branch"] += width > 1 and isinstance(drafter, Oracle)  # its right tokens stand last


def test_every_hard_event_happened():
    print({event: int(count) for event, count in EVENTS.items()})
    assert not [event for event in HARD if not EVENTS[event]]


@pytest.mark.parametrize("rule", ["block", "traversal"])
@pytest.mark.parametrize("asked", [{}, {"return_dict_in_generate": True, "output_scores": True}, {"repetition_penalty": 1.3}])
def test_batches_equal_plain_generate(random_models, rule, asked):
    """Rows of unequal prompts that end at unequal times, one that is over while others go on."""
    model = random_models["llama"]
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [0, 0, 0, 0, 3, 4]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **asked}
    free = model.generate(**inputs)
    free = (free if torch.is_tensor(free) else free.sequences).tolist()
    inputs["eos_token_id"] = free[1][12]
    plain = model.generate(**inputs)
    drafter = Drawn(free, 1 if rule == "block" else 2)
    with accelplug.attach(model, drafter=drafter, verifier=rule) as session:
        fast = model.generate(**inputs)
    if asked.get("return_dict_in_generate"):
        for ours, theirs in zip(fast.scores, plain.scores, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        plain, fast = plain.sequences, fast.sequences
    assert fast.tolist() == plain.tolist()
    assert (plain[1] == 0).any(), "a row was over while others went on"
    assert session.stats.batches == ("lockstep" if asked.get("return_dict_in_generate") else "ragged")
    assert 0 < session.stats.accepted < session.stats.drafted


def test_rows_that_are_cut_to_the_shortest_path_stay_exact():
    """Two rows in lockstep, one drawn and one deterministic: their joint distribution is the product of the targets'."""
    rule = load_registry(entry_points=False).build("verifier", "block", None)
    targets, cut = (table(1), table(6)), collections.Counter()

    def run(chance):
        walk = Walk(rule, LogitsProcessorList(), do_sample=True, chance=chance)
        requests = Requests(torch.full((2, 1), 3), StoppingCriteriaList(), max_length=9, pad_token_id=0, on_device=True)
        trees = [Grow([[S], [S]])(chance, (), 2), Tree([0, 1], None, [0, 0], [-1, -1])]
        logits = []
        for target, tree in zip(targets, trees, strict=True):
            contexts = [(), tuple(tree.tokens[:1]), tuple(tree.tokens)]
            logits.append(torch.stack([target(context).log() for context in contexts]))
        verdict = walk(torch.stack(logits), trees, requests)
        cut[tuple(map(len, verdict.paths)), verdict.emitted] += 1
        return tuple(map(tuple, requests.tokens[:, 1 : requests.length].tolist()))

    joint = Enumeration().outcomes(run)
    off = 0.0
    for a in np.ndindex(3, 3, 3):
        for b in np.ndindex(3, 3, 3):
            chances = [float(targets[0](a[:i])[a[i]] * targets[1](b[:i])[b[i]]) for i in range(3)]
            found = sum(joint.get((a[:n], b[:n]), 0.0) * float(np.prod(chances[n:])) for n in (1, 2, 3))
            off += abs(found - float(np.prod(chances))) / 2
    assert off < 1e-12
    assert len(cut) >= 5, cut


@dataclass
class Perfect:
    """Draws from the target itself, so that a lossless rule has nothing to reject."""

    model: Any
    traits: ClassVar[DrafterTraits] = DrafterTraits(kinds={NodeKind.SAMPLED})

    def propose(self, view):
        tokens, rows = view.history(0).tolist(), []
        count = max(0, min(3, int(view.budgets[0])))
        for _ in range(count):
            rows.append(self.model(torch.tensor([tokens])).logits[0, -1].float().softmax(-1))
            tokens.append(int(torch.multinomial(rows[-1], 1)))
        drawn = np.array(tokens[len(tokens) - count :], dtype=np.int64)
        return Drafts(
            np.array([0, count]), drawn, None, np.ones(count, dtype=np.int64), np.arange(count), torch.stack(rows) if rows else None
        )


@pytest.mark.parametrize("rule", sorted(DRAFTS))
def test_drafts_of_the_target_itself_are_all_kept_under_sampling(random_models, rule):
    torch.manual_seed(4)
    model = random_models["llama"]
    with torch.no_grad(), accelplug.attach(model, drafter=Perfect(model), verifier=rule) as session:
        model.generate(PROMPT, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=40)
    assert session.stats.accepted == session.stats.drafted > 20


# What is refused.


class Remembers(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


class Pure(Remembers):
    prefix_pure = True


def test_processors_that_may_remember_are_refused(random_models):
    model = random_models["llama"]
    with pytest.raises(HostError, match=r"verifier 'block' .* has processors run on rejected drafts too, and Remembers may remember"):
        accelplug.generate(model, PROMPT, drafter="prompt_lookup", verifier="block", logits_processor=[Remembers()], max_new_tokens=4)
    with pytest.raises(HostError, match="PrefixConstrainedLogitsProcessor may remember"):
        accelplug.generate(
            model, PROMPT, drafter="prompt_lookup", verifier="block", prefix_allowed_tokens_fn=lambda *_: [1, 2], max_new_tokens=4
        )
    arguments = {"logits_processor": LogitsProcessorList([Pure()]), "max_new_tokens": 9, "do_sample": False}
    plain = model.generate(PROMPT, **arguments)
    assert accelplug.generate(model, PROMPT, drafter="prompt_lookup", verifier="block", **arguments).tolist() == plain.tolist()


def test_selections_that_a_rule_cannot_judge_are_refused(random_models):
    model, answer = random_models["llama"], [[1] * 60]
    with pytest.raises(HostError, match=r"drafts trees and verifier 'block' .* judges chains only; use verifier 'token_wise'"):
        accelplug.attach(model, drafter=Oracle(answer, [(2, 1)], VOCAB, width=2), verifier="block")
    with pytest.raises(HostError, match=r"drafts without_replacement nodes, which verifier 'k_seq' .* cannot judge"):
        accelplug.attach(model, drafter=Drawn(answer, 2, kind=NodeKind.WITHOUT_REPLACEMENT), verifier="k_seq")
    rule = load_registry(entry_points=False).build("verifier", "block", None)
    with pytest.raises(HostError, match=r"needs 'verify\.path'"):
        admit(Selection(None, rule), Host("other", frozenset({"verify.rule"})), sampling=True)


@dataclass
class Answers:
    """A rule with a fixed answer."""

    answer: Any
    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def choose(self, view: PathView) -> Any:
        return self.answer(view)


def flat(view):
    return torch.full((VOCAB,), 1 / VOCAB)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda view: (), "returned a tuple; return accelplug.hooks.Choice"),
        (lambda view: Choice([1], flat(view)), r"chose the path \[1\] where the parents are \[-1, 0\]; go from the root down"),
        (lambda view: Choice([0, 1, 2], flat(view)), "go from the root down"),
        (lambda view: Choice([0, 0], flat(view)), "go from the root down"),
        (lambda view: Choice([0], flat(view), lossy=[1]), r"counts the nodes \[1\] as lossy, its path is \[0\]"),
        (lambda view: Choice([], flat(view)[:-1]), r"a rest that is no tensor \[96\]"),
        (lambda view: Choice([], flat(view) * 2), "a rest that sums to 2 "),
        (lambda view: Choice([], flat(view) * torch.nan), "a rest that sums to nan"),
        (lambda view: Choice([], view.target[0] * 3 - 2 * flat(view)), "return a distribution"),
    ],
)
def test_an_answer_that_no_draft_allows_is_an_error(random_models, answer, sentence):
    drafter = Oracle([[3] * 40], [(2, 0)], VOCAB)
    with pytest.raises(PluginError, match=sentence):
        accelplug.generate(
            random_models["llama"], PROMPT, drafter=drafter, verifier=Answers(answer), allow_lossy=True, max_new_tokens=9, do_sample=False
        )


def test_an_exception_in_a_rule_names_it(random_models):
    def fails(view):
        raise ZeroDivisionError("in the rule")

    with pytest.raises(ZeroDivisionError) as caught:
        accelplug.generate(
            random_models["llama"],
            PROMPT,
            drafter=Oracle([[3] * 40], [(2, 0)], VOCAB),
            verifier=Answers(fails),
            allow_lossy=True,
            max_new_tokens=9,
        )
    assert "Answers" in caught.value.__notes__[0]


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_path_is_cut_before_a_masked_token(random_models, do_sample):
    """The rule takes everything and goes on with token 4, which is forbidden and never comes out."""
    rule = Answers(lambda view: Choice(range(len(view.tokens)), torch.nn.functional.one_hot(torch.tensor(4), VOCAB).float()))
    drafter = Oracle([[3, 4] * 40], [(3, 0), (1, 0)], VOCAB)
    with accelplug.attach(random_models["llama"], drafter=drafter, verifier=rule, allow_lossy=True) as session:
        out = model_output(session, do_sample, suppress_tokens=[4])
    assert 4 not in out
    assert 3 in out
    assert session.stats.accepted > 0


def model_output(session, do_sample, **arguments):
    torch.manual_seed(0)
    return session.model.generate(PROMPT, do_sample=do_sample, max_new_tokens=60, **arguments)[0, PROMPT.shape[1] :].tolist()


def test_what_a_lossy_rule_does_not_own_up_to_is_counted_all_the_same(random_models):
    """Under greedy decoding the host sees for itself that a token is not the best one."""
    rule = Answers(lambda view: Choice(range(len(view.tokens)), view.target[-1]))
    drafter = Oracle([[3] * 90], [(2, 0)], VOCAB)
    with accelplug.attach(random_models["llama"], drafter=drafter, verifier=rule, allow_lossy=True) as session:
        model_output(session, do_sample=False)
    assert session.stats.lossy_accepts > session.stats.accepted / 2 > 5
