"""What a plugin's drafts were drawn from: kept from the step that drafts to the one that verifies, in the form each runner reads."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="the runners are vLLM's")

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from accelplug import HostError
from accelplug.hooks import DrafterTraits, Drafts, DraftView, NodeKind
from accelplug.hooks.capabilities import Selection, admit
from accelplug.hooks.registry import Owner, Technique
from accelplug.hosts.vllm.capabilities import host_of
from accelplug.hosts.vllm.chains import Batch, Chains
from accelplug.hosts.vllm.drawn import DraftLogits, Drawn, hand_over
from accelplug.spec.token_wise import TokenWise

VOCAB_SIZE = 6
ROWS = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.75, 0, 0], [0, 0, 0, 0, 0.1, 0.9]])
CHOSEN = torch.eye(VOCAB_SIZE)


def drafts(*chains: list[tuple[int, int]]) -> Drafts:
    """Make drafts of chains of (token, row), row -1 for one that was chosen."""
    nodes = [node for chain in chains for node in chain]
    kinds = [NodeKind.DELTA if row < 0 else NodeKind.SAMPLED for _, row in nodes]
    offsets = np.cumsum([0, *map(len, chains)])
    tokens, row_ids = (np.array([node[part] for node in nodes], dtype=np.int64) for part in (0, 1))
    return Drafts(offsets, tokens, kinds=np.array(kinds, dtype=np.int64), row_ids=row_ids, rows=ROWS)


def drawn(**begun: Any) -> Drawn:
    """Return what has seen requests "a" and "b" begin, and draft: a drawn, a chosen and a drawn token, and a chosen one."""
    found = Drawn(VOCAB_SIZE)
    for req_id in ("a", "b"):
        found.begin(req_id, SimpleNamespace(structured_outputs=begun.get(req_id)))
    found.keep(["a", "b"], drafts([(1, 0), (4, -1), (3, 1)], [(2, -1)]))
    return found


def test_every_draft_has_its_row() -> None:
    rows = drawn().of_step(["b", "a"], torch.tensor([2, 1, 4, 3]), [1, 3])
    assert rows is not None
    assert torch.equal(rows, torch.stack([CHOSEN[2], ROWS[0], CHOSEN[4], ROWS[1]]))


def test_a_draft_that_the_engine_leaves_out_takes_no_other_ones_row() -> None:
    rows = drawn().of_step(["a", "b"], torch.tensor([1, 2]), [1, 1])
    assert rows is not None
    assert torch.equal(rows, torch.stack([ROWS[0], CHOSEN[2]]))


def test_rows_stay_until_the_request_drafts_again_or_ends() -> None:
    kept = drawn()
    kept.keep(["b"], drafts([(5, 2)]))
    assert sorted(kept.rows) == ["a", "b"], "a request that is not in a step keeps its drafts"
    kept.keep(["a"], None)
    assert sorted(kept.rows) == ["b"]
    assert kept.of_step(["a", "b"], torch.tensor([], dtype=torch.int64), [0, 0]) is None
    kept.end({"b", "unknown"})
    assert kept.of_step(["a", "b"], torch.tensor([1, 5]), [1, 1]) is None


def test_under_a_grammar_drafts_count_as_chosen() -> None:
    kept = drawn(a=object())
    assert not kept.rows, "which of its drafts stay depends on what was drawn"
    kept.keep(["b"], drafts([(5, 2)]))
    assert list(kept.rows) == ["b"]
    kept.end({"a"})
    kept.begin("a", SimpleNamespace(structured_outputs=None))
    kept.keep(["a"], drafts([(5, 2)]))
    assert sorted(kept.rows) == ["a", "b"], "another request of that name"


def test_a_hosts_requests_are_looked_at_as_they_begin(session) -> None:
    """A second session drafts for both; the one under a grammar counts as chosen."""

    class Draws:
        traits = DrafterTraits(kinds=frozenset({NodeKind.SAMPLED}))

        def propose(self, view: DraftView) -> Drafts:
            return replace(drafts(*([(1, 0)] for _ in view.slots)), rows=torch.nn.functional.pad(ROWS, (0, 50 - VOCAB_SIZE)))

    chains = Chains(session(Draws()), 1, 12, num_slots=2)
    chains.begin("masked", 12, SamplingParams(structured_outputs=StructuredOutputsParams(regex="a")))
    chains.begin("free", 12, SamplingParams())
    tokens, both = np.ones((2, 12), dtype=np.int32), np.array([4, 4])
    chains.step(Batch(["masked", "free"], np.arange(2), tokens, both, [1, 1]), {})
    assert chains.drawn is not None
    assert list(chains.drawn.rows) == ["free"]


def test_v1_is_handed_them() -> None:
    runner = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a", "b"]))
    hand_over(runner, drawn())
    rows = runner._get_spec_decode_draft_probs(SimpleNamespace(draft_token_ids=torch.tensor([1, 4, 2], dtype=torch.int32), num_draft_tokens=[2, 1]))
    assert torch.equal(rows, torch.stack([ROWS[0], CHOSEN[4], CHOSEN[2]]))


def test_ranks_that_may_draw_apart_are_refused() -> None:
    drafter = SimpleNamespace(propose=lambda view: None, traits=DrafterTraits(kinds=frozenset({NodeKind.SAMPLED})))
    owner = Owner("odd", "strange", "2.0")
    rule = Technique("verifier", "token_wise", owner, TokenWise(), TokenWise, "token_wise")
    chosen = Selection(Technique("drafter", "odd", owner, drafter, type(drafter), "odd"), rule)
    admit(chosen, host_of("V1", 1), sampling=True)
    with pytest.raises(HostError, match=r"needs 'draft.rows' .*, which vllm's V2 runner with 2 tensor-parallel ranks does not provide"):
        admit(chosen, host_of("V2", 2), sampling=True)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_v2_reads_them_behind_its_temperature(temperature: float) -> None:
    """In slots 2 and 0; in slot 1 is a request that is not in the step."""
    laid = DraftLogits(3, 3, VOCAB_SIZE, torch.tensor([1.0, 1.0, temperature]))
    laid.choose(torch.tensor([1]), torch.tensor([[5, 5, 5]]))
    before = laid.tensor[1].clone()
    slots, kept = torch.tensor([2, 0]), drawn()
    laid.lay(slots, torch.tensor([[1, 4, 3], [2, 1, 0]]), kept.rows_at(["a", "b"]))
    read = [(laid.tensor[slot] / (temperature or 1.0 if slot == 2 else 1.0)).softmax(-1) for slot in (2, 0)]
    torch.testing.assert_close(read[0], torch.stack([ROWS[0], CHOSEN[4], ROWS[1]]))
    assert torch.equal(read[1], CHOSEN[[2, 1, 0]])
    assert torch.equal(laid.tensor[1], before)
    laid.lay(slots, torch.tensor([[1, 4, 3], [2, 1, 0]]), {})
    assert torch.equal(laid.tensor[slots].softmax(-1), CHOSEN[torch.tensor([[1, 4, 3], [2, 1, 0]])])
    assert torch.equal(laid.tensor[1], before)
