"""What was done, by which plugin: the same counters on every host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

from accelplug.hooks.registry import Technique


@dataclass(slots=True)
class TechniqueStats:
    """One technique's share, with its attribution. For a verifier, `drafts` and `drafted` are what it judged, for a grammar what it forced.

    :param instance: what is asked for the bytes that it keeps beyond its requests.
    """

    kind: str
    name: str
    distribution: str
    version: str
    spec: str
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    instance: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, technique: Technique) -> TechniqueStats:
        """Start counting for a built technique."""
        owner = technique.owner
        return cls(technique.kind, technique.name, owner.distribution, owner.version, technique.spec, instance=technique.instance)

    @property
    def kept_bytes(self) -> int:
        """About what the technique keeps in memory beyond its requests; 0 where it says nothing of that."""
        return int(getattr(self.instance, "kept_bytes", 0))

    def as_dict(self) -> dict[str, Any]:
        """Return every counter as plain JSON values."""
        counted = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "instance"}
        return counted | {"kept_bytes": self.kept_bytes}


class Forced(NamedTuple):
    """What a grammar forced of a step's drafts.

    :param drafted: nodes that were verified.
    :param accepted: those among them that were accepted.
    :param drafts: drafts that hold any of them.
    :param alone: drafts that hold nothing else.
    """

    drafted: int = 0
    accepted: int = 0
    drafts: int = 0
    alone: int = 0


NOTHING_FORCED: Final = Forced()


@dataclass(slots=True)
class Stats:
    """Counters since the session or engine began.

    `tokens` counts generated tokens, `forwards` the target model's forward passes, once for every request in
    them and the prefill included. `drafts` counts drafts of at least one node that were verified, `drafted` their
    nodes, `accepted` those that became output. `lossy_accepts` counts accepted tokens that the lossless rule would
    have rejected with the same random number. `batches` says how the rows of the last batch
    advanced, "ragged" or "lockstep", where the host has both, and `lockstep_because` why not each at its own pace.
    `pruned` counts draft nodes that a grammar cut before they were verified. `siblings` has [reached, accepted] for the first, second, ...
    of the siblings in trees, in drawing order: how often their parent was output, and how often they were.
    """

    requests: int = 0
    forwards: int = 0
    tokens: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    lossy_accepts: int = 0
    pruned: int = 0
    propose_seconds: float = 0.0
    batches: str | None = None
    lockstep_because: str | None = None
    siblings: list[list[int]] = field(default_factory=list)
    techniques: list[TechniqueStats] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Share of drafted nodes that became output; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens per request and forward pass; 1 without speculation."""
        return self.tokens / self.forwards if self.forwards else 0.0

    @property
    def sibling_acceptance(self) -> list[float]:
        """How often the first, second, ... sibling of a tree is the accepted one; empty for chains."""
        return [accepted / reached for reached, accepted in self.siblings]

    def count_siblings(self, siblings: Sequence[int], accepted: int) -> None:
        """Add the nodes that followed one token of the output.

        :param accepted: which of them became output, none where it is no sibling.
        """
        for rank, node in enumerate(siblings):
            if rank == len(self.siblings):
                self.siblings.append([0, 0])
            self.siblings[rank][0] += 1
            self.siblings[rank][1] += node == accepted

    def count(self, drafts: int, drafted: int, accepted: int, forced: Forced = NOTHING_FORCED) -> None:
        """Add one step's drafts to the totals and to every technique.

        :param drafts: how many of the step's requests had a draft of at least one node.
        """
        self.drafts += drafts
        self.drafted += drafted
        self.accepted += accepted
        for technique in self.techniques:
            of_all = technique.kind == "verifier"
            of_grammar = technique.kind == "grammar"
            technique.drafts += drafts if of_all else forced.drafts if of_grammar else drafts - forced.alone
            technique.drafted += drafted if of_all else forced.drafted if of_grammar else drafted - forced.drafted
            technique.accepted += accepted if of_all else forced.accepted if of_grammar else accepted - forced.accepted

    def as_dict(self) -> dict[str, Any]:
        """Return every counter, and the ratios, as plain JSON values."""
        counted = {one.name: getattr(self, one.name) for one in fields(self)}
        said = {"techniques": [technique.as_dict() for technique in self.techniques]}
        ratios = {name: getattr(self, name) for name in ("acceptance", "tokens_per_forward", "sibling_acceptance")}
        return counted | said | ratios
