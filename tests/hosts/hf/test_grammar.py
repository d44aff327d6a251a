"""The grammar processor in every loop that Transformers has, and in a session: what it allows, refuses and says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grammars import Listing, Notes
from transformers import (
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import accelplug
from accelplug import ConstraintError, HostError, OptionError, UnknownTechniqueError
from accelplug.hooks import GrammarSpec
from accelplug.hooks.capabilities import Host, Selection, admit
from accelplug.testing.oracle import Oracle
from tests.hosts.hf.conftest import VOCAB
from tests.hosts.hf.test_batches import padded, unpadded

EOS = 1
CHOICES = ["red", "green", "greenish", "grey", "blue!", "a"]
PROMPTS = [[5, 6, 7], [40], [9, 9, 8, 9, 30, 2]]
CALL: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0}


@pytest.fixture
def model(random_models, monkeypatch):
    found = random_models["llama"]
    monkeypatch.setattr(found.generation_config, "eos_token_id", EOS)
    return found


def compiled(model, tokenizer, choices=CHOICES, engine=None):
    return accelplug.grammar(model, {"choice": choices}, tokenizer=tokenizer, engine=engine or Listing())


def answers(tokenizer, output, start):
    """Return each row's text, which must be followed by an EOS and padding alone."""
    found = []
    for row in output[:, start:].tolist():
        end = row.index(EOS)
        assert set(row[end + 1 :]) <= {0, EOS}  # which beams are filled up with where padding is token 0
        found.append(tokenizer.decode(row[:end]))
    return found


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "top_k of one": {"do_sample": True, "top_k": 1},
    "top_p": {"do_sample": True, "top_p": 0.3, "temperature": 1.7},
    "beams": {"do_sample": False, "num_beams": 4},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "several beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_plain_generate_writes_the_grammar_in_padded_batches_and_again(model, tokenizer, way):
    """One processor for several calls, whose prompts are of one length and of other texts."""
    torch.manual_seed(0)
    grammar = compiled(model, tokenizer)
    inputs, reverse = padded(PROMPTS), padded(PROMPTS[::-1])
    processor = grammar.after(inputs)
    for given in (inputs, reverse, inputs):
        output = model.generate(**given, **CALL, **WAYS[way], logits_processor=[processor])
        assert set(answers(tokenizer, output, given["input_ids"].shape[1])) <= set(CHOICES)


def test_one_processor_answers_as_a_fresh_one_after_any_other_rows(model, tokenizer):
    """It is a function of the rows: order, repetition, shorter and illegal texts change nothing."""
    grammar = compiled(model, tokenizer)
    texts = ["", "g", "gr", "gree", "green", "greeni", "a", "red", "bl", "xx", "gx"]
    rows = [[9, *tokenizer.encode(text)] for text in texts] + [[9, *tokenizer.encode("red"), EOS], [9, *tokenizer.encode("a"), EOS, 0, 0]]
    used, scores = grammar.after(1), torch.randn(1, VOCAB)
    expected = [grammar.after(1)(torch.tensor([row]), scores) for row in rows]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for at in torch.randperm(len(rows), generator=generator).tolist():
            assert torch.equal(used(torch.tensor([rows[at]]), scores), expected[at])
    allowed = [(found > -torch.inf).sum().item() for found in expected]
    assert allowed[1] == 1
    assert allowed[4] == 2
    assert [found[0].isfinite().nonzero().tolist() for found in expected[9:]] == [[[EOS]]] * 4  # illegal or over: the end, nothing else


def test_the_mask_lies_before_the_warpers(model, tokenizer):
    """So that a warper counts legal tokens only: sampling one of the likeliest two never finds both forbidden."""
    grammar = compiled(model, tokenizer)
    ids = torch.tensor([PROMPTS[0]])
    by_hand = LogitsProcessorList([grammar.after(ids), TemperatureLogitsWarper(0.9), TopKLogitsWarper(2), TopPLogitsWarper(0.9)])
    for seed in range(8):
        torch.manual_seed(seed)
        expected = model.generate(ids, **CALL, do_sample=True, top_k=0, logits_processor=by_hand)
        torch.manual_seed(seed)
        plain = model.generate(ids, **CALL, do_sample=True, temperature=0.9, top_k=2, top_p=0.9, logits_processor=[grammar.after(ids)])
        torch.manual_seed(seed)
        ours = accelplug.generate(
            model, ids, **CALL, do_sample=True, temperature=0.9, top_k=2, top_p=0.9, grammar=grammar, drafter="prompt_lookup"
        )
        assert expected.tolist() == plain.tolist() == ours.tolist()


def test_a_session_needs_no_drafter_and_says_what_was_enforced(model, tokenizer):
    inputs = padded(PROMPTS)
    grammar = compiled(model, tokenizer)
    plain = model.generate(**inputs, **CALL, do_sample=False, logits_processor=[grammar.after(inputs)])
    with accelplug.attach(model, grammar=grammar, tokenizer=tokenizer) as session:
        assert model.generate(**inputs, **CALL, do_sample=False).tolist() == plain.tolist()
    assert session.checks == [None] * 3
    assert session.grammar.statement.enforced == ("choice",)
    assert session.stats.accepted > 0
    assert session.stats.forwards < session.stats.tokens
    shares = {technique.kind: (technique.drafts, technique.drafted, technique.accepted) for technique in session.stats.techniques}
    assert shares["grammar"] == shares["verifier"] == (session.stats.drafts, session.stats.drafted, session.stats.accepted)
    assert 0 < session.stats.drafts < session.stats.drafted
    assert set(answers(tokenizer, plain, inputs["input_ids"].shape[1])) <= set(CHOICES)


CALLS = {
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "scores and logits": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "embeddings": {"inputs_embeds": True},
}


@pytest.mark.parametrize("call", CALLS)
def test_other_ways_to_call_write_the_same(model, tokenizer, call):
    grammar = compiled(model, tokenizer)
    ids = torch.tensor([PROMPTS[0]])
    arguments = {**CALL, "do_sample": False, **CALLS[call]}
    given, prompt = {"inputs": ids}, ids
    if arguments.pop("inputs_embeds", False):
        given, prompt = {"inputs_embeds": model.get_input_embeddings()(ids)}, 0
    plain = model.generate(**given, **arguments, logits_processor=[grammar.after(prompt)])
    with accelplug.attach(model, grammar=grammar, drafter="prompt_lookup") as session:
        ours = model.generate(**given, **arguments)
    assert session.checks == [None]
    assert session.stats.accepted
    if call != "scores and logits":
        assert ours.tolist() == plain.tolist()
        return
    assert ours.sequences.tolist() == plain.sequences.tolist()
    for kind in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(getattr(ours, kind)), torch.stack(getattr(plain, kind)), atol=1e-4, rtol=1e-4)


def test_a_decoder_behind_an_encoder_begins_the_grammar_with_its_first_token(tokenizer):
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, eos_token_id=EOS, pad_token_id=0)).eval()
    grammar = compiled(model, tokenizer)
    ids = torch.tensor([[5, 6, 7, EOS], [9, 8, 7, EOS]])
    plain = model.generate(ids, **CALL, do_sample=False, logits_processor=[grammar.after(1)])
    assert set(answers(tokenizer, plain, 1)) <= set(CHOICES)
    with accelplug.attach(model, grammar=grammar, drafter="input_copy") as session:
        assert model.generate(ids, **CALL, do_sample=False).tolist() == plain.tolist()
    assert session.checks == [None, None]


def test_what_was_cut_off_is_said(model, tokenizer):
    with accelplug.attach(model, grammar=compiled(model, tokenizer, ["averylongtext"]), tokenizer=tokenizer) as session:
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False)
    assert session.checks == ["the answer was cut off after 4 tokens, before the grammar lets it end; raise max_new_tokens, or drop stop strings"]


def test_text_that_another_processor_forced_behind_the_mask_is_said(model, tokenizer):
    """A forced EOS cuts the answer short, with a processor as in plain generate()."""
    with accelplug.attach(model, grammar=compiled(model, tokenizer, ["greenish"]), tokenizer=tokenizer) as session:
        output = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False)
        assert tokenizer.decode(output[0, 3:]) == "gree"
    assert session.checks[0].startswith("the answer was cut off after 4 tokens")
    assert session.grammar.problem_of(tokenizer.encode("grexn")) == (
        "token 3 of the answer is not what the grammar allows there; something chose it behind the mask"
    )


def test_a_call_that_raised_has_no_checks_of_an_earlier_one(model, tokenizer):
    with accelplug.attach(model, grammar=compiled(model, tokenizer, ["^a^"]), tokenizer=tokenizer) as session:
        model.generate(torch.tensor([PROMPTS[0]]), **CALL, do_sample=False)
        assert session.checks == [None]
        with pytest.raises(ConstraintError, match="no token is left"):
            model.generate(torch.tensor([PROMPTS[0]]), **CALL, do_sample=False, suppress_tokens=[66])
        assert session.checks == []


@pytest.mark.parametrize("verifier", ["token_wise", "block", "traversal"])
@pytest.mark.parametrize("call", [{"min_new_tokens": 9}, {"bad_words_ids": [[66]]}, {"suppress_tokens": [66]}], ids=str)
def test_when_nothing_is_left_it_is_said_whose_fault_it_is(model, tokenizer, verifier, call):
    """An empty intersection would be token 0 under greedy decoding and NaN under sampling."""
    grammar = compiled(model, tokenizer, ["^a^"] if "min_new_tokens" not in call else ["^^"])
    assert tokenizer.encode("^a^")[1] == 66
    ids = torch.tensor([PROMPTS[0]])
    for sample in (False, True):
        with pytest.raises(ConstraintError, match=r"no token is left after '\^+': what grammar 'Listing'"):
            model.generate(ids, **CALL, do_sample=sample, **call, logits_processor=[grammar.after(ids)])
        with (
            pytest.raises(ConstraintError, match=r"no token is left after '\^+': what grammar 'Listing'"),
            accelplug.attach(model, grammar=grammar, tokenizer=tokenizer, verifier=verifier),
        ):
            model.generate(ids, **CALL, do_sample=sample, **call)


def test_a_dead_end_behind_a_rejected_draft_is_nobodys_fault(model, tokenizer):
    """A rule for whole drafts has processors look behind every draft; an error there would be speculation's, not the text's."""
    choices = ["aXXc", "aYYc"]
    grammar = compiled(model, tokenizer, choices)
    x, y = tokenizer.encode("X")[0], tokenizer.encode("Y")[0]
    ids = torch.tensor([PROMPTS[0]])
    for wrong, call in ((x, {"bad_words_ids": [[x, x]]}), (y, {"bad_words_ids": [[y, y]]})):
        right = x + y - wrong
        call["sequence_bias"] = {(right,): 50.0}
        plain = model.generate(ids, **CALL, do_sample=False, **call, logits_processor=[grammar.after(ids)])
        text = [*PROMPTS[0], tokenizer.encode("a")[0], wrong, wrong]
        with accelplug.attach(model, drafter=Oracle([text], [(9, 0)], VOCAB), verifier="block", grammar=grammar, tokenizer=tokenizer) as session:
            assert model.generate(ids, **CALL, do_sample=False, **call).tolist() == plain.tolist()
        assert session.stats.drafted > session.stats.accepted


CHAINS, TREES = {"width": 1}, {"width": 3}


@pytest.mark.parametrize("shape", [CHAINS, TREES], ids=["chain", "tree"])
def test_no_matcher_is_moved_over_a_rejected_draft(model, tokenizer, shape):
    """With token-wise judging every text that a matcher was ever moved to is a beginning of what was committed."""
    notes = Notes(Listing())
    grammar = compiled(model, tokenizer, [*CHOICES, "blank", "blond"], engine=notes)
    inputs = padded(PROMPTS)
    plain = model.generate(**inputs, **CALL, do_sample=False, logits_processor=[grammar.after(inputs)])
    start = inputs["input_ids"].shape[1]
    sequences = unpadded(plain.tolist(), inputs)
    illegal = [row[: len(row) - 6] + row[:6] for row in sequences]
    texts = zip(PROMPTS, answers(tokenizer, plain, start), strict=True)
    legal = [[*prompt, *tokenizer.encode("blond" if text == "blank" else "blank"), EOS] for prompt, text in texts]
    rejected = pruned = 0
    for drafted, pattern in ((sequences, [(2, 1), (0, 3)]), (sequences, [(1, 2)]), (illegal, [(9, 0)]), (legal, [(9, 0)])):
        notes.stepped.clear()
        with accelplug.attach(model, drafter=Oracle(drafted, pattern, VOCAB, **shape), grammar=grammar, tokenizer=tokenizer) as session:
            assert model.generate(**inputs, **CALL, do_sample=False).tolist() == plain.tolist()
        committed = {tuple(row[start:end]) for row in plain.tolist() for end in range(start + 1, len(row) + 1)}
        assert set(notes.stepped) <= committed
        assert notes.refused == 0
        rejected += session.stats.drafted - session.stats.accepted
        pruned += session.stats.pruned
    assert rejected
    assert pruned


def test_transformers_own_assisted_decoding_may_use_it_too(model, tokenizer, random_models):
    """It shows processors rejected drafts, which breaks those that count their calls."""
    grammar = compiled(model, tokenizer)
    ids = torch.tensor([PROMPTS[0]])
    plain = model.generate(ids, **CALL, do_sample=False, logits_processor=[grammar.after(ids)])
    assisted = model.generate(ids, **CALL, do_sample=False, logits_processor=[grammar.after(ids)], prompt_lookup_num_tokens=3)
    assert assisted.tolist() == plain.tolist()


def test_an_end_inside_a_draft_is_the_end(model, tokenizer):
    """Nothing behind it is verified, and no matcher is asked about it."""
    notes = Notes(Listing())
    grammar = compiled(model, tokenizer, ["abc", "abd"], engine=notes)
    ids = torch.tensor([PROMPTS[0]])
    plain = model.generate(ids, **CALL, do_sample=False, logits_processor=[grammar.after(ids)])
    behind = [*plain[0].tolist(), 50, 51, EOS, 52]
    for verifier in ("token_wise", "block", "traversal"):
        with accelplug.attach(model, drafter=Oracle([behind], [(9, 0)], VOCAB), verifier=verifier, grammar=grammar, tokenizer=tokenizer) as session:
            assert model.generate(ids, **CALL, do_sample=False).tolist() == plain.tolist()
        assert session.stats.pruned >= 3
        assert session.stats.forwards + session.stats.accepted > session.stats.tokens
        assert notes.refused == 0


def test_the_words_of_the_model_that_end_a_text_are_only_legal_at_the_end(model, tokenizer, monkeypatch):
    """Several of them: one that a grammar did not know of could end a text anywhere."""
    monkeypatch.setattr(model.generation_config, "eos_token_id", [EOS, 95])
    grammar = compiled(model, tokenizer)
    scores = grammar.after(0)(torch.tensor([tokenizer.encode("gree")]), torch.zeros(1, VOCAB))
    assert not scores[0, [EOS, 95]].isfinite().any()
    scores = grammar.after(0)(torch.tensor([tokenizer.encode("green")]), torch.zeros(1, VOCAB))
    assert scores[0, [EOS, 95]].isfinite().all()
    with accelplug.attach(model, grammar=grammar, tokenizer=tokenizer), pytest.raises(HostError, match=r"generate\(\) stops at \[1, 7, 95\]"):
        model.generate(torch.tensor([PROMPTS[0]]), **CALL, eos_token_id=[EOS, 7, 95])


REFUSED = {
    "no tokenizer": (lambda m, t: accelplug.attach(m, grammar={"choice": ["a"]}), HostError, "a grammar needs the model's tokenizer"),
    "two kinds": (
        lambda m, t: accelplug.attach(m, grammar={"choice": ["a"], "regex": "a"}, tokenizer=t),
        OptionError,
        "a grammar is written as",
    ),
    "another option": (
        lambda m, t: accelplug.attach(m, grammar={"choice": ["a"], "stric": True}, tokenizer=t),
        OptionError,
        "a grammar takes the options .*, got stric",
    ),
    "another word": (
        lambda m, t: accelplug.attach(m, grammar={"choice": ["a"], "format": "check"}, tokenizer=t),
        OptionError,
        "a grammar's format is 'check'; it takes 'assert', 'annotate'",
    ),
    "no JSON": (
        lambda m, t: accelplug.attach(m, grammar={"json_schema": "{"}, tokenizer=t),
        ConstraintError,
        "the json_schema is no JSON",
    ),
    "no text": (lambda m, t: accelplug.attach(m, grammar={"regex": 3}, tokenizer=t), OptionError, "a grammar's regex is text, got 3"),
    "no such engine": (
        lambda m, t: accelplug.grammar(m, {"choice": ["a"]}, tokenizer=t, engine="listing"),
        UnknownTechniqueError,
        "no grammar named 'listing'",
    ),
    "what the engine cannot": (
        lambda m, t: accelplug.grammar(m, {"regex": "a"}, tokenizer=t, engine=Listing()),
        ConstraintError,
        "listing compiles choices, not regex",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(model, tokenizer, what):
    attempt, error, words = REFUSED[what]
    with pytest.raises(error, match=words):
        attempt(model, tokenizer)


def test_a_model_without_an_end_is_refused(random_models, tokenizer):
    with pytest.raises(ConstraintError, match="a grammar ends with an EOS token and the model's are"):
        compiled(random_models["llama"], tokenizer)


def test_a_grammar_of_another_model_is_refused(model, tokenizer, monkeypatch):
    grammar = compiled(model, tokenizer)
    with pytest.raises(HostError, match="compiled for 96 tokens and the model has 90"):
        grammar.after(0)(torch.tensor([[3]]), torch.zeros(1, 90))
    monkeypatch.setattr(model.config, "vocab_size", 90)
    with pytest.raises(HostError, match="compiled for 96 tokens and the model has 90"):
        accelplug.attach(model, grammar=grammar, tokenizer=tokenizer)


def test_a_host_without_masks_refuses_grammars(model, tokenizer):
    grammar = compiled(model, tokenizer)
    rule = accelplug.registry().build("verifier", "token_wise", None)
    with pytest.raises(HostError, match=r"needs 'mask\.grammar'"):
        admit(Selection(None, rule, grammar.engine), Host("an engine", frozenset({"sampling"})), sampling=False)


def test_a_grammar_is_written_in_several_ways():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    by_data, by_text = GrammarSpec.of({"json_schema": schema}), GrammarSpec.of({"json_schema": '{"type": "object", "properties": {"b": {}, "a": {}}}'})
    assert by_data == by_text == GrammarSpec.of(by_data)
    assert hash(by_data) == hash(by_text)
    assert by_data.value() == schema
    assert list(by_data.value()["properties"]) == ["b", "a"]
