"""Grammars of packed requests: the one logits processor of a continuous batch, which masks each row by its own request's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from accelplug.hosts.hf.grammar import Grammar, masked_by
from accelplug.hosts.hf.positions import Position

_FREE = 0  # the row of the table that allows everything


@dataclass(slots=True)
class Governed:
    """A request that has a grammar.

    :ivar position: its matcher, None before its first step.
    :ivar failed: what the grammar's engine raised while it masked.
    """

    grammar: Grammar
    position: Position | None = None
    failed: Exception | None = None

    def fill(self, row: Tensor, answer: list[int]) -> None:
        """Write the bits of what may follow an answer; leave them where the answer is over or left the grammar."""
        self.position = self.position or Position(self.grammar.compiled.matcher())
        if self.grammar.ends.isdisjoint(answer) and not self.position.move(answer).strayed:
            self.position.matcher.fill(row)

    def close(self, output: Any) -> None:
        """Write into a finished request's output what is wrong with it, as `error` or as `problem`."""
        tokens, engine = output.generated_tokens, self.grammar.engine
        if self.failed is not None:
            output.error = f"{engine} raised {type(self.failed).__name__}: {self.failed} while it masked this request"
        elif tokens and tokens[-1] in self.grammar.ends and self.grammar.compiled.matcher().accept(tokens) == len(tokens) - 1:
            output.error = str(self.grammar.dead_end(tokens[:-1]))
        else:
            output.problem = self.grammar.problem_of(tokens)


def answer_of(state: Any) -> list[int]:
    """Return what a request has written. One that was put back into the queue has some of it behind its prompt."""
    before: list[int] = state.initial_tokens[state._true_initial_tokens :] if state._true_initial_tokens else []
    written: list[int] = state.generated_tokens
    return before + written


class PackedGrammars(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Lays on each row the mask of the request that has it in this step, as a function of that request's tokens alone.

    Requests come, go, are put back and forked, so nothing is read off the order in which they are shown. A step's masks are filled before
    its forward pass, into a table that never moves, which captured graphs may read. A request whose grammar's engine raises, or for
    which nothing is left to write, is ended, and no other.

    :param ends: the EOS tokens at which the requests stop.
    :ivar governed: the requests seen and not over, by their ids.
    """

    supported_kwargs: dict[str, type] = {"grammar": Grammar}  # noqa: RUF012 - as the base class declares it
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, vocab_size: int, ends: set[int]) -> None:
        self.vocab_size, self.ends = vocab_size, ends
        self.governed: dict[str, Governed] = {}
        self.cancelled: set[str] = set()

    def allocate(self, rows: int, device: torch.device) -> None:
        """Make the table, with a row for each request of the largest step."""
        self.bits = torch.full((1 + rows, -(-self.vocab_size // 32)), -1, dtype=torch.int32)
        self.table = self.bits if device.type == "cpu" else self.bits.to(device)
        end = torch.zeros(32 * self.bits.shape[1], dtype=torch.int64)
        end[sorted(self.ends)] = 1
        self.end_bits = (end.view(-1, 32) << torch.arange(32)).sum(-1).to(torch.int32)
        self.end = end[: self.vocab_size].to(device).log()  # 0 for an end, else -inf

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Say which row of the table is that of requests without a grammar."""
        int32_tensor.fill_(_FREE)

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        """Fill a step's masks; return which row of the table is whose, [num_reqs]."""
        states = [request.state for request in requests_with_new_token]
        self._forget(self.cancelled - {state.request_id for state in states})
        rows, used = [], _FREE
        for state in states:
            grammar = state.logit_processor_kwargs.get("grammar")
            used += grammar is not None
            rows.append(_FREE if grammar is None else used)
            if grammar is not None:
                self._fill(self.bits[used], grammar, state)
        if self.table is not self.bits:
            self.table[1 : 1 + used].copy_(self.bits[1 : 1 + used])
        return torch.tensor(rows, dtype=torch.int32)

    def _fill(self, row: Tensor, grammar: Grammar, state: Any) -> None:
        one = self.governed.get(state.request_id)
        if one is None or one.grammar is not grammar:
            one = self.governed[state.request_id] = Governed(grammar)
        row.copy_(self.end_bits)
        try:
            one.fill(row, answer_of(state))
        except Exception as exc:  # noqa: BLE001  an engine's, in the thread of everybody's requests
            one.failed = exc
            row.copy_(self.end_bits)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Return the scores with -inf for every token that may not follow, [num_reqs, vocab_size]; the end where nothing may."""
        masked = masked_by(self.table[tensor_arg[: len(scores)].long()], scores)
        return torch.where((masked.amax(-1, keepdim=True) == -torch.inf), self.end, masked)

    def close(self, output: Any) -> None:
        """Add a finished request's final check to its output, and forget the request."""
        output.problem = None
        one = self.governed.pop(output.request_id, None)
        if one is not None and output.error is None:
            one.close(output)

    def _forget(self, requests: set[str]) -> None:
        """Forget requests that were cancelled: they are over without an output."""
        for request in requests:
            self.governed.pop(request, None)
            self.cancelled.discard(request)
