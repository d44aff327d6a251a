"""Interleaved rounds: every way once per round, in turns, so that whatever slows the machine down meets them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelplug.cli.bench.ways import Batch, Way, eos_ids


@dataclass(slots=True)
class Taken:
    """What one way did with one task's batches.

    :param seconds: of each timed round, over all batches.
    :param cpu: the process's CPU seconds of each timed round, batch by batch.
    :param outputs: for every prompt its distinct outputs over all rounds, the warm-up's first, without padding.
    :param forwards: the target model's forward passes.
    :param row_forwards: the same, each counted once for every row in it.
    """

    seconds: list[float] = field(default_factory=list)
    outputs: list[list[list[int]]] = field(default_factory=list)
    forwards: int = 0
    row_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    cpu: list[list[float]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Generated tokens of one round."""
        return sum(len(outputs[0]) for outputs in self.outputs)


def interleaved(model: Any, ways: Sequence[Way], batches: Sequence[Batch], rounds: int, tick: Callable[[], None]) -> list[Taken]:
    """Warm every way up once, which counts its forward passes, then take the timed rounds; the order turns by one each round.

    :param tick: called after every run, for a progress bar.
    """
    taken = [_warm_up(model, way, batches, tick) for way in ways]
    for number in range(rounds):
        turn = number % len(ways)
        for i in (*range(turn, len(ways)), *range(turn)):
            rows, seconds, cpu = ways[i].run(model, batches)
            taken[i].seconds.append(seconds)
            taken[i].cpu.append(cpu)
            for known, output in zip(taken[i].outputs, _outputs(model, batches, rows), strict=True):
                if output not in known:
                    known.append(output)
            tick()
    return taken


def _warm_up(model: Any, way: Way, batches: Sequence[Batch], tick: Callable[[], None]) -> Taken:
    taken = Taken()
    drafted, accepted = way.counted()
    for batch in batches:
        with _counting(model) as passes:
            rows, _, _ = way.run(model, [batch])
        taken.outputs += [[output] for output in _outputs(model, [batch], rows)]
        taken.forwards += len(passes)
        taken.row_forwards += sum(passes)
    later = way.counted()
    taken.drafted, taken.accepted = later[0] - drafted, later[1] - accepted
    tick()
    return taken


@contextmanager
def _counting(model: Any) -> Iterator[list[int]]:
    """Yield a list that grows by the number of rows of each of the model's forward passes."""
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, __, given: passes.append(len(given["input_ids"])), with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


def _outputs(model: Any, batches: Sequence[Batch], generated: Sequence[list[list[int]]]) -> list[list[int]]:
    """Return what each row generated: behind its prompt, up to the token that ended it."""
    eos = set(eos_ids(model))
    return [until(eos, row[batch.length :]) for batch, rows in zip(batches, generated, strict=True) for row in rows]


def until(eos: set[int], tokens: list[int]) -> list[int]:
    """Return the tokens up to and including the first of `eos`."""
    end = next((at for at, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[: end + 1]
