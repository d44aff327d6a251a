"""Drafters that try to break the host, as a distribution of their own. The conftest installs this file beside metadata."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import accelplug
from accelplug.constrained.auto import Auto
from accelplug.hooks import (
    ROOT,
    BuildContext,
    CommitView,
    CompileLimits,
    DeviceDrafts,
    DeviceView,
    DrafterTraits,
    Drafts,
    DraftView,
    GrammarSpec,
    IntArray,
    NodeKind,
    VerifierTraits,
    VerifyView,
    Vocabulary,
)
from accelplug.spec.prompt_lookup import PromptLookup

MIXED = ((4, 0), (0, 4), (2, 2), (0, 0), (1, 1), (3, 0))


class Oracle:
    """Drafts known continuations, partly wrong, and raises at the first thing that breaks the contract of its views.

    :param sequences: a JSON file of ``[prompt, continuation]`` pairs.
    :param pattern: ``(right, wrong)`` tokens to draft, one pair per step of a request, repeated.
    :param log: where to append a line for every observed commit.
    :param raise_at: the call of `propose` that raises; 0 for never.
    :param raise_upon: a file; once it exists, `propose` raises.
    """

    def __init__(
        self, context: BuildContext, sequences: str, num_tokens: int = 4, pattern: Sequence[Sequence[int]] = MIXED, log: str = "", raise_at: int = 0,
        raise_upon: str = "",
    ) -> None:  # fmt: skip
        self.known = [(prompt, prompt + continuation) for prompt, continuation in json.loads(Path(sequences).read_text())]
        self.num_tokens, self.pattern, self.log = num_tokens, pattern, log
        self.raise_at, self.raise_upon = raise_at, raise_upon
        self.vocab_size, self.num_slots = context.vocab_size, context.num_slots
        self.histories: dict[int, list[int]] = {}
        self.steps: dict[int, int] = {}
        self.drafted: dict[int, list[int]] = {}
        self.clipped: dict[int, bool] = {}
        self.calls = 0

    def start(self, slots: IntArray) -> None:
        for slot in slots.tolist():
            assert 0 <= slot < self.num_slots, f"slot {slot} of {self.num_slots}"
            assert slot not in self.histories, f"slot {slot} starts twice"
            self.histories[slot], self.steps[slot], self.drafted[slot], self.clipped[slot] = [], 0, [], False

    def finish(self, slots: IntArray) -> None:
        for slot in slots.tolist():
            del self.histories[slot], self.steps[slot], self.drafted[slot], self.clipped[slot]

    def observe(self, view: CommitView) -> None:
        assert len(set(view.slots.tolist())) == len(view.slots), "a slot stands twice in one view"
        for i, slot in enumerate(view.slots.tolist()):
            history, before = view.history(i).tolist(), self.histories[slot]
            fresh, accepted = int(view.fresh[i]), int(view.accepted[i])
            assert fresh > 0
            assert history[: len(history) - fresh] == before, f"slot {slot}: the past changed"
            kept = history[len(before) : len(before) + accepted]
            assert kept == self.drafted[slot][:accepted], f"slot {slot}: {kept} kept of {self.drafted[slot]}"
            record = {"slot": slot, "prompt": history[:3], "length": len(history), "fresh": history[-fresh:]}
            self._write(**record, accepted=accepted, drafted=len(self.drafted[slot]), clipped=self.clipped[slot])
            self.histories[slot], self.drafted[slot], self.clipped[slot] = history, [], False

    def propose(self, view: DraftView) -> Drafts:
        self.calls += 1
        if self.calls == self.raise_at or (self.raise_upon and Path(self.raise_upon).exists()):
            raise RuntimeError("the oracle has fallen silent")
        return Drafts.chains([self._draft(slot, view.history(i).tolist(), int(view.budgets[i])) for i, slot in enumerate(view.slots.tolist())])

    def _draft(self, slot: int, history: list[int], budget: int) -> list[int]:
        assert history == self.histories[slot], "propose sees other tokens than observe"
        right, wrong = self.pattern[self.steps[slot] % len(self.pattern)]
        self.steps[slot] += 1
        sequence = next((full for prompt, full in self.known if history[: len(prompt)] == prompt), [])
        known = sequence[len(history) : len(history) + right + wrong]
        chain = [token if i < right else (token + 1) % self.vocab_size for i, token in enumerate(known)][:budget]
        self.drafted[slot], self.clipped[slot] = chain, budget < min(len(known), self.num_tokens)
        return chain

    def _write(self, **record: Any) -> None:
        if self.log:
            with Path(self.log).open("a") as log:
                log.write(json.dumps(record) + "\n")


class DrawnOracle(Oracle):
    """Gives every other of the oracle's tokens as if it had drawn it, from a row that likes it well."""

    traits = DrafterTraits(kinds=frozenset({NodeKind.DELTA, NodeKind.SAMPLED}))

    def propose(self, view: DraftView) -> Drafts:
        import torch

        known = super().propose(view)
        places = np.arange(len(known.tokens))
        drawn = places % 2 == 0
        rows = torch.full((len(places), self.vocab_size), 0.2 / (self.vocab_size - 1))
        rows[torch.arange(len(places)), torch.as_tensor(known.tokens)] = 0.8
        kinds = np.where(drawn, NodeKind.SAMPLED, NodeKind.DELTA)
        return Drafts(known.offsets, known.tokens, kinds=kinds, row_ids=np.where(drawn, places, ROOT), rows=rows)


class DeviceOracle:
    """The same on the device: every third position is drafted wrong, and every fourth step drafts nothing."""

    def __init__(self, context: BuildContext, sequences: str, num_tokens: int = 4) -> None:
        import torch

        pairs = json.loads(Path(sequences).read_text())
        width = max(len(prompt) + len(continuation) for prompt, continuation in pairs) + num_tokens
        self.num_tokens, self.vocab_size = num_tokens, context.vocab_size
        self.prompts = torch.tensor([(prompt + [-1] * width)[:width] for prompt, _ in pairs])
        self.known = torch.tensor([(prompt + continuation + [0] * width)[:width] for prompt, continuation in pairs])

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        import torch

        device, width = view.tokens.device, self.prompts.shape[1]
        if self.prompts.device != device:
            self.prompts, self.known = self.prompts.to(device), self.known.to(device)
        history = torch.nn.functional.pad(view.tokens[view.slots].long(), (0, max(0, width - view.tokens.shape[1])))[:, :width]
        same = ((self.prompts.unsqueeze(0) == history.unsqueeze(1)) | (self.prompts < 0)).all(-1)
        found, which = same.max(1)
        positions = (view.lengths.long().unsqueeze(1) + torch.arange(view.num_tokens, device=device)).clamp(max=width - 1)
        guess = self.known[which.unsqueeze(1), positions]
        guess = torch.where(positions % 3 == 0, (guess + 1) % self.vocab_size, guess)
        return DeviceDrafts(guess, torch.where(found & (view.lengths % 4 != 0), view.num_tokens - 1, 0).int())


class Curious(PromptLookup):
    """Looks at a value on the device, for which the host waits."""

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        assert int(view.lengths[0]) >= 0
        return super().propose_on_device(view)


class Drawer:
    """Draws tokens from tables, and beside those any token alike; a chain's second token may be chosen and not drawn.

    :param tables: a JSON file of ``[prompt, {tokens behind it joined by blanks: {token: probability}}]``.
    :param other: the share of all tokens alike, 0 to 1.
    :param chosen: the last of a chain is the likeliest one, chosen.
    """

    traits = DrafterTraits(kinds=frozenset({NodeKind.DELTA, NodeKind.SAMPLED}))

    def __init__(self, context: BuildContext, tables: str, num_tokens: int = 2, other: float = 0.1, chosen: bool = False) -> None:
        self.prompt, self.tables = json.loads(Path(tables).read_text())
        self.num_tokens, self.other, self.chosen, self.vocab_size, self.calls = num_tokens, other, chosen, context.vocab_size, 0

    def propose(self, view: DraftView) -> Drafts:
        import torch

        self.calls += 1
        offsets, tokens, rows, row_ids = [0], [], [], []
        for i, slot in enumerate(view.slots.tolist()):
            draw, behind = np.random.default_rng((self.calls, slot)), view.history(i)[len(self.prompt) :].tolist()
            for place in range(min(self.num_tokens, int(view.budgets[i]))):
                row = self._row(behind)
                is_chosen = self.chosen and place == self.num_tokens - 1
                tokens.append(int(row.argmax()) if is_chosen else int(draw.choice(self.vocab_size, p=row)))
                row_ids.append(-1 if is_chosen else len(rows))
                rows += [] if is_chosen else [row]
                behind.append(tokens[-1])
            offsets.append(len(tokens))
        ids, kinds = np.array(row_ids, dtype=np.int64), [int(NodeKind.DELTA if row < 0 else NodeKind.SAMPLED) for row in row_ids]
        given = torch.tensor(np.array(rows).reshape(-1, self.vocab_size), dtype=torch.float32)
        return Drafts(np.array(offsets), np.array(tokens, dtype=np.int64), kinds=np.array(kinds, dtype=np.int64), row_ids=ids, rows=given)

    def _row(self, behind: list[int]) -> Any:
        table = self.tables.get(" ".join(map(str, behind)), {})
        other = self.other if table else 1.0
        row = np.full(self.vocab_size, other / self.vocab_size)
        for token, probability in table.items():
            row[int(token)] += (1 - other) * probability
        return row / row.sum()


class Unbuildable:
    """Fails when the engine starts."""

    def __init__(self) -> None:
        raise ValueError("no weights for this drafter")

    def propose_one(self, tokens: IntArray, budget: int) -> list[int]:  # noqa: ARG002
        return []


class Overdrawn:
    """Drafts more than it may."""

    def propose_one(self, tokens: IntArray, budget: int) -> list[int]:  # noqa: ARG002
        return [0] * (budget + 1)


class OutOfVocabulary:
    """Drafts a token that does not exist, on the device."""

    def propose_on_device(self, view: DeviceView) -> DeviceDrafts:
        import torch

        tokens = torch.full((len(view.slots), view.num_tokens), -1, device=view.tokens.device)
        return DeviceDrafts(tokens, torch.full((len(view.slots),), view.num_tokens, dtype=torch.int32, device=view.tokens.device))


class Reader:
    """Reads everything that a build context offers, and drafts nothing."""

    def __init__(self, context: BuildContext) -> None:
        assert context.host == "vllm"
        assert context.embeddings().shape == context.output_head().shape == (context.vocab_size, context.hidden_size)
        assert len(context.vocabulary()) == context.vocab_size
        assert b"".join(context.vocabulary())
        assert context.eos_token_ids

    def propose_one(self, tokens: IntArray, budget: int) -> list[int]:  # noqa: ARG002
        return []


class Forest:
    """Drafts trees, which vLLM cannot verify."""

    traits = DrafterTraits(shape="tree")

    def propose(self, view: DraftView) -> Drafts:
        return Drafts(np.zeros(len(view.slots) + 1, dtype=np.int64), np.empty(0, dtype=np.int64))


class Hidden(Forest):
    """Wants hidden states, and says so only once it is built."""

    def __init__(self) -> None:
        self.traits = DrafterTraits(needs=frozenset({"hidden.last"}))


class Halved:
    """Exact, and not the usual rule: keeps a draft half as often, and says so in its residual. Raises at a call if told to.

    :param raise_at: the call of `accept` that raises; 0 for never.
    :param raise_upon: a file; once it exists, `accept` raises.
    """

    traits = VerifierTraits(lossless="sampling")

    def __init__(self, raise_at: int = 0, raise_upon: str = "") -> None:
        self.raise_at, self.raise_upon, self.calls = raise_at, raise_upon, 0

    def accept(self, view: VerifyView) -> Any:
        self.calls += 1
        if self.calls == self.raise_at or (self.raise_upon and Path(self.raise_upon).exists()):
            raise RuntimeError("the rule has fallen silent")
        return (view.target_at_tokens() / view.draft_at_tokens()).clamp(max=1.0) / 2

    def residual(self, view: VerifyView) -> Any:
        import torch

        assert view.draft is None, "deterministic drafts"
        left = view.target - torch.zeros_like(view.target).scatter_(1, view.tokens.unsqueeze(1), 0.5) * view.target
        return left / left.sum(-1, keepdim=True)


class Drawn:
    """The usual rule on drafts that were drawn: raises unless their probabilities come along, one whole row for each."""

    traits = VerifierTraits(lossless="sampling")

    def accept(self, view: VerifyView) -> Any:
        assert view.draft is not None, "the drafts were drawn, and nobody says from what"
        assert view.draft.shape == view.target.shape
        assert ((view.draft.sum(-1) - 1).abs() < 1e-4).all()
        assert (view.draft_at_tokens() > 0).all(), "a draft that its own drafter thinks impossible"
        return (view.target_at_tokens() / view.draft_at_tokens()).clamp(max=1.0)


class Likeliest:
    """Keeps what the target likes best, which says nothing of sampling."""

    traits = VerifierTraits(lossless="greedy")

    def accept(self, view: VerifyView) -> Any:
        return (view.logits.argmax(-1) == view.tokens).to(view.target.dtype)


class Everything:
    """Keeps whatever was drafted."""

    traits = VerifierTraits(lossless=None)

    def accept(self, view: VerifyView) -> Any:
        return view.target_at_tokens() * 0 + 1


class Faulty:
    """Compiles a grammar whose matcher raises while it decodes, if the model's vocabulary is a real one.

    :param where: the method that raises.
    :param at: its call that does.
    """

    def __init__(self, where: str = "fill", at: int = 3) -> None:
        self.where, self.at = where, at

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Any:
        compiled = Auto().compile(spec, vocabulary, limits)
        return SimpleNamespace(statement=compiled.statement, check=compiled.check, matcher=lambda: self._failing(compiled.matcher()))

    def _failing(self, matcher: Any) -> Any:
        methods = {name: getattr(matcher, name) for name in ("fill", "accept", "rollback", "validate", "forced")}
        calls = iter(range(1, 10_000))

        def failing(*given: Any) -> Any:
            if next(calls) == self.at:
                raise RuntimeError("the grammar has fallen silent")
            return methods[self.where](*given)

        return SimpleNamespace(**{**methods, self.where: failing})


class Slow:
    """Compiles where the vocabulary is the model's only once a file exists."""

    def __init__(self, file: str = "") -> None:
        self.file = Path(file or os.environ.get("SLOW_GRAMMAR", "/dev/null"))

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> Any:
        while len(vocabulary) > 300 and not self.file.exists():
            time.sleep(0.01)
        return Auto().compile(spec, vocabulary, limits)


@accelplug.hookimpl
def register_grammars(register: Any) -> None:
    register("faulty", Faulty)
    register("faulty_forced", lambda: Faulty("forced", 2))
    register("faulty_accept", lambda: Faulty("accept", 2))
    register("slow", Slow)


@accelplug.hookimpl
def register_drafters(register: Any) -> None:
    for drafter in (Oracle, DrawnOracle, DeviceOracle, Curious, Drawer, Unbuildable, Overdrawn, OutOfVocabulary, Reader, Forest, Hidden):
        name = "".join("_" + letter.lower() if letter.isupper() else letter for letter in drafter.__name__).lstrip("_")
        register(name, drafter)


@accelplug.hookimpl
def register_verifiers(register: Any) -> None:
    register("drawn", Drawn)
    register("halved", Halved)
    register("everything", Everything)
    register("likeliest", Likeliest)
