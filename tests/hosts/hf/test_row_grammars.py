"""A grammar for each prompt of a call: what plain `generate()` writes with a mask of each row's own, whatever is drafted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grammars import Listing
from transformers import LogitsProcessor

import accelplug
from accelplug import ConstraintError, HostError, OptionError
from tests.hosts.hf.test_batches import padded

EOS = 1
PROMPTS = [[5, 6, 7], [40], [9, 9, 8, 9, 30, 2]]
CHOICES = [["red", "green", "greenish"], None, ["blue!", "a", "grey"]]
CALL: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0}


class ByRow(LogitsProcessor):
    """Each row's own mask, called with that row alone: the plain way to say it."""

    def __init__(self, parts, repeats):
        self.parts, self.repeats = parts, repeats

    def __call__(self, input_ids, scores):
        for row in range(len(scores)):
            if (part := self.parts[row // self.repeats]) is not None:
                scores[row : row + 1] = part(input_ids[row : row + 1], scores[row : row + 1])
        return scores


@pytest.fixture
def model(random_models, monkeypatch):
    found = random_models["llama"]
    monkeypatch.setattr(found.generation_config, "eos_token_id", EOS)
    return found


@pytest.fixture
def grammars(model, tokenizer):
    engine = Listing()
    return [None if one is None else accelplug.grammar(model, {"choice": one}, tokenizer=tokenizer, engine=engine) for one in CHOICES]


@pytest.mark.parametrize("drafter", [None, "prompt_lookup", "suffix", "token_recycling"])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("sampled", [False, True])
def test_rows_are_those_of_plain_generate_with_masks_of_their_own(model, tokenizer, grammars, drafter, repeats, sampled):
    inputs = padded(PROMPTS)
    way = {"do_sample": True, "top_k": 0, "num_return_sequences": repeats} if sampled else {"do_sample": False}
    repeats = repeats if sampled else 1
    length = inputs["input_ids"].shape[1]
    plain = ByRow([None if one is None else one.after(inputs) for one in grammars], repeats)
    torch.manual_seed(3)
    expected = model.generate(**inputs, **CALL, **way, logits_processor=[plain])
    with accelplug.attach(model, drafter=drafter, grammar=grammars, tokenizer=tokenizer) as session:
        torch.manual_seed(3)
        assert model.generate(**inputs, **CALL, **way).tolist() == expected.tolist()
    assert session.stats.accepted > 0
    assert session.stats.batches == "lockstep"
    assert "RowGrammars" in session.stats.lockstep_because
    texts = [tokenizer.decode(row[length:][: row[length:].index(EOS)] if EOS in row[length:] else row[length:]) for row in expected.tolist()]
    for row, text in enumerate(texts):
        choices = CHOICES[row // repeats]
        assert (choices is None) == (text not in {one for some in CHOICES if some for one in some})
        assert choices is None or text in choices
    assert session.checks == [None] * len(texts)


def test_a_row_that_was_cut_off_is_said_to_be_and_a_free_one_is_not(model, tokenizer, grammars):
    with accelplug.attach(model, grammar=grammars, tokenizer=tokenizer) as session:
        model.generate(**padded(PROMPTS), max_new_tokens=1, pad_token_id=0, do_sample=False)
    assert "cut off" in session.checks[0]
    assert session.checks[1] is None
    assert session.grammar is None
    assert [one is None for one in session.grammars] == [False, True, False]


def test_a_dead_end_of_one_row_is_an_error(model, tokenizer, grammars):
    with accelplug.attach(model, grammar=grammars, tokenizer=tokenizer), pytest.raises(ConstraintError, match="no token is left"):
        model.generate(**padded(PROMPTS), **CALL, do_sample=False, min_new_tokens=12)


def test_as_many_grammars_as_prompts(model, tokenizer, grammars):
    with accelplug.attach(model, grammar=grammars, tokenizer=tokenizer):
        with pytest.raises(HostError, match=r"3 entries, one for each prompt, and .* got 2"):
            model.generate(**padded(PROMPTS[:2]), **CALL, do_sample=False)
        with pytest.raises(HostError, match="got 6"):  # and not two sequences of each of three
            model.generate(**padded(PROMPTS * 2), **CALL, do_sample=False)
    with accelplug.attach(model, grammar=grammars, tokenizer=tokenizer, batches="ragged"), pytest.raises(HostError, match="RowGrammars"):
        model.generate(**padded(PROMPTS), **CALL, do_sample=False)
    for wrong in ([], [None, None]):
        with pytest.raises(OptionError, match="without a grammar"):
            accelplug.attach(model, grammar=wrong, tokenizer=tokenizer)
    pytest.importorskip("llguidance")
    other = accelplug.grammar(model, {"choice": ["a"]}, tokenizer=tokenizer, engine="llguidance")
    with pytest.raises(OptionError, match="several engines"):
        accelplug.attach(model, grammar=[grammars[0], other], tokenizer=tokenizer)


def test_several_grammars_on_one_prompt_hold_together(model, tokenizer):
    pytest.importorskip("llguidance")
    both = {"all_of": [{"choice": ["red", "green", "grey"]}, {"regex": "g.*"}]}
    inputs = padded(PROMPTS[:2])
    with accelplug.attach(model, grammar=[both, {"choice": ["a"]}], tokenizer=tokenizer) as session:
        output = model.generate(**inputs, **CALL, do_sample=False)[:, inputs["input_ids"].shape[1] :].tolist()
    assert tokenizer.decode(output[0][: output[0].index(EOS)]) in {"green", "grey"}
    assert tokenizer.decode(output[1][: output[1].index(EOS)]) == "a"
    assert session.checks == [None, None]
    with pytest.raises(ConstraintError, match=r"no text satisfies both the choice .* and the regex"):
        accelplug.attach(model, grammar={"all_of": [{"choice": ["red"]}, {"regex": "g.*"}]}, tokenizer=tokenizer)
