"""What a measurement means: speeds, their ratio, and whether the output is the plain one, and where not."""

from __future__ import annotations

from itertools import zip_longest
from statistics import median
from typing import Any, Final

from accelplug.cli.command import Document
from accelplug.cli.job import Job, Measurement

NEAR_TIE: Final = 1e-4
"""Two float32 logits closer than this may swap when the forward pass has another width."""
ROUNDING: Final = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Relative spacing of a dtype's numbers: below it, two logits are the same number with noise on it."""
LOGIT_SCALE: Final = 16.0
"""Logits that matter are about this large at most, which turns the relative spacing into an absolute one."""


def near_tie_below(dtype: str) -> float:
    """Return the margin under which the two best logits of a row count as tied in this dtype."""
    return max(NEAR_TIE, LOGIT_SCALE * ROUNDING.get(dtype, 0.0))


def first_difference(plain: list[int], accelerated: list[int], margins: list[float] | None) -> Document | None:
    """Return where two outputs part: position, both tokens (None past an end), and plain's margin in that row."""
    for position, (expected, found) in enumerate(zip_longest(plain, accelerated)):
        if expected != found:
            margin = margins[position] if margins is not None and position < len(margins) else None
            return {"position": position, "plain": expected, "accelerated": found, "margin": margin}
    return None


def speed(seconds_and_tokens: list[float]) -> float:
    """Return the median of the rounds."""
    return round(median(seconds_and_tokens), 2)


def document(job: Job, measured: Measurement) -> Document:
    """Return everything about a run as plain JSON values."""
    plain, accelerated = measured.plain, measured.accelerated
    ratio = None if plain is None else round(median(accelerated.speeds) / median(plain.speeds), 3)
    return {
        "text": accelerated.text,
        "tokens": len(accelerated.tokens),
        "tokens_per_s": speed(accelerated.speeds),
        "plain_tokens_per_s": None if plain is None else speed(plain.speeds),
        "ratio": ratio,
        **_agreement(job, measured),
        **{key: measured.stats[key] for key in ("drafted", "accepted", "acceptance", "tokens_per_forward", "lossy_accepts", "techniques")},
        "seconds": {"accelerated": accelerated.seconds, "plain": None if plain is None else plain.seconds},
        "grammar": None if measured.grammar is None else {"asked": job.grammar, **measured.grammar},
        "method": measured.method,
        "dtype": measured.dtype,
        "versions": measured.versions,
        **_asked(job),
    }


def _asked(job: Job) -> dict[str, Any]:
    keys = ("host", "model", "prompt", "drafter", "verifier", "max_new_tokens", "temperature", "seed", "rounds", "threads", "allow_lossy")
    return {key: getattr(job, key) for key in keys}


def _agreement(job: Job, measured: Measurement) -> Document:
    if measured.plain is None:
        return {"identical": None, "first_difference": None, "near_ties": None, "near_tie_below": None}
    tie = near_tie_below(measured.dtype)
    parting = first_difference(measured.plain.tokens, measured.accelerated.tokens, measured.margins)
    if parting is not None:
        parting["near_tie"] = parting["margin"] is not None and parting["margin"] < tie
    greedy = job.temperature == 0 and measured.margins is not None
    near = sum(margin < tie for margin in measured.margins or ()) if greedy else None
    return {"identical": parting is None, "first_difference": parting, "near_ties": near, "near_tie_below": tie if greedy else None}


def verdict(found: Document) -> str:
    """Say in one line whether the output is plain generation's."""
    if found["identical"] is None:
        return "not compared; add --compare"
    parting, sampled = found["first_difference"], found["temperature"] > 0
    if parting is None:
        rows = "" if sampled else f"; {_near(found)} on the way"
        return f"identical to plain generation, {found['tokens']} tokens{' with the same seed' if sampled else rows}"
    where = f"token {parting['position']}"
    if sampled:
        return f"differs from plain generation at {where}: sampled with the same seed, which a lossless verifier keeps in distribution only"
    margin = "" if parting["margin"] is None else f", where plain's two best logits are {parting['margin']:.2g} apart"
    if parting["near_tie"]:
        return f"identical up to a near-tie at {where}{margin} ({found['dtype']}; {_near(found)} in plain's output)"
    return f"DIFFERENT from plain generation at {where}{margin}"


def _near(found: Document) -> str:
    count = found["near_ties"]
    return f"{count} near-tie{'' if count == 1 else 's'} (margin under {found['near_tie_below']:.2g})"


def status(found: Document) -> int:
    """Return 1 where a run that must be exact was not (greedy, nothing lossy asked for, and no near-tie), or an answer failed its grammar's check."""
    parting, grammar = found["first_difference"], found["grammar"]
    differs = parting is not None and found["temperature"] == 0 and not found["allow_lossy"] and not parting["near_tie"]
    return int(differs or (grammar is not None and grammar["problem"] is not None))
