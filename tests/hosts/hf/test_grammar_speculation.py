"""Speculation under a grammar is plain ``generate()`` with the same processor: whatever drafts, judges and is forced."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from scipy import stats

import accelplug
from accelplug import ConstraintError
from accelplug.hosts.stats import NOTHING_FORCED, Forced, Stats
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_drafters import is_near_tie

pytest.importorskip("llguidance")

ENGINE = "auto"
EOS = 1
NEW = 60
DRAFTERS = {
    "none": None,
    "prompt_lookup": "prompt_lookup(num_tokens=4, min_ngram=1)",
    "suffix": "suffix(factor=2.0, min_match=1)",
    "suffix tree": "suffix(shape='tree', factor=2.0, min_match=1)",
    "token_recycling": "token_recycling(num_nodes=20)",
    "fusion": "fusion(sources=('suffix(shape=\"tree\", min_match=1)', 'token_recycling(num_nodes=12)'), num_nodes=20)",
    "adaptive": "adaptive(source='prompt_lookup(min_ngram=1)', num_tokens=4)",
    "draft_model": "another",
    "known": [(3, 1), (5, 0), (1, 2), (0, 3)],
    "known tree": [(3, 1), (2, 0), (0, 2)],
    "another answer": "sampled",
}
TREES = {"suffix tree", "token_recycling", "fusion", "known tree"}
EVENTS: dict[str, Counter[str]] = {label: Counter() for label in DRAFTERS}


@pytest.fixture
def ended_models(random_models, monkeypatch):
    for model in random_models.values():
        monkeypatch.setattr(model.generation_config, "eos_token_id", EOS)
    return random_models


def scalars():
    words = st.sampled_from(["red", "green", "grey", "blue", "gr", "a", ""])
    return st.one_of(
        st.lists(words, min_size=1, max_size=4, unique=True).map(lambda found: {"enum": found}),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 300}, {"const": 12.5}]),
        st.just({"type": "string", "maxLength": 3}),
    )


def objects(inner):
    names = st.lists(st.sampled_from(["name", "count", "names", "x"]), min_size=1, max_size=3, unique=True)

    def written(found, schemas, all_required):
        return {
            "type": "object",
            "properties": dict(zip(found, schemas, strict=False)),
            "required": found if all_required else found[:1],
            "additionalProperties": False,
        }

    return st.builds(written, names, st.lists(inner, min_size=3, max_size=3), st.booleans())


def alternatives():
    """Schemas that llguidance alone does not enforce, which are written as grammars of our own."""
    pairs = st.tuples(scalars(), scalars())
    one_of = pairs.map(lambda two: {"oneOf": [*two, {"type": "integer", "minimum": 200, "maximum": 900}]})
    neither = pairs.map(lambda two: {"allOf": [{"not": two[0]}, two[1]]})
    unique = st.just({"type": "array", "items": {"enum": ["red", "gr", 7, "a"]}, "uniqueItems": True, "minItems": 1})
    return st.one_of(one_of, neither, unique)


def conditional(inner):
    """Objects of which one property decides what another may be, or whether it must be there."""
    kinds = {"kind": {"enum": ["red", "green"]}, "x": {}, "name": {}}
    base = {"type": "object", "properties": kinds, "required": ["kind"], "additionalProperties": False, "dependentRequired": {"name": ["x"]}}
    is_red = {"properties": {"kind": {"const": "red"}}}
    return st.builds(lambda one, other: {**base, "if": is_red, "then": {"properties": {"x": one}}, "else": {"properties": {"x": other}}}, inner, inner)


LISTS = scalars().map(lambda item: {"type": "array", "items": item, "maxItems": 3})
NESTED = st.one_of(objects(scalars()), objects(st.one_of(scalars(), objects(scalars()), LISTS)))
REWRITTEN = st.one_of(objects(alternatives()), conditional(scalars()), alternatives())


@dataclass(slots=True)
class Watched(Stats):
    """Statistics that count what steps of a single row were like."""

    events: Counter[str] = field(default_factory=Counter)

    def count(self, drafts: int, drafted: int, accepted: int, forced: Forced = NOTHING_FORCED) -> None:
        super(Watched, self).count(drafts, drafted, accepted, forced)
        self.events["forced accepted"] += forced.accepted
        self.events["forced rejected"] += forced.drafted - forced.accepted
        self.events["drafter's own accepted"] += accepted - forced.accepted
        self.events["part accepted"] += 0 < accepted < drafted
        self.events["own behind forced"] += accepted > forced.accepted > 0


def compiled(model: Any, schema: Any, tokenizer: Any) -> Any:
    """Compile a schema; one that nothing satisfies is no example."""
    try:
        return accelplug.grammar(model, {"json_schema": schema}, tokenizer=tokenizer, engine=ENGINE)
    except ConstraintError as exc:
        if "no value satisfies" not in str(exc):
            raise
        return reject()


def drafter_of(label: str, model: Any, grammar: Any, inputs: dict[str, torch.Tensor], plain: list[list[int]]) -> Any:
    if label == "draft_model":
        return {"name": "draft_model", "model": model, "num_tokens": 3}
    if label == "another answer":
        torch.manual_seed(3)
        start = inputs["input_ids"].shape[1]
        other = model.generate(**inputs, max_new_tokens=NEW, do_sample=True, temperature=3.0, pad_token_id=0, logits_processor=[grammar.after(start)])
        return Oracle(unpadded(other.tolist(), inputs), [(6, 0)], VOCAB)
    if label.startswith("known"):
        return Oracle(unpadded(plain, inputs), DRAFTERS[label], VOCAB, width=3 if label in TREES else 1)
    return DRAFTERS[label]


def verifiers(label: str) -> list[str]:
    return ["token_wise", "traversal"] if label in TREES else ["token_wise", "block", "traversal"]


@pytest.mark.parametrize("label", DRAFTERS)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    schema=st.one_of(NESTED, REWRITTEN),
    name=st.sampled_from(["llama", "qwen3", "gemma3"]),
    prompts=st.lists(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=3),
    new=st.sampled_from([NEW, NEW, NEW, 11]),
    penalty=st.sampled_from([1.0, 1.0, 1.2]),
)
def test_greedy_output_is_plain_generates(ended_models, tokenizer, label, schema, name, prompts, new, penalty):
    model, events = ended_models[name], EVENTS[label]
    grammar = compiled(model, schema, tokenizer)
    assert grammar.statement.checked == ()
    events["rewritten"] += "rewritten" in grammar.statement.engine
    inputs = padded(prompts)
    arguments = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "repetition_penalty": penalty}
    processor = [grammar.after(inputs)]
    plain = model.generate(**inputs, **arguments, logits_processor=processor, return_dict_in_generate=True, output_scores=True)
    drafter = drafter_of(label, model, grammar, inputs, plain.sequences.tolist())
    for verifier in verifiers(label):
        outcome = speculated(model, grammar, tokenizer, inputs, arguments, drafter, verifier, plain, events)
        events[verifier] += outcome


def speculated(model, grammar, tokenizer, inputs, arguments, drafter, verifier, plain, events) -> bool:
    """Generate once more, compare, and count what happened; return whether the output is the same rather than a near-tie."""
    start = inputs["input_ids"].shape[1]
    with accelplug.attach(model, drafter=drafter, verifier=verifier, grammar=grammar, tokenizer=tokenizer) as session:
        session.stats = Watched(techniques=session.stats.techniques, events=events)
        fast = model.generate(**inputs, **arguments)
    if fast.tolist() != plain.sequences.tolist():
        assert is_near_tie(plain, fast, start)
        events["near-tie"] += 1
        return False
    for row, problem in zip(fast[:, start:].tolist(), session.checks, strict=True):
        text = tokenizer.decode(row[: row.index(EOS)] if EOS in row else row)
        if problem is None:
            json.loads(text)
        else:
            assert EOS not in row, "no mask of these leaves anything to the final check"
        events["cut off"] += problem is not None
    events["pruned"] += session.stats.pruned
    events["EOS inside a draft"] += session.stats.batches != "lockstep" and session.stats.forwards + session.stats.accepted > session.stats.tokens
    events["ragged"] += session.stats.batches == "ragged"
    return True


@pytest.mark.parametrize("label", DRAFTERS)
def test_every_hard_event_happened(label):
    print(label, dict(EVENTS[label]))
    wanted = {"forced accepted", "token_wise", "traversal", "rewritten"}
    if label in {"known", "known tree", "another answer"}:
        wanted |= {"drafter's own accepted", "pruned", "EOS inside a draft", "own behind forced"}
    if label in {"known tree", "another answer"}:  # the wrong tokens of "known" are mostly illegal
        wanted |= {"part accepted"}
    if label not in {"none", "draft_model", "adaptive"}:
        wanted |= {"pruned"}
    assert [event for event in sorted(wanted) if not EVENTS[label][event]] == []
    assert EVENTS[label]["near-tie"] <= 3


@pytest.mark.parametrize("tree", ["chain", "top_k(width=2, depth=3)"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_second_model_goes_on_behind_forced_tokens(ended_models, tokenizer, name, tree):
    """It reads them before they are verified. The target as its own draft is right there wherever the grammar lets it be."""
    model, events, inputs = ended_models[name], Counter(), padded([[5, 6, 7], [40], [9, 9, 8, 9, 30, 2]])
    grammar = accelplug.grammar(model, {"regex": "abc[!-~]{7}def[!-~]{5}ghi[!-~]{9}"}, tokenizer=tokenizer, engine=ENGINE)
    arguments = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    for batch in (inputs, *({key: value[row : row + 1] for key, value in inputs.items()} for row in range(3))):
        plain = model.generate(**batch, **arguments, logits_processor=[grammar.after(batch)])
        drafter = {"name": "draft_model", "model": model, "num_tokens": 4, "tree": tree}
        with accelplug.attach(model, drafter=drafter, grammar=grammar) as session:
            session.stats = Watched(techniques=session.stats.techniques, events=events)
            assert model.generate(**batch, **arguments).tolist() == plain.tolist()
            own = next(technique for technique in session.stats.techniques if technique.kind == "drafter")
            assert own.accepted > 0
    assert events["own behind forced"] > 5, events


def test_some_answers_were_cut_off_and_most_were_not():
    assert sum(EVENTS[label]["cut off"] for label in DRAFTERS) > 3


SAMPLED = {"none": None, "prompt_lookup": DRAFTERS["prompt_lookup"], "suffix tree": DRAFTERS["suffix tree"], "known": [(2, 1), (4, 0)]}
DRAWN: dict[str, Counter[str]] = {label: Counter() for label in SAMPLED}


@pytest.mark.parametrize("label", SAMPLED)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    schema=st.one_of(NESTED, REWRITTEN),
    prompts=st.lists(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_sampled_text_is_plain_generates_with_one_seed(ended_models, tokenizer, label, schema, prompts, seed):
    """Forced tokens and deterministic drafts draw the random numbers of plain decoding, one a token, warped alike."""
    model, events = ended_models["qwen3"], DRAWN[label]
    grammar = compiled(model, schema, tokenizer)
    inputs = padded(prompts)
    arguments = {"max_new_tokens": 40, "do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.95, "pad_token_id": 0}
    torch.manual_seed(seed)
    plain = model.generate(**inputs, **arguments, logits_processor=[grammar.after(inputs)])
    drafter = drafter_of(label, model, grammar, inputs, plain.tolist())
    with accelplug.attach(model, drafter=drafter, grammar=grammar) as session:
        torch.manual_seed(seed)
        assert model.generate(**inputs, **arguments).tolist() == plain.tolist()
    events["finished"] += session.checks.count(None)
    events["rewritten"] += "rewritten" in grammar.statement.engine
    events["accepted"] += session.stats.accepted
    events["part accepted"] += session.stats.accepted < session.stats.drafted


@pytest.mark.parametrize("label", SAMPLED)
def test_every_hard_event_happened_in_sampled_text(label):
    print(label, dict(DRAWN[label]))
    assert min(DRAWN[label][event] for event in ("finished", "rewritten")) > 1
    assert DRAWN[label]["accepted"] > 40
    assert DRAWN[label]["part accepted"] or label == "none"


def chances(model: Any, tokenizer: Any, prompt: list[int], choices: list[str], temperature: float) -> dict[str, float]:
    """Return the probability of every choice under the mask, token by token, by the model itself."""
    ends = [[*tokenizer.encode(text), EOS] for text in choices]
    found = {}
    for text, tokens in zip(choices, ends, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 :] / temperature
        chance = 1.0
        for at, token in enumerate(tokens):
            legal = sorted({other[at] for other in ends if other[:at] == tokens[:at] and len(other) > at})
            chance *= float(logits[at, legal].softmax(-1)[legal.index(token)])
        found[text] = chance
    return found


@pytest.mark.parametrize(("verifier", "tree"), [("block", "chain"), ("token_wise", "gumbel_top_k")])
def test_drawn_drafts_leave_the_distribution_under_a_mask_as_it_is(ended_models, tokenizer, verifier, tree):
    """A second model draws drafts that know nothing of the grammar: illegal, partly legal, and behind forced tokens.

    What pruning does to the distribution is enumerated in test_grammar_exact.py; this is the way there and back.
    """
    model, choices, prompt, temperature = ended_models["llama"], ["ab#x", "ab#yzz", "acc", "ccc", "cc!"], [30, 31, 32], 6.0
    expected = chances(model, tokenizer, prompt, choices, temperature)
    grammar = accelplug.grammar(model, {"choice": choices}, tokenizer=tokenizer, engine=ENGINE)
    drafter = {"name": "draft_model", "model": ended_models["qwen3"], "num_tokens": 4, "tree": tree}
    ids = torch.tensor([prompt] * 100)
    counts: Counter[str] = Counter()
    arguments = {"max_new_tokens": 12, "do_sample": True, "temperature": temperature, "top_k": 0, "pad_token_id": 0}
    with accelplug.attach(model, drafter=drafter, verifier=verifier, grammar=grammar, tokenizer=tokenizer, batches="ragged") as session:
        for seed in range(3):
            torch.manual_seed(seed)
            rows = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)[:, len(prompt) :].tolist()
            counts.update(tokenizer.decode(row[: row.index(EOS)]) for row in rows)
    print(verifier, tree, expected, dict(counts), session.stats)
    total = sum(expected.values())  # 1, but for rounding
    assert total == pytest.approx(1, abs=1e-4)
    assert min(expected.values()) > 0.02
    assert stats.chisquare([counts[text] for text in choices], [300 * expected[text] / total for text in choices]).pvalue > 1e-3
    shares = {technique.kind: technique for technique in session.stats.techniques}
    assert shares["drafter"].accepted
    assert shares["grammar"].accepted
    assert session.stats.drafted > session.stats.accepted
