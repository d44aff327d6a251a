"""Batches whose rows advance apart: plain ``generate()``'s output, in fewer forward passes than together."""

from __future__ import annotations

import collections
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

import accelplug
from accelplug import HostError, OptionError
from accelplug.hooks import CommitView, Drafts, DraftView, load_registry
from accelplug.hosts.hf import columns, ragged
from accelplug.hosts.hf.ragged import Rows
from accelplug.hosts.hf.request import Requests
from accelplug.hosts.hf.tree import EMPTY
from accelplug.hosts.hf.verify import Walk
from accelplug.testing.enumeration import VOCAB as TOY
from accelplug.testing.enumeration import Enumeration, logits_of, table, total_variation
from accelplug.testing.oracle import Oracle
from accelplug.testing.plans import D, Grow, S
from tests.hosts.hf.conftest import MAKERS, VOCAB, WINDOW
from tests.hosts.hf.test_batches import padded, unpadded
from tests.hosts.hf.test_greedy_exact import PROCESSORS
from tests.hosts.hf.test_session import TakesAll

EVENTS: collections.Counter[str] = collections.Counter()
HARD = (
    "rows accept differently", "a hole", "holes closed", "a row leaves before others", "EOS inside a draft", "stop string inside a draft",
    "padded prompts", "trees", "processors on", "window wrapped", "budgets differ",
)  # fmt: skip
PAIRS = list(itertools.product(range(TOY), repeat=2))
BATCH = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13]]
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}


@dataclass
class Watched(Oracle):
    """The oracle, counting what happens between rows."""

    def observe(self, view: CommitView) -> None:
        EVENTS["rows accept differently"] += len(set(view.accepted.tolist())) > 1

    def propose(self, view: DraftView) -> Drafts:
        EVENTS["budgets differ"] += len(set(view.budgets.tolist())) > 1
        return super().propose(view)


class WatchedRows(Rows):
    """Counts rows that end on a draft, and why."""

    eos = -1

    def verify(self, walk: Any, logits: Any, trees: Any) -> Any:
        before = {row: self.parts[row].length for row in self.active}
        verdict = super().verify(walk, logits, trees)
        ended = [row for row in before if row not in self.active]
        EVENTS["a row leaves before others"] += bool(ended and self.active)
        for row in ended:
            part = self.parts[row]
            if part.length - before[row] == len(verdict.paths[row]):  # the last token was itself a draft
                EVENTS["EOS inside a draft" if part.tokens[0, part.length - 1] == self.eos else "stop string inside a draft"] += 1
        return verdict


class WatchedColumns(columns.Columns):
    """Counts holes and closings."""

    def close_holes(self, longest: int) -> bool:
        EVENTS["a hole"] += len(self) > longest
        closed = super().close_holes(longest)
        EVENTS["holes closed"] += closed
        if closed:
            assert len(self) == longest == int(self.valid.sum(1).max())
        return closed


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(ragged, "Rows", WatchedRows)
    monkeypatch.setattr(ragged, "Columns", WatchedColumns)
    monkeypatch.setattr(columns, "_FEW", 3)
    return WatchedRows


def passes(model: Any, inputs: dict[str, Any], arguments: dict[str, Any], **choice: Any) -> tuple[list[list[int]], int, Any]:
    """Return the output, how many forward passes were run, and the session's statistics."""
    count = [0]
    hook = model.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    try:
        with accelplug.attach(model, **choice) as session:
            return model.generate(**inputs, **arguments).tolist(), count[0], session.stats
    finally:
        hook.remove()


SETTINGS = st.fixed_dictionaries({}, optional=PROCESSORS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    prompts=st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=24), min_size=2, max_size=5),
    new=st.integers(2, 40),
    pattern=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=5),
    width=st.sampled_from([1, 1, 2, 3]),
    given_settings=SETTINGS,
    stop=st.sampled_from(["none", "eos", "string", "eos and string"]),
    where=st.integers(2, 30),
)
def test_every_row_equals_plain_generate(
    random_models, tokenizer, watched, name, prompts, new, pattern, width, given_settings, stop, where
):
    model, inputs = random_models[name], padded(prompts)
    longest = inputs["input_ids"].shape[1]
    arguments = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, **given_settings}
    free = model.generate(**inputs, **arguments).tolist()
    fresh = list(dict.fromkeys(free[where % len(prompts)][longest:]))
    unused = next(token for token in range(VOCAB) if not any(token in row for row in free))
    watched.eos = fresh[where % len(fresh)] if "eos" in stop else unused
    if stop != "none":
        arguments["eos_token_id"] = watched.eos
    if "string" in stop:
        arguments |= {"stop_strings": [tokenizer.decode(fresh[(where * 7) % len(fresh)])], "tokenizer": tokenizer}
    plain = model.generate(**inputs, **arguments)
    drafter = Watched(unpadded(free, inputs), pattern, VOCAB, width)
    with accelplug.attach(model, drafter=drafter, batches="ragged") as session:
        fast = model.generate(**inputs, **arguments)

    assert fast.tolist() == plain.tolist()
    stats = session.stats
    assert (stats.batches, stats.lockstep_because) == ("ragged", None)
    assert "string" in stop or stats.tokens == sum(_made(row[longest:], watched.eos) for row in plain.tolist())
    accepted = stats.accepted > 0
    EVENTS["padded prompts"] += bool((inputs["attention_mask"] == 0).any()) and accepted
    EVENTS["trees"] += width > 1 and accepted
    EVENTS["processors on"] += bool({"repetition_penalty", "no_repeat_ngram_size"} & set(given_settings)) and accepted
    EVENTS["window wrapped"] += name in ("gemma3", "mistral") and fast.shape[1] > WINDOW + 8 and accepted


def _made(fresh: list[int], eos: int) -> int:
    return fresh.index(eos) + 1 if eos in fresh else len(fresh)


def test_every_hard_event_happened():
    print({event: int(count) for event, count in EVENTS.items()})
    missing = [event for event in HARD if not EVENTS[event]]
    assert not missing, f"the settings above never produced: {missing}"


@pytest.mark.parametrize("width", [1, 3])
def test_rows_that_accept_in_turns_take_fewer_forward_passes_apart(random_models, width):
    """One row at a time gets its drafts accepted: together that is one token a step, apart it is all of them."""
    model, inputs = random_models["llama"], padded(BATCH)
    plain = model.generate(**inputs, **GREEDY).tolist()
    drafter = Oracle(unpadded(plain, inputs), [(4, 0), (0, 2), (0, 2)], VOCAB, width)
    apart, fewer, stats = passes(model, inputs, GREEDY, drafter=drafter)
    together, more, lockstep = passes(model, inputs, GREEDY, drafter=drafter, batches="lockstep")
    assert apart == together == plain
    assert (stats.batches, lockstep.batches, lockstep.lockstep_because) == ("ragged", "lockstep", "batches='lockstep'")
    assert more == 40
    assert fewer <= 21
    assert (stats.tokens, lockstep.tokens) == (120, 120)


def test_rows_that_are_over_leave_the_forward_pass(random_models):
    model, inputs = random_models["llama"], padded(BATCH)
    free = model.generate(**inputs, **GREEDY).tolist()
    eos = next(token for token in free[0][6:] if token not in free[1][5:] + free[2][5:])
    arguments = {**GREEDY, "eos_token_id": eos}
    plain = model.generate(**inputs, **arguments).tolist()
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    out = accelplug.generate(model, **inputs, drafter=Oracle(unpadded(free, inputs), [(2, 1), (0, 1)], VOCAB), **arguments)
    hook.remove()
    assert out.tolist() == plain
    assert sizes == sorted(sizes, reverse=True)
    assert {3, 2} <= set(sizes)


def test_learned_positions_do_not_run_out_at_the_end_of_their_table():
    """A row at its last position is padded to the width of its neighbours' drafts."""
    torch.manual_seed(3)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=24, n_embd=32, n_layer=2, n_head=2, eos_token_id=None, bos_token_id=None)
    )
    model.eval().generation_config.pad_token_id = 0
    inputs, arguments = padded(BATCH), {"max_length": 24, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs, **arguments).tolist()
    out, _, stats = passes(model, inputs, arguments, drafter=Oracle(unpadded(plain, inputs), [(7, 0), (0, 7), (1, 1)], VOCAB))
    assert out == plain
    assert stats.batches == "ragged"


def test_prompt_lookup_runs_apart_by_default(random_models):
    model, inputs = random_models["qwen3"], padded([[5, 6, 7, 8] * 6, [9, 10, 11] * 5, [12]])
    plain = model.generate(**inputs, **GREEDY).tolist()
    out, _, stats = passes(model, inputs, GREEDY, drafter="prompt_lookup")
    assert (out, stats.batches) == (plain, "ragged")


class Doubles(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores * 2


class Doubled(Doubles):
    prefix_pure = True


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"logits_processor": LogitsProcessorList([Doubles()])}, "Doubles, which may look at the batch as a whole"),
        ({"prefix_allowed_tokens_fn": lambda row, _: [row + 1]}, "PrefixConstrainedLogitsProcessor, which may look at"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"max_time": 100.0}, "MaxTimeCriteria, which may look at the batch as a whole"),
        ({"stop_strings": ["q"]}, "stop strings without an EOS token"),
        ({"streamer": "rows"}, "a streamer"),
        ({"past_key_values": "own"}, "a cache of the caller's"),
    ],
)
def test_what_keeps_rows_together(random_models, tokenizer, arguments, reason):
    model, inputs = random_models["llama"], padded(BATCH)
    drafter = Oracle(unpadded(model.generate(**inputs, **GREEDY).tolist(), inputs), [(2, 1), (0, 1)], VOCAB)

    def made() -> dict[str, Any]:
        fresh = {"rows": AllRows, "own": lambda: DynamicCache(config=model.config)}
        return {name: fresh[value]() if isinstance(value, str) else value for name, value in arguments.items()}

    plain = model.generate(**inputs, **GREEDY, **made(), tokenizer=tokenizer)
    with accelplug.attach(model, drafter=drafter, tokenizer=tokenizer) as session:
        fast = model.generate(**inputs, **GREEDY, **made())
    assert getattr(fast, "sequences", fast).tolist() == getattr(plain, "sequences", plain).tolist()
    assert session.stats.batches == "lockstep"
    assert reason in session.stats.lockstep_because
    with (
        accelplug.attach(model, drafter=drafter, tokenizer=tokenizer, batches="ragged"),
        pytest.raises(HostError, match="batches='ragged'"),
    ):
        model.generate(**inputs, **GREEDY, **made())


class AllRows(BaseStreamer):
    """A streamer that takes batches."""

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


def test_a_processor_that_says_it_is_pure_lets_rows_advance_apart(random_models):
    model, inputs = random_models["llama"], padded(BATCH)
    arguments = {**GREEDY, "logits_processor": LogitsProcessorList([Doubled()])}
    plain = model.generate(**inputs, **arguments).tolist()
    out, _, stats = passes(model, inputs, arguments, drafter=Oracle(unpadded(plain, inputs), [(2, 1), (0, 1)], VOCAB))
    assert (out, stats.batches) == (plain, "ragged")


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_windows_keep_rows_together_where_they_save_memory(random_models, name):
    model, inputs = random_models[name], padded(BATCH)
    long, short = GREEDY, {**GREEDY, "max_new_tokens": WINDOW - 5}
    for arguments, batches, reason in ((long, "lockstep", "attention windows"), (short, "ragged", "None")):
        plain = model.generate(**inputs, **arguments).tolist()
        out, _, stats = passes(model, inputs, arguments, drafter=Oracle(unpadded(plain, inputs), [(3, 1), (0, 1)], VOCAB))
        assert (out, stats.batches) == (plain, batches)
        assert reason in str(stats.lockstep_because)


def test_the_word_for_batches_is_checked(random_models):
    with pytest.raises(OptionError, match="batches='apart' is no way to advance rows; it takes 'auto', 'ragged' or 'lockstep'"):
        accelplug.attach(random_models["llama"], batches="apart")


def test_sampling_keeps_plain_random_numbers_unless_asked(random_models):
    model, inputs = random_models["llama"], padded(BATCH)
    arguments = {**GREEDY, "do_sample": True, "top_k": 20}
    drafter = Oracle(unpadded(model.generate(**inputs, **GREEDY).tolist(), inputs), [(2, 1), (0, 1)], VOCAB)
    _, _, stats = passes(model, inputs, arguments, drafter=drafter)
    assert (stats.batches, stats.lockstep_because) == ("lockstep", "sampling, to draw the random numbers of plain generate()")
    _, _, stats = passes(model, inputs, arguments, drafter=drafter, batches="ragged")
    assert (stats.batches, stats.tokens) == ("ragged", 120)


def test_a_lossy_rule_is_counted_row_by_row(random_models):
    model, inputs = random_models["llama"], padded(BATCH)
    drafter = Oracle([[5] * 60] * 3, [(2, 0), (0, 1)], VOCAB)
    _, _, stats = passes(model, inputs, GREEDY, drafter=drafter, verifier=TakesAll(), allow_lossy=True)
    assert stats.batches == "ragged"
    assert 0 < stats.lossy_accepts <= stats.accepted


def test_sampled_rows_apart_are_exact_and_independent():
    """The joint distribution of two rows, by enumeration: the product of their targets', though one accepts and the other does not."""
    tokens, targets, drafts = 2, (table(1), table(2)), (Grow([[S]]), Grow([[D, D]]))
    rule = load_registry(entry_points=False).build("verifier", "token_wise", None)
    differed = [0]

    def run(chance: Enumeration) -> tuple[tuple[int, ...], ...]:
        walk = Walk(rule, LogitsProcessorList(), do_sample=True, chance=chance)
        rows = Rows(Requests(torch.tensor([[3], [3]]), [], max_length=1 + tokens, pad_token_id=0, on_device=True))
        trees, texts = [EMPTY, EMPTY], [(), ()]
        while rows.active:
            parts = [logits_of(targets[row], texts[row], trees[row]) for row in rows.active]
            width = max(map(len, parts))
            logits = torch.stack([torch.nn.functional.pad(part, (0, 0, 0, width - len(part))) for part in parts])
            verdict = rows.verify(walk, logits, trees)
            differed[0] += len(set(map(len, verdict.paths))) > 1
            texts = [tuple(part.tokens[0, 1 : part.length].tolist()) for part in rows.parts]
            trees = [drafts[row](chance, texts[row], tokens - len(texts[row])) if row in rows.active else EMPTY for row in range(2)]
        return tuple(texts)

    joint = Enumeration().outcomes(run)
    one, other = ({pair: float(target(())[pair[0]] * target(pair[:1])[pair[1]]) for pair in PAIRS} for target in targets)
    product = {(a, b): p * q for a, p in one.items() for b, q in other.items()}
    assert differed[0] > 30
    assert total_variation(joint, product) < 1e-12
