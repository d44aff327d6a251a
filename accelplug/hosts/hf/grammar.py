"""Grammars on Transformers: a compiled grammar bound to one model, and the logits processor that lays its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from accelplug._errors import ConstraintError, HostError
from accelplug.hooks.masking import CompiledGrammar, CompileLimits, GrammarSpec, GrammarStatement, Vocabulary
from accelplug.hooks.registry import Technique
from accelplug.hosts.hf.positions import Positions
from accelplug.hosts.hf.request import Requests

_LIMITS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, np.float32(np.inf), np.float32(-np.inf))
"""Byte of a mask -> the most that each of its eight scores may be. Ten times as fast on CPUs as filling by truth values."""


def masked_by(bits: Tensor, scores: Tensor) -> Tensor:
    """Return the scores with -inf where a bit is 0, [count, vocab_size].

    :param bits: [count, ceil(vocab_size / 32)] int32, in host memory or on the scores' device.
    """
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        limits = _LIMITS.take(bits.numpy().view(np.uint8), axis=0).reshape(len(scores), -1)
        return torch.minimum(scores, torch.from_numpy(limits[:, : scores.shape[1]]).to(scores))
    shifts = torch.arange(32, dtype=torch.int32, device=scores.device)
    allowed = (bits.to(scores.device).unsqueeze(-1) >> shifts) & 1
    return scores.masked_fill(allowed.flatten(1)[:, : scores.shape[1]] == 0, -torch.inf)


class Grammar:
    """A grammar compiled for one model's tokens. Shared by calls and threads.

    :ivar spec: what the output must be.
    :ivar statement: which keywords the mask enforces, and which `problem_of` checks.
    """

    def __init__(self, engine: Technique, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> None:
        self.engine, self.spec, self.vocabulary = engine, spec, vocabulary
        self.ends = set(vocabulary.eos_token_ids)
        compiled = engine.call(lambda given: engine.instance.compile(given, vocabulary, limits), spec)
        self.compiled: CompiledGrammar = compiled
        self.statement: GrammarStatement = compiled.statement

    def after(self, prompt: int | Tensor | Mapping[str, Tensor]) -> GrammarProcessor:
        """Return the processor for what follows a prompt: ``model.generate(**inputs, logits_processor=[grammar.after(inputs)])``.

        It works wherever Transformers calls processors, with beams too, and for any number of calls with prompts of that length.

        :param prompt: what the tokenizer made of the prompts, their token ids [count, length], or that length.
        """
        ids = prompt["input_ids"] if isinstance(prompt, Mapping) else prompt
        return GrammarProcessor(self, ids if isinstance(ids, int) else ids.shape[-1])

    def __deepcopy__(self, _memo: object) -> Grammar:
        """Return itself: what was compiled never changes, and engines' objects cannot be copied."""
        return self

    def check_width(self, vocab_size: int) -> None:
        """Refuse a model of another width.

        :raises HostError: naming both.
        """
        if len(self.vocabulary) != vocab_size:
            raise HostError(f"the grammar was compiled for {len(self.vocabulary)} tokens and the model has {vocab_size}; compile it for this model")

    def check_ends(self, ends: set[int], who: str) -> None:
        """Refuse a call that does not end where the grammar does; an end that the grammar takes for text would cut it short.

        :param who: who stops at `ends`.
        :raises HostError: naming both.
        """
        if ends != self.ends:
            raise HostError(
                f"the grammar ends with the EOS tokens {sorted(self.ends)} of model.generation_config and {who} stops at "
                f"{sorted(ends) or 'none'}; set model.generation_config.eos_token_id before attaching, and leave it out of {who}"
            )

    def dead_end(self, answer: Sequence[int]) -> ConstraintError:
        """Return the error for an answer behind which nothing is left to write."""
        text = b"".join(self.vocabulary.tokens[token] for token in answer).decode(errors="replace")
        if self.spec.kind == "all_of":
            return ConstraintError(f"no token is left after {text[-60:]!r} that {self.spec} and the other logits processors allow; loosen one")
        return ConstraintError(
            f"no token is left after {text[-60:]!r}: what {self.engine} allows there, the model or the other logits processors "
            "forbid; leave those out, or loosen the grammar"
        )

    def problem_of(self, tokens: Sequence[int]) -> str | None:
        """Return what is wrong with a finished answer's token ids, or why that is not known, in one sentence, None if nothing is: the final check."""
        ends = [i for i, token in enumerate(tokens) if token in self.ends]
        answer = list(tokens[: ends[0]] if ends else tokens)
        matcher = self.compiled.matcher()
        if (legal := matcher.accept(answer)) < len(answer):
            return f"token {legal} of the answer is not what the grammar allows there; something chose it behind the mask"
        if not matcher.validate(self.vocabulary.eos_token_ids[:1]):
            return f"the answer was cut off after {len(answer)} tokens, before the grammar lets it end; raise max_new_tokens, or drop stop strings"
        return self.compiled.check(b"".join(self.vocabulary.tokens[token] for token in answer).decode(errors="replace"))


class GrammarProcessor(LogitsProcessor):  # type: ignore[misc]
    """Forbids what the grammar does: a function of each row's tokens and nothing else, whatever rows it was shown before.

    :ivar defers: keep a dead end for `raise_if_dead`: it may lie behind a draft that is never committed.
    """

    prefix_pure = True

    def __init__(self, grammar: Grammar, prompt_length: int = 0, *, positions: Positions | None = None, defers: bool = False) -> None:
        self.grammar, self.prompt_length, self.defers = grammar, prompt_length, defers
        self.positions = positions or Positions(grammar.compiled)
        self.bits = torch.zeros(0, -(-len(grammar.vocabulary) // 32), dtype=torch.int32)
        self.dead: set[tuple[int, ...]] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with -inf for every token that may not follow, [count, vocab_size]."""
        self.grammar.check_width(scores.shape[-1])
        answers: list[list[int]] = input_ids[:, self.prompt_length :].tolist()
        if len(answers) > len(self.bits):
            self.bits = torch.zeros(len(answers), self.bits.shape[1], dtype=torch.int32)
        over = {row for row, answer in enumerate(answers) if not self._fill(row, answer)}
        masked = masked_by(self.bits[: len(scores)], scores)
        stuck = {row for row, best in enumerate(masked.amax(-1).tolist()) if best == -torch.inf}
        for row in stuck - over:
            self._stop(answers[row])
        if over or stuck:
            self._end(masked, sorted(over | stuck))
        return masked

    def _fill(self, row: int, answer: list[int]) -> bool:
        """Write one row's bits; return whether the answer goes on: it has no end yet and did not leave the grammar."""
        if not self.grammar.ends.isdisjoint(answer):
            return False  # nor is a matcher asked about padding
        position = self.positions.at(answer)
        if position.strayed:
            return False
        position.matcher.fill(self.bits[row])
        return True

    def _end(self, masked: Tensor, rows: list[int]) -> None:
        """Leave these rows the end alone: they are over, no more than padding, or drafts that will be rejected."""
        masked[rows] = -torch.inf
        for end in self.grammar.ends:
            masked[rows, end] = 0.0

    def _stop(self, answer: list[int]) -> None:
        if not self.defers:
            raise self.grammar.dead_end(answer)
        self.dead.add(tuple(answer))

    def positions_of(self, _row: int) -> Positions | None:
        """Return the matchers of a row, here of any."""
        return self.positions

    def begin(self, requests: Requests, _repeats: int = 1) -> None:
        """Begin a call of the decoding loop: the grammar governs what follows its prompts.

        :raises HostError: the call does not end where the grammar does; an end that the grammar takes for text would cut it short.
        """
        self.grammar.check_ends(requests.eos, "generate()")
        self.prompt_length, self.padding = requests.prompt_length, requests.pad_token_id
        self.dead.clear()

    def problems(self, sequences: Tensor) -> list[str | None]:
        """Return the final check of every row of a call, prompts included, [count, length].

        :raises ConstraintError: a row came to where nothing could follow.
        """
        answers: list[list[int]] = sequences[:, self.prompt_length :].tolist()
        for answer in answers:
            for length in {len(dead) for dead in self.dead}:
                if tuple(answer[:length]) in self.dead:
                    raise self.grammar.dead_end(answer[:length])
            while answer and answer[-1] == self.padding and self.padding not in self.grammar.ends:
                answer.pop()  # behind a stop string
        return [self.grammar.problem_of(answer) for answer in answers]


class RowGrammars(LogitsProcessor):  # type: ignore[misc]
    """A grammar for each prompt of a call, or none. It goes by the row's number, so that the rows stay together.

    :param parts: each prompt's own processor.
    """

    def __init__(self, parts: Sequence[GrammarProcessor | None]) -> None:
        self.parts, self.repeats, self.prompt_length = list(parts), 1, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with -inf for every token that may not follow, [count, vocab_size]."""
        rows = [self._masked(row, input_ids[row : row + 1], scores[row : row + 1]) for row in range(len(scores))]
        return torch.cat(rows)

    def _masked(self, row: int, input_ids: Tensor, scores: Tensor) -> Tensor:
        part = self._part(row)
        return scores if part is None else part(input_ids, scores)

    def _part(self, row: int) -> GrammarProcessor | None:
        return self.parts[row // self.repeats]

    def positions_of(self, row: int) -> Positions | None:
        """Return the matchers of a row, None where it is free."""
        part = self._part(row)
        return None if part is None else part.positions

    def begin(self, requests: Requests, repeats: int = 1) -> None:
        """Begin a call of the decoding loop.

        :param repeats: how many rows a prompt has.
        :raises HostError: there are more prompts than grammars, or fewer; as of one grammar.
        """
        if requests.count != len(self.parts) * repeats:
            raise HostError(
                f"grammar= has {len(self.parts)} entries, one for each prompt, and generate() got {requests.count // repeats}; "
                "give as many, None for a prompt that is free"
            )
        self.repeats, self.prompt_length = repeats, requests.prompt_length
        for part in self.parts:
            if part is not None:
                part.begin(requests)

    def problems(self, sequences: Tensor) -> list[str | None]:
        """Return the final check of every row of a call, None for free ones.

        :raises ConstraintError: a row came to where nothing could follow.
        """
        parts = [self._part(row) for row in range(len(sequences))]
        return [None if part is None else part.problems(sequences[row : row + 1])[0] for row, part in enumerate(parts)]
