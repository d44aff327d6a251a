"""One run as plain values, so that it travels to another process, and what comes back from an engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate, on which model, through which techniques, how often.

    :param temperature: 0 decodes greedily.
    :param rounds: timed repetitions after one warm-up.
    :param threads: of the CPU; None leaves the engine's choice.
    :param grammar: what the answer must be, as `GrammarSpec.of` reads it; None where it is free.
    """

    host: str
    model: str
    prompt: str
    drafter: str
    verifier: str
    max_new_tokens: int
    temperature: float
    seed: int
    dtype: str
    compare: bool
    rounds: int
    threads: int | None
    allow_lossy: bool
    grammar: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Output:
    """What one way of decoding generated, and how long each timed round of it took."""

    tokens: list[int]
    text: str
    seconds: list[float]

    @property
    def speeds(self) -> list[float]:
        """Generated tokens per second, one value per round."""
        return [len(self.tokens) / seconds for seconds in self.seconds]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a host measured for a job.

    :param plain: the model alone; None unless the job compares.
    :param margins: how far the two best logits of each of plain's rows lie apart, [num_plain_tokens].
    :param stats: the host's counters for one accelerated round.
    :param dtype: of the weights, as the engine loaded them.
    :param method: how the rounds were taken, for people.
    :param versions: distribution -> version.
    :param grammar: which engine compiled it, the keywords that its mask has ``enforced``, those ``checked`` at the end, and the
        ``problem`` that this check found, or None; None without a grammar.
    """

    accelerated: Output
    plain: Output | None
    margins: list[float] | None
    stats: dict[str, Any]
    dtype: str
    method: str
    versions: dict[str, str]
    grammar: dict[str, Any] | None = None
