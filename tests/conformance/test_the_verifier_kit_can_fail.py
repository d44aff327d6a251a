"""Every check of VerifierConformance fails for somebody: a rule that is wrong in the one way that the check is about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar
from unittest import SkipTest

import pytest
import torch

from accelplug import AccelplugError
from accelplug.hooks import ROOT, ChainsChoice, Choice, NodeKind, VerifierTraits, option, residual
from accelplug.testing import VerifierConformance


class Rule:
    """A right rule to go wrong from."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling")

    def accept(self, view):
        return (view.target_at_tokens() / view.draft_at_tokens()).clamp(max=1)

    def residual(self, view):
        return residual(view)


class HalvesPointMasses(Rule):
    """Takes a deterministic token for one that was drawn with probability 1/2."""

    def accept(self, view):
        return (view.target_at_tokens() / view.draft_at_tokens().where(view.kinds != NodeKind.DELTA, 0.5)).clamp(max=1)


class ReadsUndefinedRows(Rule):
    """Divides by the drafter's score of a token that was not drawn."""

    def accept(self, view):
        if view.draft is None:
            return super().accept(view)
        return (view.target_at_tokens() / view.draft.gather(1, view.tokens[:, None])[:, 0]).clamp(max=1)


class ForgetsTheResidual(Rule):
    def residual(self, view):
        return view.target


class Prudish(Rule):
    """Exact, and useless."""

    def accept(self, view):
        return torch.zeros(len(view.tokens))

    def residual(self, view):
        return view.target


class Generous(Rule):
    traits = VerifierTraits(lossless="greedy")

    def accept(self, view):
        return torch.full((len(view.tokens),), 0.5)


class Unmasks(Rule):
    traits = VerifierTraits(lossless=None)

    def residual(self, view):
        return torch.full_like(view.target, 1 / view.target.shape[1])


class AboveOne(Rule):
    def accept(self, view):
        return view.target_at_tokens() / view.draft_at_tokens()


class OneForAll(Rule):
    def accept(self, view):
        return super().accept(view).min()


class HalfADistribution(Rule):
    def residual(self, view):
        return residual(view) / 2


class AcrossRows(Rule):
    def accept(self, view):
        return super().accept(view) / len(view.tokens)


class LeavesTheTargetInABatch(Rule):
    """Its residual is right for one candidate, which is as many as the enumeration asks about at once."""

    def residual(self, view):
        return residual(view) if len(view.tokens) == 1 else view.target


class SubtractsUndefinedRows(Rule):
    """Takes the drafter's row for what a token was drawn from that was not drawn."""

    def residual(self, view):
        drawn = view.drawn() if view.draft is None else view.draft
        left = (view.target - drawn).clamp(min=0)
        return (left / left.sum(-1, keepdim=True)).where(left.sum(-1, keepdim=True) > 0, view.target)


class WritesIntoTheTarget(Rule):
    def accept(self, view):
        return super().accept(view) * view.target.mul_(0.5).sum(-1).clamp(max=1)


class Unprovided(Rule):
    traits = VerifierTraits(lossless="sampling", needs={"hidden.last"})


class PathRule:
    """A right rule on whole drafts: it accepts nothing."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling")

    def choose(self, view):
        return Choice((), view.target[0])


class TakesFirstBranch(PathRule):
    """Accepts the first node of every level, asking nobody."""

    def choose(self, view):
        path, at = [], ROOT
        while children := view.children(at):
            at = children[0]
            path.append(at)
        return Choice(path, view.target[at + 1])


class WrongBelow(PathRule):
    """Right at the first level, where it draws from the residual; below it forgets to."""

    traits = VerifierTraits(lossless="sampling", shape="chain")

    def choose(self, view):
        for node, token in enumerate(view.tokens):
            target, drawn = view.target[node], view.drawn_from(node)
            if not view.below(min(1.0, float(target[token] / drawn[token]))):
                left = target if node else (target - drawn).clamp(min=0)
                return Choice(range(node), left / left.sum())
        return Choice(range(len(view.tokens)), view.target[-1])


class StopsAfterOne(PathRule):
    """Exact, and blind to the second level."""

    def choose(self, view):
        token, target = view.tokens[0], view.target[0]
        drawn = view.drawn_from(0)
        if view.below(min(1.0, float(target[token] / drawn[token]))):
            return Choice((0,), view.target[1])
        left = (target - drawn).clamp(min=0)
        return Choice((), left / left.sum())


class JumpsIn(PathRule):
    def choose(self, view):
        return Choice((len(view.tokens) - 1,), view.target[0])


class HalfARest(PathRule):
    def choose(self, view):
        return Choice((), view.target[0] / 2)


class AsksForTwo(PathRule):
    def choose(self, view):
        view.below(2.0)
        return Choice((), view.target[0])


class WritesIntoThePath(PathRule):
    def choose(self, view):
        view.target.mul_(0.5)
        return Choice((), view.target[0] * 2)


class TokenByToken(PathRule):
    """A right rule that judges chains in both forms."""

    traits = VerifierTraits(lossless="sampling", shape="chain")

    def choose(self, view):
        for node, token in enumerate(view.tokens):
            target, drawn = view.target[node], view.drawn_from(node)
            if not view.below(min(1.0, float(target[token] / drawn[token]))):
                left = (target - drawn).clamp(min=0)
                return Choice(range(node), left / left.sum())
        return Choice(range(len(view.tokens)), view.target[-1])

    def choose_on_device(self, view):
        kept = self.kept(view, view.below(view.padded((view.drafts.target_at_tokens() / view.drafts.draft_at_tokens()).clamp(max=1))))
        return ChainsChoice(kept, self.rest(view.drafts.at(view.following(kept))))

    def kept(self, view, accepted):
        return accepted.long().cumprod(1).sum(1)

    def rest(self, rejected):
        return residual(rejected)


class ForgetsWhatIsLeft(TokenByToken):
    def rest(self, rejected):
        return rejected.target


class TakesRowsForPlaces(TokenByToken):
    """Looks for the rejected draft in the first request."""

    def choose_on_device(self, view):
        kept = super().choose_on_device(view).kept
        return ChainsChoice(kept, residual(view.drafts.at(kept)))


class KeepsOneFewer(TokenByToken):
    """Gives the last draft up."""

    def kept(self, view, accepted):
        return torch.where(torch.arange(1, view.width + 1) < view.counts.unsqueeze(1), accepted, False).long().cumprod(1).sum(1)

    def rest(self, rejected):
        return rejected.target


class KeepsPadding(TokenByToken):
    def kept(self, view, accepted):
        return torch.full_like(view.counts, view.width)


class CountsThemOnTheHost(TokenByToken):
    def kept(self, view, accepted):
        return torch.tensor([row.index(False) if False in row else len(row) for row in accepted.tolist()])


@dataclass
class Scaled(Rule):
    """A right way to let requests say how much they accept."""

    share: float = option(0.5, ge=0.0, le=1.0, per_request=True)

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None)

    def shares(self, view):
        return view.parameters.get("share", self.share)

    def accept(self, view):
        return super().accept(view) * self.shares(view)


class IgnoresShares(Scaled):
    def shares(self, view):
        return self.share


class FirstSharesForAll(Scaled):
    def shares(self, view):
        return view.parameters["share"][0] if "share" in view.parameters else self.share


class SharesUpToItsOwn(Scaled):
    def shares(self, view):
        return torch.as_tensor(super().shares(view)).clamp(max=self.share)


class SharesTheTargetToo(Scaled):
    """Heeds requests in what it accepts, and not in what it leaves."""

    def residual(self, view):
        return residual(view) * self.share + view.target * (1 - self.share)


@dataclass
class AtMost(TokenByToken):
    """A right way to let requests say how many drafts they accept, in both forms."""

    most: int = option(1, ge=1, le=8, per_request=True)

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless=None, shape="chain")

    def choose(self, view):
        path = super().choose(view).path[: int(view.parameters.get("most", self.most))]
        return Choice(path, view.target[len(path)])

    def kept(self, view, accepted):
        most = view.drafts.parameters.get("most")
        return super().kept(view, accepted).clamp(max=self.most if most is None else view.padded(most).amax(1))

    def rest(self, rejected):
        return rejected.target


class AtMostItsOwn(AtMost):
    def choose(self, view):
        return super().choose(replace(view, parameters={}))


class AtMostItsOwnOnTheDevice(AtMost):
    def kept(self, view, accepted):
        return super().kept(replace(view, drafts=replace(view.drafts, parameters={})), accepted)


class AtMostAsAnother(AtMost):
    """Takes the first request's number for all on the device."""

    def kept(self, view, accepted):
        most = view.drafts.parameters.get("most")
        return TokenByToken.kept(self, view, accepted).clamp(max=self.most if most is None else most[0])


class Unheard(Scaled):
    def accept(self, view):
        return Rule.accept(self, view)


WRONG: list[tuple[str, object, str]] = [
    ("test_sampled_output_has_the_targets_distribution", HalvesPointMasses(), "is not exact on 'delta chain'"),
    ("test_sampled_output_has_the_targets_distribution", ForgetsTheResidual(), "is not exact on 'delta chain'"),
    ("test_sampled_output_has_the_targets_distribution", Prudish(), "none was accepted"),
    ("test_sampled_output_has_the_targets_distribution", TakesFirstBranch(), "is not exact"),
    ("test_sampled_output_has_the_targets_distribution", WrongBelow(), "is not exact on 'delta chain'"),
    ("test_sampled_output_has_the_targets_distribution", StopsAfterOne(), "nodes at level 2 of its drafts none was accepted"),
    ("test_greedy_output_is_the_targets_best", Generous(), "under greedy decoding"),
    ("test_greedy_output_is_the_targets_best", PathRule(), "none was accepted"),
    ("test_masked_tokens_never_come_out", Unmasks(), "lets masked tokens out"),
    ("test_answers_are_probabilities", AboveOne(), "it lies between 0 and 1"),
    ("test_answers_are_probabilities", OneForAll(), "one per row"),
    ("test_answers_are_probabilities", HalfADistribution(), "its residual sums to 0.5"),
    ("test_answers_are_probabilities", JumpsIn(), "lead from the first level down"),
    ("test_answers_are_probabilities", TakesFirstBranch(), "accepted the masked token"),
    ("test_answers_are_probabilities", HalfARest(), "its Choice.rest sums to 0.5"),
    ("test_answers_are_probabilities", AsksForTwo(), "view.below was asked for 2"),
    ("test_rows_are_judged_alone", AcrossRows(), "in a batch and"),
    ("test_rows_are_judged_alone", ReadsUndefinedRows(), "in a batch and"),
    ("test_rows_are_judged_alone", LeavesTheTargetInABatch(), "a candidate's residual differs"),
    ("test_rows_are_judged_alone", SubtractsUndefinedRows(), "a candidate's residual differs"),
    ("test_chains_are_judged_on_the_device_as_elsewhere", ForgetsWhatIsLeft(), "judges otherwise on the device on 'delta chain'"),
    ("test_chains_are_judged_on_the_device_as_elsewhere", TakesRowsForPlaces(), "judges otherwise on the device"),
    ("test_chains_are_judged_on_the_device_as_elsewhere", KeepsOneFewer(), "judges otherwise on the device"),
    ("test_chains_are_judged_on_the_device_as_elsewhere", KeepsPadding(), "keep no more than view.counts"),
    ("test_judging_on_the_device_needs_no_synchronisation", CountsThemOnTheHost(), "reads values of the device"),
    ("test_views_are_left_as_they_were", WritesIntoTheTarget(), "wrote into view.target"),
    ("test_views_are_left_as_they_were", WritesIntoThePath(), "wrote into view.target"),
    ("test_a_request_may_send_its_own_values", IgnoresShares(), "does not judge a request that sends its own share as it does built with that"),
    ("test_a_request_may_send_its_own_values", FirstSharesForAll(), "does not judge a request that sends its own share"),
    ("test_a_request_may_send_its_own_values", SharesUpToItsOwn(), "does not judge a request that sends its own share"),
    ("test_a_request_may_send_its_own_values", SharesTheTargetToo(), "does not judge a request that sends its own share"),
    ("test_a_request_may_send_its_own_values", AtMostItsOwn(), "does not judge a request that sends its own most"),
    ("test_a_request_may_send_its_own_values", AtMostItsOwnOnTheDevice(), "does not judge a request that sends its own most"),
    ("test_a_request_may_send_its_own_values", AtMostAsAnother(), "does not judge a request that sends its own most"),
    ("test_it_is_admitted_for_what_it_promises_only", Unprovided(), "needs 'hidden.last'"),
]
RIGHT = [
    ("test_sampled_output_has_the_targets_distribution", Rule()),
    ("test_views_are_left_as_they_were", Rule()),
    ("test_rows_are_judged_alone", Rule()),
    ("test_sampled_output_has_the_targets_distribution", TokenByToken()),
    ("test_chains_are_judged_on_the_device_as_elsewhere", TokenByToken()),
    ("test_judging_on_the_device_needs_no_synchronisation", TokenByToken()),
    ("test_a_request_may_send_its_own_values", Scaled()),
    ("test_a_request_may_send_its_own_values", AtMost()),
]


def _name(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


def _run(check: str, technique: object) -> None:
    getattr(type("Kit", (VerifierConformance,), {"technique": technique})(), check)()


@pytest.mark.parametrize(("check", "technique", "match"), WRONG, ids=_name)
def test_a_wrong_implementation_fails(check, technique, match):
    with pytest.raises((AssertionError, AccelplugError, KeyError), match=match):
        _run(check, technique)


@pytest.mark.parametrize(("check", "technique"), RIGHT, ids=_name)
def test_the_right_one_beside_it_passes(check, technique):
    _run(check, technique)


def test_values_that_change_nothing_prove_nothing():
    with pytest.raises(SkipTest, match="judges here alike with every value of share"):
        _run("test_a_request_may_send_its_own_values", Unheard())


def test_every_check_has_somebody_who_fails_it():
    assert {check for check, _, _ in WRONG} == {name for name in vars(VerifierConformance) if name.startswith("test_")}
