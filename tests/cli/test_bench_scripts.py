"""The scripted tasks: on an adversarial one prompt lookup drafts at every step and is wrong at every step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from accelplug.cli.bench.scripts import LONGEST_CHANGE, REGIME, adversarial, edited, every_pair, regimes
from accelplug.hooks import CommitView, DraftView
from accelplug.spec.prompt_lookup import PromptLookup

ROOM = 4096


def drafts_on(script, drafter):
    """Return (draft, what follows) of every step of plain decoding along the script."""
    tokens = np.array([[*script.prompt, *script.output]])
    slot, zero, fresh = np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([len(script.prompt)])
    drafter.start(slot)
    for length in range(len(script.prompt), tokens.shape[1]):
        drafter.observe(CommitView(slot, slot, tokens, np.array([length]), fresh, zero))
        fresh = np.ones(1, np.int64)
        yield drafter.propose(DraftView(slot, slot, tokens, np.array([length]), np.array([8]))).tokens.tolist(), tokens[0, length]


@pytest.mark.parametrize("size", range(2, 9))
def test_every_pair_occurs_exactly_once(size):
    tokens = every_pair(range(size))
    pairs = list(itertools.pairwise(tokens))
    assert len(pairs) == len(set(pairs)) == size * size


@pytest.mark.parametrize("ngrams", [(2, 4), (2, 2), (1, 1), (1, 6), (2, 16)])
@pytest.mark.parametrize("seed", range(3))
def test_on_an_adversarial_script_prompt_lookup_always_drafts_and_is_always_wrong(ngrams, seed):
    script = adversarial(range(500), 96, ROOM, seed)
    steps = list(drafts_on(script, PromptLookup(min_ngram=ngrams[0], max_ngram=ngrams[1])))
    assert len(steps) == 96
    assert all(len(draft) == 8 for draft, _ in steps), "every n-gram matches"
    assert not any(draft[0] == follows for draft, follows in steps), "every continuation is wrong"


@pytest.mark.parametrize("count", [3, 4, 7, 300])
def test_an_adversarial_script_is_made_for_any_tokenizer(count):
    ordinary = range(1000, 1000 + count)
    script = adversarial(ordinary, 40, ROOM, 0)
    assert len(script.output) == 40
    assert {*script.prompt, *script.output} <= set(ordinary)
    assert not any(draft[0] == follows for draft, follows in drafts_on(script, PromptLookup(min_ngram=1, max_ngram=1)))


def test_a_small_model_gets_a_small_alphabet_and_the_smallest_none():
    script = adversarial(range(500), 20, 64, 0)
    assert len(script.prompt) + 20 <= 64
    assert adversarial(range(500), 60, 64, 0) is None
    assert adversarial(range(2), 20, ROOM, 0) is None


def test_regimes_switch_between_copying_and_news_every_64_tokens():
    script = regimes(range(500), 150, ROOM, 0)
    prompt, output = script.prompt, script.output
    assert len(output) == 150
    assert output[:REGIME] == prompt == output[2 * REGIME :] + prompt[150 - 2 * REGIME :]
    assert set(output[REGIME : 2 * REGIME]).isdisjoint(prompt)


def test_regimes_need_room_and_words():
    assert regimes(range(500), 100, 100, 0) is None
    assert regimes(range(100), 100, ROOM, 0) is None


@pytest.mark.parametrize("percent", [0, 5, 15, 30])
@pytest.mark.parametrize("seed", range(4))
def test_an_edit_changes_the_share_of_tokens_that_was_asked_for(percent, seed):
    script = edited(range(5000), percent, 200, ROOM, seed)  # no token occurs twice, so that what was copied shows
    assert len(script.output) == 200
    where = [script.prompt.index(token) if token in script.prompt else None for token in script.output]
    assert where.count(None) == 2 * percent
    kept = [place for place in where if place is not None]
    assert kept == sorted(set(kept)), "what is kept stands in its order"
    runs = [len(list(run)) for is_new, run in itertools.groupby(where, key=lambda place: place is None) if is_new]
    assert percent == 0 or 1 <= min(runs) <= LONGEST_CHANGE
    if percent:
        jumps = {later - earlier for earlier, later in itertools.pairwise(kept)}
        assert 1 in jumps
        assert max(jumps) > 1, "some changes take the place of what was there"


def test_an_edit_needs_room_and_code():
    assert edited(range(5000), 5, 100, 299, 0) is None
    assert edited(range(399), 5, 100, ROOM, 0) is None


@pytest.mark.parametrize("make", [adversarial, regimes, lambda code, *sizes: edited(code, 15, *sizes)])
def test_a_seed_is_a_script(make):
    assert make(range(500), 80, ROOM, 1) == make(range(500), 80, ROOM, 1) != make(range(500), 80, ROOM, 2)


def test_a_scripted_model_says_the_script_whatever_it_thinks():
    torch = pytest.importorskip("torch")
    from accelplug.cli.bench.scripts import Scripted

    told = torch.tensor([[3, 1], [0, 2]])
    processor = Scripted(5, told)
    scores = torch.randn(2, 4) * 50
    kept = scores.clone()
    for step in (0, 1):
        ids = torch.zeros(2, 5 + step, dtype=torch.long)
        assert processor(ids, scores).argmax(-1).tolist() == told[:, step].tolist()
    assert processor(torch.zeros(2, 9, dtype=torch.long), scores).argmax(-1).tolist() == [1, 2], "drafts may look past the end"
    assert torch.equal(scores, kept), "somebody else's scores stay as they were"
