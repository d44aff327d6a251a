"""The engine core's part in grammars: vLLM asks this for masks, has drafts cut by it, and takes back what it tried.

vLLM fills masks, validates drafts and rolls back in one process and one thread, whatever the runner, its scheduling and its ranks; a
grammar here is a `Matcher` behind vLLM's interface. Whatever an engine raises ends its own request and no other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from accelplug.hooks.masking import CompiledGrammar, Vocabulary
from accelplug.hooks.registry import Technique, one_line
from accelplug.hosts.vllm.board import Counters
from accelplug.hosts.vllm.log import LOG

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")


@dataclass
class Tally:
    """What one engine's grammars came to.

    :ivar compiled: grammars that requests asked for.
    :ivar drafts: drafts with a token that the grammar forced and that was verified.
    :ivar drafted: those tokens.
    :ivar accepted: those among them that the verifier kept.
    :ivar cut: drafts of others that the grammar forbids, which were not verified.
    :ivar answers: answers that ended by themselves.
    :ivar violations: answers among them that violate what the mask leaves to the final check, for which that took too long, or that ended
        before their grammar began.
    :ivar failures: requests that ended in an error of the engine's.
    :ivar seconds: spent in the engine while decoding.
    """

    compiled: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    cut: int = 0
    answers: int = 0
    violations: int = 0
    failures: int = 0
    seconds: float = 0.0

    def counters(self, who: tuple[str, str, str, str]) -> Counters:
        """Return them as they go to ``/metrics``."""
        of_grammars = float(self.answers), float(self.violations), float(self.cut), float(self.failures)
        return Counters(who, (float(self.drafts), float(self.drafted), float(self.accepted), 0.0, self.seconds, 0.0), of_grammars)


class RunningGrammar(StructuredOutputGrammar):  # type: ignore[misc]
    """One request's position in its grammar.

    :param stops: token ids that stop the request; they are legal where the text may end, and the text ends with them.
    """

    def __init__(self, engine: Technique, compiled: CompiledGrammar, vocabulary: Vocabulary, stops: Iterable[int], tally: Tally) -> None:
        self.engine, self.compiled, self.vocabulary, self.tally = engine, compiled, vocabulary, tally
        self._end: Final = vocabulary.eos_token_ids[0]
        self._ends: Final = {*vocabulary.eos_token_ids, *(stop for stop in stops if 0 <= stop < len(vocabulary))}
        self._others: Final = sorted(self._ends.difference(vocabulary.eos_token_ids))
        self.drafts: Final = Counter[str]()  # this request's part of the tally, by the tally's names
        self.failed: str | None = None
        self.reset()

    def count(self, name: str, number: int) -> None:
        """Count drafts for this request and for all of the engine's.

        :param name: ``"drafts"``, ``"drafted"``, ``"accepted"`` or ``"cut"``, as in `Tally`.
        """
        self.drafts[name] += number
        setattr(self.tally, name, getattr(self.tally, name) + number)

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Advance; False where a token is illegal, upon which vLLM ends the request. What follows an end is ignored."""
        del request_id
        if self.is_terminated():
            return True
        seen = self._seen(tokens)
        count = self._ask(lambda: self.matcher.accept(seen), 0)
        self.tokens += seen[:count]
        if count == len(tokens) or self.is_terminated():
            return True
        self._say_if_dead()
        return False

    def _say_if_dead(self) -> None:
        """Say why a token was refused where none is legal: several grammars may each lead where the others do not."""
        import torch

        row = torch.zeros(-(-len(self.vocabulary) // 32), dtype=torch.int32)
        self._ask(lambda: self.matcher.fill(row), None)
        if self.failed is None and not row.any():
            text = b"".join(self.vocabulary.tokens[token] for token in self.tokens).decode(errors="replace")
            LOG.error("accelplug: no token is left after %r that the grammars of a request all allow; it ends in an error, loosen one", text[-60:])

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """Return the drafts that may stay."""
        if self.is_terminated():
            return []
        seen = self._seen(tokens)
        return tokens[: self._ask(lambda: self.matcher.validate(seen), 0)]

    def forced(self, drafts: list[int]) -> Sequence[int]:
        """Return what must follow behind legal drafts. Does not move."""
        seen = self._seen(drafts)
        if self.is_terminated() or self._end in seen:
            return []
        return self._ask(lambda: self._behind(seen), [])

    def _behind(self, drafts: list[int]) -> Sequence[int]:
        count = self.matcher.accept(drafts) if drafts else 0
        found = self.matcher.forced()
        if count:
            self.matcher.rollback(count)
        return found

    def rollback(self, num_tokens: int) -> None:
        """Take back what was only tried."""
        if num_tokens:
            del self.tokens[-num_tokens:]
            self._ask(lambda: self.matcher.rollback(num_tokens), None)

    def fill_bitmask(self, bitmask: Tensor, batch_index: int) -> None:
        """Write one row, [ceil(len(vocabulary) / 32)] int32. After a failure everything is legal, and the request ends in the same step."""
        row = bitmask[batch_index]
        self._ask(lambda: self.matcher.fill(row), None)
        if self.failed is not None:
            row.fill_(-1)
        elif self._others:
            self._fill_others(row)

    def is_terminated(self) -> bool:
        """Whether an end was accepted."""
        return bool(self.tokens) and self.tokens[-1] == self._end

    def reset(self) -> None:
        """Return to the beginning."""
        self.matcher, self.tokens = self.compiled.matcher(), list[int]()

    def problem(self) -> str | None:
        """Return what is wrong with the finished answer, by what the mask leaves to the final check, or why that is not known; None if nothing is."""
        if not self.compiled.statement.checked:
            return None
        text = b"".join(self.vocabulary.tokens[token] for token in self.tokens[:-1]).decode(errors="replace")
        try:
            return self.compiled.check(text)
        except Exception as exc:  # noqa: BLE001  a check that fails is one that was not passed
            return f"the final check of {self.engine} failed: {one_line(exc):.200}"

    def statement(self, problem: str | None) -> dict[str, Any]:
        """Return what became of the grammar in the answer, in plain values.

        :param problem: what is wrong with the finished answer; None where nothing is, or it did not finish.
        """
        said, who = self.compiled.statement, f"{self.engine.name} ({self.engine.owner})"
        drafts = {"cut_drafts": self.drafts["cut"], "forced_tokens": self.drafts["drafted"], "accepted_tokens": self.drafts["accepted"]}
        return {"technique": who, "engine": said.engine, "enforced": said.enforced, "checked": said.checked, "problem": problem, **drafts}

    def _seen(self, tokens: Collection[int]) -> list[int]:
        """Return the tokens as the matcher knows them, which has one end."""
        return [self._end if token in self._ends else token for token in tokens]

    def _fill_others(self, row: Tensor) -> None:
        import numpy as np

        words = row.numpy().view(np.uint32)
        may_end = words[self._end // 32] >> self._end % 32 & 1
        for stop in self._others:
            words[stop // 32] = words[stop // 32] & ~np.uint32(1 << stop % 32) | np.uint32(may_end << stop % 32)

    def _ask(self, method: Callable[[], R], otherwise: R) -> R:
        """Ask the engine; once it failed, it is not asked again, and the next committed token ends the request."""
        if self.failed is not None:
            return otherwise
        began = time.perf_counter()
        try:
            return method()
        except Exception as exc:  # noqa: BLE001  whatever an engine raises ends its own request
            self.failed = f"{self.engine} failed while decoding: {type(exc).__name__}: {one_line(exc):.200}"
            self.tally.failures += 1
            LOG.error("accelplug: %s; its request ends in an error", self.failed)
            return otherwise
        finally:
            self.tally.seconds += time.perf_counter() - began
