"""Capability words, and the one place that decides whether a selected set of techniques can run on a host.

A technique lists what it needs, a host lists what it provides. Whatever does not match is refused before the first
token, with every problem in one error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from accelplug._errors import HostError
from accelplug.hooks.drafting import DrafterTraits, NodeKind
from accelplug.hooks.options import fields_of
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import VerifierTraits

WORDS: Final[Mapping[str, str]] = {
    "draft.rows": "a sampled draft node's probability row reaches the verifier",
    "mask.tree": "the forward pass can verify a tree of drafts",
    "verify.rule": "verification rules of plugins run; without it only the engine's own token-wise rule does",
    "verify.path": "rules that judge a request's drafts as a whole run",
    "sampling": "requests may be sampled at a temperature",
    "mask.grammar": "a grammar's mask is laid on every row before a token is chosen from it",
    "tokens.device": "committed tokens are read on the device without synchronising",
    "logits.full": "whole logit rows of verified positions",
    "logits.topk": "the top-k of verified rows",
    "hidden.last": "hidden states of the last layer",
    "hidden.layer": "hidden states of named layers",
    "embed": "the embedding and output matrices",
    "model.second": "a second model beside the target",
    "prompt.span": "which span of the prompt a request points at",
}
"""What the words mean. A host's ``provides`` is a subset; a technique's ``needs`` too, or it is refused as misspelt."""


@dataclass(frozen=True, slots=True)
class Host:
    """An engine as admission sees it: its name as users know it, and the capability words it provides."""

    name: str
    provides: frozenset[str]


@dataclass(frozen=True, slots=True)
class Selection:
    """The techniques chosen for one engine. At most one drafter, one verifier and one grammar's engine."""

    drafter: Technique | None
    verifier: Technique
    grammar: Technique | None = None

    def __iter__(self) -> Iterator[Technique]:
        return iter(technique for technique in (self.drafter, self.verifier, self.grammar) if technique is not None)


def drafter_traits(technique: Technique) -> DrafterTraits:
    """Return what a drafter says about itself; the defaults where it says nothing."""
    traits = _declared(technique, DrafterTraits())
    if not isinstance(traits, DrafterTraits):
        raise HostError(f"{technique}: its traits are a {type(traits).__name__}; make them an accelplug.hooks.DrafterTraits")
    return traits


def verifier_traits(technique: Technique) -> VerifierTraits:
    """Return what a verification rule says about itself, which it must.

    :raises HostError: it has no traits, or neither ``accept`` nor ``choose`` for them to be true of, or ``choose_on_device`` alone.
    """
    traits = _declared(technique, None)
    if not isinstance(traits, VerifierTraits):
        raise HostError(f"{technique}: it has no traits; give it 'traits = accelplug.hooks.VerifierTraits(lossless=...)'")
    if judges_chains(technique) and not judges_paths(technique):
        raise HostError(f"{technique} has choose_on_device(view) without choose(view), which other hosts ask; give it both")
    if not callable(getattr(technique.instance, "accept", None)) and not judges_paths(technique):
        raise HostError(f"{technique} has no accept(view); give it one that returns each candidate's acceptance probability")
    return traits


def _declared(technique: Technique, default: object) -> Any:
    """Return an instance's traits. A property that fails inside is the author's to see, and no lack of traits."""
    instance = technique.instance
    if not hasattr(type(instance), "traits") and not hasattr(instance, "traits"):
        return default
    try:
        return instance.traits
    except Exception as exc:
        raise HostError(f"{technique}: reading its traits raised {type(exc).__name__}: {exc}; mend the property") from exc


def judges_paths(technique: Technique) -> bool:
    """Whether a verifier judges a request's drafts as a whole."""
    return callable(getattr(technique.instance, "choose", None))


def judges_chains(technique: Technique) -> bool:
    """Whether a verifier judges the chains of a whole batch at once, on the device."""
    return callable(getattr(technique.instance, "choose_on_device", None))


def admit(selection: Selection, host: Host, *, sampling: bool, allow_lossy: bool = False) -> None:
    """Refuse what the host cannot run right.

    :param sampling: requests are sampled; False for greedy decoding.
    :param allow_lossy: the user asked for output that may differ from the target model's.
    :raises HostError: one message that lists every problem, each with what to use instead.
    """
    problems = [*_drafter_problems(selection, host), *_verifier_problems(selection.verifier, host, sampling, allow_lossy)]
    if selection.grammar is not None:
        problems += _missing(selection.grammar, {"mask.grammar"}, host)
    if problems:
        raise HostError(f"{host.name} cannot run this selection: " + "; ".join(problems))


def _drafter_problems(selection: Selection, host: Host) -> Iterable[str]:
    if selection.drafter is None:
        return
    traits, who = drafter_traits(selection.drafter), selection.drafter
    needs = set(traits.needs)
    if traits.shape == "tree":
        needs.add("mask.tree")
    if traits.kinds - {NodeKind.DELTA}:
        needs.add("draft.rows")
    if traits.top_k:
        needs.add("logits.topk")
    if traits.hidden_layers:
        needs.add("hidden.layer")
    yield from _missing(who, needs, host)
    if unjudged := traits.kinds - verifier_traits(selection.verifier).kinds:
        names = ", ".join(sorted(kind.name.lower() for kind in unjudged))
        yield f"{who} drafts {names} nodes, which {selection.verifier} cannot judge; use verifier 'token_wise'"
    if traits.shape == "tree" and verifier_traits(selection.verifier).shape == "chain":
        yield f"{who} drafts trees and {selection.verifier} judges chains only; use verifier 'token_wise'"
    if traits.scope != "request" and not _chose_scope(who, traits.scope):
        yield f"{who} remembers across requests (scope {traits.scope!r}), which nobody asked for by an option scope; use one whose scope is 'request'"


def _chose_scope(who: Technique, scope: str) -> bool:
    """Whether the user widened what the technique remembers, by an option of it that is ``"request"`` by default."""
    offered = fields_of(who.factory).get("scope")
    return offered is not None and offered.default == "request" and getattr(who.instance, "scope", None) == scope


def _verifier_problems(who: Technique, host: Host, sampling: bool, allow_lossy: bool) -> Iterable[str]:
    traits = verifier_traits(who)
    needs = set(traits.needs) if traits.standard else {*traits.needs, "verify.path" if judges_paths(who) else "verify.rule"}
    yield from _missing(who, needs, host)
    if traits.lossless is None and not allow_lossy:
        yield f"{who} may change the output; pass allow_lossy=True (in commands --allow-lossy) to accept that, or use verifier 'token_wise'"
    elif traits.lossless == "greedy" and sampling and not allow_lossy:
        yield f"{who} is exact for greedy decoding only and do_sample is on; use verifier 'token_wise'"


def _missing(who: Technique, needs: Iterable[str], host: Host) -> Iterable[str]:
    for word in sorted(needs):
        if word not in WORDS:
            yield f"{who} needs {word!r}, which is no capability; the words are {', '.join(WORDS)}"
        elif word not in host.provides:
            yield f"{who} needs {word!r} ({WORDS[word]}), which {host.name} does not provide"
