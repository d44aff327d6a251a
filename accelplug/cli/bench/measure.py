"""Interleaved rounds: every way once per round, in turns, so that whatever slows the machine down meets them alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelplug.cli.bench.ways import Batch, Way, eos_ids


@dataclass(slots=True)
class Taken:
    """What one way did with one batch, or with several.

    :param seconds: of each timed round, over all batches.
    :param cpu: the process's CPU seconds of each timed round, batch by batch.
    :param outputs: for every prompt its distinct outputs over all rounds, the warm-up's first, without padding.
    :param forwards: the target model's forward passes.
    :param row_forwards: the same, each counted once for every row in it.
    :param failed: why it has done nothing at all.
    :param warming_up: seconds of the warm-up.
    :param graphs: how many torch compiled in the warm-up, and in the timed rounds, where there should be none.
    """

    seconds: list[float] = field(default_factory=list)
    outputs: list[list[list[int]]] = field(default_factory=list)
    forwards: int = 0
    row_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    cpu: list[list[float]] = field(default_factory=list)
    failed: str | None = None
    warming_up: float = 0.0
    graphs: tuple[int, int] = (0, 0)

    @property
    def tokens(self) -> int:
        """Generated tokens of one round."""
        return sum(len(outputs[0]) for outputs in self.outputs)


class CutShortError(KeyboardInterrupt):
    """Ctrl-C came behind the first timed round.

    :ivar taken: what every way did with each batch, with the whole rounds alone.
    """

    def __init__(self, taken: list[list[Taken]]) -> None:
        super().__init__()
        self.taken = taken


def joined(parts: Sequence[Taken]) -> Taken:
    """Return what one way did with several batches together; their rounds are added up, first with first."""
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("forwards", "row_forwards", "drafted", "accepted")}
    return Taken(
        seconds=[sum(round_) for round_ in zip(*(part.seconds for part in parts), strict=True)],
        outputs=[outputs for part in parts for outputs in part.outputs],
        cpu=[[seconds for batches in round_ for seconds in batches] for round_ in zip(*(part.cpu for part in parts), strict=True)],
        failed=parts[0].failed,
        warming_up=sum(part.warming_up for part in parts),
        graphs=(sum(part.graphs[0] for part in parts), sum(part.graphs[1] for part in parts)),
        **counts,
    )


def interleaved(model: Any, ways: Sequence[Way], batches: Sequence[Batch], rounds: int, tick: Callable[[], None]) -> list[list[Taken]]:
    """Warm every way up once, which counts its forward passes, then take the timed rounds; the order turns by one each round.

    What is Transformers' own and fails in its warm-up takes no part in the rounds: it says why, and the others go on.

    :param tick: called after every run, for a progress bar.
    :returns: for every way what it did with each batch.
    :raises CutShortError: it was interrupted after a whole round at least; before that it is a mere KeyboardInterrupt.
    """
    taken = [_warmed_up(model, way, batches, tick) for way in ways]
    for number in range(rounds):
        turn = number % len(ways)
        try:
            for i in (*range(turn, len(ways)), *range(turn)):
                if not taken[i][0].failed:
                    _timed(model, ways[i], batches, taken[i])
                tick()
        except KeyboardInterrupt as exc:
            if number == 0:
                raise
            raise CutShortError(_first_rounds(taken, number)) from exc
    return taken


def _timed(model: Any, way: Way, batches: Sequence[Batch], taken: Sequence[Taken]) -> None:
    """Add a timed run to what a way did with each batch."""
    compiled = graphs()
    runs = way.run(model, batches)
    first = taken[0]
    first.graphs = (first.graphs[0], first.graphs[1] + graphs() - compiled)
    for part, batch, (rows, seconds, cpu) in zip(taken, batches, runs, strict=True):
        part.seconds.append(seconds)
        part.cpu.append([cpu])
        for known, output in zip(part.outputs, _outputs(model, batch, rows), strict=True):
            if output not in known:
                known.append(output)


def _first_rounds(taken: list[list[Taken]], count: int) -> list[list[Taken]]:
    """Forget the times of later rounds; an output that one of them gave stays, since it was given."""
    for part in (part for parts in taken for part in parts):
        del part.seconds[count:], part.cpu[count:]
    return taken


def _warmed_up(model: Any, way: Way, batches: Sequence[Batch], tick: Callable[[], None]) -> list[Taken]:
    try:
        return _warm_up(model, way, batches, tick)
    except Exception as exc:
        if way.family != "transformers":
            raise
        tick()
        return [Taken(failed=f"failed in Transformers with {type(exc).__name__}: {' '.join(str(exc).split())}") for _ in batches]


def _warm_up(model: Any, way: Way, batches: Sequence[Batch], tick: Callable[[], None]) -> list[Taken]:
    taken = []
    for batch in batches:
        before, compiled, began = way.counted(), graphs(), time.perf_counter()
        with _counting(model) as passes:
            ((rows, _, _),) = way.run(model, [batch])
        drafted, accepted = (now - then for now, then in zip(way.counted(), before, strict=True))
        outputs = [[output] for output in _outputs(model, batch, rows)]
        new_graphs, seconds = (graphs() - compiled, 0), time.perf_counter() - began
        taken.append(Taken([], outputs, len(passes), sum(passes), drafted, accepted, graphs=new_graphs, warming_up=seconds))
    tick()
    return taken


def graphs() -> int:
    """Return how many graphs torch has compiled in this process so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


@contextmanager
def _counting(model: Any) -> Iterator[list[int]]:
    """Yield a list that grows by the number of rows of each of the model's whole forward passes; an early exit lowers its number of layers."""
    passes: list[int] = []
    name, layers = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids", _layers(model)

    def count(_: Any, __: Any, given: dict[str, Any]) -> None:
        if _layers(model) == layers:
            passes.append(len(given[name]))

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


def _layers(model: Any) -> int | None:
    layers: int | None = getattr(model.config, "num_hidden_layers", None)
    return layers


def _outputs(model: Any, batch: Batch, rows: Sequence[list[int]]) -> list[list[int]]:
    """Return what each row generated: behind what stands before it, up to the token that ended it."""
    eos = set(eos_ids(model))
    return [until(eos, row[batch.before :]) for row in rows]


def until(eos: set[int], tokens: list[int]) -> list[int]:
    """Return the tokens up to and including the first of `eos`."""
    end = next((at for at, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[: end + 1]
